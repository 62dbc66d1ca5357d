"""What an answer costs, as Decimal USD; a price that nobody knows is an error, never zero."""

from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any, Literal, NamedTuple

from potstill.errors import UnknownPriceError
from potstill.llm.keys import is_loopback
from potstill.recipe import Price
from potstill.records import Usage

MILLION = Decimal(1_000_000)
BATCH_SHARE = Decimal("0.5")
"""What a batch costs of the price of single requests, at every provider that has both."""

Processing = Literal["online", "batch"]


class Rates(NamedTuple):
    """Prices of a million tokens and of a request, and where they come from."""

    input: Decimal
    cached_input: Decimal
    output: Decimal
    source: str
    """Kept with every attempt, so that a bill can be explained later."""
    tiered: Callable[[Usage], Decimal] | None = None
    """The exact cost where the price of a token depends on the length of the prompt; the rates are then the dearest."""
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
        """The rates of a snapshot; where prices had tiers, the dearest."""
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
    given, or the list's own price of batches; where the list has none, the full price.

    Errors: `UnknownPriceError` where the list does not know the model there; it names models with a similar name.
    """
    if override is not None:
        share = BATCH_SHARE if processing == "batch" else Decimal(1)
        price = override.input_per_million * share
        return Rates(price, price, override.output_per_million * share, _source("given", processing))
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
    try:
        found = calc_price(ListUsage(input_tokens=1, output_tokens=1), model_ref=model, price_context=context, **where)
    except LookupError:
        return None
    price = found.model_price
    per_input, per_output = _dearest(price, "input_mtok"), _dearest(price, "output_mtok")
    if per_input is None or per_output is None:
        return None
    cached = _dearest(price, "cache_read_mtok")
    return Rates(
        per_input,
        per_input if cached is None else cached,
        per_output,
        _source(f"genai-prices {found.provider.id}/{found.model.id}", processing),
        _tiered(price),
        (_dearest(price, "requests_kcount") or Decimal(0)) / 1000,
        _dearest(price, "cache_write_mtok"),
    )


def _source(name: str, processing: Processing) -> str:
    return f"{name}, batch" if processing == "batch" else name


def _dearest(price: Any, name: str) -> Decimal | None:
    value: Any = getattr(price, name, None)
    if not hasattr(value, "tiers"):
        return value
    return max([value.base, *(tier.price for tier in value.tiers)])


def _tiered(price: Any) -> Callable[[Usage], Decimal] | None:
    from genai_prices import Usage as ListUsage

    if not any(hasattr(value, "tiers") for value in vars(price).values()):
        return None

    def cost(usage: Usage) -> Decimal:
        counted = ListUsage(
            input_tokens=usage.input,
            cache_read_tokens=usage.cached_input,
            cache_write_tokens=usage.cache_write,
            output_tokens=usage.output,
        )
        return price.calc_price(counted)["total_price"]

    return cost


def _similar(model: str) -> list[str]:
    from difflib import get_close_matches

    from genai_prices.data_snapshot import get_snapshot

    names = {known.id for provider in get_snapshot().providers for known in provider.models}
    return get_close_matches(model, sorted(names), n=3, cutoff=0.6)
