"""A headless Chromium, and a folder for what it has seen."""

import os
import re
import shutil
from collections.abc import Callable, Generator, Iterator
from itertools import count
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.postgres import is_required

SHOTS_VARIABLE = "POTSTILL_TESTS_SCREENSHOTS"
"""Where screenshots are kept; else in pytest's temporary folder of the test."""
MILLISECONDS = 30_000

Shoot = Callable[[Page, str], None]

expect.set_options(timeout=MILLISECONDS)  # its own default is 5 s, whatever a context says


def find_chromium() -> str | None:
    return next((found for name in ("chromium", "chromium-browser") if (found := shutil.which(name))), None)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """For a module, not for longer: while it is open, playwright's event loop runs in this thread, and no other can."""
    path = find_chromium()
    if path is None:
        missing = "Chromium is not installed: apt install chromium"
        pytest.fail(missing) if is_required("chromium") else pytest.skip(missing)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])  # CI is root
        yield browser
        browser.close()


FAILED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    item.stash[FAILED] = report.failed
    return report


@pytest.fixture
def page(chromium: Browser) -> Iterator[Page]:
    context = chromium.new_context(viewport={"width": 1400, "height": 1000})
    context.set_default_timeout(MILLISECONDS)
    yield context.new_page()
    context.close()


@pytest.fixture
def shoot(request: pytest.FixtureRequest, page: Page, tmp_path: Path) -> Iterator[Shoot]:
    """`shoot(page, "the form")` keeps what the whole page shows, numbered in the order of the test; so does a failure."""
    folder = Path(os.environ.get(SHOTS_VARIABLE) or tmp_path / "screenshots") / request.node.name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    print(f"\nscreenshots: {folder}")
    numbers = count(1)

    def keep(page: Page, what: str) -> None:
        name = re.sub(r"\W+", "-", what)
        page.screenshot(path=folder / f"{next(numbers):02}-{name}.png", full_page=True)

    yield keep
    if request.node.stash.get(FAILED, False):
        keep(page, "where it failed")
