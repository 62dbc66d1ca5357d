"""The run form of a deployment in a browser: it shows every field of the recipe, and sends the recipe that it shows."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, expect

from potstill.recipe import Recipe
from potstill.recipe_file import load_recipe
from tests.browser.prefect_ui import open_run_form, sign_in, titles_of
from tests.prefect_server import ROOT, RunningServer, make_pool, prefect_server

pytestmark = pytest.mark.flow


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with prefect_server(tmp_path_factory.mktemp("form")) as server:
        make_pool(server, "cpu", 1)
        server.call("-m", "prefect", "--no-prompt", "deploy", "--name", "distill-student/demo")
        yield server


def test_the_form_shows_every_field_and_sends_the_recipe_that_it_shows(server: RunningServer, page: Page) -> None:
    ui = server.url.removesuffix("/api")
    sign_in(page, ui)
    form = open_run_form(page, ui, "distill-student", "demo")
    schema = Recipe.model_json_schema()
    for way in titles_of(schema, schema["$defs"]):
        field = form.field("recipe", *way)
        controls = field.locator("textarea, input, .cm-content, [role=switch], [role=tab], button")
        expect(controls.first, str(way)).to_be_attached()
        expect(field, str(way)).to_be_visible()
    form.write("recipe", "notes", text="from the form")
    form.write("recipe", "teacher", "response schema", text='{"type": "string"}')
    page.get_by_role("button", name="Submit").click()
    page.get_by_role("button", name="View run").click()
    page.wait_for_url("**/runs/flow-run/**")
    [run] = server.find("flow_runs")
    sent = Recipe.model_validate(run["parameters"]["recipe"])
    demo = load_recipe(ROOT / "recipes" / "demo.yaml")
    teacher = demo.teacher.model_copy(update={"response_schema": {"type": "string"}})
    assert sent == demo.model_copy(update={"notes": "from the form", "teacher": teacher})
