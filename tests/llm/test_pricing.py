from datetime import UTC, datetime, time
from decimal import Decimal

import genai_prices
import orjson
import pytest
from genai_prices.data_snapshot import get_snapshot

from potstill.errors import UnknownPriceError
from potstill.llm import pricing
from potstill.llm.pricing import Processing, Rates, Tier, find_rates
from potstill.recipe import Price
from potstill.records import Usage

OPENAI = "https://api.openai.com/v1"
GIVEN = Price(input_per_million=Decimal("0.1"), output_per_million=Decimal("0.3"))


def test_cost_is_exact_and_cached_tokens_are_not_charged_twice() -> None:
    rates = Rates(Decimal("2.5"), Decimal("1.25"), Decimal(10), "given")
    assert rates.cost(Usage(input=100, cached_input=40, output=7)) == Decimal("0.00027")
    assert find_rates("openai", "x", OPENAI, GIVEN).cost(Usage(input=1, output=1)) == Decimal("0.0000004")


def test_tokens_that_fill_a_cache_have_a_price_of_their_own_and_bind_the_bound() -> None:
    rates = Rates(Decimal(2), Decimal("0.2"), Decimal(10), "given", cache_write=Decimal("2.5"))
    usage = Usage(input=100, cached_input=50, cache_write=40, output=1, reasoning=1)
    assert rates.cost(usage) == (10 * 2 + 50 * Decimal("0.2") + 40 * Decimal("2.5") + 10) / 1_000_000
    assert rates.upper_bound(100, 1) == Decimal("0.00026")
    assert rates._replace(cache_write=None).cost(usage) == (50 * 2 + 50 * Decimal("0.2") + 10) / 1_000_000


@pytest.mark.parametrize(
    ("provider", "model", "url"),
    [
        ("anthropic", "claude-haiku-4-5", "https://api.anthropic.com/v1"),
        ("openai", "gpt-6-luna", OPENAI),
        ("openai_compatible", "gemini-2.5-pro", "https://generativelanguage.googleapis.com/v1beta/openai"),
    ],
)
def test_a_batch_costs_half_and_says_so(provider: str, model: str, url: str) -> None:
    online, batch = find_rates(provider, model, url, None), find_rates(provider, model, url, None, processing="batch")
    assert (batch.input, batch.output) == (online.input / 2, online.output / 2)
    assert batch.source == f"{online.source}, batch"
    usage = Usage(input=900_000, output=100)
    assert batch.cost(usage) == online.cost(usage) / 2


def test_a_given_price_is_the_price_of_single_requests() -> None:
    rates = find_rates("openai", "x", OPENAI, GIVEN, processing="batch")
    assert (rates.input, rates.output, rates.source) == (Decimal("0.05"), Decimal("0.15"), "given, batch")


def test_a_model_without_a_price_of_batches_has_its_full_price() -> None:
    here = ("openai_compatible", "sonar", "https://api.perplexity.ai", None)
    assert find_rates(*here, processing="batch").input == find_rates(*here).input


def test_anthropic_asks_more_for_what_it_puts_into_its_cache() -> None:
    rates = find_rates("anthropic", "claude-haiku-4-5", "https://api.anthropic.com/v1", None)
    assert rates.cache_write is not None
    assert rates.cached_input < rates.input < rates.cache_write
    assert rates.cost(Usage(input=1_000_000, cache_write=1_000_000)) == rates.cache_write


@pytest.mark.parametrize("processing", ["online", "batch"])
def test_under_a_given_price_too_anthropic_asks_a_quarter_more_for_what_it_puts_into_its_cache(
    processing: Processing,
) -> None:
    here = ("claude-haiku-4-5", "https://api.anthropic.com/v1")
    listed = find_rates("anthropic", *here, None)
    price = Price(input_per_million=listed.input, output_per_million=listed.output)
    given = find_rates("anthropic", *here, price, processing)
    written = Usage(input=1_000_000, cache_write=1_000_000)
    assert given.cost(written) == find_rates("anthropic", *here, None, processing).cost(written)
    assert given.cost(written) <= given.upper_bound(1_000_000, 1)
    read = Usage(input=1_000_000, cached_input=1_000_000)
    assert given.cost(read) == given.cost(Usage(input=1_000_000)) == given.input
    assert find_rates("openai_compatible", *here, price).cost(written) == listed.input


def test_anthropic_behind_another_host_has_no_price_of_anthropic() -> None:
    with pytest.raises(UnknownPriceError, match=r"at https://reseller\.example/v1"):
        find_rates("anthropic", "claude-haiku-4-5", "https://reseller.example/v1", None)


def test_a_given_price_wins_over_the_list() -> None:
    rates = find_rates("openai", "gpt-4o", OPENAI, GIVEN)
    assert (rates.input, rates.cached_input, rates.output, rates.source) == (
        Decimal("0.1"),
        Decimal("0.1"),
        Decimal("0.3"),
        "given",
    )


def test_a_price_of_zero_is_a_price() -> None:
    free = Price(input_per_million=Decimal(0), output_per_million=Decimal(0))
    assert find_rates("openai_compatible", "x", "http://127.0.0.1/v1", free).cost(Usage(input=9, output=9)) == 0


def test_the_list_knows_a_model_and_names_its_source() -> None:
    rates = find_rates("openai", "gpt-4o", OPENAI, None)
    assert rates.source == "genai-prices openai/gpt-4o"
    assert 0 < rates.cached_input < rates.input < rates.output
    bill = rates.cost(Usage(input=1_000_000))
    assert isinstance(bill, Decimal)
    assert bill == rates.input


def test_an_unknown_price_names_similar_models_and_the_remedy() -> None:
    with pytest.raises(UnknownPriceError, match=r"'gpt-4o-minni' \(known: .*gpt-4o-mini.*give --price IN,OUT"):
        find_rates("openai", "gpt-4o-minni", OPENAI, None)


def test_a_model_like_no_other_is_an_error_and_never_free() -> None:
    with pytest.raises(UnknownPriceError, match="no price known for model 'qqqqqq'"):
        find_rates("openai_compatible", "qqqqqq", "http://127.0.0.1:1/v1", None)


def test_a_host_that_the_list_does_not_know_asks_for_its_price_whatever_others_ask_for_the_model() -> None:
    with pytest.raises(UnknownPriceError, match=r"'gpt-4o' at https://reseller\.example/v1 \(.*openai/gpt-4o: 2\.5"):
        find_rates("openai_compatible", "gpt-4o", "https://reseller.example/v1", None)


SONNET = ("anthropic", "claude-sonnet-4-5", "https://api.anthropic.com/v1", None)


@pytest.mark.parametrize("processing", ["online", "batch"])
def test_a_bound_leaves_out_only_the_tiers_that_a_requests_bytes_as_tokens_cannot_reach(processing: Processing) -> None:
    rates = find_rates(*SONNET, processing)
    (long,) = rates.tiers
    assert long.from_input == 200_001
    assert long.input == 2 * rates.input
    most = rates.cache_write or Decimal(0)
    assert rates.upper_bound(200_000, 100) == (200_000 * most + 100 * rates.output) / 1_000_000
    dearest = (200_001 * long.cache_write + 100 * long.output) / 1_000_000
    assert rates.upper_bound(200_001, 100) == rates.upper_bound(150_001, 100, hidden_tokens=50_000) == dearest
    for size in (1000, 200_000, 200_001, 900_000):
        usage = Usage(input=size, cache_write=size, output=100)
        assert rates.cost(usage) == rates.upper_bound(size, 100)


def test_a_bound_takes_the_dearest_of_each_kind_whichever_tier_it_is_in() -> None:
    cheap_when_long = Tier(*(Decimal(price) for price in (1, 1, 1, 9, 0)), from_input=100)
    rates = Rates(Decimal(2), Decimal(2), Decimal(8), "list", tiers=(cheap_when_long,))
    assert rates.upper_bound(99, 10) == Decimal("0.000278")
    assert rates.upper_bound(100, 10) == Decimal("0.000290")
    assert rates.cost(Usage(input=100, output=10)) == Decimal("0.000190")


@pytest.mark.parametrize("model", ["gpt-4o", "gpt-4o-mini", "gemini-2.5-pro"])
def test_no_answer_costs_more_than_its_upper_bound(model: str) -> None:
    rates = find_rates("openai_compatible", model, "http://127.0.0.1:1/v1", None)
    for size, cached, output in [(10, 0, 1), (1000, 1000, 64), (500_000, 0, 4096)]:
        usage = Usage(input=size, cached_input=cached, output=output)
        assert rates.cost(usage) <= rates.upper_bound(size, output)


DEEPSEEK = ("openai_compatible", "deepseek-v4-pro", "https://api.deepseek.com/v1", None)


def test_where_the_price_hangs_on_the_time_of_day_the_bound_takes_the_dearest_and_the_cost_the_right_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    usage = Usage(input=1000, cached_input=400, output=1000)
    counted = genai_prices.Usage(input_tokens=1000, cache_read_tokens=400, output_tokens=1000)
    rates = find_rates(*DEEPSEEK)
    today, costs = datetime.now(UTC), set()
    for hour in range(24):
        moment = datetime.combine(today, time(hour, 30), UTC)
        monkeypatch.setattr(pricing, "_now", moment.timetz)
        listed = genai_prices.calc_price(
            counted, "deepseek-v4-pro", provider_id="deepseek", genai_request_timestamp=moment
        )
        assert rates.cost(usage) == listed.total_price <= rates.upper_bound(1000, 1000)
        costs.add(rates.cost(usage))
        assert Rates.from_snapshot(orjson.loads(orjson.dumps(rates.snapshot()))).cost(usage) == listed.total_price
    assert len(costs) == 2


def test_a_snapshot_of_before_there_were_tiers_has_its_prices_at_every_length() -> None:
    old = {
        "input_per_million": "3",
        "cached_input_per_million": "0.3",
        "output_per_million": "11.25",
        "request": "0.001",
        "source": "genai-prices anthropic/claude-sonnet-4-5, batch",
    }
    rates = Rates.from_snapshot(old)
    assert rates.cost(Usage(input=1000, cached_input=500, output=100)) == Decimal("0.003775")
    assert rates.snapshot() == {**old, "cache_write_per_million": "3"}


def test_a_snapshot_bills_what_the_list_bills_at_every_length_and_the_bound_holds() -> None:
    num_tiered = 0
    for provider in get_snapshot().providers:
        for model in provider.models:
            rates = pricing._from_list(model.id, "online", provider_id=provider.id)
            if rates is None or not rates.tiers or any(it.from_time != pricing.MIDNIGHT for it in rates.tiers):
                continue
            num_tiered += 1
            kept = Rates.from_snapshot(orjson.loads(orjson.dumps(rates.snapshot())))
            starts = {1, 1000, *(it.from_input for it in rates.tiers)}
            for size in sorted(starts | {start - 1 for start in starts} - {0}):
                cached, written = size // 2, size // 3
                counted = genai_prices.Usage(
                    input_tokens=size, cache_read_tokens=cached, cache_write_tokens=written, output_tokens=7
                )
                listed = genai_prices.calc_price(counted, model.id, provider_id=provider.id).total_price
                usage = Usage(input=size, cached_input=cached, cache_write=written, output=7)
                assert kept.cost(usage) == rates.cost(usage) == listed, (provider.id, model.id, size)
                assert listed <= rates.upper_bound(size, 7)
    assert num_tiered > 50


def test_a_price_of_a_request_is_part_of_the_cost_and_of_the_bound() -> None:
    rates = find_rates("openai_compatible", "sonar", "https://api.perplexity.ai", None)
    assert rates.request > 0
    bill = rates.cost(Usage(input=10, output=1))
    assert rates.request < bill <= rates.upper_bound(10, 1)


def test_the_bound_holds_for_every_chat_model_of_openai() -> None:
    models = next(provider.models for provider in get_snapshot().providers if provider.id == "openai")
    chat = [known.id for known in models if known.id.startswith(("gpt-4", "gpt-5", "o3", "o4"))]
    assert len(chat) > 20
    for model in chat:
        rates = find_rates("openai", model, OPENAI, None)
        written = Usage(input=300_000, cache_write=300_000, output=5000)
        for usage in (Usage(input=300_000, cached_input=300_000, output=5000), Usage(input=3, output=1), written):
            assert 0 <= rates.cost(usage) <= rates.upper_bound(usage.input, usage.output), model
