"""What a provider has to say."""

from typing import Any, Literal, NamedTuple, Protocol

from potstill.llm.messages import ChatRequest, Reply
from potstill.records import Usage

Cause = Literal["transient", "rate_limit", "request", "authorisation", "run"]
"""What a failed attempt means: ask again; ask again later; this request is at fault; the key is; every request would fail."""


class Failure(NamedTuple):
    """Why an attempt gave no answer."""

    cause: Cause
    message: str
    usage: Usage | None = None
    """What was billed all the same, where the reply said so."""
    retry_after_seconds: float | None = None


class Limit(NamedTuple):
    """One rate limit as a reply's headers tell it."""

    limit: float
    """Requests or tokens a minute."""
    remaining: float
    reset_seconds: float | None
    """Until the bucket is full again, where the server says so."""


class Provider(Protocol):
    """The protocol of one kind of endpoint."""

    name: str
    default_base_url: str | None
    default_key_env: str | None

    def path(self) -> str:
        """Where requests go, below the base URL."""
        ...

    def headers(self, key: str | None) -> dict[str, str]: ...

    def body(self, request: ChatRequest) -> dict[str, Any]: ...

    def read_reply(self, body: Any) -> Reply | Failure:
        """The answer of a 200, or why it cannot be used."""
        ...

    def read_error(self, status: int, body: Any, retry_after: str | None) -> Failure:
        """The cause of any other status."""
        ...
