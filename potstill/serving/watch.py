"""What the gateway knows of releases in a bucket, so that no request waits for the bucket, and none fails while it is away.

A champion that moves counts within `POLL_SECONDS` and one answer of the bucket, a new one once its files are here; until then,
and while the bucket does not answer, the last one that is known serves.
"""

import asyncio
import logging
from pathlib import Path

from potstill.errors import PotstillError, StoreUnreachableError
from potstill.release import Version, aliases, resolve, version_directory

POLL_SECONDS = 0.25

log = logging.getLogger(__name__)


class ReleaseWatch:
    """Champions and versions, kept in memory; see the module."""

    def __init__(self, home: Path, champions: list[Version]) -> None:
        self._home = home
        self._champions = {version.recipe: version for version in champions}
        self._versions = {version.name: version for version in champions}
        self._trouble = ""

    async def resolve(self, model: str) -> Version:
        """As `potstill.release.resolve`; the bucket is asked for what is not known yet."""
        known = self._champions.get(model) or self._versions.get(model)
        if known is not None:
            return known
        version = await asyncio.to_thread(resolve, self._home, model)
        self._versions[version.name] = version
        if model == version.recipe:
            self._champions.setdefault(model, version)
        return version

    def known(self) -> list[tuple[str, Version]]:
        """Every name that is known and the version it means."""
        return [*self._champions.items(), *self._versions.items()]

    async def run(self) -> None:
        """Follow the champions, until it is cancelled."""
        while True:
            await asyncio.sleep(POLL_SECONDS)
            await asyncio.to_thread(self._look)

    def _look(self) -> None:
        trouble = ""
        for recipe in list(self._champions):
            try:
                self._follow(recipe)
            except StoreUnreachableError as error:
                trouble = f"the last known champions go on serving: {error}"
                break
            except PotstillError as error:
                trouble = f"{self._champions[recipe].name} goes on serving: {error}"
        if trouble and not self._trouble:
            log.warning("%s", trouble)
        if self._trouble and not trouble:
            log.warning("champions are followed again")
        self._trouble = trouble

    def _follow(self, recipe: str) -> None:
        champion = aliases(self._home, recipe).champion
        if champion is None or champion == self._champions[recipe].version:
            return
        name = f"{recipe}@{champion}"
        version = self._versions.get(name) or resolve(self._home, name)
        version_directory(self._home, version)
        self._versions[name] = version
        self._champions[recipe] = version
