"""What would stop a run later is found before anything is paid for."""

from pathlib import Path
from typing import Any

import pytest

from potstill.errors import DataError, NotAuthorisedError, UnknownPriceError, UsageError
from potstill.inbox import Inbox
from potstill.object_store import ObjectStore
from potstill.preflight import check
from potstill.recipe import Recipe
from tests.s3_server import Manner, S3Proxy, S3Server


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    log, base = tmp_path / "log.jsonl", tmp_path / "base"
    log.write_text("{}")
    base.mkdir()
    (base / "config.json").write_text("{}")
    return {
        "name": "router",
        "task": {"kind": "classification", "labels": ["a", "b"]},
        "curation": {"inputs": [str(log)]},
        "teacher": {"provider": "openai", "model": "gpt-4o", "attest": "allowed"},
        "student": {"base": str(base)},
    }


def test_a_good_recipe_passes(recipe: dict[str, Any]) -> None:
    check(Recipe.model_validate(recipe))


@pytest.mark.parametrize(
    ("section", "values", "error", "said"),
    [
        ("curation", {"inputs": ["gone.jsonl"]}, DataError, "input gone.jsonl: no such file"),
        ("student", {"base": "./gone"}, DataError, "student.base ./gone: no such directory"),
        ("teacher", {"attest": None}, NotAuthorisedError, "attest"),
        ("teacher", {"model": "qqqqqq"}, UnknownPriceError, "no price known for model 'qqqqqq'"),
    ],
)
def test_what_is_missing_is_named(
    recipe: dict[str, Any], section: str, values: dict[str, Any], error: type[Exception], said: str
) -> None:
    recipe[section] = recipe[section] | values
    with pytest.raises(error, match=said):
        check(Recipe.model_validate(recipe))


def test_the_providers_own_key_is_looked_for_where_no_variable_is_named(
    recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(NotAuthorisedError, match="OPENAI_API_KEY is not set"):
        check(Recipe.model_validate(recipe))


LINE = b'{"messages": [{"role": "user", "content": "hi"}]}'


def test_what_lies_in_the_inbox_is_seen_and_not_taken(
    recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "a [home]"
    monkeypatch.setenv("POTSTILL_HOME", str(home))
    [log] = recipe["curation"]["inputs"]
    Path(log).write_text("")
    both = Recipe.model_validate(recipe | {"curation": {"inputs": [log, "inbox"]}})
    alone = Recipe.model_validate(recipe | {"curation": {"inputs": ["inbox"]}})
    with pytest.raises(DataError, match="no line in it"):
        check(both)
    with pytest.raises(DataError, match="POTSTILL_HOME is not that of the webhook"):
        check(alone)
    with Inbox(home, "router") as inbox:
        with pytest.raises(DataError, match="nothing has landed in the recipe's inbox"):
            check(alone)
        inbox.land("msg_1", "0" * 64, [LINE])
        for given in (both, alone):
            check(given)
        assert inbox.num_waiting() == 1
        inbox.seal()
        for given in (both, alone):
            check(given)
    gone = Recipe.model_validate(recipe | {"curation": {"inputs": ["gone.jsonl", "inbox"]}})
    with pytest.raises(DataError, match=r"input gone\.jsonl: no such file"):
        check(gone)


BLOCK = {"api_key_block": "teacher-key"}


@pytest.fixture
def named_block(recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Recipe:
    monkeypatch.setenv("POTSTILL_KEY_HOSTS", "block:teacher-key=api.openai.com")
    return Recipe.model_validate(recipe | {"teacher": recipe["teacher"] | BLOCK})


def test_a_block_that_cannot_be_read_stops_the_flow_before_anything_is_paid(named_block: Recipe) -> None:
    def load(name: str) -> str:
        raise NotAuthorisedError(f"there is no Secret block {name}")

    with pytest.raises(NotAuthorisedError, match="no Secret block teacher-key"):
        check(named_block, load)
    check(named_block, lambda name: "sk-a-key-of-a-block")


def test_the_command_line_leaves_the_block_to_the_flow_and_checks_its_host(
    named_block: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    check(named_block)
    monkeypatch.setenv("POTSTILL_KEY_HOSTS", "block:another-key=api.openai.com")
    with pytest.raises(NotAuthorisedError, match=r"block:teacher-key does not go to api\.openai\.com"):
        check(named_block)


@pytest.mark.flow
def test_a_store_that_ignores_conditions_stops_a_run_before_anything_is_paid(
    recipe: dict[str, Any], bucket: ObjectStore, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    with S3Proxy(s3_server) as proxy:
        proxy.manner = Manner.DEAF
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        monkeypatch.setenv("POTSTILL_STORE", f"{bucket.address}/deaf")  # of which this process knows nothing yet
        with pytest.raises(UsageError, match="ignores IfNoneMatch on PUT"):
            check(Recipe.model_validate(recipe))
        proxy.manner = Manner.OPEN
        check(Recipe.model_validate(recipe))
