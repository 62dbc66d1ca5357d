"""`potstill serve` where the releases lie in a bucket: followed while it answers, served from memory while it does not."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx
import pytest

from potstill.errors import ReleaseError
from potstill.release import Release, rollback
from potstill.serving.serve import serve
from tests.s3_server import Manner, S3Proxy, S3Server

pytestmark = pytest.mark.flow


def ask(url: str, model: str = "tiny") -> httpx.Response:
    body = {"model": model, "messages": [{"role": "user", "content": "what comes out?"}]}
    return httpx.post(f"{url}/v1/chat/completions", json=body, timeout=30)


def served(url: str) -> str:
    answer = ask(url)
    assert answer.status_code == 200, answer.text
    return answer.headers["x-potstill-version"]


def seconds_until(url: str, version: str, most: float) -> float:
    began = time.monotonic()
    while served(url) != version:
        assert time.monotonic() - began < most, f"{version} is not served"
    return time.monotonic() - began


def test_a_gateway_follows_the_bucket_and_serves_on_while_it_is_away(
    bucket,
    s3_server: S3Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    release_tiny: Callable[[Path, int], Release],
    run_server: Callable[[Path], AbstractContextManager[Any]],
) -> None:
    elsewhere, here = tmp_path / "elsewhere", tmp_path / "here"
    first = f"tiny@{release_tiny(elsewhere, 0).version}"
    with S3Proxy(s3_server) as proxy:
        with monkeypatch.context() as patch:
            patch.setenv("AWS_ENDPOINT_URL", proxy.url)
            server = run_server(here)
            running = server.__enter__()
        try:
            url = running.url
            assert served(url) == first

            second = f"tiny@{release_tiny(elsewhere, 1).version}"
            followed = seconds_until(url, second, 20)
            rollback(elsewhere, "tiny")
            back = seconds_until(url, first, 10)
            models = {model["id"] for model in httpx.get(f"{url}/v1/models").json()["data"]}
            assert models == {"tiny", first, second}

            proxy.manner = Manner.AWAY
            rollback(elsewhere, "tiny")
            began = time.monotonic()
            for _ in range(20):
                assert served(url) == first, "the last one that is known"
            away = (time.monotonic() - began) / 20
            assert ask(url, second).status_code == 200
            proxy.manner = Manner.OPEN
            again = seconds_until(url, second, 30)
        finally:
            server.__exit__(None, None, None)
    print(
        f"\nnew release {followed:.2f} s, rollback {back:.2f} s, an answer while away {away:.3f} s, after it {again:.2f} s"
    )


def test_nothing_released_names_the_bucket(bucket, tmp_path: Path) -> None:
    with pytest.raises(ReleaseError, match=f"nothing is released in {bucket.address}"):
        serve(tmp_path, "127.0.0.1", 0, on_ready=lambda url: None)
