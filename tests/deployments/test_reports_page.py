"""The page of reports, over a socket: what it shows, and what it keeps to itself."""

import base64
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest

from potstill.doctor.ports import SERVERS, check_port
from tests.box import eventually
from tests.ports import free_ports
from tests.prefect_server import running

AUTH = "potstill:long and random"
CLIENT = httpx.Client(verify=False, trust_env=False, auth=("potstill", "long and random"))
REPORT = "tickets/021e24c7db26/report.html"


class Shown(NamedTuple):
    url: str
    port: int
    folder: Path

    def get(self, path: str, **headers: str) -> httpx.Response:
        return CLIENT.get(f"{self.url}/{path}", headers=headers)

    def status_of(self, target: str) -> int:
        """Of a request line as it is written, which no client has tidied up."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=5) as raw:
            login = base64.b64encode(AUTH.encode()).decode()
            head = f"GET {target} HTTP/1.1\r\nhost: localhost\r\nauthorization: Basic {login}\r\n\r\n"
            raw.sendall(head.encode())
            return int(raw.recv(65536).split()[1])


@contextmanager
def showing(folder: Path, log: Path, **variables: str) -> Iterator[Shown]:
    [port] = free_ports(1)
    command = (sys.executable, "-m", "deployments.reports", str(folder), "--port", str(port))
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "POTSTILL_"))}
    with running(command, env | {"PREFECT_API_AUTH_STRING": AUTH} | variables, log):
        shown = Shown(f"http://127.0.0.1:{port}", port, folder)
        eventually(lambda: _answers(shown.url))
        yield shown


def _answers(url: str) -> bool:
    try:
        return CLIENT.get(f"{url}/health", timeout=2).text == "ok\n"
    except httpx.TransportError:
        return False


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shown]:
    place = tmp_path_factory.mktemp("page")
    page = place / "reports" / REPORT
    page.parent.mkdir(parents=True)
    page.write_text("<!doctype html><p>Passed")
    (page.parent / "summary.json").write_text("{}")
    (page.parent / ".report.html").write_text("hidden")
    (page.parent / "notes.txt").write_text("of no type that is shown")
    (place / "secret.html").write_text("outside")
    (page.parent / "link.html").symlink_to(place / "secret.html")
    (page.parent / "inside.html").symlink_to(page)
    (place / "reports" / "linked").symlink_to(place)
    os.mkfifo(page.parent / "pipe.html")
    (page.parent / "folder.html").mkdir()
    with showing(place / "reports", place / "log", POTSTILL_REPORTS_URL="https://Reports.example:8443/x") as shown:
        yield shown


def test_the_doctor_knows_it(shown: Shown) -> None:
    assert check_port(SERVERS["reports"]._replace(port=shown.port)).status == "ok"


def test_a_report_is_shown_as_it_lies_there_and_runs_no_script(shown: Shown) -> None:
    reply = shown.get(REPORT)
    assert (reply.status_code, reply.text) == (200, "<!doctype html><p>Passed")
    assert reply.headers["content-type"] == "text/html; charset=utf-8"
    assert reply.headers["content-security-policy"].startswith("default-src 'none'; style-src 'unsafe-inline'; ")
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert reply.headers["cache-control"] == "no-store"
    assert "server" not in reply.headers
    assert shown.get(REPORT.replace("report.html", "summary.json")).headers["content-type"] == "application/json"


def test_head_says_what_get_would_without_the_page(shown: Shown) -> None:
    reply = CLIENT.head(f"{shown.url}/{REPORT}")
    assert (reply.status_code, reply.content, reply.headers["content-length"]) == (200, b"", "24")
    assert CLIENT.post(f"{shown.url}/{REPORT}").status_code == 405


@pytest.mark.parametrize("path", ["tickets", "tickets/", "tickets/021e24c7db26", "tickets/021e24c7db26/"])
def test_no_folder_is_listed(shown: Shown, path: str) -> None:
    assert shown.get(path).status_code == 404
    assert "021e24c7db26" not in shown.get("").text


@pytest.mark.parametrize(
    "name", [".report.html", "notes.txt", "link.html", "inside.html", "pipe.html", "folder.html", "none.html"]
)
def test_only_plain_files_of_two_types_are_shown(shown: Shown, name: str) -> None:
    assert shown.get(REPORT.replace("report.html", name)).status_code == 404


@pytest.mark.parametrize(
    "target",
    [
        "/../secret.html",
        "/%2e%2e/secret.html",
        "/tickets/..%2f..%2f..%2fsecret.html",
        "/tickets/../../secret.html",
        "//secret.html",
        "/linked/secret.html",
        "/./tickets/021e24c7db26/report.html",
        "/tickets%00/x.html",
        "/..%5csecret.html",
    ],
)
def test_no_path_leads_out(shown: Shown, target: str) -> None:
    assert shown.status_of(target) == 404


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost:8390", "[::1]:8390", "reports.example", "REPORTS.example:8443"]
)
def test_its_own_names_and_the_configured_one_are_answered(shown: Shown, host: str) -> None:
    assert shown.get(REPORT, host=host).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "localhost.", "0.0.0.0", "", "[", "a@localhost"]
)
def test_a_name_of_another_that_points_here_gets_nothing(shown: Shown, host: str) -> None:
    for path in (REPORT, "", "health"):
        reply = shown.get(path, host=host)
        assert reply.status_code in {400, 421}
        assert "Passed" not in reply.text


@pytest.mark.parametrize("auth", [None, ("potstill", "guess"), ("potstill", ""), ("potstill", "lång")])
def test_without_the_log_in_nothing_is_told(shown: Shown, auth: tuple[str, str] | None) -> None:
    asked = httpx.BasicAuth(*auth) if auth else httpx.Auth()
    for path in (REPORT, "tickets/none.html"):
        reply = CLIENT.get(f"{shown.url}/{path}", auth=asked)
        assert (reply.status_code, reply.text) == (401, "log in\n")
        assert reply.headers["www-authenticate"].startswith("Basic ")
