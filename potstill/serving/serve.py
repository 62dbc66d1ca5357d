"""`potstill serve`: the released students behind one address, until a signal ends it."""

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

from potstill.errors import ReleaseError
from potstill.object_store import open_remote
from potstill.release import Version, aliases, all_recipes, resolve
from potstill.serving.backends import Backend
from potstill.serving.backends.managed import ManagedBackend
from potstill.serving.gateway import Gateway, backend_client
from potstill.serving.pool import BackendPool
from potstill.serving.server import bind, run_app, stop_event, url_of
from potstill.serving.watch import ReleaseWatch
from potstill.student.base import Base

log = logging.getLogger(__name__)


def serve(home: Path, host: str, port: int, on_ready: Callable[[str], None]) -> None:
    """Serve every release below `home` until SIGTERM or SIGINT; then end with every process that was started.

    Champions, and the versions that a rollback would bring back, are loaded before `on_ready(url)` is called: ready means
    ready. Port 0 is any free one. Call it in the main thread.

    Errors: `ReleaseError` where nothing is released; `UsageError` where the port is taken; `SubprocessError`,
    `ArtifactDamagedError` where a champion cannot be loaded.
    """
    champions = _served(home, "champion")
    if not champions:
        remote = open_remote()
        place = f"below {home}" if remote is None else f"in {remote.address}"
        raise ReleaseError(f"nothing is released {place}: run a recipe with `potstill run RECIPE`, then serve")
    asyncio.run(_serve(home, host, port, on_ready, champions))


async def _serve(home: Path, host: str, port: int, on_ready: Callable[[str], None], champions: list[Version]) -> None:
    stop = stop_event()
    with bind(host, port) as sock:
        async with backend_client() as client:

            async def start(base: Base) -> Backend:
                backend = ManagedBackend(base, home / "serving", client)
                await backend.start()
                return backend

            pool = BackendPool(home, start)
            watch = ReleaseWatch(home, champions) if open_remote() is not None else None
            watching = None if watch is None else asyncio.create_task(watch.run())
            try:
                if await _loaded(pool, home, champions, stop):
                    await run_app(Gateway(home, pool, client, watch).app, sock, stop, lambda: on_ready(url_of(sock)))
            finally:
                if watching is not None:
                    watching.cancel()
                await pool.stop()


async def _loaded(pool: BackendPool, home: Path, champions: list[Version], stop: asyncio.Event) -> bool:
    """Load what is served first; False where a signal came before that was done."""
    loading = asyncio.create_task(_load(pool, home, champions))
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({loading, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if not loading.done():
        loading.cancel()
        await asyncio.wait({loading})
        return False
    loading.result()
    return True


async def _load(pool: BackendPool, home: Path, champions: list[Version]) -> None:
    for version in champions:
        await pool.ready(version)
    for version in await asyncio.to_thread(_served, home, "previous"):
        try:
            await pool.ready(version)
        except Exception as error:  # noqa: BLE001  the champion serves without it; who asks for it gets the reason
            log.warning("%s cannot be loaded, a rollback to it would fail: %s", version.name, error)


def _served(home: Path, alias: str) -> list[Version]:
    names = {recipe: getattr(aliases(home, recipe), alias) for recipe in all_recipes(home)}
    return [resolve(home, f"{recipe}@{version}") for recipe, version in names.items() if version is not None]
