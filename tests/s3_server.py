"""An S3 server on this machine (moto), and what it holds, seen past our own code."""

import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple

import httpx

from tests.ports import free_port

STARTING_SECONDS = 90
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


class Manner(Enum):
    """How the proxy treats what comes."""

    OPEN = "passes it on"
    AWAY = "hangs up"
    ELSEWHERE = "knows nothing of S3"
    DEAF = "passes it on without its conditions"


class S3Proxy:
    """Before an S3 server: can be away for a time, and can do as one that knows no conditional PUT."""

    def __init__(self, server: S3Server) -> None:
        self.manner = Manner.OPEN
        self.away_for = 0
        """It hangs up on so many requests more."""
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def forward(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                if proxy.manner is Manner.AWAY or proxy.away_for:
                    proxy.away_for = max(0, proxy.away_for - 1)
                    self.close_connection = True
                    return
                if proxy.manner is Manner.ELSEWHERE:
                    self.send_response(404)
                    self.send_header("content-length", "0")
                    self.end_headers()
                    return
                left_out = {"connection", *(("if-match", "if-none-match") if proxy.manner is Manner.DEAF else ())}
                headers = {name: value for name, value in self.headers.items() if name.lower() not in left_out}
                answer = httpx.request(self.command, server.url + self.path, headers=headers, content=body, timeout=30)
                self.send_response(answer.status_code)
                for name, value in answer.headers.items():
                    if name.lower() not in {"content-length", "connection", "transfer-encoding", "server", "date"}:
                        self.send_header(name, value)
                self.send_header("content-length", str(len(answer.content)))
                self.end_headers()
                self.wfile.write(answer.content)

            do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = forward  # noqa: N815 - names that http.server looks for

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "S3Proxy":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
