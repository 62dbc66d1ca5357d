"""The released student behind an OpenAI-compatible endpoint."""
