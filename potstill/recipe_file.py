"""Reads a recipe from YAML and says what is wrong with it: file, line, field, value, what is allowed, what was meant."""

from collections.abc import Sequence
from datetime import date
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from potstill.errors import RecipeError
from potstill.outbound import SECRET_HEADER
from potstill.recipe import Recipe, allowed_values

Location = tuple[str | int, ...]

_READ_AS_ANOTHER = (bool, int, float, date)
"""What YAML makes of an unquoted yes, 3, 1.5 or 2026-11-24 that is meant as text."""


def load_recipe(path: Path, overrides: tuple[str, ...] = ()) -> Recipe:
    """Read a recipe; each override is `field.of.section=VALUE`, its value in YAML.

    Errors: `RecipeError`, every fault of the file in one message.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        near = get_close_matches(path.name, [found.name for found in path.parent.glob("*.y*ml")], n=1, cutoff=0.5)
        raise RecipeError(f"{path}: no such recipe" + (f"; did you mean {near[0]}?" if near else "")) from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: cannot be read as UTF-8 text: {error}") from None
    data = _parse(str(path), text)
    lines = _find_lines(path, text)
    if not isinstance(data, dict):
        raise RecipeError(f"{path}: a recipe is a mapping with the fields {', '.join(Recipe.model_fields)}")
    places = {place: f"{path}:{line}" for place, line in lines.items()}
    for override in overrides:
        changed = apply_override(data, override)
        places = {place: where for place, where in places.items() if place[: len(changed)] != changed}
        places[changed] = f"--set {override}"
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        missing = {detail["loc"] for detail in error.errors() if detail["type"] == "missing"}
        raise RecipeError("\n".join(_explain(path, places, detail, missing) for detail in error.errors())) from None


def apply_override(data: dict[str, Any], override: str) -> Location:
    """Set one field and return its place. Errors: `RecipeError` for what sets none."""
    name, separator, value = override.partition("=")
    if not separator:
        raise RecipeError(f"--set {override}: write it as FIELD=VALUE, such as training.epochs=1")
    *sections, field = name.strip().split(".")
    for section in sections:
        inner = data.setdefault(section, {})
        if not isinstance(inner, dict):
            raise RecipeError(f"--set {override}: {section} is no section of the recipe")
        data = inner
    data[field] = _parse(f"--set {override}", value)
    return (*sections, field)


def _parse(where: str, text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark and not where.startswith("--set") else ""
        hint = ": indent with spaces" if "'\\t'" in str(error.problem) else ""
        said = ": ".join(filter(None, (error.context, error.problem)))
        raise RecipeError(f"{where}{line}: not valid YAML: {said}{hint}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date such as 2026-13-45
        raise RecipeError(f"{where}: not valid YAML: {' '.join(str(error).split())}") from None


def _find_lines(path: Path, text: str) -> dict[Location, int]:
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    try:
        return _line_numbers(path, node) if node else {}
    except RecursionError:
        raise RecipeError(f"{path}: not a recipe: a YAML alias that holds itself") from None


def _line_numbers(path: Path, node: yaml.Node, place: Location = ()) -> dict[Location, int]:
    lines = {place: node.start_mark.line + 1}
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            inner = (*place, key.value)
            if inner in lines:
                raise RecipeError(f"{path}:{key.start_mark.line + 1}: {_dotted(inner)} is given twice: keep one")
            lines |= _line_numbers(path, value, inner)
            lines[inner] = key.start_mark.line + 1
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            lines |= _line_numbers(path, value, (*place, index))
    return lines


def _explain(path: Path, places: dict[Location, str], detail: ErrorDetails, missing: set[Location]) -> str:
    place: Location = detail["loc"]
    where = next((places[place[:end]] for end in range(len(place), 0, -1) if place[:end] in places), str(path))
    name, value = _dotted(place), detail["input"]
    is_unknown = detail["type"] == "extra_forbidden"
    hides = detail["type"] == "value_error" or (is_unknown and bool(SECRET_HEADER.search(name)))
    if hides and where.startswith("--set"):  # headers, addresses and fields that do not exist may hold a key
        where = where.partition("=")[0]
    if is_unknown:
        allowed = allowed_values(Recipe, place)
        lacking = [str(other[-1]) for other in missing if other[:-1] == place[:-1]]
        given = "" if hides else f" (value {value!r})"
        return f"{where}: {name}: unknown field{given}{_suggest(str(place[-1]), allowed, lacking)}"
    if detail["type"] == "missing":
        return f"{where}: {name}: required, but missing: add it"
    if detail["type"] == "literal_error":
        allowed = [part.strip("' ") for part in detail["ctx"]["expected"].replace(" or ", ", ").split(",")]  # pyright: ignore[reportTypedDictNotRequiredAccess]
        return f"{where}: {name}: {value!r} is not allowed{_suggest(str(value), allowed)}"
    if detail["type"] == "value_error":
        return f"{where}: {name}: {detail['msg'].removeprefix('Value error, ')}"
    hint = ": write it in quotes" if detail["type"] == "string_type" and isinstance(value, _READ_AS_ANOTHER) else ""
    said = detail["msg"].replace("a valid tuple", "a list")
    return f"{where}: {name}: {value!r}: {said[0].lower()}{said[1:]}{hint}"


def _suggest(given: str, allowed: list[str], likelier: Sequence[str] = ()) -> str:
    """What was meant, perhaps one of the likelier names, and all that is allowed."""
    near = get_close_matches(given, likelier, n=1, cutoff=0.5) or get_close_matches(given, allowed, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]}?" if near else "."
    return f"{hint} Allowed: {', '.join(allowed)}"


def _dotted(place: Location) -> str:
    return ".".join(str(part) for part in place)
