"""The parent's side of the embedded backend: starts the child, watches it, and starts it again when it dies."""

import asyncio
import json
import logging
import os
import secrets
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import httpx

from potstill.errors import SubprocessError
from potstill.fingerprint import fingerprint
from potstill.serving.backends import BackendDownError
from potstill.serving.backends.embedded import KEY_VARIABLE
from potstill.student.base import Base
from potstill.subprocesses import Child

CHILD = "potstill.serving.backends.embedded"
POLL_SECONDS = 0.1
"""A dead child is noticed within this time."""
START_SECONDS = 600.0
"""How long loading the base may take."""
FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 30.0
"""Pauses before a restart double from the first to the longest; a child that lived longer than this starts anew."""

log = logging.getLogger(__name__)


class ManagedBackend:
    """A `Backend` in a child process of our own.

    Args:
        base: the model that it loads.
        state: directory for its log and its ready file.
        client: for the calls to it.
    """

    def __init__(self, base: Base, state: Path, client: httpx.AsyncClient) -> None:
        self._base = base
        self._state = state
        self._client = client
        self._key = secrets.token_urlsafe(32)
        self._url: str | None = None
        self._why_down = "it is being started"
        self._directories: dict[str, Path] = {}
        self._loaded: set[str] = set()
        self._loading = asyncio.Lock()
        self._watch: asyncio.Task[None] | None = None

    @property
    def log_path(self) -> Path:
        return self._state / f"{fingerprint(self._base.identity)[:12]}.log"

    @property
    def url(self) -> str:
        if self._url is None:
            raise BackendDownError(
                f"the student's model process does not answer: {self._why_down} (log: {self.log_path})"
            )
        return self._url

    @property
    def headers(self) -> Mapping[str, str]:
        return {"authorization": f"Bearer {self._key}"}

    async def start(self) -> None:
        """Return when it answers. Errors: `SubprocessError` where the first start fails."""
        first: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._watch = asyncio.create_task(self._keep_running(first))
        try:
            await first
        except BaseException:
            await self.stop()
            raise

    async def load(self, name: str, directory: Path) -> None:
        if name in self._loaded:
            return
        async with self._loading:
            if name in self._loaded:
                return
            await self._post_adapter(self.url, name, directory)
            self._directories[name] = directory
            self._loaded.add(name)

    async def healthy(self) -> bool:
        if self._url is None:
            return False
        with suppress(httpx.HTTPError):
            answer = await self._client.get(f"{self._url}/health", headers=self.headers, timeout=5)
            return answer.is_success
        return False

    async def stop(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.wait({self._watch})

    async def _keep_running(self, first: "asyncio.Future[None]") -> None:
        pause = FIRST_PAUSE_SECONDS
        while True:
            started = time.monotonic()
            why = await self._run_once(first)
            if not first.done():
                first.set_exception(SubprocessError(why))
                return
            lived = time.monotonic() - started
            pause = FIRST_PAUSE_SECONDS if lived > LONGEST_PAUSE_SECONDS else pause
            self._why_down = f"{why}; it is started again"
            log.warning("%s; it is started again in %.1f s", why, pause)
            await asyncio.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE_SECONDS)

    async def _run_once(self, first: "asyncio.Future[None]") -> str:
        """From start to end of one child; returns why it ended."""
        ready = self._state / f"{os.getpid()}-{secrets.token_hex(4)}.ready"
        revision = ["--revision", self._base.revision] if self._base.revision else []
        child = Child(
            [sys.executable, "-m", CHILD, "--base", self._base.location, *revision, "--ready", str(ready)],
            log_path=self.log_path,
            env={KEY_VARIABLE: self._key},
        )
        try:
            deadline = time.monotonic() + START_SECONDS
            while child.poll() is None and not ready.exists():
                if time.monotonic() > deadline:
                    return (
                        f"loading {self._base.location} took longer than {START_SECONDS:.0f} s (log: {self.log_path})"
                    )
                await asyncio.sleep(POLL_SECONDS)
            if child.poll() is None:
                await self._open(json.loads(ready.read_text())["url"])
                if not first.done():
                    first.set_result(None)
            while child.poll() is None:  # noqa: ASYNC110  the end of a process sets no event
                await asyncio.sleep(POLL_SECONDS)
            last = child.log_tail(1)
            return f"the model process ended with status {child.poll()}" + (f": {last}" if last else "")
        finally:
            self._url = None
            self._loaded.clear()
            ready.unlink(missing_ok=True)
            await asyncio.to_thread(child.stop)

    async def _open(self, url: str) -> None:
        """Bring back the adapters that were loaded before, then answer."""
        for name, directory in self._directories.items():
            try:
                await self._post_adapter(url, name, directory)
            except SubprocessError as error:
                log.warning("%s", error)
            else:
                self._loaded.add(name)
        self._url = url

    async def _post_adapter(self, url: str, name: str, directory: Path) -> None:
        body = {"lora_name": name, "lora_path": str(directory)}
        try:
            answer = await self._client.post(f"{url}/v1/load_lora_adapter", json=body, headers=self.headers)
        except httpx.TransportError as error:
            raise BackendDownError(f"the model process ended while it loaded {name}: {error!r}") from None
        if not answer.is_success:
            raise SubprocessError(f"the model process refused {name} (log: {self.log_path}): {answer.text[:300]}")
