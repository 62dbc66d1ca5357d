"""`potstill webhook`."""

import logging
from pathlib import Path

import orjson

from potstill.home import potstill_home


def webhook(*, config: Path, host: str = "127.0.0.1", port: int = 8380) -> int:
    """Receive new prompts by signed webhooks and start runs for them; prints {"url": …} when it answers.

    POTSTILL_WEBHOOK_SECRETS holds the secrets of those who may send.

    Args:
        config: The receiver's YAML, such as deployments/webhook.yaml.
        host: Address to listen on; put a proxy with TLS before it.
        port: Port to listen on; 0 takes any free one.
    """
    from potstill.webhook.config import load_config
    from potstill.webhook.serve import serve

    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", level=logging.INFO)
    for noisy in ("httpx", "httpcore", "botocore", "aiobotocore", "s3fs", "fsspec"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    serve(
        potstill_home(),
        load_config(config),
        host,
        port,
        lambda url: print(orjson.dumps({"url": url}).decode(), flush=True),
    )
    return 0
