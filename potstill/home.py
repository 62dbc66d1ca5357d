"""Where state lives: `POTSTILL_HOME`, or `.potstill/` of the working directory."""

import os
from pathlib import Path


def potstill_home() -> Path:
    """The absolute path of the state directory; it is created (0700) on first use."""
    home = Path(os.environ.get("POTSTILL_HOME") or ".potstill").expanduser().absolute()
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    return home
