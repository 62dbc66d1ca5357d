"""Prefect's UI as a person uses it: signing in, the form of a run, its page, its UI reports, the form of its approval."""

from typing import Any

from playwright.sync_api import Locator, Page, expect

from tests.prefect_server import AUTH


class Form:
    """A form that the UI draws from a JSON schema. A field is found by the titles on the way to it."""

    def __init__(self, place: Locator, page: Page) -> None:
        self._place, self._page = place, page

    def field(self, *titles: str) -> Locator:
        found = self._place
        for title in titles:
            label = f'./div[1]//label[normalize-space()="{title}" or normalize-space()="{title} (Optional)"]'
            found = found.locator(f"xpath=.//div[contains(@class, 'group')][{label}]").first
        return found

    def write(self, *titles: str, text: Any) -> None:
        """Into a box for text or numbers, or into an editor for JSON: all of it is marked first, as `fill` leaves the default there
        while the editor is still being drawn."""
        box = self.field(*titles).locator("textarea, input, .cm-content").first
        if "cm-content" not in (box.get_attribute("class") or ""):
            box.fill(str(text))
            return
        box.click()
        self._page.keyboard.press("ControlOrMeta+A")
        self._page.keyboard.press("Delete")
        self._page.keyboard.insert_text(str(text))
        expect(box).to_have_text(str(text))

    def choose(self, *titles: str, option: str) -> None:
        self.field(*titles).get_by_role("combobox").or_(
            self.field(*titles).locator("button[aria-haspopup=listbox]")
        ).first.click()
        self._page.get_by_role("option", name=option, exact=True).click()

    def flip(self, *titles: str) -> None:
        self.field(*titles).get_by_role("switch").click()

    def set_to(self, *titles: str, kind: str) -> None:
        """The toggle of a field that may be empty: the name of its type, or None."""
        self.field(*titles).get_by_role("tab", name=kind, exact=True).first.click()

    def list(self, *titles: str, items: list[str]) -> None:
        """Make a list hold these items: what is too many is deleted, what is missing added."""
        field = self.field(*titles)
        boxes = field.locator("textarea, input")
        while boxes.count() > len(items):
            before = boxes.count()
            field.get_by_role("button", name="Open menu").last.click()
            self._page.get_by_role("menuitem", name="Delete").click()
            expect(boxes).to_have_count(before - 1)
        while boxes.count() < len(items):
            before = boxes.count()
            field.get_by_role("button", name="Add item").click()
            expect(boxes).to_have_count(before + 1)
        for number, item in enumerate(items):
            boxes.nth(number).fill(item)


def sign_in(page: Page, ui: str) -> None:
    page.goto(ui)
    page.locator("input[type=password]").fill(":".join(AUTH))
    page.get_by_role("button", name="Login").click()
    expect(page.get_by_role("link", name="Deployments")).to_be_visible()


def open_run_form(page: Page, ui: str, flow: str, deployment: str) -> Form:
    """From the list of deployments, as a person finds it."""
    page.get_by_role("link", name="Deployments").click()
    row = page.get_by_role("row").filter(has_text=flow)
    row.get_by_role("link", name=deployment, exact=True).click()
    page.get_by_role("button", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Custom run").click()
    form = Form(page.locator("main"), page)
    expect(form.field("recipe", "name")).to_be_visible()
    return form


def titles_of(schema: dict[str, Any], sections: dict[str, Any]) -> list[tuple[str, ...]]:
    """The way to every field of a form, through the sections that are open without a click."""
    found: list[tuple[str, ...]] = []
    for field in schema["properties"].values():
        found.append((field["title"],))
        if "$ref" in field:
            inner = sections[field["$ref"].rpartition("/")[2]]
            found += [(field["title"], *way) for way in titles_of(inner, sections)]
    return found
