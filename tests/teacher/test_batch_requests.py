"""What a batch asks for, and what becomes of one whose creation nobody confirmed."""

import json
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any, Literal

import pytest

from potstill.errors import PermanentTeacherError, TransientTeacherError
from potstill.ledger import Ledger
from potstill.ledger.entries import NO_CAPS
from potstill.llm.pricing import Rates
from potstill.llm.retrying import RetryPolicy
from potstill.teacher.outcome import BatchReport
from potstill.teacher.plan import TeachPlan, make_plan
from potstill.teacher.rows import ListedRows
from potstill.teacher.session import TeacherSession
from potstill.teacher.watching import LOOKS
from tests.batch_teacher import DROP_AFTER, DROP_BEFORE, FINE, BatchTeacher, CallFault, refuse
from tests.fake_teacher import make_teacher, numbered_rows


@pytest.fixture
def ledger(ledger_url: str) -> Ledger:
    return Ledger(ledger_url)


@pytest.fixture
def teacher() -> Iterator[BatchTeacher]:
    with BatchTeacher() as teacher:
        yield teacher


def planned(teacher: BatchTeacher, **fields: Any) -> TeachPlan:
    given = {"provider": "anthropic", "batch_poll_seconds": 0.02, "mode": "batch", **fields}
    return make_plan(ListedRows(numbered_rows(5)), make_teacher(teacher.url, **given), None)


def ask(plan: TeachPlan, ledger: Ledger, say: Callable[[str], None] | None = None) -> BatchReport:
    with TeacherSession(plan, ledger, NO_CAPS, RetryPolicy(2, 0.001, 0.01, refusals=0)) as session:
        return session.answer_in_batches(say=say)


@pytest.mark.parametrize(("is_wanted", "marks"), [(True, 4), (False, 0)])
def test_a_long_shared_beginning_asks_for_the_prompt_cache_within_the_bound(
    ledger: Ledger, teacher: BatchTeacher, monkeypatch: pytest.MonkeyPatch, is_wanted: bool, marks: int
) -> None:
    rates = Rates(Decimal("1.5"), Decimal("0.15"), Decimal("7.5"), "list, batch", cache_write=Decimal("1.875"))
    monkeypatch.setattr("potstill.teacher.session.rates_of", lambda *_: rates)
    plan = planned(teacher, instructions="Be brief. " * 500, prompt_caching=is_wanted)
    reserved: list[Decimal] = []
    report = ask(plan, ledger, lambda _: reserved.append(ledger.account(plan.run).reserved_usd))
    (batch,) = teacher.batches.values()
    system = [body["system"][0] for _, body in batch.requests]
    assert sum("cache_control" in block for block in system) == marks, "the first has nothing to gain"
    sent = [(len(json.dumps(body)), body["max_tokens"]) for _, body in batch.requests]
    assert reserved[0] >= sum(rates.upper_bound(*one) for one in sent)
    assert report.answered == 5


@pytest.mark.parametrize("provider", ["anthropic", "openai_compatible"])
def test_a_creation_that_was_refused_for_now_is_looked_for_before_it_is_handed_in_anew(
    ledger: Ledger, teacher: BatchTeacher, provider: str
) -> None:
    plan = planned(teacher, provider=provider)
    teacher.fail_next("create", refuse(429), refuse(429))
    with pytest.raises(TransientTeacherError):
        ask(plan, ledger)
    (left,) = ledger.open_batches(provider, teacher.url)
    assert (left.status, left.batch_id, teacher.batches) == ("submitting", None, {})
    assert ledger.account(plan.run).reserved_usd > 0, "it may be there after all"
    teacher.calls.clear()
    said: list[str] = []
    assert ask(plan, ledger, said.append).answered == 5
    operations = teacher.operations()
    assert operations[: operations.index("create")].count("list") >= LOOKS
    assert f"batch {left.token} never reached the provider: its prompts may be asked for again" in said
    assert [len(batch.requests) for batch in teacher.batches.values()] == [5]
    assert not teacher.billed_twice()
    assert ledger.account(plan.run).reserved_usd == 0


@pytest.mark.parametrize(
    ("provider", "first", "fault"),
    [
        ("openai_compatible", "upload", DROP_BEFORE),
        ("openai_compatible", "upload", refuse(503)),
        ("anthropic", "list", refuse(503)),
    ],
)
def test_what_failed_before_anything_was_created_leaves_nothing_behind(
    ledger: Ledger, teacher: BatchTeacher, provider: str, first: str, fault: CallFault
) -> None:
    plan = planned(teacher, provider=provider)
    teacher.fail_next(first, fault, fault)
    with pytest.raises(TransientTeacherError, match=r"No batch was created: run the same again, with mode online"):
        ask(plan, ledger)
    assert ledger.open_batches(provider, teacher.url) == []
    assert ledger.account(plan.run).committed_usd == 0


@pytest.mark.parametrize(("provider", "first"), [("openai_compatible", "upload"), ("anthropic", "list")])
def test_an_endpoint_without_batches_says_so_and_locks_no_prompt(
    ledger: Ledger, teacher: BatchTeacher, provider: str, first: str
) -> None:
    plan = planned(teacher, provider=provider)
    teacher.fail_next(first, refuse(404))
    with pytest.raises(PermanentTeacherError, match=r"HTTP 404.*has no batches: ask it with mode online"):
        ask(plan, ledger)
    assert ledger.open_batches(provider, teacher.url) == []


@pytest.mark.parametrize("provider", ["anthropic", "openai_compatible"])
@pytest.mark.parametrize("status", [404, 405])
@pytest.mark.parametrize("mode", ["batch", "online"])
def test_a_batch_that_the_endpoint_cannot_have_is_closed_at_the_first_look(
    ledger: Ledger,
    teacher: BatchTeacher,
    monkeypatch: pytest.MonkeyPatch,
    provider: str,
    status: int,
    mode: Literal["batch", "online"],
) -> None:
    """It was left in doubt by a run that is over."""
    left = planned(teacher, provider=provider)
    teacher.fail_next("create", refuse(429), refuse(429))
    with pytest.raises(TransientTeacherError):
        ask(left, ledger)
    teacher.calls.clear()
    teacher.fail_next("list", refuse(status))
    said: list[str] = []
    plan = planned(teacher, provider=provider, mode=mode)
    with TeacherSession(plan, ledger, NO_CAPS, RetryPolicy(2, 0.001, 0.01, refusals=0)) as session:
        report = session.answer_in_batches(say=said.append) if mode == "batch" else session.answer(say=said.append)
    assert report.answered == 5
    assert any("has no batches" in line for line in said)
    assert any(line.endswith("never reached the provider: its prompts may be asked for again") for line in said)
    assert ledger.open_batches(provider, teacher.url) == []
    assert not teacher.billed_twice()


@pytest.mark.parametrize("provider", ["anthropic", "openai_compatible"])
@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_creation_that_was_not_heard_of_and_cannot_be_looked_for_is_not_paid_twice(
    ledger: Ledger, teacher: BatchTeacher, provider: str, status: int
) -> None:
    teacher.runs_by_itself = True
    plan = planned(teacher, provider=provider)
    teacher.fail_next("create", DROP_AFTER)
    teacher.fail_next("list", *([FINE] if provider == "anthropic" else []), refuse(status))
    with pytest.raises(TransientTeacherError, match="Whether the batch was created is open"):
        ask(plan, ledger)
    assert ledger.account(plan.run).reserved_usd > 0, "it may be billed"
    assert ask(plan, ledger).answered == 5
    assert (len(teacher.batches), teacher.billed_twice()) == (1, {})
    assert ledger.account(plan.run).reserved_usd == 0
