"""Both providers' batches against a real server: what goes in, what comes out, and what each line means."""

import json
from typing import Any

import pytest

from potstill.errors import NotAuthorisedError, PermanentTeacherError, TransientTeacherError, UsageError
from potstill.llm.batches import open_batches
from potstill.llm.batches.base import BatchProtocol, BatchResult, BatchState, Limits, ResultsGoneError, custom_id, split
from potstill.llm.batches.lines import answered
from potstill.llm.endpoint import open_endpoint
from potstill.llm.messages import Reply
from potstill.llm.providers import PROVIDERS
from potstill.llm.providers.base import Failure
from potstill.records import Usage
from tests.batch_teacher import (
    BAD_LINE,
    DROP_AFTER,
    DROP_BEFORE,
    EMPTY,
    NO_JSON,
    PATIENT,
    TIMED_OUT,
    WITHOUT_USAGE,
    BatchTeacher,
    CallFault,
    Outcome,
    cut,
    error,
    numbered_requests,
    opened,
    redirect,
    refuse,
    short,
)

TOKEN = "night_0007"


async def collect(batches: BatchProtocol, state: BatchState) -> dict[str, BatchResult]:
    """By the name in the custom id; every custom id once."""
    results = [result async for result in batches.results(state)]
    named = {result.custom_id.removeprefix(f"{TOKEN}-"): result for result in results}
    assert len(named) == len(results)
    return named


async def run_one(batches: BatchProtocol, provider: str, count: int = 3) -> dict[str, BatchResult]:
    submitted = await batches.submit(numbered_requests(provider, TOKEN, count), TOKEN)
    return await collect(batches, await batches.state(submitted.id))


async def test_every_request_gets_its_own_answer_and_its_bill(
    batches: BatchProtocol, provider: str, teacher: BatchTeacher
) -> None:
    teacher.shuffled = True
    results = await run_one(batches, provider, count=40)
    assert list(results) != sorted(results), "the server sent them out of order"
    for name, result in results.items():
        assert isinstance(result.outcome, Reply)
        assert result.outcome.text == f"answer to #{name}"
        assert (result.http_status, result.may_be_billed) == (200, False)
    told = sorted((result.usage.input, result.usage.output) for result in results.values() if result.usage)
    assert told == sorted((billed.input, billed.output) for billed in teacher.billed)
    assert len(told) == 40


async def test_a_batch_runs_until_it_has_ended(batches: BatchProtocol, provider: str, teacher: BatchTeacher) -> None:
    teacher.polls = 2
    submitted = await batches.submit(numbered_requests(provider, TOKEN, 3), TOKEN)
    states = [submitted, *[await batches.state(submitted.id) for _ in range(3)]]
    assert [state.status for state in states] == ["running", "running", "running", "ended"]
    assert {state.id for state in states} == set(teacher.batches)
    assert [state.answers_at is not None for state in states] == [False, False, False, True]
    assert abs(states[-1].created_at - teacher.now()) < 20
    assert states[-1].counts[{"openai": "completed", "anthropic": "succeeded"}[provider]] == 3


async def test_the_size_of_a_request_with_the_longest_id_is_what_it_takes_in_the_batch(
    batches: BatchProtocol, provider: str, teacher: BatchTeacher
) -> None:
    """Text that grows when it is escaped is counted as it is sent."""
    texts = ("a", 'quoted "\n" line', "é" * 50)
    bodies = [{"model": "m", "messages": [{"role": "user", "content": text}]} for text in texts]
    token = "t" * 31
    requests = [(custom_id(token, str(number) * 32), body) for number, body in enumerate(bodies)]
    await batches.submit(requests, token)
    create = next(call for call in teacher.calls if call.operation == "create")
    sent = len(teacher.files["file-0000"]) if provider == "openai" else int(create.headers["content-length"])
    assert 0 <= sent - sum(batches.size(body) for body in bodies) < 20, "what stands around the requests"


async def test_a_batch_that_split_has_filled_to_the_last_byte_is_taken(
    batches: BatchProtocol, provider: str, teacher: BatchTeacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = numbered_requests(provider, TOKEN, 1)[0][1]
    token = "t" * 31
    requests = [(custom_id(token, str(number) * 32), body) for number in range(3)]
    monkeypatch.setattr(batches, "limits", Limits(requests=9, bytes=3 * batches.size(body)), raising=False)
    assert list(split(requests, lambda request: batches.size(request[1]), batches.limits)) == [requests]
    await batches.submit(requests, token)
    assert len(teacher.batches) == 1


async def test_openai_gets_one_file_of_requests_for_the_day_and_the_token_as_metadata(teacher: BatchTeacher) -> None:
    async with opened("openai", teacher) as batches:
        await run_one(batches, "openai")
    [content] = teacher.files.values()
    assert content.count(b"\n") == 3
    assert teacher.batches["batch_0000"].metadata == {"potstill": TOKEN}
    assert teacher.batches["batch_0000"].requests == numbered_requests("openai", TOKEN, 3)
    assert teacher.operations() == ["upload", "create", "state", "results"]


async def test_anthropic_gets_the_requests_in_one_call(teacher: BatchTeacher) -> None:
    async with opened("anthropic", teacher) as batches:
        await run_one(batches, "anthropic")
    assert teacher.batches["msgbatch_0000"].requests == numbered_requests("anthropic", TOKEN, 3)
    assert [call.path for call in teacher.calls if call.operation == "create"] == ["/v1/messages/batches"]


@pytest.mark.parametrize(
    ("status", "openai_code", "anthropic_type", "cause"),
    [
        (400, "invalid_value", "invalid_request_error", "request"),
        (401, "invalid_api_key", "authentication_error", "authorisation"),
        (403, "forbidden", "permission_error", "authorisation"),
        (404, "model_not_found", "not_found_error", "run"),
        (413, "too_large", "request_too_large", "request"),
        (429, "rate_limit_exceeded", "rate_limit_error", "rate_limit"),
        (500, "server_error", "api_error", "transient"),
    ],
)
async def test_an_error_of_one_request_means_what_it_means_online_and_spoils_no_other(
    batches: BatchProtocol,
    provider: str,
    teacher: BatchTeacher,
    status: int,
    openai_code: str,
    anthropic_type: str,
    cause: str,
) -> None:
    teacher.outcomes["#0001"] = error(status, openai_code if provider == "openai" else anthropic_type)
    results = await run_one(batches, provider)
    failure = results["0001"].outcome
    assert isinstance(failure, Failure)
    assert (failure.cause, results["0001"].http_status, results["0001"].may_be_billed) == (cause, status, False)
    assert isinstance(results["0000"].outcome, Reply)
    assert isinstance(results["0002"].outcome, Reply)


async def test_anthropic_overload_and_errors_that_nobody_has_heard_of_may_be_asked_again(teacher: BatchTeacher) -> None:
    teacher.outcomes |= {"#0000": error(529, "overloaded_error"), "#0001": error(500, "new_kind_of_error")}
    async with opened("anthropic", teacher) as batches:
        results = await run_one(batches, "anthropic", count=2)
    assert [(result.outcome.cause, result.http_status) for _, result in sorted(results.items())] == [
        ("transient", 529),
        ("transient", 500),
    ]


async def test_what_expired_was_not_done_and_may_be_asked_again_and_the_rest_is_kept(
    batches: BatchProtocol, provider: str, teacher: BatchTeacher
) -> None:
    teacher.answer_only = 2
    results = await run_one(batches, provider, count=5)
    assert [name for name, result in results.items() if isinstance(result.outcome, Reply)] == ["0000", "0001"]
    for name in ("0002", "0003", "0004"):
        failure = results[name].outcome
        assert isinstance(failure, Failure)
        assert failure.cause == "transient"
        assert failure.message.startswith("not done: ")
        assert (results[name].http_status, results[name].usage, results[name].may_be_billed) == (None, None, False)
    assert [billed.mark for billed in teacher.billed] == ["#0000", "#0001"]


async def test_a_batch_of_errors_only_has_no_file_of_answers_and_tells_them_all(
    batches: BatchProtocol, provider: str, teacher: BatchTeacher
) -> None:
    teacher.answer_only = 0
    results = await run_one(batches, provider)
    assert [result.outcome.cause for result in results.values() if isinstance(result.outcome, Failure)] == [
        "transient"
    ] * 3


@pytest.mark.parametrize(
    ("outcome", "may_be_billed", "knows_usage"),
    [(EMPTY, False, True), (WITHOUT_USAGE, True, False)],
    ids=lambda value: value.kind if isinstance(value, Outcome) else "",
)
async def test_an_answer_that_cannot_be_used_says_what_it_cost_or_that_nobody_knows(
    batches: BatchProtocol,
    provider: str,
    teacher: BatchTeacher,
    outcome: Outcome,
    may_be_billed: bool,
    knows_usage: bool,
) -> None:
    teacher.outcomes["#0001"] = outcome
    result = (await run_one(batches, provider))["0001"]
    assert isinstance(result.outcome, Failure)
    assert (result.outcome.cause, result.may_be_billed) == ("transient", may_be_billed)
    assert (result.usage is not None) == knows_usage


async def test_a_line_that_cannot_be_read_is_one_failure_and_stops_no_other(
    batches: BatchProtocol, provider: str, teacher: BatchTeacher
) -> None:
    teacher.outcomes["#0001"] = BAD_LINE
    results = await run_one(batches, provider)
    assert sorted(results) == ["", "0000", "0002"]
    assert results[""].may_be_billed
    assert results[""].outcome.message == "line 2 of the results cannot be read"


@pytest.mark.parametrize(
    "line",
    [
        "[]",
        "7",
        "null",
        '{"custom_id": 7}',
        '{"custom_id": "ID"}',
        '{"custom_id": "ID", "response": {}, "result": {}}',
        '{"custom_id": "ID", "response": {"status_code": "two hundred"}, "result": {"type": "errored"}}',
        '{"custom_id": "ID", "response": {"status_code": 200}, "result": {"type": "succeeded"}}',
        '{"custom_id": "ID", "response": null, "error": null, "result": null}',
        '{"custom_id": "ID", "response": null, "error": {}, "result": {"type": "errored", "error": {"type": 1}}}',
        '{"custom_id": "ID", "response": [], "result": {"type": "errored", "error": {"error": null}}}',
    ],
)
async def test_a_line_of_any_shape_is_a_failure_in_doubt_and_never_a_crash(
    batches: BatchProtocol, provider: str, teacher: BatchTeacher, line: str
) -> None:
    submitted = await batches.submit(numbered_requests(provider, TOKEN, 2), TOKEN)
    state = await batches.state(submitted.id)
    batch = teacher.batches[submitted.id]
    first = line.replace("ID", f"{TOKEN}-0000").encode() + b"\n"
    batch.output = first + batch.output.partition(b"\n")[2]
    results = await collect(batches, state)
    assert sorted(results) == ["0000" if "ID" in line else "", "0001"]
    assert isinstance(results["0001"].outcome, Reply)
    strange = next(result for name, result in results.items() if name != "0001")
    assert isinstance(strange.outcome, Failure)
    assert (strange.outcome.cause, strange.usage) == ("transient", None)


async def test_what_a_model_thought_is_billed_in_a_batch_as_it_is_online(teacher: BatchTeacher) -> None:
    usages = {
        "0000": {"prompt_tokens": 20, "completion_tokens": 198, "total_tokens": 623},
        "0001": {"prompt_tokens": 12, "completion_tokens": 2, "completion_tokens_details": {"reasoning_tokens": 317}},
    }
    async with opened("openai_compatible", teacher) as batches:
        submitted = await batches.submit(numbered_requests("openai_compatible", TOKEN, 2), TOKEN)
        state = await batches.state(submitted.id)
        batch = teacher.batches[submitted.id]
        rows = [json.loads(line) for line in batch.output.splitlines()]
        for row in rows:
            row["response"]["body"]["usage"] = usages[row["custom_id"].removeprefix(f"{TOKEN}-")]
        batch.output = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
        results = await collect(batches, state)
    assert results["0000"].usage == Usage(input=20, output=603)
    assert results["0001"].usage == Usage(input=12, output=319, reasoning=317)


async def test_a_request_that_timed_out_inside_openai_may_have_been_billed(teacher: BatchTeacher) -> None:
    teacher.outcomes["#0001"] = TIMED_OUT
    async with opened("openai", teacher) as batches:
        result = (await run_one(batches, "openai"))["0001"]
    assert (result.outcome.cause, result.http_status, result.may_be_billed) == ("transient", None, True)
    assert "request_timeout" in result.outcome.message


@pytest.mark.parametrize("fault", [cut(200), cut(0), refuse(500), refuse(429, retry_after="0.01"), DROP_BEFORE])
async def test_a_download_that_is_cut_starts_again_and_no_answer_is_given_twice(
    batches: BatchProtocol, provider: str, teacher: BatchTeacher, fault: CallFault
) -> None:
    teacher.fail_next("results", fault, fault)
    results = await run_one(batches, provider, count=20)
    assert len(results) == 20
    assert all(isinstance(result.outcome, Reply) for result in results.values())
    assert teacher.billed_twice() == {}


async def test_a_download_that_is_always_cut_gives_no_half_of_the_answers(
    batches: BatchProtocol, provider: str, teacher: BatchTeacher
) -> None:
    teacher.fail_next("results", *[cut(300)] * PATIENT.attempts)
    submitted = await batches.submit(numbered_requests(provider, TOKEN, 20), TOKEN)
    state = await batches.state(submitted.id)
    got: list[BatchResult] = []
    with pytest.raises(TransientTeacherError, match="connection lost"):
        got.extend([result async for result in batches.results(state)])
    assert got == []
    assert len(await collect(batches, state)) == 20, "the results stay at the provider"


async def test_results_that_are_gone_are_asked_for_once(
    batches: BatchProtocol, provider: str, teacher: BatchTeacher
) -> None:
    teacher.fail_next("results", refuse(404, "not_found_error"))
    with pytest.raises(ResultsGoneError, match="HTTP 404"):
        await run_one(batches, provider)
    assert teacher.operations().count("results") == 1


async def test_anthropic_results_that_end_early_without_an_error_are_fetched_again(teacher: BatchTeacher) -> None:
    async with opened("anthropic", teacher) as batches:
        submitted = await batches.submit(numbered_requests("anthropic", TOKEN, 20), TOKEN)
        state = await batches.state(submitted.id)
        length = teacher.batches[submitted.id].output.index(b"\n") + 1
        teacher.fail_next("results", short(length))
        assert len(await collect(batches, state)) == 20
    assert teacher.operations().count("results") == 2


@pytest.mark.parametrize("failed", [0, 2])
async def test_openai_answers_without_a_file_yet_are_not_taken_for_none(teacher: BatchTeacher, failed: int) -> None:
    """The file of errors may be there first, and with as many lines as there are answers."""
    teacher.outcomes |= {f"#{number:04d}": error(400, "invalid_value") for number in range(failed)}
    async with opened("openai", teacher) as batches:
        submitted = await batches.submit(numbered_requests("openai", TOKEN, 4), TOKEN)
        batch = teacher.batches[submitted.id]
        teacher.finish(batch)
        output, batch.output = batch.output, b""
        with pytest.raises(TransientTeacherError, match="has answers and no file of them yet"):
            await collect(batches, await batches.state(submitted.id))
        batch.output = output
        results = await collect(batches, await batches.state(submitted.id))
    assert sum(isinstance(result.outcome, Reply) for result in results.values()) == 4 - failed
    assert len(results) == 4


async def test_a_cancelled_batch_keeps_what_was_answered(
    batches: BatchProtocol, provider: str, teacher: BatchTeacher
) -> None:
    teacher.polls, teacher.answer_only = 9, 2
    submitted = await batches.submit(numbered_requests(provider, TOKEN, 5), TOKEN)
    state = await batches.cancel(submitted.id)
    assert state.status == "running"
    assert state.said == {"openai": "cancelling", "anthropic": "canceling"}[provider]
    assert (await batches.cancel(submitted.id)).said == state.said
    assert teacher.operations().count("cancel") == 1, "it is being stopped already"
    teacher.finish(teacher.batches[submitted.id])
    ended = await batches.cancel(submitted.id)
    assert ended.status == "ended"
    results = await collect(batches, ended)
    assert [isinstance(results[f"{number:04d}"].outcome, Reply) for number in range(5)] == [True] * 2 + [False] * 3
    assert not any(result.may_be_billed for result in results.values())


async def test_a_batch_that_ends_while_it_is_cancelled_is_no_error(
    batches: BatchProtocol, provider: str, teacher: BatchTeacher
) -> None:
    teacher.polls = 1
    submitted = await batches.submit(numbered_requests(provider, TOKEN, 3), TOKEN)
    teacher.fail_next("cancel", *[refuse(409, "conflict")] * PATIENT.attempts)
    assert (await batches.cancel(submitted.id)).status == "ended"


async def test_calls_that_meet_trouble_are_made_again(
    batches: BatchProtocol, provider: str, teacher: BatchTeacher
) -> None:
    for operation in ("upload", "state", "cancel"):
        teacher.fail_next(operation, refuse(503), DROP_AFTER, NO_JSON)
    teacher.polls = 9
    submitted = await batches.submit(numbered_requests(provider, TOKEN, 3), TOKEN)
    assert (await batches.state(submitted.id)).status == "running"
    assert (await batches.cancel(submitted.id)).said.startswith("cancel")
    assert len(teacher.batches) == 1


async def test_a_server_that_is_down_is_told_after_the_last_attempt(
    batches: BatchProtocol, provider: str, teacher: BatchTeacher
) -> None:
    submitted = await batches.submit(numbered_requests(provider, TOKEN, 3), TOKEN)
    before = teacher.operations().count("state")
    teacher.fail_next("state", *[refuse(503)] * 99)
    with pytest.raises(TransientTeacherError, match="HTTP 503"):
        await batches.state(submitted.id)
    assert teacher.operations().count("state") - before == PATIENT.attempts


async def test_a_wait_longer_than_any_attempt_ends_the_call_and_says_how_long(
    batches: BatchProtocol, provider: str, teacher: BatchTeacher
) -> None:
    teacher.fail_next("create", refuse(429, retry_after="86400"))
    with pytest.raises(TransientTeacherError, match="it asks to wait 86400 s: run the same again then"):
        await batches.submit(numbered_requests(provider, TOKEN, 3), TOKEN)
    assert teacher.operations().count("create") == 1


async def test_a_wrong_key_is_told_at_once_and_the_right_one_is_shown(
    provider: str, teacher: BatchTeacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", "secret-1")
    teacher.key = "secret-2"
    async with opened(provider, teacher, api_key_env="MY_KEY") as batches:
        with pytest.raises(NotAuthorisedError, match="the key is not accepted") as raised:
            await batches.submit(numbered_requests(provider, TOKEN, 3), TOKEN)
    assert "secret" not in str(raised.value)
    assert len(teacher.calls) == 1
    teacher.key = "secret-1"
    async with opened(provider, teacher, api_key_env="MY_KEY") as batches:
        assert len(await run_one(batches, provider)) == 3


async def test_more_headers_go_with_every_call_and_the_key_of_the_provider_wins(
    provider: str, teacher: BatchTeacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", "secret-1")
    teacher.key = "secret-1"
    more = {"X-Team": "still", "Authorization": "Bearer other", "X-Api-Key": "other"}
    more.pop("Authorization" if provider == "anthropic" else "X-Api-Key")
    async with opened(provider, teacher, api_key_env="MY_KEY", headers=more) as batches:
        await run_one(batches, provider)
    assert {call.headers["x-team"] for call in teacher.calls} == {"still"}
    assert len(teacher.calls) >= 4


async def test_an_account_without_credit_is_told_what_to_do_and_asked_once(
    batches: BatchProtocol, provider: str, teacher: BatchTeacher
) -> None:
    teacher.fail_next("create", refuse(402, "billing_error"))
    with pytest.raises(NotAuthorisedError, match="add credit or raise the limit, then run the same again"):
        await batches.submit(numbered_requests(provider, TOKEN, 3), TOKEN)
    assert teacher.operations().count("create") == 1


async def test_a_redirect_is_never_followed(batches: BatchProtocol, provider: str, teacher: BatchTeacher) -> None:
    with BatchTeacher() as other:
        teacher.fail_next("create", redirect(f"{other.url}/messages/batches"))
        with pytest.raises(PermanentTeacherError, match="never followed"):
            await batches.submit(numbered_requests(provider, TOKEN, 3), TOKEN)
        assert other.calls == []
    assert teacher.operations().count("create") == 1


async def test_anthropic_results_are_fetched_where_the_batch_was_handed_in_whatever_host_the_answer_names(
    teacher: BatchTeacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gateway passes on what Anthropic says of itself; the key goes to no other host."""
    monkeypatch.setenv("MY_KEY", "secret-1")
    teacher.key = "secret-1"
    with BatchTeacher() as other:
        teacher.results_host = other.origin
        async with opened("anthropic", teacher, api_key_env="MY_KEY") as batches:
            results = await run_one(batches, "anthropic")
            found = await batches.find(TOKEN, teacher.now() - 60, 3)
        assert other.calls == []
    assert [isinstance(result.outcome, Reply) for result in results.values()] == [True] * 3
    assert (found and found.is_certain) is True


async def test_an_id_that_no_address_can_hold_is_told_and_asked_for_nowhere(
    batches: BatchProtocol, teacher: BatchTeacher
) -> None:
    with pytest.raises(PermanentTeacherError, match="is no address"):
        await batches.state("batch\n0000")
    assert teacher.calls == []


async def test_a_host_that_does_not_exist_is_named(provider: str) -> None:
    async with open_batches(open_endpoint(provider, "http://nobody.invalid/v1"), policy=PATIENT) as batches:
        with pytest.raises(PermanentTeacherError, match=r"no host named nobody\.invalid: check base_url"):
            await batches.state("batch_0000")


@pytest.mark.parametrize(
    ("errors", "cause", "lines", "said"),
    [
        ([{"code": "invalid_value", "message": "bad tool", "line": 2}], "request", (2,), "(invalid_value in line 2)"),
        (
            [{"code": "invalid_value", "message": "x", "line": line} for line in (3, 1, 3)],
            "request",
            (1, 3),
            "(invalid_value in line 3 and 2 more)",
        ),
        (
            [{"code": "token_limit_exceeded", "message": "Enqueued token limit reached", "line": None}],
            "rate_limit",
            (),
            "Enqueued token limit reached",
        ),
        ([{"code": "billing_hard_limit_reached", "message": "no credit", "line": None}], "billing", (), "no credit"),
        ([{"code": "project_spend_limit_exceeded", "message": "the cap", "line": None}], "billing", (), "the cap"),
        ([{"code": "model_not_found", "message": "no such model", "line": 1}], "run", (1,), "no such model"),
        ([{"code": "invalid_file", "message": "unreadable"}], "run", (), "unreadable"),
    ],
)
async def test_an_openai_batch_that_was_refused_says_why_and_which_lines_are_at_fault(
    teacher: BatchTeacher, errors: list[dict[str, Any]], cause: str, lines: tuple[int, ...], said: str
) -> None:
    teacher.rejections = [errors]
    async with opened("openai", teacher) as batches:
        submitted = await batches.submit(numbered_requests("openai", TOKEN, 3), TOKEN)
        state = await batches.state(submitted.id)
        assert await collect(batches, state) == {}
    assert (state.status, state.said, state.rejected_lines) == ("ended", "failed", lines)
    assert state.rejection is not None
    assert state.rejection.cause == cause
    assert said in state.rejection.message
    assert teacher.billed == []


async def test_a_call_that_the_provider_refuses_for_good_is_made_once(
    batches: BatchProtocol, provider: str, teacher: BatchTeacher
) -> None:
    teacher.fail_next("create", refuse(400, "invalid_request_error"))
    with pytest.raises(PermanentTeacherError, match="HTTP 400"):
        await batches.submit(numbered_requests(provider, TOKEN, 3), TOKEN)
    assert teacher.operations().count("create") == 1
    with pytest.raises(PermanentTeacherError, match="HTTP 404"):
        await batches.state("batch_9999")


async def test_what_no_batch_may_hold_never_leaves_this_machine(
    batches: BatchProtocol, provider: str, teacher: BatchTeacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    [request, other] = numbered_requests(provider, TOKEN, 2)
    foreign = (custom_id("night_0008", "1"), request[1])
    for wrong in ([request, request], [request, foreign], [(f"{TOKEN}-{'x' * 64}", request[1])], []):
        with pytest.raises(UsageError):
            await batches.submit(wrong, TOKEN)
    with pytest.raises(UsageError, match="token"):
        await batches.submit([], "no")
    monkeypatch.setattr(batches, "limits", Limits(requests=1, bytes=10_000), raising=False)
    with pytest.raises(UsageError, match="holds 2 requests"):
        await batches.submit([request, other], TOKEN)
    monkeypatch.setattr(batches, "limits", Limits(requests=2, bytes=100), raising=False)
    with pytest.raises(UsageError, match="cut it with split"):
        await batches.submit([request], TOKEN)
    assert teacher.calls == []


@pytest.mark.parametrize("name", ["openai", "anthropic"])
@pytest.mark.parametrize(
    ("code", "cause"), [(400, "request"), (402, "billing"), (503, "transient"), ("odd", "transient")]
)
def test_an_error_that_comes_as_an_answer_is_read_as_what_its_code_says_and_was_not_billed(
    name: str, code: object, cause: str
) -> None:
    result = answered("id", PROVIDERS[name], {"error": {"code": code, "message": "no"}})
    assert isinstance(result.outcome, Failure)
    assert (result.outcome.cause, result.may_be_billed) == (cause, False)
    assert "no" in result.outcome.message
