"""How the recipe looks to a form: its JSON schema in the order of its fields, with types that a form can edit."""

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import orjson
from pydantic import BaseModel, PlainSerializer, WithJsonSchema

USD_SCHEMA = {"type": "number", "minimum": 0, "maximum": 10**6}
AsNumber = (PlainSerializer(float, when_used="json"), WithJsonSchema(USD_SCHEMA))
"""Money is a number to a form and in JSON: Decimal's own schema, number or string, is drawn as a choice between two boxes."""
AS_JSON_TEXT = WithJsonSchema({})
"""A form draws a box of JSON for what has no type, and nothing at all for an object without fields that may be null."""

LONGEST_USD_DIGITS = 15
"""So many digits survive the way through a JSON number and back."""


def normalise_usd(usd: Decimal) -> Decimal:
    """The same amount without trailing zeros. Errors: `ValueError` for one that a JSON number cannot hold."""
    plain = Decimal(f"{usd.normalize():f}")
    if len(plain.as_tuple().digits) > LONGEST_USD_DIGITS:
        raise ValueError(f"more than {LONGEST_USD_DIGITS} digits: round it")
    return plain


def arrange(schema: dict[str, Any], model: type[BaseModel]) -> None:
    """Give every field its place, a title that can be read, and a default of its own type.

    A form sorts by `position`, since a database keeps the order of no keys.
    """
    for position, (name, field) in enumerate(schema.get("properties", {}).items()):
        field |= {"position": position, "title": name.replace("_", " ")}
        default = model.model_fields[name].default
        if "default" in field:
            field["default"] = _plain(default)


def read_json(value: Any) -> Any:
    """What JSON text holds: a form has only a box of text for what has no fixed fields. An empty box is nothing.

    Errors: `ValueError` for text that is no JSON.
    """
    if not isinstance(value, str):
        return value
    try:
        return orjson.loads(value) if value.strip() else None
    except orjson.JSONDecodeError as error:
        raise ValueError(f"not valid JSON: {error.msg} at column {error.colno}: write it as one JSON object") from None


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return {name: _plain(getattr(value, name)) for name in type(value).model_fields}
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, Mapping):
        return {name: _plain(inner) for name, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, tuple) else value
