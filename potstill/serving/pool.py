"""The backends of one server: one for each base model that a released version stands on, started when it is needed."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

from potstill.artifacts import store_at
from potstill.errors import ReleaseError
from potstill.recipe import Student
from potstill.release import Version, verify, version_directory
from potstill.serving.backends import Backend
from potstill.student.base import Base, resolve_base

StartBackend = Callable[[Base], Awaitable[Backend]]


class BackendPool:
    """Finds the backend that answers for a version, with its adapter loaded.

    Args:
        home: the state directory that holds releases and artefacts.
        start: starts a backend for a base and returns when it answers.
    """

    def __init__(self, home: Path, start: StartBackend) -> None:
        self._home = home
        self._start = start
        self._starts: dict[str, asyncio.Task[Backend]] = {}
        self._verified: dict[str, Path] = {}
        """The directory of each version whose files were checked."""

    @property
    def backends(self) -> dict[str, Backend]:
        """By the identity of their base."""
        return {identity: task.result() for identity, task in self._starts.items() if _came_up(task)}

    async def ready(self, version: Version) -> Backend:
        """The backend on which this version answers now.

        Every file of a version is checked once before it is loaded.
        Errors: `ArtifactDamagedError`; `ReleaseError` where the base is no longer the one that was evaluated;
        `SubprocessError`, `BackendDownError` where the backend does not come up.
        """
        directory = self._verified.get(version.name)
        if directory is None:
            directory = await asyncio.to_thread(version_directory, self._home, version)
            await asyncio.to_thread(verify, directory)
            self._verified[version.name] = directory
        backend = await self._started(version)
        await backend.load(version.name, directory / "adapter")
        return backend

    async def stop(self) -> None:
        for task in self._starts.values():
            task.cancel()
        if self._starts:
            await asyncio.wait(self._starts.values())
        await asyncio.gather(*(backend.stop() for backend in self.backends.values()))

    async def _started(self, version: Version) -> Backend:
        """One start serves all who wait for it, and goes on where they go away; a failed one is tried again."""
        task = self._starts.get(version.base_identity)
        if task is None or (task.done() and not _came_up(task)):
            task = asyncio.create_task(self._begin(version))
            self._starts[version.base_identity] = task
        return await asyncio.shield(task)

    async def _begin(self, version: Version) -> Backend:
        return await self._start(await asyncio.to_thread(self._base, version))

    def _base(self, version: Version) -> Base:
        student = Student(base=version.base_location, revision=version.base_revision)
        base = resolve_base(student, store_at(self._home))
        if base.identity != version.base_identity:
            raise ReleaseError(
                f"{version.name} was evaluated on {version.base_identity}, but {version.base_location} holds "
                f"{base.identity} now: bring the old base back, or run the recipe again"
            )
        return base


def _came_up(task: "asyncio.Task[Backend]") -> bool:
    return task.done() and not task.cancelled() and task.exception() is None
