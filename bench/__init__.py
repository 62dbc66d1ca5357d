"""Benchmarks: Potstill beside its peers, each sample in a fresh process, in turns. `python -m bench` runs them."""
