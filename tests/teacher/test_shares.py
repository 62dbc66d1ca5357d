"""Several processes share a teacher's limits: their parts never exceed the whole, also while they change."""

import asyncio
import threading
from concurrent.futures import CancelledError
from pathlib import Path
from traceback import walk_tb
from typing import Any

import pytest

from potstill.artifacts import ArtifactRef, StageKey, open_store
from potstill.errors import ArtifactMissingError, BudgetReachedError, NotAuthorisedError, UsageError
from potstill.ledger import Ledger
from potstill.ledger.entries import NO_CAPS
from potstill.llm.limiter import Cost, Limiter
from potstill.recipe import Recipe
from potstill.records import Prompt, write_parquet
from potstill.teacher.plan import make_plan
from potstill.teacher.rows import ListedRows
from potstill.teacher.shares import WHOLE, Share, Slots, check_shares
from potstill.teacher.sharing import join_run, plan_of, share_of, shared_session, stop_run, take_share
from potstill.teacher.stopping import Stop
from tests.fake_teacher import FakeTeacher, make_teacher, numbered_rows


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POTSTILL_HOME", str(tmp_path / "home"))


@pytest.mark.parametrize("cap", [1, 2, 7, 16, 1000, 300_001])
@pytest.mark.parametrize("of", [1, 2, 3, 16])
def test_the_parts_of_a_cap_add_up_to_it_and_differ_by_one_at_most(cap: int, of: int) -> None:
    parts = [Share(number=number, of=of).part(cap) for number in range(of)]
    assert sum(parts) == cap
    assert max(parts) - min(parts) <= 1


@pytest.mark.parametrize("name", ["concurrency", "rpm", "tpm"])
def test_a_cap_that_leaves_a_worker_nothing_is_named(name: str) -> None:
    teacher = make_teacher("http://127.0.0.1:1/v1", **{"concurrency": 3, name: 2})
    check_shares(teacher, 2)
    with pytest.raises(
        UsageError, match=rf"teacher.{name} 2 cannot be divided among 3 Dask workers: raise it, or start 2"
    ):
        check_shares(teacher, 3)


async def test_slots_that_shrink_wait_until_no_more_are_in_use_and_grow_at_once() -> None:
    slots, most, used, go_on = Slots(4), 0, 0, asyncio.Event()

    async def work() -> None:
        nonlocal most, used
        async with slots:
            used += 1
            most = max(most, used)
            await go_on.wait()
            used -= 1

    workers = [asyncio.create_task(work()) for _ in range(4)]
    await asyncio.sleep(0)
    shrinking = asyncio.create_task(slots.resize(1))
    await asyncio.sleep(0.05)
    assert not shrinking.done()
    go_on.set()
    await shrinking
    await asyncio.gather(*workers)
    most = 0
    await asyncio.gather(*(work() for _ in range(5)))
    assert most == 1
    await slots.resize(3)
    most = 0
    go_on.clear()
    later = [asyncio.create_task(work()) for _ in range(6)]
    await asyncio.sleep(0.01)
    assert most == 3
    go_on.set()
    await asyncio.gather(*later)


async def test_a_share_of_a_rate_holds_from_the_moment_at_which_it_is_taken() -> None:
    now, left = 0.0, []

    async def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    limiter = Limiter(rpm=600, clock=lambda: now, sleep=sleep)
    for number in range(90):
        if number == 30:
            limiter.divide(300, None, 1 / 2)
        if number == 60:
            limiter.divide(600, None, 1.0)
        await limiter.acquire(Cost(1, 1))
        left.append(now)
    assert left[29] < 3
    assert 6 < left[59] - left[29] < 6.5
    assert 3 < left[89] - left[59] < 3.5


def test_a_session_keeps_to_its_share_of_the_concurrency_and_to_another_one_as_soon_as_it_is_told() -> None:
    with FakeTeacher(latency=0.1) as teacher:
        plan = make_plan(ListedRows(numbered_rows(24)), make_teacher(teacher.url, concurrency=8), None)
        take_share(plan.run, Share(number=0, of=4))
        with shared_session(plan, Ledger(), NO_CAPS) as session:
            asking = threading.Thread(target=session.answer)
            asking.start()
            teacher.wait_for(8)
            take_share(plan.run, WHOLE)
            told = len(teacher.requests)
            asking.join()
    began = [asked.started_at for asked in teacher.requests]
    assert most_at_once(began[:8]) == 2
    assert most_at_once(began[told:]) > 4


def most_at_once(began: list[float]) -> int:
    return max(sum(at - 0.1 < other <= at for other in began) for at in began)


def test_a_run_that_is_stopped_stops_for_all_its_batches_and_a_later_one_has_a_new_session(
    teacher: FakeTeacher,
) -> None:
    plan = make_plan(ListedRows(numbered_rows(20)), make_teacher(teacher.url), None)
    with shared_session(plan, Ledger(), NO_CAPS) as stopped:
        stop_run(plan.run)
        with pytest.raises(CancelledError):
            stopped.answer()
        with shared_session(plan, Ledger(), NO_CAPS) as later:
            assert later.answer().answered == 20
    assert len(teacher.requests) == 20


@pytest.fixture
def recipe(teacher: FakeTeacher) -> dict[str, Any]:
    return {
        "name": "five",
        "task": {"kind": "extraction"},
        "curation": {"inputs": ["log.jsonl"]},
        "teacher": make_teacher(teacher.url).model_dump(),
        "student": {"base": "nothing"},
    }


def stored_prompts() -> ArtifactRef:
    prompts = [row.prompt for row in numbered_rows(5)]
    return open_store().build(
        StageKey("curate", 1, "0" * 64),
        "PromptSet",
        lambda directory: write_parquet(directory / "prompts.parquet", prompts, Prompt),
    )


def test_a_process_joins_a_run_by_taking_its_share(recipe: dict[str, Any]) -> None:
    made, prompts, share = Recipe.model_validate(recipe), stored_prompts(), Share(number=1, of=3)
    run = plan_of(made, prompts).run
    join_run(made, prompts, run, Ledger().id, share)
    assert share_of(run) == share
    assert share_of("teach/other") is None


@pytest.mark.parametrize("lacking", ["code", "ledger", "prompts", "key"])
def test_a_process_that_lacks_what_the_run_has_does_not_join(
    recipe: dict[str, Any], lacking: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if lacking == "key":
        recipe["teacher"]["api_key_env"] = "NO_SUCH_KEY"
    recipe["teacher"]["model"] = lacking
    made, prompts = Recipe.model_validate(recipe), stored_prompts()
    run, ledger = plan_of(made, prompts).run, Ledger().id
    said: tuple[type[Exception], str] = {
        "code": (UsageError, "another version of Potstill"),
        "ledger": (UsageError, "writes another ledger, sqlite:.*: set POTSTILL_LEDGER"),
        "prompts": (ArtifactMissingError, "does not see the prompts: .* POTSTILL_HOME or POTSTILL_STORE"),
        "key": (NotAuthorisedError, "NO_SUCH_KEY is not set"),
    }[lacking]
    if lacking == "prompts":
        plan_of.__globals__["_plan"].cache_clear()
        monkeypatch.setenv("POTSTILL_HOME", str(tmp_path / "elsewhere"))
    asked = "teach/old" if lacking == "code" else run
    with pytest.raises(said[0], match=said[1]):
        join_run(made, prompts, asked, "another" if lacking == "ledger" else ledger, WHOLE)
    assert share_of(asked) is None


def test_the_reason_of_a_run_that_stops_can_be_sent_to_another_process_however_often_it_was_raised() -> None:
    stop = Stop()
    stop.because(BudgetReachedError("the cap is reached"))
    raised: list[BudgetReachedError] = []
    for _ in range(2000):
        with pytest.raises(BudgetReachedError, match="the cap is reached") as caught:
            stop.check()
        raised.append(caught.value)
    assert len(list(walk_tb(raised[-1].__traceback__))) < 10
