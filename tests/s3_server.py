"""An S3 server on this machine (moto), and what it holds, seen past our own code."""

import os
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import httpx

STARTING_SECONDS = 30
BUCKET = "potstill"


class S3Server(NamedTuple):
    url: str
    process: "subprocess.Popen[bytes]"

    def environment(self, prefix: str | None = None) -> dict[str, str]:
        """What a process needs to keep its store here; a new place for each call that names none."""
        return {
            "POTSTILL_STORE": f"s3://{BUCKET}/{prefix or uuid.uuid4().hex[:12]}",
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }


@contextmanager
def running_s3(*, is_guarded: bool = False, port: int = 0) -> Iterator[S3Server]:
    """`is_guarded` servers check who asks, and know nobody. Port 0 is any free one."""
    port = port or free_port()
    environment = os.environ | ({"INITIAL_NO_AUTH_ACTION_COUNT": "0"} if is_guarded else {})
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        _wait_for(url, process)
        if not is_guarded:
            httpx.put(f"{url}/{BUCKET}", timeout=10).raise_for_status()
        yield S3Server(url, process)
    finally:
        process.terminate()
        process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait_for(url: str, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + STARTING_SECONDS
    while True:
        try:
            httpx.get(f"{url}/moto-api/data.json", timeout=1)
        except httpx.HTTPError:
            assert process.poll() is None, "moto ended"
            assert time.monotonic() < deadline, "moto does not answer"
            time.sleep(0.05)
        else:
            return
