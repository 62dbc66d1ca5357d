"""The doctor's ports: those of the box, free, held by the server that they are for, or by another program."""

import socket
from pathlib import Path

import pytest

from deployments.box.config import ROOT, Box
from deployments.box.places import Places, State
from potstill.doctor import ports
from potstill.doctor.finding import ok
from potstill.owner import this_process
from tests.recording_server import Answer, RecordingServer

USUAL = {"Prefect": 4200, "gateway": 8000, "webhook": 8380, "reports": 8390}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    return tmp_path


def test_a_free_port_is_free() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        number = probe.getsockname()[1]
    found = ports.check_port(ports.Port("gateway", "127.0.0.1", number, "/health"))
    assert found == ok(f"port {number}", "free for gateway")


def test_a_port_that_another_program_holds_is_told_from_one_of_ours() -> None:
    with RecordingServer() as server:
        server.answers["/health"] = Answer(200, {"status": "ok"})
        number = int(server.origin.rpartition(":")[2])
        assert ports.check_port(ports.Port("gateway", "127.0.0.1", number, "/health")).status == "ok"
        found = ports.check_port(ports.Port("Prefect", "127.0.0.1", number, "/api/health"))
    assert found.status == "warn"
    assert "another program" in found.said
    assert f":{number}" in found.remedy


def test_a_program_that_speaks_no_http_is_another_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports, "PROBE_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        number = silent.getsockname()[1]
        found = ports.check_port(ports.Port("gateway", "127.0.0.1", number, "/health"))
    assert "another program" in found.said


def numbers(home: Path, text: str) -> dict[str, int]:
    config = home / "box.yaml"
    config.write_text(text)
    return {port.name: port.port for port in ports.expected_ports(home, config)}


def test_they_are_those_of_the_box_as_its_configuration_has_them(home: Path) -> None:
    assert numbers(home, "") == USUAL
    assert ports.expected_ports(home, home / "gone.yaml") == list(ports.SERVERS.values())
    text = "{server: {port: 4300}, gateway: null, webhook: {config: x}, reports: {port: 8391}}"
    assert numbers(home, text) == {"Prefect": 4300, "webhook": 8380, "reports": 8391}
    assert numbers(home, (ROOT / "deployments" / "box.yaml").read_text()) == USUAL


@pytest.mark.parametrize("text", ["[1]", "a: [", "{gateway: 5, webhook: {port: x}}", "\0"])
def test_a_configuration_with_faults_is_left_to_make_up(home: Path, text: str) -> None:
    assert numbers(home, text) == USUAL


def test_a_box_that_is_up_says_itself_where_it_is(home: Path) -> None:
    box = Box.model_validate({"gateway": {"port": 8001}, "webhook": None})
    places = Places(home)
    places.make()
    places.write_state(State(supervisor=this_process(), mark="m", config="x", ports=box.ports, processes=[]))
    assert numbers(home, "") == {"Prefect": 4200, "gateway": 8001, "reports": 8390}


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"ports": null}', '{"ports": {"server": null}}'])
def test_a_state_that_cannot_be_read_is_none(home: Path, text: str) -> None:
    (home / "box").mkdir()
    (home / "box" / "state.json").write_text(text)
    assert numbers(home, "") == USUAL


def test_the_port_of_prefect_is_the_one_that_the_environment_names(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:4321/api")
    assert numbers(home, "")["Prefect"] == 4321
    monkeypatch.setenv("PREFECT_API_URL", "https://prefect.example/api")
    assert numbers(home, "")["Prefect"] == 4200
