import pickle

import pytest

from potstill.errors import NotAuthorisedError, TransientTeacherError
from potstill.llm.retrying import RetryPolicy, UnansweredError, retrying

POLICY = RetryPolicy(attempts=4, first_wait_seconds=1, longest_wait_seconds=5)


class Endpoint:
    """Fails with these errors, one a call, then answers."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.calls = 0
        self.slept: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)

    async def run(self, policy: RetryPolicy = POLICY) -> None:
        async for attempt in retrying(policy, self.sleep):
            with attempt:
                self.calls += 1
                if self.errors:
                    raise self.errors.pop(0)


async def test_an_answer_ends_the_loop() -> None:
    endpoint = Endpoint(UnansweredError("a"), UnansweredError("b"))
    await endpoint.run()
    assert endpoint.calls == 3
    assert len(endpoint.slept) == 2


async def test_after_the_last_attempt_the_last_error_comes_out() -> None:
    endpoint = Endpoint(*(UnansweredError(f"no {number}") for number in range(9)))
    with pytest.raises(TransientTeacherError, match="no 3"):
        await endpoint.run()
    assert endpoint.calls == 4


async def test_refusals_for_the_pace_leave_a_request_its_attempts_as_far_as_they_go() -> None:
    refused = [UnansweredError("slow down", is_rate_limited=True) for _ in range(20)]
    answered = Endpoint(*refused, *(UnansweredError("no") for _ in range(3)))
    await answered.run()
    assert answered.calls == 24
    given_up = Endpoint(*refused, *(UnansweredError("slow down", is_rate_limited=True) for _ in range(9)))
    with pytest.raises(TransientTeacherError, match="slow down"):
        await given_up.run()
    assert given_up.calls == 24


async def test_any_other_error_is_asked_only_once() -> None:
    endpoint = Endpoint(NotAuthorisedError("no"))
    with pytest.raises(NotAuthorisedError):
        await endpoint.run()
    assert (endpoint.calls, endpoint.slept) == (1, [])


async def test_waits_are_jittered_and_never_longer_than_the_longest() -> None:
    endpoint = Endpoint(*(UnansweredError("no") for _ in range(29)))
    await endpoint.run(POLICY._replace(attempts=30))
    assert len(set(endpoint.slept)) > 20
    assert max(endpoint.slept) <= 5
    assert endpoint.slept[0] <= 1


async def test_the_wait_that_the_server_asked_for_is_kept() -> None:
    endpoint = Endpoint(UnansweredError("no", 42.0))
    await endpoint.run()
    assert endpoint.slept == [42.0]


def test_the_error_survives_a_process_border() -> None:
    found = pickle.loads(pickle.dumps(UnansweredError("no", 1.5, is_rate_limited=True)))
    assert (str(found), found.retry_after_seconds, found.is_rate_limited) == ("no", 1.5, True)
