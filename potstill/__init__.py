"""Potstill: distils the production prompts of a frontier teacher into a small student of your own."""

__version__ = "0.1.0"
