"""The whole line by commands on files, as the README has it, each a process of its own."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from potstill.artifacts import ArtifactStore, load_artifact, read_manifest
from potstill.records import Example, Prompt, read_parquet

pytestmark = pytest.mark.flow

ATTESTED = "the replay teacher is our own"
LABELS = ("--labels", "billing,technical")
SETTINGS = {"epochs": 12, "learning-rate": 5e-3, "max-length": 128, "lora-rank": 16, "lora-alpha": 32}
TRAINING = [str(part) for name, value in SETTINGS.items() for part in (f"--{name}", value)]


class Place:
    """A directory in which commands run."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def run(self, *arguments: object, code: int = 0) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "potstill.cli", *map(str, arguments)]
        ended = subprocess.run(command, capture_output=True, text=True, check=False, cwd=self.root)
        assert ended.returncode == code, ended.stderr
        assert "Traceback" not in ended.stderr
        return ended

    def summary(self, *arguments: object, code: int = 0) -> dict[str, Any]:
        return json.loads(self.run(*arguments, "--json", code=code).stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def taught(
    tmp_path_factory: pytest.TempPathFactory, write_tickets: Callable[..., Any], replay_teacher: Callable[..., Any]
) -> Place:
    """A prompt set with a test split of 30 % in `prompts`, and the teacher's answers to it in `teacher`."""
    root = tmp_path_factory.mktemp("chain")
    tickets = write_tickets(root, 400)
    place = Place(root)
    place.run("curate", tickets.log, "--workload", "tickets", "--test-fraction", "0.3", "--out", "prompts")
    with replay_teacher(tickets.answers) as url:
        teacher = ["--provider", "openai_compatible", "--base-url", url, "--model", "replay", "--price", "1,2"]
        told = place.summary(
            "teach", "prompts", *teacher, "--max-tokens", 16, "--attest", ATTESTED, "--yes", "--out", "teacher"
        )
    assert (told["answered"], told["status"]) == (400, "done")
    return place


def test_what_was_curated_is_taught_trained_judged_and_released(taught: Place, tiny_base: Path) -> None:
    told = taught.summary("train", "teacher", "--base", tiny_base, *TRAINING, "--out", "student")
    asked = list(read_parquet(taught.root / "prompts" / "prompts.parquet", Prompt))
    assert told["examples"] == sum(row.split == "train" for row in asked)
    store = ArtifactStore(taught.root / ".potstill")
    [dataset] = list((store.root / "artifacts" / "SFTDataset").iterdir())
    trained = {row.prompt_id for row in read_parquet(dataset / "examples.parquet", Example)}
    assert trained.isdisjoint(row.prompt_id for row in asked if row.split == "test")

    chat = taught.root / "chat.jsonl"
    chat.write_text("".join(json.dumps({"messages": row.messages}) + "\n" for row in asked if row.split == "train"))
    leaked = taught.run("generate", chat, "--student", "student", "--out", "leaked", code=2)
    assert f"{told['examples']} of {told['examples']} test prompts were trained on" in leaked.stderr
    taught.run("generate", "prompts", "--student", "student", "--max-tokens", 8, "--out", "candidate")
    arms = ["--arm", "teacher=teacher", "--arm", "candidate=candidate"]
    scored = taught.summary("evaluate", "--prompts", "prompts", *arms, *LABELS, "--out", "scores")
    assert scored["arms"]["candidate"]["score"] > 0.95
    assert taught.summary("gate", "scores", "--floor", 0.9, "--out", "decision.json")["verdict"] == "passed"
    released = taught.summary("release", "student", "--recipe", "tickets", "--decision", "decision.json")
    assert released["alias"] == "champion"
    assert f"tickets@{released['version']}  champion" in taught.run("releases", "tickets").stdout
    for made in ("teacher", "student", "candidate", "scores"):
        assert [terms.attested for terms in read_manifest(taught.root / made).teacher_terms] == [ATTESTED], made

    decision = json.loads((taught.root / "decision.json").read_text())
    digest = load_artifact(taught.root / "student", "StudentAdapter").digest
    assert decision["candidate"] == f"adapter {digest[:12]}"
    (taught.root / "other.json").write_text(json.dumps(decision | {"candidate": "adapter 0123456789ab"}))
    refused = taught.run("release", "student", "--recipe", "other", "--decision", "other.json", code=1)
    assert "the decision is about adapter 0123456789ab" in refused.stderr


def test_the_base_against_the_teacher_is_a_dpo_rung(taught: Place, tiny_base: Path) -> None:
    own = taught.summary(
        *("generate", "prompts", "--base", tiny_base, "--split", "train", "--limit", 20, "--max-tokens", 8),
        *("--out", "own"),
    )
    assert own["prompts"] == 20
    short = ["--epochs", 1, "--max-length", 128]
    told = taught.summary("train", "teacher", "--base", tiny_base, *short, "--rejected", "own", "--out", "polished")
    assert told["examples"] == 20
    assert json.loads((taught.root / "polished" / "spec.json").read_text())["method"] == "dpo"

    equal = taught.run("train", "teacher", "--base", tiny_base, *short, "--rejected", "teacher", "--out", "plain")
    assert "no DPO: teacher differs nowhere from the teacher's answers" in equal.stderr
    assert json.loads((taught.root / "plain" / "spec.json").read_text())["method"] == "sft"


def test_teach_output_whose_prompt_set_is_gone_asks_for_it(taught: Place, tiny_base: Path, tmp_path: Path) -> None:
    elsewhere = Place(tmp_path)
    given = ["train", taught.root / "teacher", "--base", tiny_base, "--epochs", 0.1, "--out", "student"]
    refused = elsewhere.run(*given, code=2)
    assert "was taught from a prompt set that is not in" in refused.stderr
    assert "name it with --prompts" in refused.stderr
    elsewhere.run(*given, "--prompts", taught.root / "prompts")
