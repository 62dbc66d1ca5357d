"""`python -m potstill.cli`: the same as `potstill`."""

from potstill.cli import main

main()
