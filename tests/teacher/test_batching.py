"""Batch mode against a server that speaks both providers' protocols: what is submitted, lost, resumed and paid."""

from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import Any

import pytest

from potstill.errors import BudgetReachedError, NotAuthorisedError, PermanentTeacherError
from potstill.ledger import AttemptPlan, Caps, Ledger, Settlement
from potstill.ledger.entries import NO_CAPS
from potstill.ledger.spend import add_up
from potstill.llm.batches.base import BatchResult, custom_id
from potstill.llm.messages import Reply
from potstill.llm.pricing import Rates, Tier
from potstill.records import Usage
from potstill.teacher.collecting import close_batch, close_token
from potstill.teacher.plan import TeachPlan, make_plan
from potstill.teacher.rows import ListedRows
from potstill.teacher.session import TeacherSession
from tests.batch_teacher import BAD_LINE, DROP_AFTER, EMPTY, FINE, BatchTeacher, cut, error, refuse
from tests.fake_teacher import PRICE, QUICK, make_teacher, numbered_rows, row

pytestmark = pytest.mark.flow

RATES = Rates(Decimal("2.5"), Decimal("1.25"), Decimal(10), "given")


class Died(BaseException):
    """The process ends here: nothing of it runs any more."""


class NeverAdopts(Ledger):
    """Its process dies before it has stored the id of a batch."""

    def adopt_batch(self, token: str, batch_id: str) -> None:
        raise Died


def dying_at(word: str) -> Callable[[str], None]:
    """A process that dies as it says this."""

    def die(said: str) -> None:
        if word in said:
            raise Died

    return die


@pytest.fixture
def url(ledger_url: str) -> str:
    return ledger_url


@pytest.fixture
def teacher() -> Iterator[BatchTeacher]:
    with BatchTeacher() as teacher:
        teacher.runs_by_itself = True
        yield teacher


@pytest.fixture(params=["openai_compatible", "anthropic"])
def planned(request: pytest.FixtureRequest, teacher: BatchTeacher) -> Callable[..., TeachPlan]:
    def make(count: int = 12, **fields: Any) -> TeachPlan:
        given = {"provider": request.param, "batch_poll_seconds": 0.005, "mode": "batch", **fields}
        return make_plan(ListedRows(numbered_rows(count)), make_teacher(teacher.url, **given), None)

    return make


def ask(plan: TeachPlan, ledger: Ledger, caps: Caps = NO_CAPS, say: Callable[[str], None] | None = None) -> Any:
    with TeacherSession(plan, ledger, caps, QUICK) as session:
        return session.answer_in_batches(say=say)


def answers(plan: TeachPlan, ledger: Ledger) -> list[str]:
    found = ledger.find_answers(answer.key for answer in plan.answers())
    return sorted(answer.reply.text for answer in found.values())


def right(*numbers: int) -> list[str]:
    return [f"answer to #{number:04d}" for number in numbers]


def billed_usd(teacher: BatchTeacher) -> Decimal:
    """Half the price."""
    tokens = [sum(getattr(one, kind) for one in teacher.billed) for kind in ("input", "output")]
    return (tokens[0] * PRICE.input_per_million + tokens[1] * PRICE.output_per_million) / 2_000_000


def test_everything_is_answered_at_half_the_price(
    planned: Callable[..., TeachPlan], ledger: Ledger, teacher: BatchTeacher
) -> None:
    teacher.polls = 2
    teacher.shuffled = True
    plan, said = planned(), []
    report = ask(plan, ledger, say=said.append)
    assert answers(plan, ledger) == right(*range(12))
    assert (report.answers, report.found, report.answered, report.unanswered) == (12, 0, 12, 0)
    assert report.cost_usd == billed_usd(teacher) == add_up(ledger.spend(plan.run)).cost_usd
    assert ledger.account(plan.run).committed_usd == billed_usd(teacher)
    assert said[0] == "handing in a batch of 12 requests"
    assert "the provider says that 0 of 12 are done" in said[1]
    again = ask(plan, ledger)
    assert (again.found, again.answered, len(teacher.batches)) == (12, 0, 1)


def test_an_answer_of_a_batch_is_an_answer_online_too_and_the_other_way_round(
    planned: Callable[..., TeachPlan], ledger: Ledger, teacher: BatchTeacher
) -> None:
    ask(planned(6), ledger)
    with TeacherSession(planned(10), ledger, NO_CAPS, QUICK) as session:
        report = session.answer()
    assert (report.found, report.answered) == (6, 4)
    ask(planned(12), ledger)
    assert [len(batch.requests) for batch in teacher.batches.values()] == [6, 2]
    assert not teacher.billed_twice()


def test_a_prompt_that_only_gets_empty_answers_is_put_aside_and_not_paid_for_again(
    planned: Callable[..., TeachPlan], ledger: Ledger, teacher: BatchTeacher
) -> None:
    teacher.outcomes = {"#0002": EMPTY}
    report = ask(planned(4), ledger)
    assert (report.answered, report.refused, report.unanswered) == (3, 1, 0)
    assert [len(batch.requests) for batch in teacher.batches.values()] == [4, 1, 1, 1]
    assert (ask(planned(4), ledger).refused, len(teacher.batches)) == (1, 4)


@pytest.mark.parametrize("word", ["handing in", "the provider says", "collected"])
def test_whoever_dies_is_followed_by_one_who_pays_nothing_twice(
    planned: Callable[..., TeachPlan], url: str, teacher: BatchTeacher, monkeypatch: pytest.MonkeyPatch, word: str
) -> None:
    teacher.polls = 1

    plan = planned()
    with pytest.raises(Died):
        ask(plan, Ledger(url), say=dying_at(word))
    monkeypatch.setattr("potstill.owner.Owner.is_dead", lambda owner: True)
    ledger = Ledger(url)
    report = ask(plan, ledger)
    assert answers(plan, ledger) == right(*range(12))
    assert report.unanswered == 0
    assert not teacher.billed_twice()
    assert len(teacher.batches) == 1
    assert add_up(ledger.spend(plan.run)).cost_usd == billed_usd(teacher)


def test_a_batch_whose_id_was_never_stored_is_found_again(
    planned: Callable[..., TeachPlan], url: str, teacher: BatchTeacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = planned()
    with pytest.raises(Died):
        ask(plan, NeverAdopts(url))
    assert len(teacher.batches) == 1
    monkeypatch.setattr("potstill.owner.Owner.is_dead", lambda owner: True)
    ledger = Ledger(url)

    def end(said: str) -> None:
        """It ends by itself, whether or not it is looked at."""
        for batch in teacher.batches.values():
            teacher.finish(batch)

    ask(plan, ledger, say=end)
    assert answers(plan, ledger) == right(*range(12))
    assert len(teacher.batches) == 1


def test_a_batch_that_never_reached_the_provider_is_handed_in_again(
    planned: Callable[..., TeachPlan], url: str, teacher: BatchTeacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher.fail_next("create", refuse(401))
    plan, ledger = planned(), Ledger(url)
    with pytest.raises(NotAuthorisedError):
        ask(plan, ledger)
    assert ledger.account(plan.run).committed_usd == 0
    ask(plan, ledger)
    assert answers(plan, ledger) == right(*range(12))
    assert len(teacher.batches) == 1
    assert ledger.account(plan.run).reserved_usd == 0


def test_a_list_that_lags_behind_hides_no_batch(
    planned: Callable[..., TeachPlan], url: str, teacher: BatchTeacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = planned()
    with pytest.raises(Died):
        ask(plan, NeverAdopts(url))
    monkeypatch.setattr("potstill.owner.Owner.is_dead", lambda owner: True)
    teacher.late_lists = 2
    ask(plan, Ledger(url))
    assert answers(plan, Ledger(url)) == right(*range(12))
    assert len(teacher.batches) == 1


def test_a_batch_that_the_provider_has_forgotten_counts_at_its_bound_and_is_asked_again(
    planned: Callable[..., TeachPlan], url: str, teacher: BatchTeacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("potstill.teacher.watching.PATIENCE_SECONDS", 0.05)
    teacher.polls = 3
    plan = planned()
    with pytest.raises(Died):
        ask(plan, Ledger(url), say=dying_at("the provider says"))
    monkeypatch.setattr("potstill.owner.Owner.is_dead", lambda owner: True)
    teacher.batches.clear()
    ledger, said = Ledger(url), []
    ask(plan, ledger, say=said.append)
    assert any("counts at its upper bound" in line for line in said)
    assert answers(plan, ledger) == right(*range(12))
    spent = add_up(ledger.spend(plan.run))
    assert (spent.unknown, spent.in_flight) == (12, 0)


@pytest.mark.parametrize("mode", ["batch", "online"])
def test_a_batch_whose_results_are_gone_counts_at_its_bound_and_is_asked_again(
    planned: Callable[..., TeachPlan], url: str, teacher: BatchTeacher, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    monkeypatch.setattr("potstill.teacher.watching.PATIENCE_SECONDS", 0.05)
    teacher.polls = 10**6
    plan = planned()
    with pytest.raises(Died):
        ask(plan, Ledger(url), say=dying_at("the provider says"))
    monkeypatch.setattr("potstill.owner.Owner.is_dead", lambda owner: True)
    (left,) = teacher.batches.values()
    teacher.finish(left)
    teacher.polls, teacher.results_are_gone, said = 0, True, []

    def say(line: str) -> None:
        said.append(line)
        teacher.results_are_gone &= "counts at its upper bound" not in line

    ledger = Ledger(url)
    with TeacherSession(plan, ledger, NO_CAPS, QUICK) as session:
        report = session.answer_in_batches(say=say) if mode == "batch" else session.answer(say=say)
    assert any("it stays, and is looked at again" in line for line in said)
    assert report.answered == 12
    spent = add_up(ledger.spend(plan.run))
    assert (spent.unknown, spent.in_flight) == (12, 0)
    assert ledger.account(plan.run).reserved_usd == 0


def test_results_that_are_there_again_in_time_are_collected(
    planned: Callable[..., TeachPlan], ledger: Ledger, teacher: BatchTeacher
) -> None:
    teacher.results_are_gone = True

    def find(said: str) -> None:
        teacher.results_are_gone &= "looked at again" not in said

    plan = planned()
    assert ask(plan, ledger, say=find).answered == 12
    assert not teacher.billed_twice()


def test_a_batch_without_an_id_whose_results_are_gone_holds_nobody_up(
    planned: Callable[..., TeachPlan], url: str, teacher: BatchTeacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("potstill.teacher.watching.PATIENCE_SECONDS", 0.05)
    plan = planned()
    with pytest.raises(Died):
        ask(plan, NeverAdopts(url))
    monkeypatch.setattr("potstill.owner.Owner.is_dead", lambda owner: True)
    (left,) = teacher.batches.values()
    teacher.finish(left)
    teacher.results_are_gone, ledger = True, Ledger(url)

    def mend(said: str) -> None:
        teacher.results_are_gone &= "counts at its upper bound" not in said

    assert ask(plan, ledger, say=mend).answered == 12
    assert add_up(ledger.spend(plan.run)).unknown == 12


def test_what_one_of_two_files_still_brings_is_kept(
    ledger: Ledger, teacher: BatchTeacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("potstill.teacher.watching.PATIENCE_SECONDS", 0.0)
    asked = make_teacher(teacher.url, provider="openai_compatible", batch_poll_seconds=0.005, mode="batch")
    plan = make_plan(ListedRows(numbered_rows(12)), asked, None)
    teacher.outcomes = {"#0007": error(500, "api_error")}
    teacher.fail_next("results", FINE, refuse(404))
    ask(plan, ledger, say=lambda said: teacher.outcomes.clear() if "upper bound" in said else None)
    assert answers(plan, ledger) == right(*range(12))
    assert add_up(ledger.spend(plan.run)).unknown == 1
    assert not teacher.billed_twice()


def test_nobody_waits_for_a_batch_that_holds_nothing_of_theirs(
    planned: Callable[..., TeachPlan], url: str, teacher: BatchTeacher
) -> None:
    teacher.polls = 10**6
    with pytest.raises(Died):
        ask(planned(3), Ledger(url), say=dying_at("the provider says"))
    teacher.polls = 0
    other = make_plan(ListedRows(numbered_rows(3, first=100)), planned(3).teacher, None)
    with TeacherSession(other, Ledger(url), NO_CAPS, QUICK) as session:
        session.collect_batches()
        assert session.answer_in_batches().answered == 3


def test_a_batch_of_which_every_request_is_refused_stops_the_run_and_loses_no_prompt(
    planned: Callable[..., TeachPlan], ledger: Ledger, teacher: BatchTeacher
) -> None:
    plan = planned(40)
    teacher.outcomes = {f"#{number:04d}": error(400, "invalid_request_error") for number in range(40)}
    with pytest.raises(PermanentTeacherError, match="refuses every prompt: HTTP 400"):
        ask(plan, ledger)
    teacher.outcomes = {"#0007": error(400, "invalid_request_error")}
    report = ask(plan, ledger)
    assert (report.answers, report.answered, report.refused) == (40, 39, 1)
    again = ask(plan, ledger)
    assert (again.found, again.refused, again.attempts) == (39, 1, 0)


def test_a_key_that_a_batch_refuses_ends_the_run_once_what_was_answered_is_kept(
    planned: Callable[..., TeachPlan], ledger: Ledger, teacher: BatchTeacher
) -> None:
    teacher.outcomes = {"#0002": error(403, "permission_error")}
    plan = planned()
    with pytest.raises(NotAuthorisedError, match="403"):
        ask(plan, ledger)
    assert answers(plan, ledger) == right(*(number for number in range(12) if number != 2))
    assert len(teacher.batches) == 1


async def test_tiers_of_a_price_hold_in_a_batch(ledger: Ledger) -> None:
    long = Tier(Decimal(0), Decimal(0), Decimal(0), Decimal(0), request=Decimal("0.5"), from_input=10)
    rates = Rates(Decimal(5), Decimal(5), Decimal(9), "list", tiers=(long,))
    begun = AttemptPlan("k" * 64, "p", "run", "teach", "openai", "m", Decimal(1), rates)
    token = "token123"
    ledger.begin_batch(token, "openai", "http://127.0.0.1:9/v1", "run", [(begun, NO_CAPS)])
    usage = Usage(input=10, output=10)
    reply = Reply({"role": "assistant", "content": "yes"}, "yes", "stop", usage)

    async def results() -> AsyncIterator[BatchResult]:
        yield BatchResult(custom_id(token, "k" * 32), reply, 200, may_be_billed=False)

    (batch,) = ledger.open_batches("openai", "http://127.0.0.1:9/v1")
    steps = [step async for step in close_batch(ledger, batch, results(), "run")]
    assert sum(step.cost_usd for step in steps) == Decimal("0.5") == ledger.account("run").committed_usd


def test_a_batch_that_was_closed_too_early_counts_again_once_it_is_there(ledger: Ledger) -> None:
    begun = AttemptPlan("k", "p", "run", "teach", "openai", "m", Decimal(1), RATES)
    address = "http://127.0.0.1:9/v1"
    ledger.begin_batch("token123", "openai", address, "run", [(begun, NO_CAPS)])
    close_token(ledger, "token123", "its owner seemed dead")
    assert ledger.account("run").committed_usd == 0
    ledger.adopt_batch("token123", "batch_1")
    assert ledger.account("run").committed_usd == 1, "it may be billed after all"
    (attempt,) = ledger.in_batch("token123")
    ledger.settle(Settlement(*attempt, "answered", None, Usage(input=1000), 200))
    assert ledger.account("run").committed_usd == RATES.cost(Usage(input=1000))
    assert [row.batch_id for row in ledger.open_batches("openai", address)] == ["batch_1"]


def test_a_creation_whose_answer_is_lost_and_a_cut_download_cost_nothing(
    planned: Callable[..., TeachPlan], ledger: Ledger, teacher: BatchTeacher
) -> None:
    teacher.fail_next("create", DROP_AFTER)
    teacher.fail_next("results", cut(300))
    plan = planned()
    ask(plan, ledger)
    assert answers(plan, ledger) == right(*range(12))
    assert not teacher.billed_twice()


def test_only_what_failed_is_handed_in_again_and_what_is_refused_is_not(
    planned: Callable[..., TeachPlan], ledger: Ledger, teacher: BatchTeacher
) -> None:
    teacher.outcomes = {"#0001": error(500, "api_error"), "#0004": error(400, "invalid_request_error"), "#0007": EMPTY}

    def mend(said: str) -> None:
        if "collected" in said:
            teacher.outcomes.pop("#0001", None)
            teacher.outcomes.pop("#0007", None)

    plan = planned()
    report = ask(plan, ledger, say=mend)
    assert [len(batch.requests) for batch in teacher.batches.values()] == [12, 2]
    assert answers(plan, ledger) == right(*(number for number in range(12) if number != 4))
    assert (report.answered, report.unanswered) == (11, 0)
    assert add_up(ledger.spend(plan.run)).cost_usd == billed_usd(teacher)
    assert teacher.billed_twice() == {"#0007": 2}, "an answer without a word was billed"


def test_what_expires_is_not_billed_and_handed_in_again(
    planned: Callable[..., TeachPlan], ledger: Ledger, teacher: BatchTeacher
) -> None:
    teacher.answer_only = 5
    plan = planned()
    ask(plan, ledger)
    assert [len(batch.requests) for batch in teacher.batches.values()] == [12, 7, 2]
    assert answers(plan, ledger) == right(*range(12))
    assert not teacher.billed_twice()


def test_stragglers_may_go_online(planned: Callable[..., TeachPlan], ledger: Ledger, teacher: BatchTeacher) -> None:
    teacher.outcomes = {"#0001": error(500, "api_error")}
    plan = planned()
    with TeacherSession(plan, ledger, NO_CAPS, QUICK) as session:
        assert session.answer_in_batches().unanswered == 1
        assert session.answer().answered == 1
    assert answers(plan, ledger) == right(*range(12))


def test_a_line_that_cannot_be_read_counts_at_its_upper_bound_and_is_asked_again(
    planned: Callable[..., TeachPlan], ledger: Ledger, teacher: BatchTeacher
) -> None:
    teacher.outcomes = {"#0003": BAD_LINE}
    plan = planned()
    ask(plan, ledger, say=lambda said: teacher.outcomes.clear() if "collected" in said else None)
    assert answers(plan, ledger) == right(*range(12))
    assert add_up(ledger.spend(plan.run)).unknown == 1
    assert ledger.account(plan.run).committed_usd > billed_usd(teacher)


def test_a_cap_that_admits_a_part_is_kept_and_a_higher_one_goes_on(
    planned: Callable[..., TeachPlan], ledger: Ledger, teacher: BatchTeacher
) -> None:
    plan = planned(40)
    cap = Decimal("0.002")
    with pytest.raises(BudgetReachedError, match=r"rest may cost about.*raise the cap"):
        ask(plan, ledger, Caps(cap))
    first = len(teacher.billed)
    assert 0 < first < 40
    assert ledger.account(plan.run).committed_usd == billed_usd(teacher) <= cap
    ask(plan, ledger, Caps(Decimal(1)))
    assert answers(plan, ledger) == right(*range(40))
    assert not teacher.billed_twice()


def test_a_collection_that_is_cut_off_goes_on_and_counts_nothing_twice(
    planned: Callable[..., TeachPlan], url: str, teacher: BatchTeacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Dying(Ledger):
        settled = 0

        def write(self, settlements: Any, wanted: Any) -> Any:
            Dying.settled += bool(settlements)
            if Dying.settled == 3:
                raise Died
            return super().write(settlements, wanted)

    monkeypatch.setattr("potstill.teacher.collecting.GROUP", 4)
    plan = planned()
    with pytest.raises(Died):
        ask(plan, Dying(url))
    monkeypatch.setattr("potstill.owner.Owner.is_dead", lambda owner: True)
    ledger = Ledger(url)
    ask(plan, ledger)
    assert answers(plan, ledger) == right(*range(12))
    assert add_up(ledger.spend(plan.run)).cost_usd == billed_usd(teacher)
    assert ledger.account(plan.run).committed_usd == billed_usd(teacher)


def test_two_who_want_the_same_hand_it_in_once(
    planned: Callable[..., TeachPlan], url: str, teacher: BatchTeacher
) -> None:
    teacher.polls = 5
    plan = planned()
    with ThreadPoolExecutor(2) as pool:
        reports = list(pool.map(lambda _: ask(plan, Ledger(url)), range(2)))
    assert [report.unanswered for report in reports] == [0, 0]
    assert answers(plan, Ledger(url)) == right(*range(12))
    assert not teacher.billed_twice()


def test_who_asks_online_waits_for_a_batch_that_holds_the_same(
    planned: Callable[..., TeachPlan], url: str, teacher: BatchTeacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher.polls = 3
    plan = planned()
    with pytest.raises(Died):
        ask(plan, Ledger(url), say=dying_at("the provider says"))
    monkeypatch.setattr("potstill.owner.Owner.is_dead", lambda owner: True)
    with TeacherSession(plan, Ledger(url), NO_CAPS, QUICK) as session:
        session.collect_batches()
        assert session.answer().found == 12
    assert not teacher.billed_twice()


def test_a_prompt_that_no_batch_can_hold_is_refused_alone(
    planned: Callable[..., TeachPlan], ledger: Ledger, teacher: BatchTeacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    for protocol in ("openai.OpenAIBatches", "anthropic.AnthropicBatches"):
        name = f"potstill.llm.batches.{protocol}.limits"
        module, cls = protocol.split(".")
        limits = getattr(__import__(f"potstill.llm.batches.{module}", fromlist=[cls]), cls).limits
        monkeypatch.setattr(name, limits._replace(bytes=2000))
    plan = planned(3)
    long = make_plan(ListedRows([*numbered_rows(3), row("long " * 500 + "#0009", "long")]), plan.teacher, None)
    report = ask(long, ledger)
    assert (report.answered, report.refused) == (3, 1)
    assert "shorten the prompt" in report.last_error
    assert sum(len(batch.requests) for batch in teacher.batches.values()) == 3


class TestRejections:
    """OpenAI looks at a batch only after it has taken it."""

    @pytest.fixture
    def plan(self, teacher: BatchTeacher) -> TeachPlan:
        given = {"provider": "openai_compatible", "batch_poll_seconds": 0.005, "mode": "batch"}
        return make_plan(ListedRows(numbered_rows(12)), make_teacher(teacher.url, **given), None)

    def test_a_queue_that_is_full_takes_smaller_batches(
        self, plan: TeachPlan, ledger: Ledger, teacher: BatchTeacher
    ) -> None:
        full = {"code": "token_limit_exceeded", "message": "Enqueued token limit reached", "line": None}
        teacher.rejections = [[full], [full]]
        ask(plan, ledger)
        assert answers(plan, ledger) == right(*range(12))
        assert [len(batch.requests) for batch in teacher.batches.values()][:3] == [12, 6, 6]
        assert not teacher.billed_twice()

    def test_lines_at_fault_are_refused_and_the_others_handed_in_again(
        self, plan: TeachPlan, ledger: Ledger, teacher: BatchTeacher
    ) -> None:
        bad = {"code": "invalid_request", "message": "bad parameter", "line": 3}
        teacher.rejections = [[bad]]
        report = ask(plan, ledger)
        assert answers(plan, ledger) == right(*(number for number in range(12) if number != 2))
        assert report.unanswered == 0
        assert ask(plan, ledger).refused == 1

    def test_a_model_that_does_not_exist_ends_the_run(
        self, plan: TeachPlan, ledger: Ledger, teacher: BatchTeacher
    ) -> None:
        teacher.rejections = [[{"code": "model_not_found", "message": "no such model", "line": None}]]
        with pytest.raises(PermanentTeacherError, match="no such model"):
            ask(plan, ledger)
        assert ledger.account(plan.run).committed_usd == 0
