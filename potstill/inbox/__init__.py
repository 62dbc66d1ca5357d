"""New prompts that landed and wait for a run, under `inbox/<recipe>/` of the state directory.

What others need: `seal` takes all that has landed into immutable segments, `count_landed` says how much waits, `lying_in`
where something lies.
"""

import glob
from pathlib import Path

from potstill.inbox.inbox import LANDED, SEGMENTS, Inbox, Landing, inbox_path

__all__ = ["Inbox", "Landing", "count_landed", "inbox_path", "lying_in", "seal"]


def seal(home: Path, recipe_name: str) -> list[Path]:
    """Move what has landed into a new segment, and return every segment of the recipe, oldest first.

    Segments are JSONL that the readers of `potstill.curation` take, and never change. After a crash at any step the next
    call completes what was begun; two calls at once take turns. Errors: `InboxError`; `DataError` for no recipe's name.
    """
    if not inbox_path(home, recipe_name).is_dir():
        return []
    with Inbox(home, recipe_name) as inbox:
        return inbox.seal()


def count_landed(home: Path, recipe_name: str) -> int:
    """How many prompts have landed and are in no segment. Errors: as `seal`."""
    if not inbox_path(home, recipe_name).is_dir():
        return 0
    with Inbox(home, recipe_name) as inbox:
        return inbox.num_waiting()


def lying_in(home: Path, recipe_name: str) -> str | None:
    """A glob of what lies in the inbox, for who looks and takes nothing; None where nothing does.

    It is the segments where there are some, since these never go away. Errors: `DataError` for no recipe's name.
    """
    path = inbox_path(home, recipe_name)
    found = (path / name for name in (SEGMENTS, LANDED) if any((path / name).glob("*.jsonl")))
    return next((f"{glob.escape(str(folder))}/*.jsonl" for folder in found), None)
