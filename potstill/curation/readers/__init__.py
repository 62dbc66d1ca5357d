"""One file a format of input."""
