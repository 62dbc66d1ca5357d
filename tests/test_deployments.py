"""prefect.yaml holds a deployment for each recipe, and each can be started."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.flows import load_flow_from_entrypoint

from potstill.recipe import Recipe
from potstill.recipe_file import load_recipe

pytestmark = pytest.mark.flow

ROOT = Path(__file__).parents[1]
DEPLOYMENTS: list[dict[str, Any]] = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_each_recipe_has_a_deployment_that_runs_it_as_the_file_says(path: Path) -> None:
    found = {deployment["name"]: deployment for deployment in DEPLOYMENTS}
    assert path.stem in found, f"prefect.yaml has no deployment {path.stem!r}"
    assert Recipe.model_validate(found[path.stem]["parameters"]["recipe"]) == load_recipe(path)


@pytest.mark.parametrize("entrypoint", sorted({deployment["entrypoint"] for deployment in DEPLOYMENTS}))
def test_each_entrypoint_loads_with_all_that_it_imports(entrypoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    flow = load_flow_from_entrypoint(entrypoint, use_placeholder_flow=False)
    assert flow.name == "distill-student"


def test_two_runs_of_one_deployment_do_not_run_at_once() -> None:
    assert all(deployment["concurrency_limit"]["limit"] == 1 for deployment in DEPLOYMENTS)
