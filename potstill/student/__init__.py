"""The student model: where its base comes from, and the one way it generates."""
