"""What a mirror makes of single replies."""

from potstill.llm.pacing.mirror import Mirror
from potstill.llm.pacing.sizes import Amounts
from potstill.llm.pacing.ticket import Cost, Ticket
from potstill.llm.providers.base import Limit
from potstill.records import Usage

ONE = {"requests": Amounts(1, 1)}
TOKENS = Usage(input=1, output=1)
PER_SECOND = 10.0


def told(remaining: float) -> dict[str, Limit]:
    """Of a bucket that holds 100 requests and gains 10 a second."""
    return {"requests": Limit(600, remaining, (100 - remaining) / PER_SECOND)}


def leave(mirror: Mirror, number: int, now: float) -> Ticket:
    mirror.book(number, now, ONE)
    return Ticket(number, Cost(1, 1), now)


def reply(mirror: Mirror, ticket: Ticket, now: float, remaining: float) -> None:
    mirror.end(ticket, now, told(remaining), TOKENS, is_refused=False)


def started(remaining: float) -> Mirror:
    """After a first request that left at 0 s and was answered at once."""
    mirror = Mirror()
    mirror.begin(Ticket(0, Cost(1, 1), 0.0), 0.0, told(remaining), [])
    return mirror


def leaving_at(mirror: Mirror, now: float) -> int:
    """How many may leave at once."""
    number = 1000
    while mirror.delay(now, ONE) <= 0:
        mirror.book(number, now, ONE)
        number += 1
    return number - 1000


def test_nothing_is_held_back_before_a_reply_tells_of_a_limit() -> None:
    assert leaving_at(started(50), 0.0) == 49
    assert Mirror().delay(0.0, ONE) == 0


def test_one_more_may_leave_for_all_that_is_refilled_meanwhile() -> None:
    assert leaving_at(started(50), 2.0) == 49 + 19


def test_no_more_is_saved_up_than_the_bucket_holds() -> None:
    assert leaving_at(started(50), 3600.0) == 99


def test_a_late_reply_that_tells_of_an_older_level_does_not_raise_the_level() -> None:
    mirror = started(50)
    early = leave(mirror, 1, 0.0)
    later = [leave(mirror, number, 0.1) for number in range(2, 41)]
    for ticket in later:
        reply(mirror, ticket, 0.2, 10)
    reply(mirror, early, 0.3, 49)
    assert leaving_at(mirror, 0.3) <= 13


def test_a_late_reply_subtracts_what_left_after_its_request_and_is_answered_already() -> None:
    mirror = started(100)
    early = leave(mirror, 1, 0.0)
    for number in range(2, 81):
        mirror.end(leave(mirror, number, 0.1), 0.2, {}, TOKENS, is_refused=False)
    reply(mirror, early, 0.3, 99)
    assert leaving_at(mirror, 0.3) <= 22


def test_what_others_take_with_the_same_key_is_noticed() -> None:
    mirror = started(100)
    for number in range(1, 30):
        now = 0.1 * number
        reply(mirror, leave(mirror, number, now), now + 0.01, 5)
    assert leaving_at(mirror, 3.0) <= 8


def test_a_level_that_was_thought_too_low_is_made_good_within_seconds() -> None:
    mirror = started(5)
    for number in range(1, 40):
        now = 0.1 * number
        reply(mirror, leave(mirror, number, now), now + 0.01, 60)
    assert leaving_at(mirror, 4.0) >= 50


def test_a_refused_request_is_given_back() -> None:
    mirror = started(50)
    ticket = leave(mirror, 1, 0.0)
    mirror.end(ticket, 0.0, {}, None, is_refused=True)
    assert leaving_at(mirror, 0.0) == 49


def test_a_limit_that_replies_stop_telling_of_is_forgotten() -> None:
    mirror = started(5)
    for number in range(1, 1100):
        mirror.end(leave(mirror, number, 0.0), 0.0, {}, TOKENS, is_refused=False)
    assert mirror.buckets == {}


def test_a_request_larger_than_the_bucket_leaves_when_the_bucket_is_full() -> None:
    mirror = Mirror()
    mirror.begin(Ticket(0, Cost(1, 1), 0.0), 0.0, {"tokens": Limit(600, 50, 5.0)}, [])
    assert 5 <= mirror.delay(0.0, {"tokens": Amounts(5000, 5000)}) <= 5.1


def test_a_limit_of_nothing_is_no_limit() -> None:
    mirror = Mirror()
    mirror.begin(Ticket(0, Cost(1, 1), 0.0), 0.0, {"requests": Limit(0, 0, None)}, [])
    assert mirror.buckets == {}


def test_a_bucket_that_was_empty_when_it_was_first_heard_of_holds_requests_back_without_a_reset_too() -> None:
    mirror = Mirror()
    mirror.begin(Ticket(0, Cost(1, 1), 0.0), 0.0, {"requests": Limit(600, 0, None)}, [])
    assert leaving_at(mirror, 0.0) == 0
    assert 1 <= leaving_at(mirror, 60.0) <= 10
