"""What a provider has to say. How to write one: docs/providers.md."""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, Protocol

from potstill.llm.messages import ChatRequest, Reply
from potstill.records import Usage

Cause = Literal["transient", "rate_limit", "request", "authorisation", "billing", "run"]
"""What a failed attempt means: ask again; ask again later; this request is at fault; the key is; there is no money left;
every request would fail."""


class Failure(NamedTuple):
    """Why an attempt gave no answer."""

    cause: Cause
    message: str
    usage: Usage | None = None
    """What was billed all the same, where the reply said so."""
    retry_after_seconds: float | None = None
    is_prompts_own: bool = False
    """A refusal that names what is wrong with this prompt: its length, or a policy; others may be the endpoint's fault."""


LimitName = Literal["requests", "tokens", "input_tokens", "output_tokens"]


class Limit(NamedTuple):
    """One bucket of the server, as it stood when it replied."""

    limit: float
    """What it holds when full: requests or tokens a minute."""
    remaining: float
    reset_seconds: float | None
    """Until it is full again; None where the server does not say."""

    def scaled(self, fraction: float) -> "Limit":
        """The part of it that one of several processes counts on."""
        return Limit(self.limit * fraction, self.remaining * fraction, self.reset_seconds)


class Provider(Protocol):
    """The protocol of one kind of endpoint. Nothing in it raises for what a server or a prompt may hold."""

    name: str
    default_base_url: str | None
    default_key_env: str | None

    def path(self) -> str:
        """Where requests go, below the base URL."""
        ...

    def headers(self, key: str | None, base_url: str = "") -> dict[str, str]:
        """What every request carries, the key in the form that the host at this address expects."""
        ...

    def body(self, request: ChatRequest, *, cache_prefix: bool = False) -> dict[str, Any]:
        """The JSON of a request. What the provider cannot take is sent all the same: its 400 refuses that prompt alone.

        Args:
            request: what is asked.
            cache_prefix: ask the provider to keep the system prompt and the tools for requests that share them.
        """
        ...

    def read_reply(self, body: Any) -> Reply | Failure:
        """The answer of a 200, or why it cannot be used."""
        ...

    def read_error(self, status: int, body: Any, headers: Mapping[str, str]) -> Failure:
        """The cause of any other status; names of headers are asked for in lower case."""
        ...

    def read_limits(self, headers: Mapping[str, str]) -> dict[LimitName, Limit]:
        """The buckets that a reply tells of; one whose figures are missing or unreadable is left out."""
        ...
