"""The receiver's configuration, from one YAML file; the secrets come from the environment only."""

import glob
from pathlib import Path

import yaml
from pydantic import Field, ValidationError

from potstill.errors import RecipeError, UsageError
from potstill.recipe import INBOX, Part, Recipe
from potstill.recipe_file import load_recipe

MEBIBYTE = 1024 * 1024


class References(Part):
    """Prompts that a webhook names instead of holding them."""

    prefixes: tuple[str, ...] = Field(
        default=(), description="Where they may lie: file:///… and s3://bucket/… folders; nowhere else."
    )
    max_bytes: int = Field(default=1024 * MEBIBYTE, ge=1, description="Longest file that is copied.")


class Rate(Part):
    """A token bucket over all signed webhooks."""

    per_second: float = Field(default=20, gt=0, description="Webhooks a second, in the long run.")
    burst: int = Field(default=200, ge=1, description="Webhooks that may come at once.")


class WebhookConfig(Part):
    """What the receiver takes, and from where."""

    recipes: tuple[str, ...] = Field(
        min_length=1, description="Files of the recipes that have an inbox; globs allowed."
    )
    max_body_bytes: int = Field(default=4 * MEBIBYTE, ge=1, description="Longest body of a request.")
    body_seconds: float = Field(default=30, gt=0, description="How long a sender may take over its body.")
    references: References = References()
    rate: Rate = Rate()
    poll_seconds: float = Field(default=1, gt=0, description="How often the inboxes are looked at for a run to start.")


def load_config(path: Path) -> WebhookConfig:
    """Errors: `UsageError` naming the file, the field and what is allowed."""
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
        return WebhookConfig.model_validate(data)
    except FileNotFoundError:
        raise UsageError(f"--config {path}: no such file: begin with deployments/webhook.yaml") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"--config {path}: cannot be read as YAML: {' '.join(str(error).split())}") from None
    except ValidationError as error:
        said = (f"{'.'.join(map(str, detail['loc'])) or 'the file'}: {detail['msg']}" for detail in error.errors())
        raise UsageError(f"--config {path}: {'; '.join(said)}") from None


def load_recipes(patterns: tuple[str, ...]) -> dict[str, Recipe]:
    """The recipes of these files that have `inbox` among their inputs, by their names.

    Errors: `RecipeError` for a pattern without a file, a name twice, or where no recipe has an inbox.
    """
    found: dict[str, Recipe] = {}
    paths: set[Path] = set()
    for pattern in patterns:
        matches = {Path(name) for name in glob.glob(pattern, recursive=True)}  # noqa: PTH207 - absolute patterns
        if not matches:
            raise RecipeError(f"recipes: {pattern}: no such file (looked from {Path.cwd()})")
        paths |= matches
    for path in sorted(paths):
        recipe = load_recipe(path)
        if recipe.name in found:
            raise RecipeError(f"recipes: {path}: a second recipe named {recipe.name}: an inbox belongs to one")
        found[recipe.name] = recipe
    taking = {name: recipe for name, recipe in found.items() if INBOX in recipe.curation.inputs}
    if not taking:
        raise RecipeError(f"recipes: none of {', '.join(found)} has an inbox: add {INBOX} to its curation.inputs")
    return taking
