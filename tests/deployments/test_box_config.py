"""box.yaml and what stands around it: faults are said with file, field and remedy; secrets go where they are needed only."""

import os
import socket
import stat

import pytest

from deployments.box.config import ROOT, Box, load_box
from deployments.box.environment import auth_string, database, enter, environments, write_shell_file
from deployments.box.places import Places
from deployments.box.ports import check_ports
from deployments.box.processes import processes
from potstill.errors import UsageError
from tests.ports import free_ports


@pytest.fixture
def places(tmp_path):
    places = Places(tmp_path / "home")
    places.make()
    return places


@pytest.fixture
def given(monkeypatch):
    """What the user has set; this process's environment is put back afterwards."""
    before = dict(os.environ)
    yield monkeypatch
    monkeypatch.undo()
    os.environ.clear()
    os.environ.update(before)


def test_the_file_in_the_checkout_says_what_is_the_default():
    assert load_box(ROOT / "deployments" / "box.yaml") == Box()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("server: {prot: 1}", "server.prot: unknown field"),
        ("server: {port: 0}", "server.port: 0: input should be greater than or equal to 1"),
        ("gateway: {port: 4200}", "server.port 4200, gateway.port 4200"),
        ("workers: {gpu_cards: ['0', '0']}", "a card is named twice in gpu_cards"),
        ("stop_seconds: -1", "stop_seconds: -1: input should be greater than 0"),
        ("[1]", "the file: [1]"),
        ("a: [", "not valid YAML"),
    ],
)
def test_a_fault_is_said_with_file_and_field(tmp_path, text, said):
    path = tmp_path / "box.yaml"
    path.write_text(text)
    with pytest.raises(UsageError) as error:
        load_box(path)
    assert str(error.value).startswith(f"{path}: ")
    assert said in str(error.value)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"missing.yaml: cannot be read .* name another with --config"):
        load_box(tmp_path / "missing.yaml")


def test_a_section_that_is_null_is_not_started(tmp_path, places):
    path = tmp_path / "box.yaml"
    path.write_text("{gateway: null, webhook: null, reports: null, workers: {gpu_cards: []}}")
    box = load_box(path)
    assert box.ports == {"server": 4200}
    listed = processes(box, places, environments(box, places, {}), str(path))
    assert [process.name for process in listed] == ["server", "setup", "cpu-1"]


def test_runs_read_below_directories_of_the_checkout_and_prefixes_of_buckets(places):
    box = Box(data_roots=("logs", "/srv/prompts", "s3://bucket/logs"))
    roots = environments(box, places, {}).worker["POTSTILL_DATA_ROOTS"]
    assert roots == f"{ROOT}/logs:/srv/prompts:s3://bucket/logs:{places.home}/inbox"


def test_each_card_has_a_worker_that_sees_no_other(places):
    box = Box.model_validate({"workers": {"gpu_cards": ["0", "3"]}})
    listed = {process.name: process for process in processes(box, places, environments(box, places, {}), "box.yaml")}
    assert listed["gpu-3"].environment["CUDA_VISIBLE_DEVICES"] == "3"
    assert listed["gpu-3"].command[-2:] == ("--limit", "1")
    assert "CUDA_VISIBLE_DEVICES" not in listed["cpu-1"].environment


def test_prompts_can_land_and_students_answer_before_prefect_is_up(places):
    listed = {
        process.name: process for process in processes(Box(), places, environments(Box(), places, {}), "box.yaml")
    }
    waiting = {name for name, process in listed.items() if process.after}
    assert waiting == {"setup", "cpu-1", "gpu-any"}


def test_a_port_that_is_taken_is_named_with_its_holder_and_the_field():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port, [free] = listener.getsockname()[1], free_ports(1)
        with pytest.raises(UsageError) as error:
            check_ports(Box.model_validate({"gateway": {"port": port}, "server": {"port": free}}), "b.yaml")
    said = f"port {port} is taken by process {os.getpid()} ("
    assert str(error.value).startswith(said)
    assert str(error.value).endswith("free it, or choose another as gateway.port in b.yaml")


def test_the_auth_string_is_made_once_and_only_its_user_may_read_it(places):
    made = auth_string(places.auth)
    assert made.startswith("potstill:")
    assert len(made) > 40
    assert auth_string(places.auth) == made
    assert stat.S_IMODE(places.auth.stat().st_mode) == 0o600
    write_shell_file(places, environments(Box(), places, {}))
    assert stat.S_IMODE(places.env.stat().st_mode) == 0o600
    assert f"export PREFECT_API_AUTH_STRING={made}\n" in places.env.read_text()


def test_secrets_go_only_where_they_are_needed_and_never_on_a_command_line(places, given):
    secrets = {
        "OPENAI_API_KEY": "sk-teacher",
        "POTSTILL_KEY_HOSTS": "OUR_KEY=llm.example",
        "OUR_KEY": "sk-teacher",
        "POTSTILL_WEBHOOK_SECRETS": "whsec_x",
        "POTSTILL_PREFECT_DATABASE": "postgresql://me:dbpass@db/prefect",
        "POTSTILL_LEDGER": "postgresql://me:ledgerpass@db/ledger",
        "PREFECT_API_URL": "https://cloud.example/api",
        "PREFECT_API_KEY": "pnu_cloud",
    }
    for name, value in secrets.items():
        given.setenv(name, value)
    found = environments(Box(), places, enter(places))
    listed = {process.name: process for process in processes(Box(), places, found, "box.yaml")}
    holders = {
        secret: {name for name, process in listed.items() if secret in " ".join(process.environment.values())}
        for secret in ("sk-teacher", "whsec_x", "dbpass", "ledgerpass", "pnu_cloud", found.api.auth or "")
    }
    shared = " ".join(os.environ.values())
    assert not [secret for secret in holders if secret in shared]
    assert list(holders.values()) == [
        {"cpu-1"},
        {"webhook"},
        {"server"},
        {"cpu-1"},
        set(),
        {"server", "setup", "cpu-1", "gpu-any", "webhook", "reports"},
    ]
    lines = " ".join(part for process in listed.values() for part in process.command)
    assert not [secret for secret in holders if secret in lines]
    assert listed["cpu-1"].environment["PREFECT_API_URL"] == "http://127.0.0.1:4200/api"


def test_the_database_is_sqlite_in_the_home_unless_one_is_named(places):
    assert database(places, {}) == f"sqlite+aiosqlite:///{places.home}/box/prefect.db"
    named = "postgresql+asyncpg://prefect@db/prefect"
    assert database(places, {"POTSTILL_PREFECT_DATABASE": "postgresql://prefect@db/prefect"}) == named
    assert database(places, {"PREFECT_API_DATABASE_CONNECTION_URL": named}) == named


def test_runs_may_read_the_roots_of_the_file_and_the_inbox_unless_the_user_names_others(places):
    worker = environments(Box(), places, {}).worker
    assert worker["POTSTILL_DATA_ROOTS"].split(os.pathsep) == [
        str(ROOT / "examples"),
        str(ROOT / "logs"),
        str(places.home / "inbox"),
    ]
    assert environments(Box(), places, {"POTSTILL_DATA_ROOTS": "/data"}).worker["POTSTILL_DATA_ROOTS"] == "/data"
    assert worker["POTSTILL_REPORTS_URL"] == "http://127.0.0.1:8390"


def test_what_the_operator_asks_holds_for_workers_and_in_the_shells_of_the_box(places):
    asking = environments(Box(), places, {"POTSTILL_APPROVAL": "ask"})
    assert asking.worker["POTSTILL_APPROVAL"] == "ask"
    write_shell_file(places, asking)
    assert "export POTSTILL_APPROVAL=ask\n" in places.env.read_text()
    write_shell_file(places, environments(Box(), places, {}))
    assert "POTSTILL_APPROVAL" not in places.env.read_text()
