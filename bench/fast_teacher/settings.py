"""How the fake teacher behaves: every flag of its command line."""

from typing import NamedTuple


class Settings(NamedTuple):
    """Each field is a flag: `latency_ms` is `--latency-ms`, and a false `headers` is `--no-headers`."""

    port: int = 0
    """0 takes a free one."""
    latency_ms: float = 0.0
    """The mean time before a reply."""
    latency_sigma: float = 0.0
    """Of the latency's logarithm: a lognormal spread around the same mean; 0 for a constant."""
    seed: int = 1
    rate_429: float = 0.0
    """Share of the attempts that meet this fault; so are the next three."""
    rate_5xx: float = 0.0
    rate_reset: float = 0.0
    """The connection is reset in place of the reply; the answer is billed."""
    rate_malformed: float = 0.0
    """A 200 that holds no answer, of one of `faults.MALFORMED`; billed."""
    retry_after: str = "1"
    """Sent with a fault's 429; "" for none."""
    rpm: int = 0
    """Requests a minute, 0 for no limit; the limit is enforced."""
    tpm: int = 0
    """Tokens a minute, in the same way."""
    burst_seconds: float = 60.0
    """What the buckets hold: so many seconds of their rate."""
    charge: str = "actual"
    """What a request takes from the bucket of tokens at its arrival: its `actual` tokens, or prompt + `max` tokens."""
    headers: bool = True
    """Replies tell the state of the limits that are set."""
    limit_retry_after: bool = True
    """The limiter's own 429 says when there will be room."""
    answer_tokens: int = 104
    """Mean length of an answer; each is within a quarter of it."""
    log: str = ""
    """A file that gets a line for every request; "" for none."""
