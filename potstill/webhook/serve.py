"""`potstill webhook`: the receiver and its starter, until a signal ends them."""

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path

from potstill.inbox import Inbox
from potstill.prefect_api import prefect_api
from potstill.serving.server import bind, run_app, stop_event, url_of
from potstill.webhook.config import WebhookConfig, load_recipes
from potstill.webhook.receiver import Receiver
from potstill.webhook.signatures import read_secrets
from potstill.webhook.starter import Starter

GRACE_SECONDS = 3
UVICORN = {"server_header": False, "http": "potstill.webhook.connections:Connection"}


def serve(home: Path, config: WebhookConfig, host: str, port: int, on_ready: Callable[[str], None]) -> None:
    """Receive until SIGTERM or SIGINT; `on_ready(url)` is called once it answers. Call it in the main thread.

    Errors: `UsageError` for a secret, a recipe or an address that cannot be used; `InboxError`.
    """
    signatures = read_secrets()
    recipes = load_recipes(config.recipes)
    with contextlib.ExitStack() as stack:
        inboxes = {name: stack.enter_context(Inbox(home, name)) for name in recipes}
        workloads = {name: recipe.curation.workload for name, recipe in recipes.items()}
        receiver = Receiver(config, inboxes, signatures, workloads)
        watched = {name: (inboxes[name], recipe.inbox) for name, recipe in recipes.items()}
        starter = Starter(watched, prefect_api, config.poll_seconds)
        asyncio.run(_serve(receiver, starter, host, port, on_ready))


async def _serve(receiver: Receiver, starter: Starter, host: str, port: int, on_ready: Callable[[str], None]) -> None:
    stop = stop_event()
    with bind(host, port) as sock:
        starter.start()
        try:
            await run_app(
                receiver.app,
                sock,
                stop,
                lambda: on_ready(url_of(sock)),
                grace_seconds=GRACE_SECONDS,
                **UVICORN,
            )
        finally:
            await asyncio.to_thread(starter.stop)
