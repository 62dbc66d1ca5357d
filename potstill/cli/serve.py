"""`potstill serve`."""

import orjson

from potstill.home import potstill_home


def serve(*, host: str = "127.0.0.1", port: int = 8000) -> int:
    """Serve every recipe's champion on an OpenAI-compatible endpoint; prints {"url": …} when it answers.

    Args:
        host: Address to listen on.
        port: Port to listen on; 0 takes any free one.
    """
    from potstill.serving.serve import serve as run

    run(potstill_home(), host, port, lambda url: print(orjson.dumps({"url": url}).decode(), flush=True))
    return 0
