"""What an answer costs, as Decimal USD; a price that nobody knows is an error, never zero."""

from collections.abc import Callable
from decimal import Decimal
from typing import Any, NamedTuple

from potstill.errors import UnknownPriceError
from potstill.recipe import Price
from potstill.records import Usage

MILLION = Decimal(1_000_000)


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

    def cost(self, usage: Usage) -> Decimal:
        """USD for one answer."""
        if self.tiered is not None:
            return self.tiered(usage)
        fresh = usage.input - usage.cached_input
        total = fresh * self.input + usage.cached_input * self.cached_input + usage.output * self.output
        return total / MILLION + self.request

    def upper_bound(self, request_bytes: int, max_tokens: int) -> Decimal:
        """USD that one request cannot exceed: no tokenizer makes more tokens than there are UTF-8 bytes."""
        dearest = max(self.input, self.cached_input)
        return (request_bytes * dearest + max_tokens * self.output) / MILLION + self.request


def find_rates(provider: str, model: str, base_url: str, override: Price | None) -> Rates:
    """The rates of a model: what was given, else the price list's.

    Errors: `UnknownPriceError` where the list does not know the model; it names models with a similar name.
    """
    if override is not None:
        price = override.input_per_million
        return Rates(price, price, override.output_per_million, "given")
    found = _from_list(provider, model, base_url)
    if found is None:
        near = _similar(model)
        hint = f" (known: {', '.join(near)})" if near else ""
        raise UnknownPriceError(
            f"no price known for model {model!r}{hint}: give --price IN,OUT or teacher.price, in USD for a million tokens"
        )
    return found


def _from_list(provider: str, model: str, base_url: str) -> Rates | None:
    from genai_prices import Usage as ListUsage
    from genai_prices import calc_price

    token = ListUsage(input_tokens=1, output_tokens=1)
    own: dict[str, Any] = {"provider_id": "openai"} if provider == "openai" else {"provider_api_url": base_url}
    anywhere: dict[str, Any] = {}
    for where in (own, anywhere):
        try:
            found = calc_price(token, model_ref=model, **where)
        except LookupError:
            continue
        price = found.model_price
        per_input, per_output = _dearest(price, "input_mtok"), _dearest(price, "output_mtok")
        if per_input is not None and per_output is not None:
            cached = _dearest(price, "cache_read_mtok")
            return Rates(
                per_input,
                per_input if cached is None else cached,
                per_output,
                f"genai-prices {found.provider.id}/{found.model.id}",
                _tiered(price),
                (_dearest(price, "requests_kcount") or Decimal(0)) / 1000,
            )
    return None


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
        counted = ListUsage(input_tokens=usage.input, cache_read_tokens=usage.cached_input, output_tokens=usage.output)
        return price.calc_price(counted)["total_price"]

    return cost


def _similar(model: str) -> list[str]:
    from difflib import get_close_matches

    from genai_prices.data_snapshot import get_snapshot

    names = {known.id for provider in get_snapshot().providers for known in provider.models}
    return get_close_matches(model, sorted(names), n=3, cutoff=0.6)
