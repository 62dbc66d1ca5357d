"""What an answer costs, as Decimal USD; a price that nobody knows is an error, never zero."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, time
from decimal import Decimal
from itertools import chain
from typing import Any, Literal, NamedTuple

from potstill.errors import UnknownPriceError
from potstill.llm.keys import is_loopback
from potstill.recipe import Price
from potstill.records import Usage

MILLION = Decimal(1_000_000)
BATCH_SHARE = Decimal("0.5")
"""What a batch costs of the price of single requests, at every provider that has both."""
MIDNIGHT = time(tzinfo=UTC)
CACHE_WRITE_SHARE = Decimal("1.25")
"""What Anthropic bills for a token that is kept for 5 minutes, of the price of input. Source: its guide "Prompt caching"."""

Processing = Literal["online", "batch"]


class Tier(NamedTuple):
    """Prices of a million tokens, by kind, and of a request, for prompts of some length at some time of day."""

    input: Decimal
    cached_input: Decimal
    cache_write: Decimal
    output: Decimal
    request: Decimal
    from_input: int = 0
    """Tokens of input: all tokens of a prompt that has so many, or more, have these prices."""
    from_time: time = MIDNIGHT
    """Of day; until the next tier's, or the end of the day."""

    def cost(self, usage: Usage) -> Decimal:
        """USD for one answer; tokens of reasoning are tokens of output."""
        fresh = usage.input - usage.cached_input - usage.cache_write
        total = fresh * self.input + usage.cached_input * self.cached_input + usage.cache_write * self.cache_write
        return (total + usage.output * self.output) / MILLION + self.request

    def upper_bound(self, num_input: int, max_tokens: int) -> Decimal:
        """USD that so many tokens of input and of output cannot exceed, whatever of the input a cache holds."""
        dearest = max(self.input, self.cached_input, self.cache_write)
        return (num_input * dearest + max_tokens * self.output) / MILLION + self.request


class Rates(NamedTuple):
    """Prices of a million tokens and of a request, and where they come from."""

    input: Decimal
    cached_input: Decimal
    output: Decimal
    source: str
    """Kept with every attempt, so that a bill can be explained later."""
    request: Decimal = Decimal(0)
    """USD for one answered request, whatever its length."""
    cache_write: Decimal | None = None
    """Tokens that are put into the provider's prompt cache; None where they cost what others do."""
    tiers: tuple[Tier, ...] = ()
    """What is billed instead for longer prompts, and later in the day; by time, then by length."""

    def snapshot(self) -> dict[str, Any]:
        """The rates and their source, as the ledger keeps them with every attempt; tiers only where there are any."""
        kept: dict[str, Any] = {**_kept(self._first()), "source": self.source}
        if self.tiers:
            kept["tiers"] = [
                {"from_input_tokens": it.from_input, "from_time": it.from_time.isoformat(), **_kept(it)}
                for it in self.tiers
            ]
        return kept

    @classmethod
    def from_snapshot(cls, snapshot: Mapping[str, Any]) -> "Rates":
        """The rates of a snapshot. One of a ledger from before there were tiers has the dearest in their place."""
        tiers = (
            _read(kept)._replace(from_input=kept["from_input_tokens"], from_time=time.fromisoformat(kept["from_time"]))
            for kept in snapshot.get("tiers", ())
        )
        return cls.of([_read(snapshot), *tiers], snapshot["source"])

    @classmethod
    def of(cls, tiers: Sequence[Tier], source: str) -> "Rates":
        """The rates of a provider's tiers, that of short prompts at midnight first."""
        first = tiers[0]
        return cls(
            first.input, first.cached_input, first.output, source, first.request, first.cache_write, tuple(tiers[1:])
        )

    def cost(self, usage: Usage) -> Decimal:
        """USD for one answer, at the time of day at which this is asked."""
        return (self._applied(usage.input, _now()) if self.tiers else self._first()).cost(usage)

    def upper_bound(self, request_bytes: int, max_tokens: int, hidden_tokens: int = 0) -> Decimal:
        """USD that one request cannot exceed: no tokenizer makes more tokens than there are UTF-8 bytes.

        Args:
            request_bytes: of the body.
            max_tokens: of the answer.
            hidden_tokens: of input that the body's length does not bound; see `potstill.llm.messages.hidden_tokens`.
        """
        num_input = request_bytes + hidden_tokens
        return self.dearest(num_input).upper_bound(num_input, max_tokens)

    def dearest(self, num_input: int) -> Tier:
        """The highest price of each kind, of all that a prompt of so many tokens at most may have at any time of day."""
        reached = (it for it in self._all() if it.from_input <= num_input)
        return Tier(*map(max, zip(*reached, strict=True)))

    def _applied(self, num_input: int, now: time) -> Tier:
        """The last one that has begun: they are in the order of time, then of length."""
        begun = (it for it in self._all() if it.from_time <= now and it.from_input <= num_input)
        return max(begun, key=lambda it: (it.from_time, it.from_input))

    def _all(self) -> tuple[Tier, ...]:
        return (self._first(), *self.tiers)

    def _first(self) -> Tier:
        written = self.input if self.cache_write is None else self.cache_write
        return Tier(self.input, self.cached_input, written, self.output, self.request)


def _kept(tier: Tier) -> dict[str, str]:
    return {
        "input_per_million": str(tier.input),
        "cached_input_per_million": str(tier.cached_input),
        "cache_write_per_million": str(tier.cache_write),
        "output_per_million": str(tier.output),
        "request": str(tier.request),
    }


def _read(kept: Mapping[str, Any]) -> Tier:
    given = kept["input_per_million"]
    return Tier(
        Decimal(given),
        Decimal(kept["cached_input_per_million"]),
        Decimal(kept.get("cache_write_per_million", given)),
        Decimal(kept["output_per_million"]),
        Decimal(kept["request"]),
    )


def find_rates(
    provider: str, model: str, base_url: str, override: Price | None, processing: Processing = "online"
) -> Rates:
    """The rates of a model: what was given, else the price list's for the provider at this address.

    A server on this machine may stand before any provider: there the model's name decides. For a batch, half of what was
    given, or the list's own price of batches; where the list has none, the full price. What the prompt cache of Anthropic
    is given costs more than other input, under a given price too.

    Errors: `UnknownPriceError` where the list does not know the model there; it names models with a similar name.
    """
    if override is not None:
        share = BATCH_SHARE if processing == "batch" else Decimal(1)
        price = override.input_per_million * share
        written = price * CACHE_WRITE_SHARE if provider == "anthropic" else None
        source = _source("given", processing)
        return Rates(price, price, override.output_per_million * share, source, cache_write=written)
    own = {"provider_id": "openai"} if provider == "openai" else {"provider_api_url": base_url}
    found, elsewhere = _from_list(model, processing, **own), _from_list(model, processing)
    if found is None and is_loopback(base_url):
        found = elsewhere
    if found is None:
        near = f" (known: {', '.join(_similar(model))})" if _similar(model) else ""
        hint = (
            near
            if elsewhere is None
            else f" at {base_url} ({elsewhere.source}: {elsewhere.input:f},{elsewhere.output:f})"
        )
        raise UnknownPriceError(
            f"no price known for model {model!r}{hint}: give --price IN,OUT or teacher.price, in USD for a million tokens"
        )
    return found


def _from_list(model: str, processing: Processing, **where: Any) -> Rates | None:
    """The rates of a model at one provider, or at any; None where the list does not have it there.

    Source: genai-prices, whose `price_context` chooses among the variants of a price.
    """
    from genai_prices import Usage as ListUsage
    from genai_prices import calc_price

    context = {"processing": "batch"} if processing == "batch" else None
    today = datetime.now(UTC)

    def ask(moment: datetime) -> Any:
        one_each = ListUsage(input_tokens=1, output_tokens=1)
        return calc_price(one_each, model_ref=model, price_context=context, genai_request_timestamp=moment, **where)

    try:
        found = ask(today)
    except LookupError:
        return None
    day = {start: ask(datetime.combine(today, start)).model_price for start in _changes(found.model, today)}
    tiers = [list(_tiers(price, start)) for start, price in day.items()]
    source = _source(f"genai-prices {found.provider.id}/{found.model.id}", processing)
    return Rates.of(list(chain.from_iterable(tiers)), source) if all(tiers) else None


def _source(name: str, processing: Processing) -> str:
    return f"{name}, batch" if processing == "batch" else name


def _changes(model: Any, today: datetime) -> list[time]:
    """The times of day, in UTC and in order, at which a model's prices may change; midnight is the first."""
    conditions = [*(model.prices if isinstance(model.prices, list) else ()), *(model.price_variants or ())]
    times = [
        getattr(condition.constraint, name)
        for condition in conditions
        for name in ("start_time", "end_time")
        if hasattr(condition.constraint, name)
    ]
    moments = (datetime.combine(today, moment, tzinfo=moment.tzinfo or UTC) for moment in times)
    return sorted({MIDNIGHT, *(moment.astimezone(UTC).timetz() for moment in moments)})


def _tiers(price: Any, from_time: time) -> Iterator[Tier]:
    """One of the list's prices, by the length of the prompt; none where tokens have no price in it."""
    lengths = {tier.start + 1 for value in vars(price).values() for tier in getattr(value, "tiers", ())}
    for from_input in sorted({0, *lengths}):
        per_input, per_output = (_price_at(price, name, from_input) for name in ("input_mtok", "output_mtok"))
        if per_input is None or per_output is None:
            return
        cached, written, requests = (
            _price_at(price, name, from_input) for name in ("cache_read_mtok", "cache_write_mtok", "requests_kcount")
        )
        yield Tier(
            per_input,
            per_input if cached is None else cached,
            per_input if written is None else written,
            per_output,
            (requests or Decimal(0)) / 1000,
            from_input,
            from_time,
        )


def _price_at(price: Any, name: str, num_input: int) -> Decimal | None:
    """What one of the list's prices asks for a kind of token in a prompt of so many; None where it is none of its own."""
    value: Any = getattr(price, name, None)
    if not hasattr(value, "tiers"):
        return value
    return [value.base, *(tier.price for tier in value.tiers if tier.start < num_input)][-1]


def _now() -> time:
    return datetime.now(UTC).timetz()


def _similar(model: str) -> list[str]:
    from difflib import get_close_matches

    from genai_prices.data_snapshot import get_snapshot

    names = {known.id for provider in get_snapshot().providers for known in provider.models}
    return get_close_matches(model, sorted(names), n=3, cutoff=0.6)
