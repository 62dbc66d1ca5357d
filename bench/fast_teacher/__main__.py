"""`python -m bench.fast_teacher --help`: serve a fake teacher until SIGTERM."""

import argparse
import asyncio
import gc
from collections.abc import Sequence

from bench.fast_teacher import __doc__ as about
from bench.fast_teacher.server import serve
from bench.fast_teacher.settings import Settings


def read_flags(arguments: Sequence[str] | None = None) -> Settings:
    """Every field of `Settings` is a flag."""
    parser = argparse.ArgumentParser(prog="python -m bench.fast_teacher", description=about)
    for name, default in Settings._field_defaults.items():
        flag = f"--{name.replace('_', '-')}"
        if isinstance(default, bool):
            parser.add_argument(flag, dest=name, default=default, action=argparse.BooleanOptionalAction)
        else:
            choices = ("actual", "max") if name == "charge" else None
            parser.add_argument(flag, dest=name, default=default, type=type(default), choices=choices)
    return Settings(**vars(parser.parse_args(arguments)))


def main() -> None:
    """Serve on uvloop where it is installed, on asyncio's own loop elsewhere."""
    gc.disable()  # nothing here makes cycles, and the counts grow with the run
    try:
        from uvloop import new_event_loop  # pyright: ignore[reportMissingImports] - not a dependency
    except ImportError:
        new_event_loop = asyncio.new_event_loop
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(serve(read_flags()))


if __name__ == "__main__":
    main()
