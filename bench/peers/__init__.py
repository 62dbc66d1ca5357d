"""What else answers prompts in bulk, each in an environment of its own: see `environments`."""
