"""Whoever reaches the form or the API starts runs of a deployment, and gains neither code, nor files, nor keys.

Each attack is the JSON of a request to a real server's REST API, run as a worker runs it.
"""

import json
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.exceptions import Pause, PrefectHTTPStatusError
from prefect.flow_engine import run_flow
from prefect.utilities.callables import parameter_schema

from flows.distill_student import distill_student
from potstill.errors import NotAuthorisedError
from potstill.release import aliases
from tests.recording_server import Answer, RecordingServer

pytestmark = pytest.mark.flow

KEY = "sk-canary/7f3Qz+untrusted_K9"
LINE = json.dumps({"messages": [{"role": "user", "content": "a foreign secret"}]}) + "\n"


class Place(NamedTuple):
    root: Path
    home: Path
    evil: RecordingServer
    """A server of the attacker's on this machine."""
    client: SyncPrefectClient
    deployment: UUID

    def recipe(self, **sections: dict[str, Any]) -> dict[str, Any]:
        """A recipe that would pass the preflight, with what an attacker changes in its sections."""
        basis: dict[str, Any] = {
            "name": "router",
            "task": {"kind": "extraction"},
            "curation": {"inputs": [str(self.root / "data" / "*.jsonl")]},
            "teacher": {
                "provider": "openai_compatible",
                "model": "m",
                "base_url": self.evil.url,
                "price": {"input_per_million": 1, "output_per_million": 1},
                "attest": "our own server",
            },
            "student": {"base": str(self.root / "data" / "base")},
        }
        return {name: part | sections.get(name, {}) if isinstance(part, dict) else part for name, part in basis.items()}

    def start(self, recipe: dict[str, Any]) -> Any:
        """The error that a run of the deployment with this recipe ends with. Errors: the API's, where it takes none."""
        flow_run = self.client.create_flow_run_from_deployment(self.deployment, parameters={"recipe": recipe})
        state = run_flow(distill_student, flow_run=flow_run, return_type="state")
        return state.result(raise_on_failure=False)  # pyright: ignore[reportAttributeAccessIssue]

    def go_on(self, flow_run_id: UUID) -> Any:
        """The state in which a run ends or waits, as a worker runs it."""
        with suppress(Pause):
            run_flow(distill_student, flow_run=self.client.read_flow_run(flow_run_id), return_type="state")
        return self.client.read_flow_run(flow_run_id).state

    def written(self) -> list[str]:
        """Files below the home that hold what no run may read."""
        marks = (b"a foreign secret", KEY.encode())
        files = [path for path in self.home.rglob("*") if path.is_file()]
        return [str(path) for path in files if any(mark in path.read_bytes() for mark in marks)]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    base = tmp_path / "data" / "base"
    base.mkdir(parents=True)
    (base / "config.json").write_text("{}")
    own = "".join(LINE.replace("a foreign secret", f"hello {number}") for number in range(40))
    (tmp_path / "data" / "own.jsonl").write_text(own)
    (tmp_path / "foreign.jsonl").write_text(LINE)
    home = tmp_path / "home"
    monkeypatch.setenv("POTSTILL_HOME", str(home))
    monkeypatch.setenv("POTSTILL_DATA_ROOTS", str(tmp_path / "data"))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", KEY)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with RecordingServer() as evil, get_client(sync_client=True) as client:
        flow_id = client.create_flow(distill_student)
        schema = parameter_schema(distill_student).model_dump_for_openapi()
        deployment = client.create_deployment(
            flow_id, f"untrusted-{tmp_path.name}", parameter_openapi_schema=schema, enforce_parameter_schema=True
        )
        yield Place(tmp_path, home, evil, client, deployment)
        for thread in threading.enumerate():
            if isinstance(thread, threading.Timer):
                thread.join()  # a suspended run tells the server so a little later


def test_no_foreign_file_is_read_and_no_key_leaves(place: Place) -> None:
    link = place.root / "data" / "link"
    link.symlink_to(place.root)
    attacks = [
        {"curation": {"inputs": [str(place.root / "foreign.jsonl")]}},
        {"curation": {"inputs": [str(link / "foreign.jsonl")]}},
        {"student": {"base": "/etc"}},
        {"teacher": {"api_key_env": "AWS_SECRET_ACCESS_KEY"}},
        {"teacher": {"base_url": "https://evil.example/v1", "api_key_env": "OPENAI_API_KEY"}},
        {"teacher": {"base_url": "http://169.254.169.254/latest"}},
    ]
    for attack in attacks:
        error = place.start(place.recipe(**attack))
        assert isinstance(error, NotAuthorisedError), (attack, error)
        assert KEY not in str(error)
    assert place.evil.seen == [], "nothing was sent"
    assert place.written() == []


@pytest.mark.parametrize(
    "attack",
    [
        {"task": {"scorer": "os:system"}},
        {"task": {"scorer": "../evil"}},
        {"teacher": {"base_url": "http://127.0.0.1/v1", "headers": {"authorization": 1}}},
        {"curation": {"inputs": [{"__class__": "os.system"}]}},
        {"student": {"trust_remote_code": True}},
    ],
)
def test_what_the_schema_does_not_admit_starts_no_run(place: Place, attack: dict[str, Any]) -> None:
    try:
        said = str(place.start(place.recipe(**attack)))
    except PrefectHTTPStatusError as refused:
        said = f"validation by the server: {refused.response.status_code}"
    assert "validation" in said.lower()
    assert place.evil.seen == []


def test_a_header_with_a_key_and_an_address_with_one_start_nothing(place: Place) -> None:
    for more in ({"headers": {"x-api-key": KEY}}, {"base_url": f"{place.evil.url}?key={KEY}"}):
        error = place.start(place.recipe(teacher=more))
        assert "teacher" in str(error)
        assert KEY not in str(error)
    assert place.evil.seen == []


def test_a_run_of_a_deployment_without_roots_does_not_start(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("POTSTILL_DATA_ROOTS")
    error = place.start(place.recipe())
    assert isinstance(error, NotAuthorisedError)
    assert "set it for the worker" in str(error)


def test_an_honest_recipe_gets_to_the_teacher(place: Place) -> None:
    """Else the tests above would pass for a reason of their own."""
    place.evil.default = Answer(401)
    assert isinstance(place.start(place.recipe()), NotAuthorisedError)
    assert {seen.target for seen in place.evil.seen} == {"/v1/chat/completions"}
    assert KEY not in str(place.evil.seen)


def test_no_parameter_lets_a_student_into_service_where_the_operator_asks(
    place: Place,
    monkeypatch: pytest.MonkeyPatch,
    write_tickets: Callable[..., Any],
    replay_teacher: Callable[..., Any],
    tiny_recipe: Callable[..., dict[str, Any]],
    tiny_base: Path,
) -> None:
    tickets = write_tickets(place.root / "tickets", 400)
    monkeypatch.setenv("POTSTILL_DATA_ROOTS", f"{place.root / 'tickets'}:{tiny_base}")
    monkeypatch.setenv("POTSTILL_APPROVAL", "ask")
    with replay_teacher(tickets.answers) as teacher:
        recipe = tiny_recipe(tickets.log, teacher, teacher={"attest": "our own"}, gate={"approval": "auto"})
        asked = place.client.create_flow_run_from_deployment(place.deployment, parameters={"recipe": recipe})
        assert place.go_on(asked.id).name == "Suspended"
        assert aliases(place.home, "tickets").champion is None

        monkeypatch.setenv("POTSTILL_APPROVAL", "auto")  # too late: somebody has been asked
        place.client.resume_flow_run(asked.id, {"verdict": "reject", "approver": "Jo", "reason": "not this one"})
        state = place.go_on(asked.id)
        assert state.name == "NotApproved", state.message
        assert aliases(place.home, "tickets").champion is None

        free = place.client.create_flow_run_from_deployment(place.deployment, parameters={"recipe": recipe})
        assert place.go_on(free.id).name == "Completed", "the same recipe is released where nobody asks"
        assert aliases(place.home, "tickets").champion is not None


def test_an_operators_word_that_is_none_stops_a_run_before_anything_is_paid(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POTSTILL_APPROVAL", "Ask")
    error = place.start(place.recipe())
    assert "POTSTILL_APPROVAL is 'Ask': set it to auto or ask" in str(error)
    assert place.evil.seen == []
