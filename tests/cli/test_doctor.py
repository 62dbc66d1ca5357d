"""`potstill doctor`: a line for everything, exit code 1 where one fails, no key in any of them, a call only on request."""

import json
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from potstill.cli import main
from tests.fake_teacher import Asked, FakeTeacher, Fault, cut_short

KEY = "sk-canary-5d1f07c2a9doctor"
SECRET = "whsec_" + "A" * 44


class Seen(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def summary(self) -> dict[str, Any]:
        return json.loads(self.out.splitlines()[-1])

    def lines(self, name: str) -> list[dict[str, Any]]:
        return [found for found in self.summary["findings"] if found["name"] == name]


Doctor = Callable[..., Seen]


@pytest.fixture
def doctor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Doctor:
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    monkeypatch.setenv("POTSTILL_HOME", str(home))
    for name in ("PREFECT_API_URL", "POTSTILL_STORE", "POTSTILL_LEDGER", "POTSTILL_DATA_ROOTS", "POTSTILL_KEY_HOSTS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("POTSTILL_WEBHOOK_SECRETS", SECRET)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("TEACHER_KEY", KEY)

    def run(*arguments: object) -> Seen:
        with pytest.raises(SystemExit) as ended:
            main(["doctor", *map(str, arguments)])
        printed = capsys.readouterr()
        for secret in (KEY, SECRET):
            assert secret not in printed.out + printed.err
        assert "Traceback" not in printed.err
        return Seen(int(ended.value.code or 0), printed.out, printed.err)

    return run


@pytest.fixture
def teacher() -> Iterator[FakeTeacher]:
    with FakeTeacher(answer=lambda _: "OK") as found:
        yield found


@pytest.fixture
def recipe(tmp_path: Path, teacher: FakeTeacher) -> Path:
    log, base = tmp_path / "log.jsonl", tmp_path / "base"
    log.write_text(json.dumps({"messages": [{"role": "user", "content": "hello"}]}) + "\n")
    base.mkdir()
    (base / "config.json").write_text("{}")
    path = tmp_path / "recipe.yaml"
    data = {
        "name": "router",
        "task": {"kind": "classification", "labels": ["a", "b"]},
        "curation": {"inputs": [str(log)]},
        "teacher": {
            "provider": "openai_compatible",
            "model": "fake-1",
            "base_url": teacher.url,
            "api_key_env": "TEACHER_KEY",
            "price": {"input_per_million": 2.5, "output_per_million": 10},
            "attest": "our own server",
        },
        "budget": {"month_usd": 1},
        "student": {"base": str(base)},
    }
    path.write_text(yaml.safe_dump(data))
    return path


def test_a_machine_that_lacks_nothing_is_exit_0_within_the_time(doctor: Doctor) -> None:
    began = time.monotonic()
    seen = doctor("--json")
    assert time.monotonic() - began < 15
    assert seen.code == 0, [found for found in seen.summary["findings"] if found["status"] == "fail"]
    assert seen.summary["fail"] == 0
    names = {found["name"] for found in seen.summary["findings"]}
    assert names >= {"python", "requirements", "constraints", "gpu", "memory", "disk", "timezone", "home", "store"}
    assert names >= {"ledger", "data roots", "inbox", "keys", "prefect"}
    assert "OPENAI_API_KEY" in seen.lines("keys")[0]["said"]
    assert all(found["remedy"] for found in seen.summary["findings"] if found["status"] == "warn")


def test_people_see_a_table(doctor: Doctor) -> None:
    seen = doctor()
    assert "remedy" in seen.out
    assert "python" in seen.out


def test_a_line_that_fails_is_exit_1(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POTSTILL_DATA_ROOTS", "/no/such/place")
    seen = doctor("--json")
    assert seen.code == 1
    assert seen.lines("data roots")[0]["status"] == "fail"


def test_a_recipe_is_examined_and_its_teacher_not_asked(doctor: Doctor, recipe: Path, teacher: FakeTeacher) -> None:
    seen = doctor(recipe, "--json")
    assert seen.code == 0
    assert {
        name: seen.lines(name)[0]["status"] for name in ("inputs", "base", "terms", "price", "scorer", "key")
    } == dict.fromkeys(("inputs", "base", "terms", "price", "scorer", "key"), "ok")
    assert seen.lines("key")[0]["said"] == "TEACHER_KEY is set, and may go to 127.0.0.1"
    assert teacher.requests == []


def test_the_inbox_is_no_file_that_is_missing(doctor: Doctor, recipe: Path) -> None:
    assert doctor(recipe, "--set", "curation.inputs=[inbox]", "--json").lines("inputs")[0]["said"] == "the inbox"


@pytest.mark.parametrize(
    ("override", "name", "said"),
    [
        ("curation.inputs=[gone.jsonl]", "inputs", "no such file"),
        ("student.base=./gone", "base", "no such directory"),
        ("task.scorer=house-style", "scorer", "no installed distribution"),
        ("teacher.api_key_env=NOT_SET", "key", "NOT_SET is not set"),
        ("teacher.api_key_env=OPENAI_API_KEY", "key", "it belongs to api.openai.com"),
        ("teacher.price=null", "price", "no price known"),
        ("teacher.modle=x", "recipe", "unknown field"),
    ],
)
def test_what_a_recipe_lacks_is_a_line_each(doctor: Doctor, recipe: Path, override: str, name: str, said: str) -> None:
    seen = doctor(recipe, "--set", override, "--json")
    assert seen.code == 1
    [found] = seen.lines(name)
    assert found["status"] == "fail"
    assert said in found["said"]


def test_a_call_costs_what_it_says_and_stands_in_the_ledger(
    doctor: Doctor, recipe: Path, teacher: FakeTeacher, tmp_path: Path
) -> None:
    for _ in range(2):  # the ledger would give an old answer for nothing
        seen = doctor(recipe, "--call", "--json")
        assert seen.code == 0
        [found] = seen.lines("call")
        assert "fake-1: answers in" in found["said"]
        assert found["said"].endswith(" USD")
        assert not found["said"].endswith(" 0 USD")
    assert [asked.body["max_tokens"] for asked in teacher.requests] == [1, 1]
    assert all(asked.headers["authorization"] == f"Bearer {KEY}" for asked in teacher.requests)
    with closing(sqlite3.connect(tmp_path / "home" / "ledger.db")) as database:
        rows = database.execute("SELECT purpose, status, month, cost_usd FROM attempts").fetchall()
    assert len(rows) == 2
    for purpose, status, month, cost in rows:
        assert (purpose, status, month.startswith("month/router/")) == ("smoke", "answered", True)
        assert cost > 0


@pytest.mark.parametrize("status", [400, 401, 404, 429, 500])
def test_a_teacher_that_refuses_is_a_line_and_its_echo_of_the_key_is_not(
    doctor: Doctor, recipe: Path, teacher: FakeTeacher, status: int
) -> None:
    def refuse(asked: Asked) -> Fault:
        said = f"no good: {asked.headers['authorization']}"
        return Fault(str(status), status, json.dumps({"error": {"message": said}}).encode())

    teacher.behaviour = refuse
    seen = doctor(recipe, "--call", "--json")
    assert seen.code == 1
    assert seen.lines("call")[0]["status"] == "fail"
    assert len(teacher.requests) == 1, "it is asked once"


def test_a_teacher_that_is_cut_off_at_the_token_has_answered(
    doctor: Doctor, recipe: Path, teacher: FakeTeacher
) -> None:
    teacher.fail_next(cut_short("O"))
    assert doctor(recipe, "--call", "--json").code == 0


def test_a_call_needs_a_recipe(doctor: Doctor) -> None:
    seen = doctor("--call")
    assert seen.code == 2
    assert "name the recipe" in seen.err
