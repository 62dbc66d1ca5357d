"""The reports of runs as web pages: what Prefect's UI links to, `<recipe>/<run>/report.html` below a folder, and nothing else.

`python -m deployments.reports FOLDER`. Where `PREFECT_API_AUTH_STRING` is set, a browser is asked for it. A page of another site
that has its name point here gets nothing: only hosts of this machine and that of `POTSTILL_REPORTS_URL` are answered.
"""

import argparse
import asyncio
import base64
import hmac
import os
import re
import stat
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from potstill.exits import exit_code_of
from potstill.prefect_api import AUTH_VARIABLE
from potstill.serving.server import bind, run_app, stop_event

REPORTS_VARIABLE = "POTSTILL_REPORTS_URL"
PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,254}")
"""Of a path: no dot at its beginning, and no other way up."""
TYPES = {".html": "text/html", ".json": "application/json"}
LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",  # a report is one file: styles and charts inside, no script
    "x-content-type-options": "nosniff",
    "cache-control": "no-store",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}
REALM = {"www-authenticate": 'Basic realm="Potstill reports: user and password of the Prefect API", charset="UTF-8"'}
HELP = "Reports of Potstill: <recipe>/<run>/report.html. The summary of each run in Prefect's UI links to its own.\n"
LONGEST_WAIT_SECONDS = 2


def reports_app(folder: Path, hosts: frozenset[str] = LOOPBACK, auth: str | None = None) -> Starlette:
    """The pages below a folder.

    Args:
        folder: of `<recipe>/<run>/report.html`; it may come later.
        hosts: names under which it may be asked.
        auth: user:password, where a log-in is needed.
    """

    def show(request: Request) -> Response:
        if _host(request) not in hosts:
            said = f"not a name of this server: set {REPORTS_VARIABLE} to the address under which people reach it\n"
            return PlainTextResponse(said, 421, HEADERS)
        path = request.path_params["path"]
        if path == "health":
            return PlainTextResponse("ok\n", headers=HEADERS)
        if auth is not None and not _knows(request, auth):
            return PlainTextResponse("log in\n", 401, HEADERS | REALM)
        if not path:
            return PlainTextResponse(HELP, headers=HEADERS)
        content = read_below(folder, path)
        if content is None:
            return PlainTextResponse(f"no such report. {HELP}", 404, HEADERS)
        return Response(content, headers=HEADERS, media_type=TYPES[Path(path).suffix])

    return Starlette(routes=[Route("/{path:path}", show, methods=["GET"])])


def read_below(folder: Path, path: str) -> bytes | None:
    """A page or figures; None for what is no plain file, is hidden, or is behind a link, wherever that leads."""
    *directories, name = path.split("/")
    if Path(name).suffix not in TYPES or not all(PART.fullmatch(part) for part in (*directories, name)):
        return None
    with ExitStack() as opened:

        def enter(part: Path | str, flags: int, inside: int | None = None) -> int:
            descriptor = os.open(part, os.O_RDONLY | os.O_CLOEXEC | flags, dir_fd=inside)
            opened.callback(os.close, descriptor)
            return descriptor

        try:
            place = enter(folder, os.O_DIRECTORY)
            for part in directories:
                place = enter(part, os.O_DIRECTORY | os.O_NOFOLLOW, place)
            found = enter(name, os.O_NOFOLLOW | os.O_NONBLOCK, place)
            if not stat.S_ISREG(os.fstat(found).st_mode):
                return None
            with os.fdopen(found, "rb", closefd=False) as file:
                return file.read()
        except OSError:
            return None


def _host(request: Request) -> str | None:
    try:
        parts = urlsplit(f"//{request.headers.get('host', '')}")
    except ValueError:
        return None
    return None if parts.username is not None else parts.hostname


def _knows(request: Request, auth: str) -> bool:
    expected = b"Basic " + base64.b64encode(auth.encode())
    return hmac.compare_digest(request.headers.get("authorization", "").encode(), expected)


def serve(folder: Path, host: str, port: int) -> None:
    """Serve until SIGTERM or SIGINT. Errors: `UsageError` for an address that cannot be used."""
    named = urlsplit(os.environ.get(REPORTS_VARIABLE, "")).hostname
    app = reports_app(folder, LOOPBACK | ({named} if named else set()), os.environ.get(AUTH_VARIABLE) or None)

    async def run() -> None:
        stop = stop_event()
        with bind(host, port) as sock:
            await run_app(
                app, sock, stop, lambda: None, grace_seconds=LONGEST_WAIT_SECONDS, server_header=False, http="h11"
            )

    asyncio.run(run())


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m deployments.reports", description=__doc__)
    parser.add_argument("folder", type=Path, help="the folder of reports; it may come later")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8390)
    given = parser.parse_args(arguments)
    return exit_code_of(lambda: serve(given.folder.absolute(), given.host, given.port), debug=False)


if __name__ == "__main__":
    sys.exit(main())
