import json
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import Any

import pytest

from potstill.errors import BudgetReachedError, NotAuthorisedError, PermanentTeacherError, TransientTeacherError
from potstill.ledger import Caps, Ledger
from potstill.ledger.entries import NO_CAPS
from potstill.llm.retrying import RetryPolicy
from potstill.teacher.outcome import Step
from potstill.teacher.plan import TeachPlan, make_plan
from potstill.teacher.rows import InputRow, ListedRows
from potstill.teacher.session import TeacherSession
from tests.fake_teacher import (
    BAD_REQUEST,
    CUT,
    EMPTY,
    FORBIDDEN,
    HANG,
    MALFORMED,
    NOT_FOUND,
    QUICK,
    QUOTA,
    RATE_LIMITED,
    RESET,
    SERVER_ERROR,
    UNAUTHORISED,
    WITHOUT_USAGE,
    Asked,
    FakeTeacher,
    Fault,
    error,
    make_teacher,
    numbered_rows,
    redirect,
    row,
)

pytestmark = [pytest.mark.flow, pytest.mark.usefixtures("hurried")]

TOO_LONG = Fault(
    "too long", 400, json.dumps({"error": {"message": "too long", "code": "context_length_exceeded"}}).encode()
)


def planned(teacher: FakeTeacher, rows: list[InputRow], **fields: Any) -> TeachPlan:
    return make_plan(ListedRows(rows), make_teacher(teacher.url, **fields), None)


def ask(
    plan: TeachPlan,
    ledger: Ledger,
    budget: str | None = None,
    policy: RetryPolicy = QUICK,
    on_step: Callable[[Step], None] | None = None,
) -> Any:
    with TeacherSession(plan, ledger, Caps(None if budget is None else Decimal(budget)), policy) as session:
        return session.answer(on_step=on_step)


def answers(plan: TeachPlan, ledger: Ledger) -> dict[str, str]:
    """The text of each stored answer by the id in its prompt."""
    found = ledger.find_answers(answer.key for answer in plan.answers())
    marks = {answer.key: answer.prompt.messages[-1]["content"].split()[-1].strip("?") for answer in plan.answers()}
    return {marks[key]: answer.reply.text for key, answer in found.items()}


def known_usd(plan: TeachPlan, ledger: Ledger) -> Decimal:
    return sum((cost.cost_usd for cost in ledger.costs(a.key for a in plan.answers()).values()), Decimal(0))


def unknown_usd(plan: TeachPlan, ledger: Ledger) -> Decimal:
    return sum((cost.unknown_usd for cost in ledger.costs(a.key for a in plan.answers()).values()), Decimal(0))


def right(count: int) -> dict[str, str]:
    return {f"#{number:04d}": f"answer to #{number:04d}" for number in range(count)}


def test_nothing_is_lost_and_nothing_stands_beside_the_wrong_prompt(ledger: Ledger) -> None:
    def late(asked: Asked) -> None:
        """Answers come back out of order."""
        threading.Event().wait(0.02 * (asked.number % 3))

    with FakeTeacher(late) as teacher:
        plan = planned(teacher, numbered_rows(120), concurrency=16)
        report = ask(plan, ledger)
    assert answers(plan, ledger) == right(120)
    assert (report.answers, report.answered, report.found, report.attempts) == (120, 120, 0, 120)
    assert report.cost_usd == known_usd(plan, ledger) == teacher.billed_usd > 0


def test_identical_prompts_are_asked_once_and_samples_are_not_identical(teacher: FakeTeacher, ledger: Ledger) -> None:
    rows = [row("Is it #0001?", "a"), row("Is it #0002?", "b"), row("Is it #0001?", "c")]
    ask(planned(teacher, rows), ledger)
    assert sorted(teacher.marks()) == ["#0001", "#0002"]
    ask(planned(teacher, rows, samples=3), ledger)
    assert len(teacher.requests) == 6


def test_what_stands_in_the_ledger_is_not_asked_again_whatever_the_pace(teacher: FakeTeacher, ledger: Ledger) -> None:
    ask(planned(teacher, numbered_rows(10)), ledger)
    report = ask(planned(teacher, numbered_rows(15), concurrency=2, timeout_seconds=5), ledger)
    assert (report.found, report.answered, report.attempts) == (10, 5, 5)
    assert len(teacher.requests) == 15


def test_threads_that_hand_in_the_same_batch_at_once_pay_for_it_once(ledger: Ledger) -> None:
    with FakeTeacher(latency=0.05) as teacher:
        plan = planned(teacher, numbered_rows(16))
        with TeacherSession(plan, ledger, NO_CAPS, QUICK) as session, ThreadPoolExecutor(3) as pool:
            list(pool.map(session.answer, [None] * 3))
    assert sorted(teacher.marks()) == sorted(right(16))


@pytest.mark.parametrize("fault", [RATE_LIMITED, SERVER_ERROR, RESET, CUT, EMPTY, MALFORMED, WITHOUT_USAGE])
def test_a_fault_is_retried_and_every_attempt_accounted_for(teacher: FakeTeacher, ledger: Ledger, fault: Fault) -> None:
    teacher.fail_next(fault)
    plan = planned(teacher, numbered_rows(3))
    report = ask(plan, ledger)
    assert answers(plan, ledger) == right(3)
    assert report.attempts == len(teacher.requests) == 4
    assert known_usd(plan, ledger) == teacher.billed_usd
    bound = plan.rates.upper_bound(len(str(teacher.requests[0].body)), plan.teacher.max_tokens)
    perhaps_billed = fault in {RESET, CUT, MALFORMED, WITHOUT_USAGE}
    assert (unknown_usd(plan, ledger) > bound / 2) if perhaps_billed else (unknown_usd(plan, ledger) == 0)


def test_a_request_that_hangs_is_given_up_counts_at_its_bound_and_is_asked_again(
    teacher: FakeTeacher, ledger: Ledger
) -> None:
    teacher.fail_next(HANG)
    plan = planned(teacher, numbered_rows(1), timeout_seconds=0.5)
    assert ask(plan, ledger).attempts == 2
    assert answers(plan, ledger) == right(1)
    assert unknown_usd(plan, ledger) > 0


def test_a_server_that_only_hangs_is_given_up_after_two_timeouts_and_told_of_after_each(ledger: Ledger) -> None:
    told: list[Step] = []
    with FakeTeacher(lambda asked: HANG) as teacher:
        with pytest.raises(TransientTeacherError, match=r"no answer within 0\.5 s"):
            ask(planned(teacher, numbered_rows(3), timeout_seconds=0.5), ledger, on_step=told.append)
        teacher.wait_for(2)
        assert len(teacher.requests) == 2
    assert Step().plus(told[0]).plus(told[1]).describe() == "0.0000 USD, 2 failed: no answer within 0.5 s"


def test_a_prompt_that_times_out_once_the_server_has_answered_gets_every_attempt(ledger: Ledger) -> None:
    with FakeTeacher(lambda asked: HANG if asked.mark == "#0001" else None) as teacher:
        plan = planned(teacher, numbered_rows(2), timeout_seconds=0.5)
        report = ask(plan, ledger, policy=QUICK._replace(attempts=4))
        assert (report.answered, report.unanswered, report.attempts) == (1, 1, 5)


def test_a_storm_of_faults_loses_nothing_and_the_known_cost_is_what_was_billed(ledger: Ledger) -> None:
    faults = [RATE_LIMITED._replace(headers=()), SERVER_ERROR, RESET, CUT, EMPTY, MALFORMED]

    def storm(asked: Asked) -> Fault | None:
        return SERVER_ERROR if asked.number % 3 == 1 else faults[asked.number % 6] if asked.number % 7 == 3 else None

    with FakeTeacher(storm) as teacher:
        plan = planned(teacher, numbered_rows(60))
        ask(plan, ledger, policy=QUICK._replace(attempts=30))
    assert answers(plan, ledger) == right(60)
    assert known_usd(plan, ledger) == teacher.billed_usd
    costs = ledger.costs(answer.key for answer in plan.answers())
    assert sum(cost.attempts for cost in costs.values()) == len(teacher.requests) > 80


def test_a_prompt_that_fails_too_often_is_left_for_the_next_run(ledger: Ledger) -> None:
    with FakeTeacher(lambda asked: SERVER_ERROR if asked.mark == "#0003" else None) as teacher:
        plan = planned(teacher, numbered_rows(6))
        report = ask(plan, ledger, policy=QUICK._replace(attempts=3))
        assert (report.answered, report.unanswered) == (5, 1)
        assert "HTTP 500" in report.last_error
        assert teacher.marks().count("#0003") == 3
        teacher.behaviour = None
        assert ask(plan, ledger).attempts == 1
    assert answers(plan, ledger) == right(6)


def test_a_refused_prompt_is_asked_once_and_never_again_while_the_others_go_on(ledger: Ledger) -> None:
    with FakeTeacher(lambda asked: BAD_REQUEST if asked.mark == "#0002" else None) as teacher:
        plan = planned(teacher, numbered_rows(8))
        report = ask(plan, ledger)
        assert (report.answered, report.refused, report.unanswered) == (7, 1, 0)
        again = ask(plan, ledger)
        assert (again.found, again.refused, again.attempts) == (7, 1, 0)
    assert teacher.marks().count("#0002") == 1
    assert len(teacher.requests) == 8


def test_a_refusal_before_any_answer_is_asked_once_more_and_counts_then(ledger: Ledger) -> None:
    with FakeTeacher(lambda asked: BAD_REQUEST if asked.mark == "#0000" else None) as teacher:
        plan = planned(teacher, numbered_rows(8))
        report = ask(plan, ledger)
        assert (report.answered, report.refused, report.unanswered) == (7, 1, 0)
        assert teacher.marks().count("#0000") == 2
        assert ask(plan, ledger).attempts == 0


def test_an_endpoint_that_refuses_everything_is_left_and_nothing_is_refused_for_good(
    teacher: FakeTeacher, ledger: Ledger
) -> None:
    teacher.behaviour = lambda asked: BAD_REQUEST
    plan = planned(teacher, numbered_rows(20))
    with pytest.raises(PermanentTeacherError, match="refuses every prompt"):
        ask(plan, ledger)
    assert len(teacher.requests) == 3
    teacher.behaviour = None
    assert ask(plan, ledger).answered == 20


@pytest.mark.parametrize("concurrency", [4, 32])
def test_an_endpoint_that_begins_to_refuse_everything_stops_the_run_and_loses_no_prompt(
    ledger: Ledger, concurrency: int
) -> None:
    with FakeTeacher(lambda asked: BAD_REQUEST if asked.number >= 20 else None) as teacher:
        plan = planned(teacher, numbered_rows(300), concurrency=concurrency)
        with pytest.raises(PermanentTeacherError, match="refuses every prompt: HTTP 400"):
            ask(plan, ledger)
        assert len(teacher.requests) <= 20 + 30 + 2 * concurrency + 3
        teacher.behaviour = None
        report = ask(plan, ledger)
        assert (report.found, report.answered, report.refused) == (20, 280, 0)


def test_many_refused_prompts_in_a_row_do_not_stop_a_run_that_has_others(ledger: Ledger) -> None:
    with FakeTeacher(lambda asked: BAD_REQUEST if 100 <= int(asked.mark[1:]) < 140 else None) as teacher:
        plan = planned(teacher, numbered_rows(1000), concurrency=4)
        report = ask(plan, ledger)
        assert (report.answered, report.refused, report.unanswered) == (960, 40, 0)
        assert ask(plan, ledger).attempts == 0


@pytest.mark.parametrize("fault", [TOO_LONG, BAD_REQUEST, EMPTY], ids=lambda fault: fault.name)
def test_bad_prompts_at_the_head_of_a_file_do_not_speak_for_all_of_it(ledger: Ledger, fault: Fault) -> None:
    head = {f"#{number:04d}" for number in range(3)}
    with FakeTeacher(lambda asked: fault if asked.mark in head else None) as teacher:
        plan = planned(teacher, numbered_rows(250))
        first = ask(plan, ledger)
        assert first.answered == 247
        assert ask(plan, ledger).unanswered == 0
        assert ask(plan, ledger).attempts == 0
        assert max(Counter(teacher.marks()).values()) <= 2 * QUICK.attempts


def test_a_refusal_that_names_the_prompts_fault_counts_at_once(ledger: Ledger) -> None:
    with FakeTeacher(lambda asked: TOO_LONG) as teacher:
        plan = planned(teacher, numbered_rows(60), concurrency=2)
        report = ask(plan, ledger)
        assert (report.refused, len(teacher.requests)) == (60, 60)


def test_a_single_prompt_that_is_refused_is_no_success(teacher: FakeTeacher, ledger: Ledger) -> None:
    teacher.behaviour = lambda asked: BAD_REQUEST
    with pytest.raises(PermanentTeacherError, match="refuses every prompt: HTTP 400"):
        ask(planned(teacher, numbered_rows(1)), ledger)


def test_a_server_that_asks_to_wait_for_hours_ends_the_run_and_says_so(teacher: FakeTeacher, ledger: Ledger) -> None:
    teacher.fail_next(error(429, retry_after="86400"))
    plan = planned(teacher, numbered_rows(4))
    with pytest.raises(TransientTeacherError, match="it asks to wait 86400 s"):
        ask(plan, ledger)
    assert ask(plan, ledger).answered == 4


@pytest.mark.parametrize(
    ("fault", "error", "says"),
    [
        (UNAUTHORISED, NotAuthorisedError, "key is not accepted"),
        (FORBIDDEN, NotAuthorisedError, "may not use this"),
        (QUOTA, NotAuthorisedError, "quota"),
        (NOT_FOUND, PermanentTeacherError, "model's name"),
        (redirect("http://127.0.0.1:9/v1"), PermanentTeacherError, "redirect"),
    ],
    ids=["401", "403", "quota", "404", "redirect"],
)
def test_what_fails_every_request_stops_the_run_at_the_first(
    teacher: FakeTeacher, ledger: Ledger, fault: Fault, error: type[Exception], says: str
) -> None:
    teacher.behaviour = lambda asked: fault
    with pytest.raises(error, match=says):
        ask(planned(teacher, numbered_rows(20)), ledger)
    assert len(teacher.requests) == 1


def test_a_key_revoked_half_way_stops_the_rest_and_what_was_answered_is_kept(ledger: Ledger) -> None:
    with FakeTeacher(lambda asked: UNAUTHORISED if asked.number >= 10 else None) as teacher:
        plan = planned(teacher, numbered_rows(60), concurrency=4)
        with pytest.raises(NotAuthorisedError):
            ask(plan, ledger)
        assert len(teacher.requests) < 20
        assert len(answers(plan, ledger)) == 10
        teacher.behaviour = None
        assert ask(plan, ledger).attempts == 50
    assert answers(plan, ledger) == right(60)


def test_only_one_request_probes_a_server_that_does_not_work(teacher: FakeTeacher, ledger: Ledger) -> None:
    teacher.behaviour = lambda asked: SERVER_ERROR
    with pytest.raises(TransientTeacherError, match="Run the same again"):
        ask(planned(teacher, numbered_rows(30)), ledger, policy=QUICK._replace(attempts=3))
    assert len(set(teacher.marks())) == 1
    assert len(teacher.requests) == 3


def test_a_server_that_is_down_costs_nothing_and_only_one_prompt_is_tried(teacher: FakeTeacher, ledger: Ledger) -> None:
    plan = planned(teacher, numbered_rows(30))
    teacher.__exit__(None, None, None)
    with pytest.raises(TransientTeacherError, match="no connection"):
        ask(plan, ledger, policy=QUICK._replace(attempts=2))
    costs = ledger.costs(answer.key for answer in plan.answers())
    assert [cost.attempts for cost in costs.values()] == [2]
    assert ledger.account(plan.run).committed_usd == 0


def test_the_budget_is_never_overshot_and_a_higher_one_goes_on(ledger: Ledger) -> None:
    with FakeTeacher(latency=0.005) as teacher:
        plan = planned(teacher, numbered_rows(80))
        with pytest.raises(BudgetReachedError, match="raise the cap"):
            ask(plan, ledger, budget="0.005")
        first = len(teacher.requests)
        assert 0 < first < 80
        assert teacher.billed_usd == ledger.account(plan.run).committed_usd <= Decimal("0.005")
        with pytest.raises(BudgetReachedError):
            ask(plan, ledger, budget="0.005")
        assert len(teacher.requests) == first
        assert ask(plan, ledger, budget="1").attempts == 80 - first
    assert answers(plan, ledger) == right(80)
    assert teacher.billed_usd == known_usd(plan, ledger)


def test_attempts_whose_bill_nobody_knows_use_up_the_budget(teacher: FakeTeacher, ledger: Ledger) -> None:
    teacher.behaviour = lambda asked: None if asked.number == 0 else RESET
    plan = planned(teacher, numbered_rows(10))
    with pytest.raises(BudgetReachedError):
        ask(plan, ledger, budget="0.004", policy=QUICK._replace(attempts=30))
    assert unknown_usd(plan, ledger) > Decimal("0.002")
    assert ledger.account(plan.run).committed_usd <= Decimal("0.004")


def test_no_more_requests_are_in_flight_than_allowed(ledger: Ledger) -> None:
    at_once, peak, lock = 0, 0, threading.Lock()

    def count(asked: Asked) -> None:
        nonlocal at_once, peak
        with lock:
            at_once += 1
            peak = max(peak, at_once)

    def answer(mark: str) -> str:
        nonlocal at_once
        with lock:
            at_once -= 1
        return f"answer to {mark}"

    with FakeTeacher(count, latency=0.03, answer=answer) as teacher:
        ask(planned(teacher, numbered_rows(40), concurrency=5), ledger)
    assert peak == 5


def test_each_attempt_is_told_as_it_happens(teacher: FakeTeacher, ledger: Ledger) -> None:
    teacher.fail_next(SERVER_ERROR)
    steps: list[Step] = []
    ask(planned(teacher, numbered_rows(2)), ledger, on_step=steps.append)
    assert [step.answered for step in steps].count(1) == 2
    assert len(steps) == 3
    assert sum((step.cost_usd for step in steps), Decimal(0)) == teacher.billed_usd
