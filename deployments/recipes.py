"""The build step of prefect.yaml that makes a recipe's file the default parameter of its deployments: no copy is kept."""

from pathlib import Path
from typing import Any

import yaml

from potstill.recipe_file import load_recipe

ROOT = Path(__file__).parents[1]
"""The checkout that is deployed."""


def read_recipe(path: str) -> dict[str, Any]:
    """What a recipe's file says, under the name `recipe`; the run form adds the defaults.

    Errors: `RecipeError`, every fault of the file in one message.
    """
    load_recipe(ROOT / path)
    return {"recipe": yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))}
