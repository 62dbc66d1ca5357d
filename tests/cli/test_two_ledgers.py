"""Answers come from the ledger that was named: the same prompts in another ledger are other answers."""

from pathlib import Path

import orjson
import pytest

from potstill.cli import main
from tests.fake_teacher import FakeTeacher


def answers_with(ledger: str, first_word: str, tmp_path: Path) -> list[str]:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"messages": [{"role": "user", "content": "prompt [7]"}]}\n')
    out = tmp_path / ledger
    with FakeTeacher(answer=lambda _: first_word) as teacher:
        where = ["--provider", "openai_compatible", "--base-url", teacher.url, "--model", "m", "--price", "1,1"]
        with pytest.raises(SystemExit) as ended:
            main(["teach", str(prompts), *where, "--ledger", f"sqlite:///{tmp_path / ledger}.db", "--out", str(out)])
    assert ended.value.code == 0
    return [orjson.loads(line)["completion"] for line in (out / "completions.jsonl").read_bytes().splitlines()]


def test_another_ledger_gives_its_own_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POTSTILL_HOME", str(tmp_path / "home"))
    assert answers_with("one", "first", tmp_path) == ["first"]
    assert answers_with("two", "second", tmp_path) == ["second"]
    assert answers_with("one", "never asked again", tmp_path) == ["first"]
