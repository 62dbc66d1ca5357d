"""Names of runs that a person can read in a list."""

from typing import Any

from prefect.runtime import flow_run


def name_by_hand() -> str:
    """Such as `tickets 2026-11-24 14:05`, in UTC."""
    return f"{_recipe_name()} {flow_run.scheduled_start_time:%Y-%m-%d %H:%M}"


def name_by_night() -> str:
    """Such as `tickets, night of 2026-11-24 02:00`, in UTC."""
    return f"{_recipe_name()}, night of {flow_run.scheduled_start_time:%Y-%m-%d %H:%M}"


def _recipe_name() -> str:
    recipe: Any = flow_run.parameters.get("recipe")
    return recipe["name"] if isinstance(recipe, dict) else getattr(recipe, "name", "recipe")
