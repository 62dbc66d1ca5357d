"""A student as a person makes one in Prefect's UI: the form, the run's page and its UI reports, the approval, the release."""

import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from playwright.sync_api import Page, expect

from potstill.promotions import promotions
from potstill.recipe import Recipe
from tests.browser.conftest import Shoot
from tests.browser.prefect_ui import Form, open_run_form, sign_in
from tests.line_on_server import Line, running_line
from tests.ports import free_port
from tests.prefect_server import running

pytestmark = pytest.mark.drill

PROMPTS = 400
NAME = r"web \d{4}-\d\d-\d\d \d\d:\d\d"
LONG = 240_000
SETTLED = 1_500
REPORTS = {
    "curation": ("400 prompts kept of 400 lines", "where the lines went", "Redacted: nothing"),
    "spend": ("Spent and reserved: run 0.01", "cost, USD", "replay"),
    "curve-sft": ("Loss by step", "validation loss"),
    "evaluation": ("by accuracy", "95 % interval", "candidate"),
    "gate": ("Passed", "of the teacher's score on 113 prompts", "the floor is 80.0 %"),
    "report": ("report.html",),
    "summary": ("Passed: retention", "Report: report.html", "Spent on the teacher: $"),
}
"""What each says; the summary last, since its links are followed."""


class Scene(NamedTuple):
    line: Line
    teacher: str
    base: Path
    log: Path

    @property
    def ui(self) -> str:
        return self.line.server.url.removesuffix("/api")


@pytest.fixture(scope="module")
def scene(
    tmp_path_factory: pytest.TempPathFactory,
    write_tickets: Callable[..., Any],
    replay_teacher: Callable[..., AbstractContextManager[str]],
    tiny_base: Path,
) -> Iterator[Scene]:
    place = tmp_path_factory.mktemp("line")
    tickets = write_tickets(place / "log", PROMPTS)
    reports, port = place / "potstill" / "reports", free_port()
    reports.mkdir(parents=True)
    web = ("-m", "deployments.reports", str(reports), "--port", str(port))
    given = {
        "POTSTILL_DATA_ROOTS": f"{place}:{tiny_base}",
        "POTSTILL_REPORTS_URL": f"http://127.0.0.1:{port}",
    }
    with (
        replay_teacher(tickets.answers) as teacher,
        running((sys.executable, *web), dict(os.environ), place / "reports.log"),
        running_line(place, **given) as line,
    ):
        yield Scene(line, teacher, tiny_base, tickets.log)


def test_a_student_is_made_approved_and_released_in_the_browser(scene: Scene, page: Page, shoot: Shoot) -> None:
    sign_in(page, scene.ui)
    form = open_run_form(page, scene.ui, "distill-student", "demo")
    shoot(page, "run form of the demo")
    _fill(form, scene)
    shoot(page, "run form filled")
    page.get_by_role("button", name="Submit").click()
    page.get_by_role("button", name="View run").click()
    page.wait_for_url("**/runs/flow-run/**")
    run = scene.line.server.get(f"/flow_runs/{page.url.rpartition('/flow-run/')[2].partition('?')[0]}")
    _check(Recipe.model_validate(run["parameters"]["recipe"]), scene)
    expect(page.locator("main")).to_contain_text(re.compile(NAME), timeout=LONG)
    scene.line.wait_for_state(run, lambda _: "training-sft" in scene.line.reports(run))
    page.wait_for_timeout(SETTLED)
    shoot(page, "run page while it trains")

    scene.line.wait_for_state(run, lambda state: state["type"] == "PAUSED")
    expect(page.locator("main")).to_contain_text("Suspended", timeout=LONG)
    _look_at_reports(page, shoot, "it awaits approval")
    _approve(page, shoot)
    ended = scene.line.wait_for_end(run)
    assert ended["name"] == "Completed", ended["message"]
    [promotion] = promotions(scene.line.home / "releases" / "web")
    assert promotion.approval is not None
    assert (promotion.approval.approver, promotion.approval.reason) == ("Jo Bloggs", "read 20 answers")

    released = f"web@{promotion.to_version}"
    page.goto(f"{scene.ui}/v2/runs/flow-run/{run['id']}")
    _look_at_summary(page, shoot, released)
    link = page.locator("main").get_by_role("link", name="report.html")
    link.evaluate("it => it.removeAttribute('target')")  # in this tab
    link.click()
    page.wait_for_url("**/report.html")
    expect(page.locator("body")).to_contain_text("Passed")
    expect(page.locator("body")).to_contain_text(released)
    expect(page.locator("body")).to_contain_text("approved by Jo Bloggs")
    shoot(page, "report")


def _fill(form: Form, scene: Scene) -> None:
    """A field of every kind: text, number, menu, switch, list, JSON, a value that may be empty, a section that may be."""
    form.write("recipe", "name", text="web")
    form.write("recipe", "notes", text="Filled in by hand.")
    form.list("recipe", "task", "labels", items=["billing", "technical"])
    form.list("recipe", "curation", "inputs", items=[str(scene.log)])
    form.write("recipe", "curation", "workload", text="tickets")
    form.write("recipe", "curation", "validation fraction", text=0.05)
    form.write("recipe", "curation", "test fraction", text=0.3)
    form.write("recipe", "teacher", "model", text="replay")
    form.write("recipe", "teacher", "base url", text=scene.teacher)
    form.write("recipe", "teacher", "headers", text='{"x-team": "tickets"}')
    form.write("recipe", "teacher", "response schema", text='{"type": "string"}')
    form.write("recipe", "teacher", "response schema", text="")
    form.set_to("recipe", "teacher", "seed", kind="int")
    form.write("recipe", "teacher", "seed", text=7)
    form.set_to("recipe", "teacher", "temperature", kind="None")
    form.flip("recipe", "teacher", "prompt caching")
    form.choose("recipe", "teacher", "choose", option="majority")
    form.write("recipe", "teacher", "price", "input per million", text=1)
    form.write("recipe", "student", "base", text=scene.base)
    form.write("recipe", "training", "epochs", text=12)
    form.write("recipe", "training", "learning rate", text=0.005)
    form.write("recipe", "training", "batch size", text=16)
    form.write("recipe", "training", "max length", text=128)
    form.choose("recipe", "training", "lora rank", option="16")
    form.set_to("recipe", "training", "dpo", kind="Dpo")
    form.write("recipe", "training", "dpo", "max pairs", text=40)
    form.set_to("recipe", "training", "dpo", kind="None")
    form.write("recipe", "evaluation", "batch size", text=50)
    form.choose("recipe", "gate", "approval", option="ask")
    form.write("recipe", "gate", "approval hours", text=1)


def _check(recipe: Recipe, scene: Scene) -> None:
    """The parameters of the run are the recipe that was meant."""
    teacher, training = recipe.teacher, recipe.training
    assert (recipe.name, recipe.notes) == ("web", "Filled in by hand.")
    assert (recipe.task.labels, recipe.curation.inputs) == (("billing", "technical"), (str(scene.log),))
    assert (teacher.base_url, teacher.model, teacher.headers) == (scene.teacher, "replay", {"x-team": "tickets"})
    assert (teacher.response_schema, teacher.seed, teacher.temperature) == (None, 7, None)
    assert (teacher.prompt_caching, teacher.choose) == (False, "majority")
    assert teacher.price is not None
    assert (teacher.price.input_per_million, teacher.price.output_per_million) == (1, 10)
    assert (training.epochs, training.learning_rate, training.lora_rank, training.dpo) == (12, 0.005, 16, None)
    assert (recipe.gate.approval, recipe.gate.approval_hours, recipe.gate.retention_floor) == ("ask", 1, 0.8)


def _look_at_reports(page: Page, shoot: Shoot, awaited: str) -> None:
    """The cards of the run's page, then what is on each."""
    page.get_by_role("tab", name="Artifacts").click()
    summary = page.get_by_role("tabpanel").get_by_role("link").filter(has_text="summary")
    expect(summary).to_contain_text("Passed: retention")
    shoot(page, "run page while it waits")
    for key, texts in REPORTS.items():
        _open(page, key)
        for text in texts:
            expect(page.locator("main")).to_contain_text(text)
        shoot(page, f"UI report {key}")
    expect(page.locator("main")).to_contain_text(awaited)


def _look_at_summary(page: Page, shoot: Shoot, released: str) -> None:
    page.get_by_role("tab", name="Artifacts").click()
    shoot(page, "run page at the end")
    _open(page, "summary")
    expect(page.locator("main")).to_contain_text(f"{released} is released, approved by Jo Bloggs")
    shoot(page, "UI report summary at the end")


def _open(page: Page, key: str) -> None:
    """From the run's page through the card and the newest of what has stood on it."""
    run = page.url if "/runs/flow-run/" in page.url else None
    if run is None:
        page.get_by_role("link", name=re.compile(NAME)).first.click()
        page.get_by_role("tab", name="Artifacts").click()
    page.get_by_role("tabpanel").get_by_role("link").filter(has=page.get_by_text(key, exact=True)).first.click()
    page.wait_for_url("**/artifacts/**")
    page.locator("main").get_by_role("link").filter(has_text=re.compile(r"^[0-9a-f]{8}$")).first.click()
    page.wait_for_url("**/artifacts/artifact/**")
    page.wait_for_timeout(SETTLED)


def _approve(page: Page, shoot: Shoot) -> None:
    page.get_by_role("link", name=re.compile(NAME)).first.click()
    page.wait_for_url("**/runs/flow-run/**")
    page.locator("main").get_by_role("button").and_(page.locator("[aria-haspopup=menu]")).first.click()
    page.get_by_role("menuitem", name="Resume").click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("Passed: retention")
    expect(dialog.get_by_role("link", name="report.html")).to_be_visible()
    expect(dialog).to_contain_text("Does this student serve from now on?")
    form = Form(dialog, page)
    form.choose("Verdict", option="approve")
    form.write("Approver", text="Jo Bloggs")
    form.write("Reason", text="read 20 answers")
    shoot(page, "approval form")
    dialog.get_by_role("button", name="Resume").click()
    expect(dialog).to_be_hidden()
