"""What a status other than 200 means: one taxonomy for all providers. docs/providers.md has it as a table.

Sources: OpenAI API reference, "Error codes"; Anthropic API reference, "Errors"; the error types of both SDKs.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from potstill.errors import NotAuthorisedError, PermanentTeacherError, PotstillError, TransientTeacherError
from potstill.llm.providers.base import Failure
from potstill.llm.providers.headers import read_retry_after
from potstill.texts import one_line

LONGEST_QUOTE = 200
LONGEST_WAIT_SECONDS = 300.0
"""A server that asks for more, such as a day's quota, ends the run: it goes on when the same is run again."""

_BILLING = re.compile(
    r"insufficient_quota|credit_balance_exhausted|\w*_spend_limit_(exceeded|reached)|(organization_)?usage_limit_exceeded"
    r"|billing_\w+|\w+_billing_unavailable"
)
_NO_CREDIT = re.compile(
    r"credit balance is too low|reached your specified [\w ]*usage limits?|you will regain access on", re.IGNORECASE
)
"""Anthropic says so in a 400 without a code, of an empty account and of the limit that its owner has set."""
TRANSIENT = frozenset({408, 409, 425, 498, 499})
"""Beside all from 500 on: too early, and gateways' words for one that hung up or whose token has run out."""
_CONTEXT = re.compile(
    r"context_length_exceeded|context[ _](length|window)|maximum context|prompt is too long"
    r"|exceeds? the maximum number of (input )?tokens|input is too long",
    re.IGNORECASE,
)
_POLICY = re.compile(
    r"content_policy|content_filter|content policy|content management policy|content filtering|moderation_blocked"
    r"|usage polic|invalid_prompt|requires moderation|flagged",
    re.IGNORECASE,
)
_NO_SUCH_FIELD = re.compile(
    r"(?:(?:unsupported|unknown) parameter|unrecognized request argument|extra_forbidden).{0,60}?"
    r"\b(max_tokens|max_completion_tokens|prompt_cache_key)\b",
    re.IGNORECASE,
)
_OTHER_WAYS = {
    "max_tokens": "set provider to openai, which sends max_completion_tokens",
    "max_completion_tokens": "set provider to openai_compatible, which sends max_tokens",
    "prompt_cache_key": "set prompt_caching to false",
}
"""Of fields that are ours and no prompt's: one model takes what another at the same host refuses."""


class Said(NamedTuple):
    """What the body of an error says."""

    message: str
    codes: frozenset[str]
    """Its code, its type and the code of its details."""

    @property
    def words(self) -> str:
        """All of it as one text."""
        return " ".join((self.message, *sorted(self.codes)))


def read_error(status: int, body: Any, headers: Mapping[str, str]) -> Failure:  # noqa: PLR0911 - one return a cause
    """The cause of an error in the form `{"error": {"message": …, "code" or "type": …}}`, or in any other."""
    said = _read(body)
    message = f"HTTP {status}" + (f": {said.message}" if said.message else "")
    if 300 <= status < 400:
        elsewhere = _host_of(headers.get("location"))
        return Failure("run", f"{message}: the address redirects{elsewhere} and that is never followed: check base_url")
    if status == 401:
        return Failure("authorisation", f"{message}: the key is not accepted")
    if status == 402 or any(map(_BILLING.fullmatch, said.codes)) or _NO_CREDIT.search(said.message):
        return Failure("billing", f"{message}: the account has no credit left or has reached a limit of spending")
    if status == 403 and _POLICY.search(said.words):  # OpenRouter refuses single prompts in this way
        return _refusal(status, said, message)
    if status == 403:
        return Failure("authorisation", f"{message}: the account may not use this")
    if status in {404, 405}:
        return Failure("run", f"{message}: check the model's name and base_url")
    if status == 429:
        return Failure("rate_limit", message, retry_after_seconds=read_retry_after(headers))
    if status in {400, 422} and (field := _NO_SUCH_FIELD.search(said.message)):
        return Failure("run", f"{message}: {_OTHER_WAYS[field[1].lower()]}")
    if status in TRANSIENT or status >= 500:
        return Failure("transient", message, retry_after_seconds=read_retry_after(headers))
    return _refusal(status, said, message)


def hidden_status(body: Any) -> int | None:
    """The status that an HTTP 200 should have had: OpenRouter and other gateways send the errors of those behind them so.

    None where it tells of no error.
    """
    error = body.get("error") if isinstance(body, dict) else None
    if not error:
        return None
    code = error.get("code") if isinstance(error, dict) else None
    return code if isinstance(code, int) and 400 <= code < 600 else 502


def _refusal(status: int, said: Said, message: str) -> Failure:
    remedy = _remedy(status, said)
    return Failure("request", message + remedy, is_prompts_own=bool(remedy))


def _remedy(status: int, said: Said) -> str:
    """What a user may do about one refused prompt, where that is known."""
    if status == 413 or _CONTEXT.search(said.words):
        return (
            ": the prompt is longer than the model takes: shorten it, lower max_tokens or ask a model that takes more"
        )
    if _POLICY.search(said.words):
        return ": the provider's content policy refuses this prompt: leave it out or ask another teacher"
    return ""


def _host_of(location: str | None) -> str:
    """Its host alone: the rest of an address may hold what must not be shown."""
    try:
        host = urlsplit(location or "").hostname
    except ValueError:
        host = None
    return f" to {host}" if host else ""


def _read(body: Any) -> Said:
    """Azure, Gemini and others wrap or rename: a list around the object, a bare text, a `message` at the top."""
    outer = body[0] if isinstance(body, list) and body else body
    inner = outer.get("error", outer) if isinstance(outer, dict) else None
    error = inner if isinstance(inner, dict) else {"message": inner}
    details = error.get("details")
    found = (error.get("code"), error.get("type"), details.get("error_code") if isinstance(details, dict) else None)
    message = one_line(str(error.get("message") or "").strip()[:LONGEST_QUOTE]).strip().rstrip(".")
    return Said(message, frozenset(code for code in found if isinstance(code, str)))


def error_for_the_run(failure: Failure, said: str, key_remedy: str = "") -> PotstillError | None:
    """What ends the run, where asking again or for something else cannot help now; None for any other failure."""
    if failure.cause == "authorisation":
        return NotAuthorisedError(f"{said}: {key_remedy}" if key_remedy else said)
    if failure.cause == "billing":
        return NotAuthorisedError(f"{said}: add credit or raise the limit, then run the same again")
    if failure.cause == "run":
        return PermanentTeacherError(said)
    if failure.cause != "request" and (failure.retry_after_seconds or 0) > LONGEST_WAIT_SECONDS:
        wait = f"it asks to wait {failure.retry_after_seconds:.0f} s"
        return TransientTeacherError(f"{said}; {wait}: run the same again then")
    return None
