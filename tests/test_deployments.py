"""prefect.yaml holds the deployments of each recipe, and each can be started; the pools run nothing but them."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import yaml
from prefect.client.schemas.schedules import CronSchedule
from prefect.flows import load_flow_from_entrypoint
from prefect.server.schemas.schedules import CronSchedule as Nights
from prefect.utilities.templating import apply_values

from deployments.recipes import read_recipe
from potstill.recipe import Recipe
from potstill.recipe_file import load_recipe

pytestmark = pytest.mark.flow

ROOT = Path(__file__).parents[1]
DEPLOYMENTS: list[dict[str, Any]] = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
OF_RECIPES = {
    "flows/distill_student.py:distill_student": "distill-student",
    "flows/redistill.py:redistill": "redistill",
}
ON_GPU = {
    "flows/train_student.py:train_student": "train-student",
    "flows/evaluate_student.py:evaluate_student": "evaluate-student",
}
POOLS = {path.stem: json.loads(path.read_text()) for path in sorted((ROOT / "deployments" / "pools").glob("*.json"))}


def of_recipes() -> list[dict[str, Any]]:
    return [deployment for deployment in DEPLOYMENTS if deployment["entrypoint"] in OF_RECIPES]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
@pytest.mark.parametrize("entrypoint", OF_RECIPES)
def test_each_recipe_has_its_deployments_that_run_it_as_the_file_says(path: Path, entrypoint: str) -> None:
    found = {(deployment["entrypoint"], deployment["name"]): deployment for deployment in DEPLOYMENTS}
    assert (entrypoint, path.stem) in found, f"prefect.yaml has no {OF_RECIPES[entrypoint]}/{path.stem}"
    deployment = found[entrypoint, path.stem]
    [build] = deployment["build"]
    given = dict(build["deployments.recipes.read_recipe"])
    step = {given.pop("id"): read_recipe(**given)}
    parameters = apply_values(deployment["parameters"], step)
    assert Recipe.model_validate(parameters["recipe"]) == load_recipe(path)


def test_no_recipe_is_kept_twice() -> None:
    assert all(deployment["parameters"] == {"recipe": "{{ file.recipe }}"} for deployment in of_recipes())


def test_two_runs_of_one_recipe_do_not_run_at_once_but_one_after_the_other() -> None:
    limit = {"limit": 1, "collision_strategy": "ENQUEUE"}
    assert all(deployment["concurrency_limit"] == limit for deployment in of_recipes())


def test_each_runs_on_its_pool_under_a_name_of_its_own() -> None:
    assert all(deployment["work_pool"]["name"] == "cpu" for deployment in of_recipes())
    gpu = {one["entrypoint"]: one for one in DEPLOYMENTS if one["work_pool"]["name"] == "gpu"}
    assert set(gpu) == set(ON_GPU)
    assert {deployment["name"] for deployment in gpu.values()} == {"gpu"}
    names = [(deployment["entrypoint"], deployment["name"]) for deployment in DEPLOYMENTS]
    assert len(set(names)) == len(names)
    assert all("potstill" in deployment["tags"] for deployment in DEPLOYMENTS)


@pytest.mark.parametrize("entrypoint", sorted({deployment["entrypoint"] for deployment in DEPLOYMENTS}))
def test_each_entrypoint_loads_with_all_that_it_imports(entrypoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    flow = load_flow_from_entrypoint(entrypoint, use_placeholder_flow=False)
    assert flow.name == (OF_RECIPES | ON_GPU)[entrypoint]


def test_each_nightly_run_has_a_cron_in_a_named_timezone_and_the_demos_is_off() -> None:
    nightly = [one for one in DEPLOYMENTS if one["entrypoint"] == "flows/redistill.py:redistill"]
    for deployment in nightly:
        [schedule] = deployment["schedules"]
        assert schedule["slug"] == "nightly"
        assert ZoneInfo(schedule["timezone"])
        assert CronSchedule(cron=schedule["cron"], timezone=schedule["timezone"])
    assert [one["schedules"][0]["active"] for one in nightly if one["name"] == "demo"] == [False]


@pytest.mark.parametrize("time_of_day", ["0 2", "30 1", "30 0"])
@pytest.mark.parametrize("first", [datetime(2026, 10, 20, tzinfo=UTC), datetime(2027, 3, 24, tzinfo=UTC)])
async def test_each_night_comes_once_also_when_the_clocks_change(time_of_day: str, first: datetime) -> None:
    """In London, 01:30 comes twice on 2026-10-25 and never on 2027-03-28."""
    zone = ZoneInfo("Europe/London")
    nightly = CronSchedule(cron=f"{time_of_day} * * *", timezone=zone.key)
    dates = await Nights(**nightly.model_dump()).get_dates(n=9, start=first)
    days = [date.astimezone(zone).date() for date in dates]
    assert days == [days[0] + timedelta(days=number) for number in range(9)]


@pytest.mark.parametrize("name", ["cpu", "gpu"])
def test_a_pool_lets_no_run_choose_its_command_its_folder_or_its_environment(name: str) -> None:
    configuration, variables = POOLS[name]["job_configuration"], POOLS[name]["variables"]
    assert variables["additionalProperties"] is False
    harmless = {"name", "labels", "stream_output", "cuda_visible_devices"}
    assert set(variables["properties"]) <= harmless
    assert configuration["command"] is None
    assert configuration["working_dir"] is None
    chosen = {value for value in configuration["env"].values() if "{{" in value}
    assert chosen <= {"{{ cuda_visible_devices }}"}


@pytest.mark.parametrize("name", ["cpu", "gpu"])
def test_the_run_of_a_dead_worker_lives_on_and_is_seen_to_live(name: str) -> None:
    """What a worker copies into its log dies with the pipe between them."""
    assert POOLS[name]["variables"]["properties"]["stream_output"]["default"] is False
    assert POOLS[name]["job_configuration"]["env"]["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] == "30"
