"""The run form is drawn from the recipe's JSON schema: each field can be understood and edited, and what it sends is a recipe."""

import json
import math
from collections.abc import Iterator
from decimal import Decimal
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from pydantic import ValidationError

from potstill.recipe import Price, Recipe
from tests.test_recipe import BASIS

SCHEMA = Recipe.model_json_schema(ref_template="#/definitions/{model}")
SCHEMA["definitions"] = SCHEMA.pop("$defs")
DRAWN = {"string", "integer", "number", "boolean", "array"}
"""Types that Prefect's form has a field for."""
JSON_BOXES = {"teacher.headers", "teacher.response_schema"}
"""Without fixed fields: a box of JSON."""


class Field(NamedTuple):
    place: str
    schema: dict[str, Any]

    @property
    def section(self) -> dict[str, Any] | None:
        """The section that it is, None for a leaf."""
        refs = [part["$ref"] for part in (self.schema, *self.schema.get("anyOf", ())) if "$ref" in part]
        return SCHEMA["definitions"][refs[0].removeprefix("#/definitions/")] if refs else None

    @property
    def kinds(self) -> list[dict[str, Any]]:
        """What it may be, beside nothing."""
        return [part for part in self.schema.get("anyOf", [self.schema]) if part.get("type") != "null"]


def fields(schema: dict[str, Any] = SCHEMA, place: str = "") -> Iterator[Field]:
    for name, part in schema["properties"].items():
        field = Field(f"{place}{name}", part)
        yield field
        if field.section is not None:
            yield from fields(field.section, f"{field.place}.")


ALL = list(fields())
each = pytest.mark.parametrize("field", ALL, ids=lambda field: field.place)


def test_the_walk_sees_every_field() -> None:
    assert len(ALL) > 70
    assert {"training.dpo.beta", "teacher.price.input_per_million", "gate.approval_hours"} <= {f.place for f in ALL}


@each
def test_each_field_says_what_it_is(field: Field) -> None:
    said = field.schema.get("description") or (field.section or {}).get("description")
    assert said, "no description"
    assert said.endswith((".", "?")), said
    assert field.schema["title"] == field.place.rpartition(".")[2].replace("_", " ")


@each
def test_each_field_can_be_edited(field: Field) -> None:
    """One kind of field, or that and nothing: a choice of several kinds is a menu that nobody understands."""
    [kind] = field.kinds
    if "$ref" in kind:
        return
    if field.place in JSON_BOXES:
        assert "anyOf" not in field.schema, "where it may be null besides, the form has nothing to edit it with"
        return
    assert kind["type"] in DRAWN
    if kind["type"] == "array":
        assert kind["items"] == {"type": "string"}


@each
def test_each_default_is_what_the_field_admits(field: Field) -> None:
    if "default" in field.schema:
        Draft202012Validator({**field.schema, "definitions": SCHEMA["definitions"]}).validate(field.schema["default"])


@pytest.mark.parametrize("section", [SCHEMA, *SCHEMA["definitions"].values()], ids=lambda section: section["title"])
def test_fields_stand_in_the_order_of_the_recipe(section: dict[str, Any]) -> None:
    assert [field["position"] for field in section["properties"].values()] == list(range(len(section["properties"])))


def test_what_must_be_given_comes_before_what_has_defaults() -> None:
    order = list(SCHEMA["properties"])
    assert order[:5] == ["name", "notes", "task", "curation", "teacher"]
    assert SCHEMA["required"] == ["name", "task", "curation", "teacher", "student"]


def form(**more: Any) -> dict[str, Any]:
    """What the form sends where nothing but `BASIS` is filled in: every default written out, null for what is empty."""
    recipe = json.loads(Recipe.model_validate(BASIS).model_dump_json())
    recipe["teacher"] |= more
    return recipe


def test_what_the_form_sends_is_the_same_recipe() -> None:
    sent = form()
    Draft202012Validator(SCHEMA).validate(sent)
    assert sent["serving"]["usd_per_hour"] == 1.0
    assert sent["teacher"]["price"] == {"input_per_million": 2.5, "output_per_million": 10.0}
    assert Recipe.model_validate(sent).fingerprint == Recipe.model_validate(BASIS).fingerprint


def test_what_is_left_out_is_the_default() -> None:
    assert Recipe.model_validate(BASIS) == Recipe.model_validate(form())


SCHEMA_OF_ANSWERS = {"type": "object", "properties": {"a": {"type": "string"}}}


@pytest.mark.parametrize(
    "given", [SCHEMA_OF_ANSWERS, json.dumps(SCHEMA_OF_ANSWERS), f"\n {json.dumps(SCHEMA_OF_ANSWERS)} "]
)
def test_a_schema_may_be_json_text(given: Any) -> None:
    assert Recipe.model_validate(form(response_schema=given)).teacher.response_schema == SCHEMA_OF_ANSWERS


@pytest.mark.parametrize("given", ["", "  ", None, "null"])
def test_an_empty_box_is_no_schema(given: Any) -> None:
    assert Recipe.model_validate(form(response_schema=given)).teacher.response_schema is None


@pytest.mark.parametrize("given", ["", None, {}, "{}"])
def test_an_empty_box_is_no_header(given: Any) -> None:
    assert Recipe.model_validate(form(headers=given)).teacher.headers == {}


def test_headers_may_be_json_text() -> None:
    assert Recipe.model_validate(form(headers='{"x-title": "Potstill"}')).teacher.headers == {"x-title": "Potstill"}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("{", "not valid JSON"),
        ("[1]", "valid dictionary"),
        ('"text"', "valid dictionary"),
        ('{"type": "nonsense"}', "no JSON schema"),
        ('{"$ref": "http://169.254.169.254/x"}', "another document"),
        ('{"$ref": "file:///etc/passwd"}', "another document"),
        ('{"a":' * 2000 + "1" + "}" * 2000, "not valid JSON|nested too deeply|no JSON"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_text_that_is_no_schema_is_refused(given: str, said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Recipe.model_validate(form(response_schema=given))


@given(st.decimals(min_value=0, max_value=10**6, places=9).filter(lambda usd: len(usd.as_tuple().digits) <= 15))
def test_no_cent_is_lost_on_the_way_through_json(usd: Decimal) -> None:
    price = Price(input_per_million=usd, output_per_million=Decimal(1))
    again = Price.model_validate_json(price.model_dump_json())
    assert again.input_per_million == price.input_per_million == usd


def test_an_amount_that_json_cannot_hold_is_refused() -> None:
    with pytest.raises(ValidationError, match="more than 15 digits"):
        Price(input_per_million=Decimal("123456.123456789012"), output_per_million=Decimal(1))


@pytest.mark.parametrize("value", [math.nan, math.inf, "1e400", "free"])
def test_what_is_no_amount_is_refused(value: Any) -> None:
    with pytest.raises(ValidationError):
        Price.model_validate({"input_per_million": value, "output_per_million": 1})
