"""The run on one self-contained HTML page."""
