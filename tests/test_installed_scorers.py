"""A scorer of the user's own is an installed entry point, known by its name only; whatever it does stops no run."""

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from potstill.artifacts import ArtifactRef
from potstill.errors import UsageError
from potstill.evaluation.metrics import evaluate_arms
from potstill.evaluation.report import score_key
from potstill.installed_scorers import load_scorer
from potstill.recipe import Task, Teacher
from potstill.records import Completion, Prompt, Usage
from potstill.scorers import Score, score, scorer_identity
from potstill.teacher.choosing import check_choice, choice_scores

CODE = """
raise_at = []

def length(task, answer, target):
    return min(len(answer), len(target)) / max(len(answer), len(target))

def hostile(task, answer, target):
    if answer == "raise":
        raise ValueError("I cannot read this")
    if answer == "exit":
        raise SystemExit(3)
    return {"two": 2, "nan": float("nan"), "text": "good", "yes": True, "none": None, "said": (None, "a riddle"),
            "reasoned": (0.25, "half of it"), "below": -0.1}[answer]

number = 7
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """`install(name, version, points)` makes a distribution as pip leaves one behind, in a directory of `sys.path`."""

    def make(name: str, version: str, points: dict[str, str], code: str = CODE) -> Path:
        place = tmp_path / f"{name}-{version}"
        info = place / f"{name}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        lines = "".join(f"{point} = {where}\n" for point, where in points.items())
        (info / "entry_points.txt").write_text(f"[potstill.scorers]\n{lines}")
        (place / f"{name}.py").write_text(code)
        monkeypatch.syspath_prepend(str(place))
        return place

    load_scorer.cache_clear()
    yield make  # pyright: ignore[reportReturnType]
    load_scorer.cache_clear()
    for module in ("house_scorers", "other_scorers", "broken_scorers"):
        sys.modules.pop(module, None)


def task(scorer: str | None, **more: Any) -> Task:
    return Task.model_validate({"kind": "extraction", "scorer": scorer, **more})


def completion(text: str, prompt_id: str = "p") -> Completion:
    message = {"role": "assistant", "content": text}
    return Completion(
        prompt_id=prompt_id, teacher="t", completion=text, message=message, finish_reason="stop", usage=Usage()
    )


def prompt(prompt_id: str, reference: str) -> Prompt:
    return Prompt(
        prompt_id=prompt_id,
        messages=[{"role": "user", "content": "?"}],
        task_kind="extraction",
        workload="",
        group_id=prompt_id,
        split="test",
        source="here:1",
        reference=reference,
    )


def test_it_judges_in_place_of_the_kinds_own(install: Callable[..., Path]) -> None:
    install("house_scorers", "1.2", {"length": "house_scorers:length"})
    assert score(task("length"), completion("abc"), "abcd") == Score(0.75)
    assert score(task(None), completion("abc"), "abcd").value is None
    assert scorer_identity(task("length")) == "length (house_scorers 1.2)"


def test_what_is_not_installed_is_refused_with_the_names_of_what_is(install: Callable[..., Path]) -> None:
    install("house_scorers", "1.2", {"length": "house_scorers:length", "hostile": "house_scorers:hostile"})
    with pytest.raises(UsageError, match=r"task\.scorer lenght: no installed.*Installed: .*hostile, .*length"):
        load_scorer("lenght")


@pytest.mark.parametrize(
    "name", ["os:system", "house_scorers.length", "../evil", "Length", "", "a b", "x\n", "-x", "a" * 64, "/tmp/x.py"]
)
def test_a_parameter_never_says_where_code_is(name: str) -> None:
    with pytest.raises(ValidationError, match="scorer"):
        task(name)


@pytest.mark.parametrize(
    ("answer", "value", "reason"),
    [
        ("raise", None, "raised ValueError: I cannot read this"),
        ("exit", None, "raised SystemExit: 3"),
        ("two", None, "gives 2, which is not from 0 to 1"),
        ("below", None, "gives -0.1"),
        ("nan", None, "gives nan"),
        ("text", None, "gives 'good'"),
        ("yes", None, "gives True"),
        ("none", None, "gives no score"),
        ("said", None, "a riddle"),
        ("unforeseen", None, "raised KeyError"),
        ("reasoned", 0.25, "half of it"),
    ],
)
def test_whatever_it_does_is_a_score_or_a_reason(
    install: Callable[..., Path], answer: str, value: float | None, reason: str
) -> None:
    install("house_scorers", "1.2", {"hostile": "house_scorers:hostile"})
    found = score(task("hostile"), completion(answer), "target")
    assert found.value == value
    assert reason in (found.reason or "")


def test_a_sample_on_which_it_raises_is_unscored_and_the_others_count(install: Callable[..., Path]) -> None:
    install("house_scorers", "1.2", {"hostile": "house_scorers:hostile"})
    prompts = [prompt("a", "x"), prompt("b", "x")]
    answers = {"a": completion("reasoned", "a"), "b": completion("raise", "b")}
    found = evaluate_arms(task("hostile"), prompts, {"candidate": answers})
    [arm] = found.report.arms
    assert (arm.metric, arm.n, arm.unscored, arm.score) == ("score", 1, 1, 0.25)
    assert found.report.scorer == "hostile (house_scorers 1.2)"
    assert "cannot read this" in (found.lines[1].reason or "")


def test_another_version_of_it_is_another_evaluation(install: Callable[..., Path]) -> None:
    ref = ArtifactRef(kind="PromptSet", uri="x", digest="0" * 64, num_rows=1)
    install("house_scorers", "1.2", {"length": "house_scorers:length"})
    first = score_key(task("length"), ref, {"candidate": ref})
    load_scorer.cache_clear()
    place = install("house_scorers", "1.3", {"length": "house_scorers:length"})
    sys.path.remove(str(place.parent / "house_scorers-1.2"))
    assert score_key(task("length"), ref, {"candidate": ref}) != first


def test_a_name_that_two_distributions_have_is_refused(install: Callable[..., Path]) -> None:
    install("house_scorers", "1.2", {"length": "house_scorers:length"})
    install("other_scorers", "0.1", {"length": "other_scorers:length"})
    with pytest.raises(UsageError, match=r"several distributions.*house_scorers 1\.2.*other_scorers 0\.1"):
        load_scorer("length")


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("broken_scorers:length", "cannot be loaded: ZeroDivisionError"),
        ("house_scorers:number", "a int, not a function"),
        ("house_scorers:absent", "cannot be loaded: AttributeError"),
        ("no_such_module:length", "cannot be loaded: ModuleNotFoundError"),
    ],
)
def test_one_that_cannot_be_loaded_is_told_before_anything_is_paid(
    install: Callable[..., Path], where: str, said: str
) -> None:
    install("broken_scorers", "1", {}, code="1 / 0")
    install("house_scorers", "1.2", {"length": where})
    teacher = Teacher.model_validate({"model": "m", "choose": "scorer", "samples": 2})
    with pytest.raises(UsageError, match=said):
        check_choice(teacher, task("length"))


def test_it_chooses_among_samples(install: Callable[..., Path]) -> None:
    install("house_scorers", "1.2", {"length": "house_scorers:length"})
    teacher = Teacher.model_validate({"model": "m", "choose": "scorer", "samples": 2})
    trained = prompt("a", "abcd").model_copy(update={"split": "train"})
    assert choice_scores(teacher, task("length"), trained, ["abc", "abcd"]) == [0.75, 1.0]


def test_the_example_of_the_page_is_one(install: Callable[..., Path]) -> None:
    page = (Path(__file__).parents[1] / "docs" / "scorers.md").read_text()
    [code] = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    [point] = re.findall(r'closeness = "(.*)"', page)
    install("house_scorers", "1.0", {"closeness": point}, code=code)
    judged = task("closeness")
    assert [score(judged, completion(answer), "7") for answer in ("7", "8", "seven")] == [
        Score(1.0),
        Score(0.5),
        Score(0.0, "no number"),
    ]
    assert score(judged, completion("7"), "a riddle").value is None
