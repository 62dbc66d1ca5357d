"""The page of providers: what it shows can be used as it stands."""

import re
from pathlib import Path

import pytest
import yaml

from potstill.llm.keys import find_key
from potstill.llm.pricing import find_rates
from potstill.llm.providers import PROVIDERS
from potstill.recipe import Teacher

PAGE = (Path(__file__).parents[2] / "docs" / "providers.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.partition("\n")[0])
def test_every_example_is_a_teacher_with_a_price_whose_key_may_go_to_its_host(
    monkeypatch: pytest.MonkeyPatch, example: str
) -> None:
    teacher = Teacher.model_validate(yaml.safe_load(example))
    assert teacher.base_url is not None
    find_rates(teacher.provider, teacher.model, teacher.base_url, teacher.price)
    if granted := re.search(r"POTSTILL_KEY_HOSTS=(\S+)", example):
        monkeypatch.setenv("POTSTILL_KEY_HOSTS", granted.group(1))
    if teacher.api_key_env is not None:
        monkeypatch.setenv(teacher.api_key_env, "k")
        assert find_key(teacher.api_key_env, teacher.base_url) == "k"


def test_it_shows_four_endpoints_and_names_every_provider() -> None:
    assert len(EXAMPLES) == 4
    for name, provider in PROVIDERS.items():
        address = provider.default_base_url or "base_url"
        assert f"| `{name}` |" in PAGE
        assert address in PAGE
