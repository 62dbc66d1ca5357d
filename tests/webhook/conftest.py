"""A receiver that listens, and a sender that signs."""

import asyncio
import base64
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import orjson
import pytest
from standardwebhooks import Webhook

from potstill.inbox import Inbox
from potstill.serving.server import bind, run_app, url_of
from potstill.webhook.config import WebhookConfig
from potstill.webhook.receiver import Receiver
from potstill.webhook.serve import UVICORN
from potstill.webhook.signatures import Signatures

SECRETS = tuple("whsec_" + base64.b64encode(bytes([number]) * 32).decode() for number in range(3))
"""The receiver knows the first two."""
CLIENT = httpx.Client(verify=False, trust_env=False, limits=httpx.Limits(max_keepalive_connections=0), timeout=20)
"""A new connection with each request, without reading certificates for it."""


class Sender(NamedTuple):
    url: str
    home: Path

    def headers(
        self, webhook_id: str, body: bytes, secret: str = SECRETS[0], age: timedelta = timedelta(0)
    ) -> dict[str, str]:
        sent_at = datetime.now(UTC) - age
        return {
            "webhook-id": webhook_id,
            "webhook-timestamp": str(int(sent_at.timestamp())),
            "webhook-signature": Webhook(secret).sign(webhook_id, sent_at, body.decode()),
        }

    def send(
        self, webhook_id: str, body: Any, *, kind: str = "application/json", path: str = "/inbox/demo", **signing: Any
    ) -> httpx.Response:
        content = body if isinstance(body, bytes) else orjson.dumps(body)
        headers = {"content-type": kind, **self.headers(webhook_id, content, **signing)}
        return CLIENT.post(f"{self.url}{path}", content=content, headers=headers)


@contextmanager
def listening(home: Path, workload: str | None = None, **changes: Any) -> Iterator[Sender]:
    """A receiver on a free port, in a thread."""
    config = WebhookConfig.model_validate({"recipes": ["x"], "rate": {"per_second": 1000, "burst": 1000}, **changes})
    ready = threading.Event()
    found: dict[str, Any] = {}

    async def serve() -> None:
        stop = asyncio.Event()
        with Inbox(home, "demo") as inbox, bind("127.0.0.1", 0) as sock:
            receiver = Receiver(config, {"demo": inbox}, Signatures(SECRETS[:2]), {"demo": workload})
            found.update(url=url_of(sock), stop=stop, loop=asyncio.get_running_loop())
            await run_app(receiver.app, sock, stop, ready.set, grace_seconds=1, **UVICORN)

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    assert ready.wait(10)
    try:
        yield Sender(found["url"], home)
    finally:
        found["loop"].call_soon_threadsafe(found["stop"].set)
        thread.join(10)
    assert not thread.is_alive()


@pytest.fixture
def receiver(tmp_path: Path) -> Callable[..., Any]:
    """`with receiver(field=value) as sender` runs a receiver with this configuration."""
    home = tmp_path / "home"
    home.mkdir()
    return lambda **changes: listening(home, **changes)


@pytest.fixture
def sender(receiver: Callable[..., Any]) -> Iterator[Sender]:
    with receiver() as sender:
        yield sender
