"""`potstill generate`: who answers, what is answered, and that evaluate reads it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


def potstill(place: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "potstill.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=place)


@pytest.fixture
def chat(tmp_path: Path) -> Path:
    lines = [{"id": f"row-{n}", "messages": [{"role": "user", "content": f"my refund {n}"}]} for n in range(5)]
    path = tmp_path / "chat.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in [*lines, lines[0]]) + "{broken\n")
    return path


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "which model should answer? Give one of --student DIR, --release RECIPE and --base MODEL"),
        (["--base", ".", "--release", "r"], "which model should answer?"),
        (["--student", "gone"], "gone has no manifest.json"),
        (["--release", "router"], "model 'router' is not released; nothing is released yet"),
        (["--base", "./gone"], "student.base ./gone: no such directory"),
    ],
)
def test_it_says_who_may_answer(flags: list[str], said: str, chat: Path) -> None:
    ended = potstill(chat.parent, "generate", chat, "--out", "o", *flags)
    assert ended.returncode != 0
    assert said in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.flow
def test_every_prompt_of_a_chat_file_is_answered_once_and_can_be_scored(chat: Path, tiny_base: Path) -> None:
    ended = potstill(
        chat.parent, "generate", chat, "--base", tiny_base, "--max-tokens", 3, "--out", "answers", "--json"
    )
    assert ended.returncode == 0, ended.stderr
    assert "lines that could not be read: 1, the first: line 7: not valid JSON" in ended.stderr
    assert json.loads(ended.stdout.splitlines()[-1])["prompts"] == 5
    given = [json.loads(line) for line in (chat.parent / "answers" / "completions.jsonl").read_text().splitlines()]
    assert len({row["prompt_id"] for row in given}) == 5
    assert all(1 <= row["usage"]["output"] <= 3 for row in given)
    arms = [f"--arm={name}=answers" for name in ("teacher", "candidate")]
    scored = potstill(chat.parent, "evaluate", "--prompts", chat, *arms, "--labels", "a,b", "--out", "scores")
    assert scored.returncode == 0, scored.stderr
    assert "candidate" in scored.stdout
    again = potstill(
        chat.parent, "generate", chat, "--base", tiny_base, "--max-tokens", 3, "--out", "answers", "--json"
    )
    assert again.stdout == ended.stdout
