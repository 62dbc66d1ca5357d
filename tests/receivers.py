"""Where alerts arrive in the tests: a web server on HTTP, one that is Slack behind a proxy with TLS, and a mail server."""

import asyncio
import json
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

SLACK_HOST = "hooks.slack.com"


class Received(NamedTuple):
    place: str
    """Path of the address, or the envelope's recipient."""
    headers: dict[str, str]
    body: Any


class Receivers(NamedTuple):
    """What came, oldest first, and the addresses."""

    webhook: list[Received]
    slack: list[Received]
    mail: list[Received]
    webhook_url: str
    smtp_url: str
    env: dict[str, str]
    """With this, a process reaches this machine when it asks for Slack."""


@contextmanager
def receivers(place: Path) -> Iterator[Receivers]:
    """All three, on free ports of the loopback."""
    webhook: list[Received] = []
    slack: list[Received] = []
    mail: list[Received] = []
    certificate, key = _certificate(place)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with _web(webhook, None) as web_port, _web(slack, context) as slack_port, _mail(mail) as smtp_port:
        proxy = f"http://127.0.0.1:{slack_port}"
        # httpx trusts the file that is named too: it must hold what the tests reach by TLS, and that is Slack only
        env = {"HTTPS_PROXY": proxy, "NO_PROXY": "127.0.0.1,localhost", "REQUESTS_CA_BUNDLE": str(certificate)}
        yield Receivers(webhook, slack, mail, f"http://127.0.0.1:{web_port}/hook", f"smtp://127.0.0.1:{smtp_port}", env)


@contextmanager
def _web(received: list[Received], context: ssl.SSLContext | None) -> Iterator[int]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            raw = self.rfile.read(int(self.headers["content-length"]))
            received.append(Received(self.path, dict(self.headers.items()), json.loads(raw)))
            refused = self.path.endswith("/refuses")
            self.send_response(500 if refused else 200)
            self.send_header("content-length", "2")
            self.end_headers()
            self.wfile.write(b"ok")  # what Slack says

        def do_CONNECT(self) -> None:
            """A proxy that leads to itself, whoever is asked for."""
            assert context is not None
            self.send_response(200)
            self.end_headers()
            self.connection = context.wrap_socket(self.connection, server_side=True)
            self.rfile, self.wfile = self.connection.makefile("rb"), self.connection.makefile("wb", buffering=0)
            self.close_connection = False
            self.handle_one_request()
            self.close_connection = True

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class calls it so
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


@contextmanager
def _mail(received: list[Received]) -> Iterator[int]:
    """As much of SMTP as a client needs that sends one mail without TLS."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        recipients: list[str] = []
        writer.write(b"220 test\r\n")
        while line := (await reader.readline()).decode():
            verb = line.split(" ")[0].strip().upper()
            if verb == "RCPT":
                recipients.append(line.split("<")[1].split(">")[0])
            if verb == "DATA":
                writer.write(b"354 go on\r\n")
                text = (await reader.readuntil(b"\r\n.\r\n")).decode()
                received.append(Received(",".join(recipients), {}, text))
            writer.write(b"221 bye\r\n" if verb == "QUIT" else b"250 ok\r\n")
            if verb == "QUIT":
                break
        writer.close()

    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(asyncio.start_server(serve, "127.0.0.1", 0))
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(timeout=5)
        server.close()


def _certificate(place: Path) -> tuple[Path, Path]:
    """A certificate for Slack's host that signs itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, SLACK_HOST)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(SLACK_HOST)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    files = place / "slack.pem", place / "slack.key"
    files[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    files[1].write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return files
