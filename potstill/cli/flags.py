"""Flags into the models that recipes are made of, with the same checks."""

from typing import Any, TypeVar

from pydantic import ValidationError

from potstill.errors import UsageError
from potstill.recipe import Part, Price

P = TypeVar("P", bound=Part)

SHORTER = {
    "retention_floor": "floor",
    "timeout_seconds": "timeout",
    "run_usd": "budget-usd",
    **dict.fromkeys(("input_per_million", "output_per_million"), "price"),
}
"""Fields whose flag is not their name."""


def checked(part: type[P], /, **values: Any) -> P:
    """A section of the recipe from flags. Errors: `UsageError` naming the flag, its value and what is allowed."""
    try:
        return part(**values)
    except ValidationError as error:
        said = []
        for detail in error.errors():
            names = (SHORTER.get(str(part), str(part)) for part in detail["loc"][:1])
            flag = "".join(f"--{name.replace('_', '-')}" for name in names)
            message = detail["msg"].removeprefix("Value error, ")
            # headers and addresses may hold a key
            hides = isinstance(detail["input"], dict) or detail["type"] == "value_error"
            given = "" if hides else f" {detail['input']}"
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
