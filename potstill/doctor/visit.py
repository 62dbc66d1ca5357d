"""The whole examination: first whatever needs nothing else, then the server if it lets us in, then the call if it is asked for."""

import os
from pathlib import Path

import potstill
from potstill.doctor import machine, orchestrator, ports, software, storage, teacher
from potstill.doctor.finding import Check, Finding, examine, fail
from potstill.errors import RecipeError
from potstill.home import potstill_home
from potstill.prefect_api import URL_VARIABLE
from potstill.recipe import Recipe
from potstill.recipe_file import load_recipe

CHECKOUT = Path(potstill.__file__).parents[1]
RECIPES, BOX = CHECKOUT / "recipes", CHECKOUT / "deployments" / "box.yaml"


def visit(path: Path | None = None, overrides: tuple[str, ...] = (), *, call: bool = False) -> list[Finding]:
    """Every finding, in a fixed order. Only the call costs anything."""
    recipe, findings = None, []
    if path is not None:
        try:
            recipe = load_recipe(path, overrides)
        except RecipeError as error:
            findings = [fail("recipe", str(error), "")]
    findings += examine(_first(recipe))
    is_let_in = not any(found.status == "fail" and found.name.startswith("prefect") for found in findings)
    if os.environ.get(URL_VARIABLE) and is_let_in:
        findings += examine(orchestrator.checks_of(_wanted(recipe)))
    if call and recipe is not None:
        findings += examine([Check("call", lambda: teacher.check_call(recipe), teacher.CALL_SECONDS)])
    return findings


def _first(recipe: Recipe | None) -> list[Check]:
    home = potstill_home()
    return [
        Check("python", software.check_python),
        Check("packages", software.check_packages),
        Check("gpu", machine.check_gpu, 2 * machine.NVIDIA_SECONDS + 1),
        Check("memory", machine.check_memory),
        Check("timezone", machine.check_timezone),
        Check("home", lambda: storage.check_home(home)),
        Check("disk", lambda: machine.check_disk(home)),
        Check("store", lambda: storage.check_store(home)),
        Check("ledger", storage.check_ledger),
        Check("data roots", storage.check_roots),
        Check("inbox", lambda: storage.check_inbox(home)),
        *(
            Check(f"port {port.port}", lambda port=port: ports.check_port(port))
            for port in ports.expected_ports(home, BOX)
        ),
        *([Check("keys", teacher.check_known_keys)] if recipe is None else teacher.checks_of(recipe)),
        Check("prefect", orchestrator.check_server),
    ]


def _wanted(recipe: Recipe | None) -> orchestrator.Wanted:
    if recipe is not None:
        return orchestrator.Wanted(
            (recipe.name,),
            is_given=True,
            uses_gpu_pool=recipe.compute.train == "pool",
            block=recipe.teacher.api_key_block,
        )
    return orchestrator.Wanted(tuple(load_recipe(found).name for found in teacher.find_recipes(RECIPES)))
