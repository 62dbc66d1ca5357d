"""What an answer costs, as Decimal USD; a price that nobody knows is an error, never zero."""

from bisect import bisect
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, time
from decimal import Decimal
from typing import Any, Literal, NamedTuple

from potstill.errors import UnknownPriceError
from potstill.llm.keys import is_loopback
from potstill.recipe import Price
from potstill.records import Usage

MILLION = Decimal(1_000_000)
BATCH_SHARE = Decimal("0.5")
"""What a batch costs of the price of single requests, at every provider that has both."""
PRICED = ("input_mtok", "output_mtok", "cache_read_mtok", "cache_write_mtok", "requests_kcount")
"""The list's names of what is priced here."""

CACHE_WRITE_SHARE = Decimal("1.25")
"""What Anthropic bills for a token that is kept for 5 minutes, of the price of input. Source: its guide "Prompt caching"."""

Processing = Literal["online", "batch"]


class Rates(NamedTuple):
    """Prices of a million tokens and of a request, and where they come from."""

    input: Decimal
    cached_input: Decimal
    output: Decimal
    source: str
    """Kept with every attempt, so that a bill can be explained later."""
    tiered: Callable[[Usage], Decimal] | None = None
    """The cost of an answer that comes now, where the price of a token depends on the length of the prompt or on the time
    of day; the rates are then the dearest."""
    request: Decimal = Decimal(0)
    """USD for one answered request, whatever its length."""
    cache_write: Decimal | None = None
    """Tokens that are put into the provider's prompt cache; None where they cost what others do."""

    def snapshot(self) -> dict[str, str]:
        """The rates and their source, as the ledger keeps them with every attempt."""
        return {
            "input_per_million": str(self.input),
            "cached_input_per_million": str(self.cached_input),
            "cache_write_per_million": str(self.input if self.cache_write is None else self.cache_write),
            "output_per_million": str(self.output),
            "request": str(self.request),
            "source": self.source,
        }

    @classmethod
    def from_snapshot(cls, snapshot: Mapping[str, str]) -> "Rates":
        """The rates of a snapshot; where prices depended on length or time of day, the dearest."""
        given, cached = Decimal(snapshot["input_per_million"]), Decimal(snapshot["cached_input_per_million"])
        written = snapshot.get("cache_write_per_million")
        return cls(
            given,
            cached,
            Decimal(snapshot["output_per_million"]),
            snapshot["source"],
            request=Decimal(snapshot["request"]),
            cache_write=None if written is None else Decimal(written),
        )

    def cost(self, usage: Usage) -> Decimal:
        """USD for one answer; tokens of reasoning are tokens of output."""
        if self.tiered is not None:
            return self.tiered(usage)
        fresh = usage.input - usage.cached_input - usage.cache_write
        total = fresh * self.input + usage.cached_input * self.cached_input + usage.output * self.output
        total += usage.cache_write * (self.input if self.cache_write is None else self.cache_write)
        return total / MILLION + self.request

    def upper_bound(self, request_bytes: int, max_tokens: int, hidden_tokens: int = 0) -> Decimal:
        """USD that one request cannot exceed: no tokenizer makes more tokens than there are UTF-8 bytes.

        Args:
            request_bytes: of the body.
            max_tokens: of the answer.
            hidden_tokens: of input that the body's length does not bound; see `potstill.llm.messages.hidden_tokens`.
        """
        dearest = max(self.input, self.cached_input, self.cache_write or self.input)
        return ((request_bytes + hidden_tokens) * dearest + max_tokens * self.output) / MILLION + self.request


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
    """The dearest rates of a model at one provider, or at any; None where the list does not have it there.

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
    dearest = {name: _dearest(day.values(), name) for name in PRICED}
    per_input, per_output, cached = (dearest[name] for name in ("input_mtok", "output_mtok", "cache_read_mtok"))
    if per_input is None or per_output is None:
        return None
    return Rates(
        per_input,
        per_input if cached is None else cached,
        per_output,
        _source(f"genai-prices {found.provider.id}/{found.model.id}", processing),
        _tiered(day),
        (dearest["requests_kcount"] or Decimal(0)) / 1000,
        dearest["cache_write_mtok"],
    )


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
    return sorted({time(tzinfo=UTC), *(moment.astimezone(UTC).timetz() for moment in moments)})


def _dearest(prices: Iterable[Any], name: str) -> Decimal | None:
    """The highest price that a kind of token has in any tier, at any time of day; None where it has none of its own."""
    found: list[Decimal] = []
    for value in (getattr(price, name, None) for price in prices):
        if value is not None:
            found += [value.base, *(tier.price for tier in value.tiers)] if hasattr(value, "tiers") else [value]
    return max(found, default=None)


def _tiered(day: Mapping[time, Any]) -> Callable[[Usage], Decimal] | None:
    """What an answer costs at the time of day at which it is asked for the cost; None where nothing depends on that.

    Args:
        day: the list's price from each time of day on, in order.
    """
    from genai_prices import Usage as ListUsage

    starts, prices = list(day), list(day.values())
    has_tiers = any(hasattr(value, "tiers") for price in prices for value in vars(price).values())
    if len(prices) == 1 and not has_tiers:
        return None

    def cost(usage: Usage) -> Decimal:
        counted = ListUsage(
            input_tokens=usage.input,
            cache_read_tokens=usage.cached_input,
            cache_write_tokens=usage.cache_write,
            output_tokens=usage.output,
        )
        price = prices[bisect(starts, _now()) - 1]
        return price.calc_price(counted)["total_price"]

    return cost


def _now() -> time:
    return datetime.now(UTC).timetz()


def _similar(model: str) -> list[str]:
    from difflib import get_close_matches

    from genai_prices.data_snapshot import get_snapshot

    names = {known.id for provider in get_snapshot().providers for known in provider.models}
    return get_close_matches(model, sorted(names), n=3, cutoff=0.6)
