"""Flags into the models that recipes are made of, with the same checks."""

import re
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from potstill.errors import UsageError
from potstill.recipe import Price, Recipe

P = TypeVar("P", bound=BaseModel)

SHORTER = {
    "retention_floor": "floor",
    "timeout_seconds": "timeout",
    "run_usd": "budget-usd",
    "approver": "by",
    **dict.fromkeys(("input_per_million", "output_per_million"), "price"),
}
"""Fields whose flag is not their name."""

WITHOUT_FLAG = ("headers", "api_version", "response_schema", "top_p", "stop", "prompt_caching")
"""Fields of a recipe's teacher that `--set` gives a value."""
_FIELD = re.compile(rf"\b(?:{'|'.join(Recipe.model_fields)})\.([a-z_]+)")
"""How a recipe names a field."""


def flag_of(field: str) -> str:
    """The flag that gives a field its value."""
    return "--" + SHORTER.get(field, field).replace("_", "-")


def checked(part: type[P], /, **values: Any) -> P:
    """A section of the recipe, or another model, from flags. Errors: `UsageError` naming the flag, its value and what is allowed."""
    try:
        return part(**values)
    except ValidationError as error:
        said = []
        for detail in error.errors():
            place = detail["loc"]
            name = str(place[0]) if place else ""
            by_set = name in WITHOUT_FLAG
            flag = f"--set {name}" if by_set else flag_of(name) if name else ""
            message = _FIELD.sub(lambda found: flag_of(found[1]), detail["msg"].removeprefix("Value error, "))
            # headers and addresses may hold a key
            hides = isinstance(detail["input"], dict) or detail["type"] == "value_error"
            given = "" if hides else f"{'=' if by_set and len(place) == 1 else ' '}{detail['input']}"
            said.append(f"{flag}{given}: {message[0].lower()}{message[1:]}" if flag else message)
        raise UsageError("\n".join(said)) from None


def parse_price(text: str | None) -> Price | None:
    """IN,OUT in USD for a million tokens."""
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if len(parts) != 2:
        raise UsageError(f"--price {text}: write IN,OUT in USD for a million tokens, such as 2.50,10")
    return checked(Price, input_per_million=parts[0], output_per_million=parts[1])
