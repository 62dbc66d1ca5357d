"""A batch that may exist and whose id nobody stored: found again, or known not to be there; never paid twice."""

import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from potstill.errors import TransientTeacherError
from potstill.llm.batches.base import BatchProtocol, BatchResult, is_of
from potstill.llm.messages import Reply
from tests.batch_teacher import (
    DROP_AFTER,
    DROP_BEFORE,
    FINE,
    HANG_AFTER,
    NO_JSON,
    PATIENT,
    Batch,
    BatchTeacher,
    CallFault,
    fail_after,
    numbered_requests,
    opened,
    refuse,
)

TOKEN, OTHER = "night_0007", "night_0008"
LOST_AFTER = [DROP_AFTER, NO_JSON, fail_after(502), HANG_AFTER]
COUNT = 3
ROOT = Path(__file__).parents[3]

SUBMIT = """
import asyncio, sys
from potstill.llm.batches import open_batches
from potstill.llm.endpoint import open_endpoint
from tests.batch_teacher import numbered_requests

async def main(provider, url, token):
    async with open_batches(open_endpoint(provider, url)) as batches:
        await batches.submit(numbered_requests(provider, token, 3), token)

asyncio.run(main(*sys.argv[1:]))
"""


async def collect(batches: BatchProtocol, batch_id: str) -> list[BatchResult]:
    return [result async for result in batches.results(await batches.state(batch_id))]


@pytest.mark.parametrize("fault", LOST_AFTER, ids=lambda fault: fault.kind)
async def test_a_batch_whose_creation_was_not_heard_of_is_found_and_not_created_again(
    provider: str, teacher: BatchTeacher, fault: CallFault
) -> None:
    teacher.polls = 1
    teacher.fail_next("create", fault)
    async with opened(provider, teacher, timeout_seconds=0.3 if fault == HANG_AFTER else 5.0) as batches:
        state = await batches.submit(numbered_requests(provider, TOKEN, COUNT), TOKEN)
        assert [state.id] == list(teacher.batches)
        await batches.state(state.id)
        assert all(isinstance(result.outcome, Reply) for result in await collect(batches, state.id))
    assert (len(teacher.billed), teacher.billed_twice()) == (COUNT, {})


@pytest.mark.parametrize(
    "fault", [DROP_BEFORE, refuse(503), refuse(429)], ids=lambda fault: f"{fault.kind} {fault.status}"
)
async def test_a_batch_that_was_not_created_is_created_again(
    batches: BatchProtocol, provider: str, teacher: BatchTeacher, fault: CallFault
) -> None:
    teacher.fail_next("create", fault, fault)
    state = await batches.submit(numbered_requests(provider, TOKEN, COUNT), TOKEN)
    assert [state.id] == list(teacher.batches)
    assert state.is_certain
    assert teacher.batches[state.id].requests == numbered_requests(provider, TOKEN, COUNT)


async def test_the_last_attempt_is_looked_for_too(batches: BatchProtocol, provider: str, teacher: BatchTeacher) -> None:
    teacher.fail_next("create", *[DROP_BEFORE] * (PATIENT.attempts - 1), DROP_AFTER)
    state = await batches.submit(numbered_requests(provider, TOKEN, COUNT), TOKEN)
    assert [state.id] == list(teacher.batches)


async def test_a_limit_of_pace_is_no_reason_to_look(
    batches: BatchProtocol, provider: str, teacher: BatchTeacher
) -> None:
    before = 1 if provider == "anthropic" else 0
    teacher.fail_next("create", refuse(429, retry_after="0.01"))
    await batches.submit(numbered_requests(provider, TOKEN, COUNT), TOKEN)
    assert teacher.operations().count("list") == before


@pytest.mark.parametrize("status", [503, 400, 401, 403, 404])
async def test_where_nobody_can_look_nothing_is_created_again(
    batches: BatchProtocol, provider: str, teacher: BatchTeacher, status: int
) -> None:
    before = [FINE] if provider == "anthropic" else []  # it looks at what is there already
    teacher.fail_next("list", *before, *[refuse(status)] * PATIENT.attempts)
    teacher.fail_next("create", DROP_AFTER)
    with pytest.raises(TransientTeacherError, match="Whether the batch was created is open: run the same again"):
        await batches.submit(numbered_requests(provider, TOKEN, COUNT), TOKEN)
    assert len(teacher.batches) == 1
    assert teacher.operations().count("create") == 1


async def test_a_network_that_goes_away_with_the_answer_leaves_it_open_whether_there_is_a_batch(
    provider: str, teacher: BatchTeacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    def find_no_host(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    create = teacher.create

    def create_and_go(*order: Any) -> Batch:
        monkeypatch.setattr("socket.getaddrinfo", find_no_host)
        return create(*order)

    monkeypatch.setattr("aiohttp.connector._DNSCacheTable.expired", lambda *_: True)
    monkeypatch.setattr(teacher, "create", create_and_go)
    monkeypatch.setattr(teacher, "url", teacher.url.replace("127.0.0.1", "localhost"))
    teacher.fail_next("create", DROP_AFTER)
    async with opened(provider, teacher) as batches:
        with pytest.raises(TransientTeacherError, match=r"no host named.*Whether the batch was created is open"):
            await batches.submit(numbered_requests(provider, TOKEN, COUNT), TOKEN)
    assert len(teacher.batches) == 1


async def submit(batches: BatchProtocol, provider: str, token: str, count: int = COUNT) -> str:
    return (await batches.submit(numbered_requests(provider, token, count), token)).id


def submit_and_die(provider: str, teacher: BatchTeacher) -> None:
    client = subprocess.Popen([sys.executable, "-c", SUBMIT, provider, teacher.url, TOKEN], cwd=ROOT)
    try:
        teacher.wait_for("create")
    finally:
        client.kill()
        client.wait()


async def test_a_client_that_is_killed_before_it_hears_of_its_batch_finds_it_when_it_comes_back(
    provider: str, teacher: BatchTeacher
) -> None:
    teacher.polls = 2
    teacher.fail_next("create", HANG_AFTER)
    since = time.time()
    submit_and_die(provider, teacher)
    [expected] = teacher.batches
    async with opened(provider, teacher) as batches:
        running = await batches.find(TOKEN, since, COUNT)
        assert running is not None
        assert (running.id, running.status) == (expected, "running")
        assert running.is_certain == (provider == "openai")
        teacher.finish(teacher.batches[expected])
        ended = await batches.find(TOKEN, since, COUNT)
        assert ended is not None
        assert (ended.id, ended.status, ended.is_certain) == (expected, "ended", True)
        results = await collect(batches, ended.id)
    assert all(is_of(TOKEN, result.custom_id) for result in results)
    assert (len(teacher.billed), teacher.billed_twice()) == (COUNT, {})


async def test_a_batch_is_found_on_whichever_page_it_is(
    batches: BatchProtocol, provider: str, teacher: BatchTeacher
) -> None:
    teacher.longest_page = 2
    since = time.time()
    ids = {token: await submit(batches, provider, token) for token in (f"night_{number:04d}" for number in range(7))}
    for batch in teacher.batches.values():
        teacher.finish(batch)
    for token, batch_id in ids.items():
        found = await batches.find(token, since, COUNT)
        assert found is not None
        assert (found.id, found.is_certain) == (batch_id, True)
    assert await batches.find("night_9999", since, COUNT) is None


async def test_a_batch_that_is_known_to_be_another_is_not_found(
    batches: BatchProtocol, provider: str, teacher: BatchTeacher
) -> None:
    since = time.time()
    batch_id = await submit(batches, provider, TOKEN)
    assert await batches.find(TOKEN, since, COUNT, known={batch_id}) is None
    assert await batches.find(TOKEN, since, COUNT) is not None


async def test_a_server_whose_clock_is_behind_hides_no_batch(
    batches: BatchProtocol, provider: str, teacher: BatchTeacher
) -> None:
    teacher.clock_offset = -240
    batch_id = await submit(batches, provider, TOKEN)
    found = await batches.find(TOKEN, time.time(), COUNT)
    assert found is not None
    assert found.id == batch_id


async def test_batches_of_long_ago_are_not_gone_through(
    batches: BatchProtocol, provider: str, teacher: BatchTeacher
) -> None:
    teacher.longest_page = 2
    teacher.clock_offset = -7 * 24 * 3600
    for number in range(9):
        await submit(batches, provider, f"old_{number:04d}")
    teacher.clock_offset = 0
    teacher.calls.clear()
    assert await batches.find(TOKEN, time.time(), COUNT) is None
    assert teacher.operations() == ["list"]


async def test_anthropic_cannot_tell_whose_a_running_batch_is_before_it_has_ended(teacher: BatchTeacher) -> None:
    since = time.time()
    async with opened("anthropic", teacher) as batches:
        mine, other = await submit(batches, "anthropic", TOKEN), await submit(batches, "anthropic", OTHER)
        guess = await batches.find(OTHER, since, COUNT)
        assert guess is not None
        assert (guess.id, guess.is_certain) == (mine, False), "the oldest is a guess, and a wrong one here"
        assert await batches.find(OTHER, since, COUNT + 1) is None, "it holds another number of requests"
        teacher.finish(teacher.batches[mine])
        second = await batches.find(OTHER, since, COUNT)
        assert second is not None
        assert (second.id, second.is_certain) == (other, False), "the first has shown whose it is"
        teacher.finish(teacher.batches[other])
        found = await batches.find(OTHER, since, COUNT)
        assert found is not None
        assert (found.id, found.is_certain) == (other, True)
        assert await batches.find("night_9999", since, COUNT) is None


async def test_anthropic_batches_that_ran_before_the_lost_creation_are_not_taken_for_it(teacher: BatchTeacher) -> None:
    async with opened("anthropic", teacher) as batches:
        first = await submit(batches, "anthropic", OTHER)
        teacher.fail_next("create", DROP_AFTER)
        state = await batches.submit(numbered_requests("anthropic", TOKEN, COUNT), TOKEN)
    assert list(teacher.batches) == [first, state.id]
    assert not state.is_certain


async def test_an_anthropic_batch_whose_first_line_is_damaged_may_be_ours(teacher: BatchTeacher) -> None:
    since = time.time()
    async with opened("anthropic", teacher) as batches:
        batch_id = await submit(batches, "anthropic", TOKEN)
        teacher.finish(teacher.batches[batch_id])
        teacher.batches[batch_id].output = b"{no json\n" + teacher.batches[batch_id].output.partition(b"\n")[2]
        found = await batches.find(TOKEN, since, COUNT)
    assert found is not None
    assert (found.id, found.status, found.is_certain) == (batch_id, "ended", False)


async def test_anthropic_results_that_say_nothing_hide_no_other_batch(teacher: BatchTeacher) -> None:
    since = time.time()
    async with opened("anthropic", teacher) as batches:
        await submit(batches, "anthropic", TOKEN)
        damaged = await submit(batches, "anthropic", OTHER)
        for batch in teacher.batches.values():
            teacher.finish(batch)
        teacher.batches[damaged].output = b"{no json\n" * COUNT
        found = await batches.find(TOKEN, since, COUNT)
    assert found is not None
    assert found.is_certain
