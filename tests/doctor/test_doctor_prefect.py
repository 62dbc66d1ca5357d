"""What the doctor says of Prefect's server: a local one that speaks the paths of its REST API, and answers as it is told."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from importlib import metadata
from typing import Any

import pytest

from potstill.doctor import orchestrator
from potstill.doctor.finding import Finding, examine
from potstill.doctor.orchestrator import Wanted, check_server, checks_of, clock_finding, skew
from tests.recording_server import Answer, RecordingServer

pytestmark = pytest.mark.flow

ZOMBIES = {
    "name": "potstill: zombie runs",
    "enabled": True,
    "trigger": {
        "type": "event",
        "posture": "Proactive",
        "after": ["prefect.flow-run.heartbeat"],
        "expect": ["prefect.flow-run.*"],
    },
}
UNBEGUN = {
    "name": "potstill: runs that never began",
    "enabled": True,
    "trigger": ZOMBIES["trigger"] | {"after": ["prefect.flow-run.Pending"]},
}
CANCELLED = {
    "name": "potstill: runs that were dead when cancelled",
    "enabled": True,
    "trigger": ZOMBIES["trigger"] | {"after": ["prefect.flow-run.Cancelling"]},
}
NOW = datetime.now(UTC)
WORKER = {"name": "w", "status": "ONLINE", "last_heartbeat_time": (NOW - timedelta(seconds=3)).isoformat()}
POOLS = [
    {"name": "cpu", "type": "process", "concurrency_limit": None, "is_paused": False},
    {"name": "gpu", "type": "process", "concurrency_limit": 1, "is_paused": False},
]
FLOWS = [
    {"id": f"id-of-{name}", "name": name}
    for name in ("distill-student", "redistill", "train-student", "evaluate-student")
]


def deployed(flow: str, name: str, pool: str, *schedules: bool) -> dict[str, Any]:
    on = [{"active": is_on} for is_on in schedules]
    return {"flow_id": f"id-of-{flow}", "name": name, "paused": False, "work_pool_name": pool, "schedules": on}


BY_HAND = deployed("distill-student", "demo", "cpu")
BY_NIGHT = deployed("redistill", "demo", "cpu", True, False)
ON_GPU = [deployed("train-student", "gpu", "gpu"), deployed("evaluate-student", "gpu", "gpu")]
DEPLOYMENTS = [BY_HAND, BY_NIGHT, *ON_GPU, deployed("watch", "demo", "cpu", True)]
WANTED = Wanted(("demo",), is_given=True, uses_gpu_pool=True, block="teacher-key")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[RecordingServer]:
    """A server on which everything is as it should be."""
    with RecordingServer() as found:
        found.answers = {
            "/api/health": Answer(200, True),
            "/api/admin/version": Answer(200, metadata.version("prefect")),
            "/api/work_pools/filter": Answer(200, POOLS),
            "/api/work_pools/cpu/workers/filter": Answer(200, [WORKER]),
            "/api/work_pools/gpu/workers/filter": Answer(200, [WORKER]),
            "/api/automations/filter": Answer(200, [ZOMBIES, UNBEGUN, CANCELLED]),
            "/api/flows/filter": Answer(200, FLOWS),
            "/api/deployments/filter": Answer(200, DEPLOYMENTS),
            "/api/block_types/slug/secret/block_documents/name/teacher-key": Answer(200, {"name": "teacher-key"}),
        }
        monkeypatch.setenv("PREFECT_API_URL", f"{found.origin}/api")
        monkeypatch.setenv("PREFECT_API_AUTH_STRING", "admin:a-password")
        yield found


def look(wanted: Wanted = WANTED) -> dict[str, Finding]:
    return {found.name: found for found in (*check_server(), *examine(checks_of(wanted)))}


def look_at_deployments(wanted: Wanted = WANTED) -> list[tuple[str, str]]:
    return [(found.status, found.said) for found in examine(checks_of(wanted)) if found.name == "deployment"]


def test_a_server_that_has_everything_is_well(server: RecordingServer) -> None:
    found = look()
    assert {name for name, line in found.items() if line.status != "ok"} == {"prefect auth", "clock"}
    assert "whoever comes without" in found["prefect auth"].said
    assert "1 online, the last heartbeat" in found["workers cpu"].said
    assert found["pool gpu"].said == "process, at most 1 runs"


def test_no_line_holds_the_auth_string(server: RecordingServer) -> None:
    assert "a-password" not in str(look())


def test_no_server_named_is_a_warning_with_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    [found] = check_server()
    assert found.status == "warn"
    assert "PREFECT_API_URL" in found.remedy


def test_a_server_that_is_away_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    [found] = check_server()
    assert found.status == "fail"
    assert "does not answer" in found.said


def test_a_server_that_hangs_is_given_up_in_time(server: RecordingServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orchestrator, "HEALTH_SECONDS", 0.2)
    server.answers["/api/health"] = Answer(200, True, delay=20)
    [found] = check_server()
    assert "does not answer (ReadTimeout)" in found.said


def test_an_address_without_api_is_told(server: RecordingServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", server.origin)
    [found] = check_server()
    assert found.status == "fail"
    assert "ends in /api" in found.remedy


def test_an_auth_string_that_is_refused_fails(server: RecordingServer) -> None:
    server.answers["/api/admin/version"] = Answer(401)
    found = list(check_server())[-1]
    assert (found.name, found.status) == ("prefect auth", "fail")
    assert "PREFECT_API_AUTH_STRING" in found.remedy


def test_a_server_that_asks_for_none_is_a_warning(server: RecordingServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREFECT_API_AUTH_STRING")
    assert look()["prefect auth"].status == "warn"


def test_another_version_is_told_with_both(server: RecordingServer) -> None:
    server.answers["/api/admin/version"] = Answer(200, "3.0.0")
    found = look()["prefect version"]
    assert found.status == "warn"
    assert "the server is 3.0.0, here is" in found.said


@pytest.mark.parametrize(
    ("path", "body", "name", "status", "said"),
    [
        ("work_pools", POOLS[:1], "pool gpu", "fail", "there is none"),
        ("work_pools", [POOLS[0] | {"is_paused": True}, POOLS[1]], "pool cpu", "fail", "paused"),
        ("work_pools", [POOLS[0], POOLS[1] | {"concurrency_limit": None}], "pool gpu", "warn", "share a card"),
        ("work_pools/cpu/workers", [], "workers cpu", "fail", "there never was one"),
        ("work_pools/gpu/workers", [WORKER | {"status": "OFFLINE"}], "workers gpu", "fail", "none online"),
        ("automations", [], "automation", "fail", "none ends runs"),
        ("automations", [ZOMBIES | {"enabled": False}], "automation", "fail", "disabled"),
        ("automations", [ZOMBIES], "automation", "fail", "none ends runs that a worker took and never began"),
        ("automations", [ZOMBIES, UNBEGUN], "automation", "fail", "none ends runs that were dead when cancelled"),
        ("automations", [UNBEGUN], "automation", "fail", "none ends runs without a heartbeat"),
        ("automations", [ZOMBIES, UNBEGUN | {"enabled": False}], "automation", "fail", "never began' is disabled"),
        ("automations", [ZOMBIES | {"trigger": {"posture": "Reactive"}}], "automation", "fail", "none ends runs"),
        ("automations", [{"name": "alerts", "enabled": True, "trigger": None}], "automation", "fail", "none ends"),
    ],
)
def test_what_is_missing_has_a_line_and_a_remedy(
    server: RecordingServer, path: str, body: Any, name: str, status: str, said: str
) -> None:
    server.answers[f"/api/{path}/filter"] = Answer(200, body)
    found = look()[name]
    assert found.status == status
    assert said in found.said
    assert found.remedy


@pytest.mark.parametrize("workers", [[], [WORKER | {"status": "OFFLINE"}]])
def test_a_pool_for_gpus_that_nobody_needs_may_be_without_a_worker(server: RecordingServer, workers: list[Any]) -> None:
    server.answers["/api/work_pools/gpu/workers/filter"] = Answer(200, workers)
    found = look(Wanted(("demo",)))
    assert found["workers gpu"].status == "warn"
    assert "fail" not in {line.status for line in found.values()}
    assert look()["workers gpu"].status == "fail", "a recipe that trains on it does"


def test_a_block_that_is_not_there_fails_and_its_secret_is_not_asked_for(server: RecordingServer) -> None:
    look()
    [asked] = [seen.target for seen in server.seen if "block_documents" in seen.target]
    assert asked.endswith("?include_secrets=false")
    del server.answers["/api/block_types/slug/secret/block_documents/name/teacher-key"]
    assert look()["block"].said == "no Secret block teacher-key"


def test_each_deployment_that_a_recipe_needs_has_a_line_with_its_pool_and_schedules(server: RecordingServer) -> None:
    of_recipe = [
        ("ok", "distill-student/demo on pool cpu, no schedule"),
        ("ok", "redistill/demo on pool cpu, 1 of 2 schedules on"),
    ]
    on_gpu = [("ok", f"{name}-student/gpu on pool gpu, no schedule") for name in ("train", "evaluate")]
    assert look_at_deployments() == [*of_recipe, *on_gpu]
    assert look_at_deployments(Wanted(("demo",), is_given=True)) == of_recipe, "who trains in the run calls no pool"


@pytest.mark.parametrize("gone", range(4))
def test_a_deployment_that_is_missing_fails_by_name(server: RecordingServer, gone: int) -> None:
    names = ["distill-student/demo", "redistill/demo", "train-student/gpu", "evaluate-student/gpu"]
    server.answers["/api/deployments/filter"] = Answer(200, [one for one in DEPLOYMENTS if one != DEPLOYMENTS[gone]])
    found = look_at_deployments()
    assert [status for status, _ in found].count("fail") == 1
    assert found[gone] == ("fail", f"no {names[gone]}")


def test_a_paused_deployment_is_a_warning_where_schedules_stand_on_it(server: RecordingServer) -> None:
    paused = [one | {"paused": True} for one in (BY_HAND, BY_NIGHT)]
    server.answers["/api/deployments/filter"] = Answer(200, [*paused, *ON_GPU])
    by_hand, by_night, *_ = look_at_deployments()
    assert by_hand[0] == "ok", "what is started by hand starts all the same"
    assert by_night == ("warn", "redistill/demo is paused: its schedules do not run")


def test_a_recipe_that_nobody_named_need_not_be_deployed(server: RecordingServer) -> None:
    server.answers["/api/deployments/filter"] = Answer(200, [])
    assert [status for status, _ in look_at_deployments(Wanted(("demo",)))] == ["warn", "warn"]


def test_a_server_that_breaks_in_the_middle_is_a_line_for_each_question(server: RecordingServer) -> None:
    for path in list(server.answers):
        if path.endswith("/filter"):
            server.answers[path] = Answer(500, {"detail": "database is locked"})
    found = look()
    assert {found[name].status for name in ("pools", "automation", "deployments")} == {"fail"}
    assert "answers 500" in found["pools"].said


@pytest.mark.parametrize(
    ("behind", "status", "said"),
    [(0, "ok", "agrees"), (20, "warn", "20 s ahead"), (-20, "warn", "20 s behind"), (600, "fail", "600 s ahead")],
)
def test_a_clock_that_is_off_is_told_by_how_much(behind: int, status: str, said: str) -> None:
    now = datetime(2026, 11, 30, 3, 0, 0, 500_000, tzinfo=UTC)
    date = format_datetime(now - timedelta(seconds=behind), usegmt=True)
    found = clock_finding("Prefect", date, now.timestamp())
    assert (found.status, said in found.said) == (status, True)


@pytest.mark.parametrize(("behind", "status", "whose"), [(600, "fail", "ahead of"), (-600, "fail", "behind")])
def test_the_clock_of_the_server_is_read_from_what_it_answers(
    server: RecordingServer, behind: int, status: str, whose: str
) -> None:
    date = format_datetime(datetime.now(UTC) - timedelta(seconds=behind), usegmt=True)
    server.answers["/api/health"] = Answer(200, True, headers={"date": date})
    found = look()["clock"]
    assert (found.status, whose in found.said) == (status, True)


def test_a_server_without_a_date_leaves_the_clocks_to_the_user() -> None:
    assert skew(None, 0) is None
    assert skew("yesterday", 0) is None
