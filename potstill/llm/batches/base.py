"""What the batch endpoint of a provider has to say: half the price, and an answer within a day."""

import re
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator
from typing import Any, Generic, Literal, NamedTuple, Protocol, TypeVar

from potstill.errors import PermanentTeacherError, TransientTeacherError, UsageError
from potstill.llm.messages import Reply
from potstill.llm.providers.base import Failure
from potstill.records import Usage

T = TypeVar("T")

LONGEST_CUSTOM_ID = 64
TOKEN = re.compile(r"[A-Za-z0-9_]{8,31}")
NAME = re.compile(r"[A-Za-z0-9_-]{1,32}")
"""Together at most 64 of the characters that both providers take in a custom id."""

CLOCK_SKEW_SECONDS = 300.0
"""How far the provider's clock may lie behind ours."""


class NoBatchesError(PermanentTeacherError):
    """The endpoint has no batches at all, and so none of ours."""


class ResultsGoneError(PermanentTeacherError):
    """The provider has the batch, which has ended, and not its results: it keeps them for some weeks only."""


class NotCreatedError(TransientTeacherError):
    """The provider cannot have the batch: it was never asked to create it."""


class Limits(NamedTuple):
    """How much one batch may hold."""

    requests: int
    bytes: int


class BatchState(NamedTuple):
    """A batch as its provider sees it."""

    id: str
    status: Literal["running", "ended"]
    said: str
    """The provider's own word for it, such as `finalizing` or `expired`."""
    counts: dict[str, int]
    """As the provider says them; what was answered is known from the results only."""
    created_at: float
    """Unix seconds, by the provider's clock."""
    answers_at: str | None = None
    """Where the answers lie, once it has ended and there are any; at Anthropic, all results."""
    errors_at: str | None = None
    """Where the other results lie, if anywhere else."""
    rejection: Failure | None = None
    """Why the provider took none of its requests; nothing was billed then."""
    rejected_lines: tuple[int, ...] = ()
    """Which requests were at fault, counted from 1, where the provider says so."""
    is_certain: bool = True
    """False where `find` could not see whose batch it is: see there."""


class BatchResult(NamedTuple):
    """What came of one request of a batch."""

    custom_id: str
    """"" where the line could not be read."""
    outcome: Reply | Failure
    http_status: int | None
    """What the provider got, or would have sent, for this request; None where it never ran or nobody can say."""
    may_be_billed: bool
    """True where nobody can say whether the provider counted it."""

    @property
    def usage(self) -> Usage | None:
        """What was billed for certain."""
        return self.outcome.usage


class BatchProtocol(Protocol):
    """The batch endpoint of one provider.

    Calls that change nothing twice are retried. Errors, of every call: `NotAuthorisedError` for key, permission and
    credit; `PermanentTeacherError` for what would fail again; `TransientTeacherError` where the endpoint gave no usable
    answer to any attempt. None of them means that a batch was lost: its results stay at the provider for weeks.
    """

    limits: Limits

    def size(self, body: dict[str, Any]) -> int:
        """Bytes that a request takes in a batch, at most."""
        ...

    async def submit(self, requests: Iterable[tuple[str, dict[str, Any]]], token: str) -> BatchState:
        """Hand in one batch of (custom id, body), and return as soon as the provider has given it an id.

        The requests are read once, one at a time. Where the answer to the creating call is lost, the batch is looked
        for with `find` before it is created again, so that it is not paid twice.

        The token names this batch and no other; every custom id is `custom_id(token, …)`. Errors, besides those of every
        call: `UsageError` for custom ids, counts or sizes that no batch may have. Of the transient ones only
        `NotCreatedError` says that there is no batch; the permanent ones all do.
        """
        ...

    async def state(self, batch_id: str) -> BatchState: ...

    def results(self, state: BatchState) -> AsyncIterator[BatchResult]:
        """What came of each request of a batch that has ended, in any order.

        The files are downloaded whole before the first result is given, to a temporary place on disk; a cut download
        starts again. A line that cannot be read is one `Failure` with no custom id. A request that appears in no
        result was not carried out, except where such a line may be its own. Errors: `ResultsGoneError`, perhaps after some
        results, where there are none (any more).
        """
        ...

    async def cancel(self, batch_id: str) -> BatchState:
        """Stop a batch; what was answered until then is billed and in its results. No error where it has ended."""
        ...

    async def find(
        self, token: str, since: float, requests: int, known: Collection[str] = frozenset()
    ) -> BatchState | None:
        """The batch that was submitted with this token, where its id was never stored; None where there is none.

        It cannot have been created before `since`, in Unix seconds by our clock; it holds so many `requests`; `known` are
        the ids of batches that are others. Errors: `NoBatchesError` where the endpoint has no list of batches.
        """
        ...


def custom_id(token: str, name: str) -> str:
    """The id of one request of a batch. Errors: `UsageError` for characters or lengths that a provider refuses."""
    if not TOKEN.fullmatch(token) or not NAME.fullmatch(name):
        raise UsageError(f"custom id of {token!r} and {name!r}: a token is {TOKEN.pattern}, a name {NAME.pattern}")
    return f"{token}-{name}"


def is_of(token: str, custom_id: Any) -> bool:
    """Whether a custom id is one of this token's."""
    return isinstance(custom_id, str) and custom_id.startswith(f"{token}-")


class TooLarge(NamedTuple, Generic[T]):
    """An item that fits in no batch."""

    item: T
    failure: Failure


def split(items: Iterable[T], size: Callable[[T], int], limits: Limits) -> Iterator[list[T] | TooLarge[T]]:
    """Cut a stream of requests into batches as full as the limits allow, in order; what fits in none comes by itself.

    An item is whatever stands for a request: a key is enough, so that the bodies need not be in memory together. Its size
    is in bytes, as `BatchProtocol.size` counts them.
    """
    batch: list[T] = []
    total = 0
    for item in items:
        needed = size(item)
        if needed > limits.bytes:
            message = f"the request takes {needed} bytes, and a batch holds {limits.bytes}: shorten the prompt"
            yield TooLarge(item, Failure("request", message))
            continue
        if batch and (len(batch) == limits.requests or total + needed > limits.bytes):
            yield batch
            batch, total = [], 0
        batch.append(item)
        total += needed
    if batch:
        yield batch
