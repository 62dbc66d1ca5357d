"""The link from another page of this machine to a report, as a browser follows it: log-in, policy, looks."""

from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from tests.deployments.test_reports_page import REPORT, showing

pytestmark = pytest.mark.flow

STYLED = "<!doctype html><style>p { color: rgb(1, 2, 3) }</style><p style='margin-left: 7px'>Passed</p><script>document.body.textContent = 'ran'</script>"


def test_a_link_leads_to_the_report_after_the_log_in_and_its_styles_count(chromium: Browser, tmp_path: Path) -> None:
    page_file = tmp_path / "reports" / REPORT
    page_file.parent.mkdir(parents=True)
    page_file.write_text(STYLED)
    with showing(tmp_path / "reports", tmp_path / "log") as shown:
        context = chromium.new_context(http_credentials={"username": "potstill", "password": "long and random"})
        page = context.new_page()
        page.route(
            "http://127.0.0.1:1/",
            lambda route: route.fulfill(
                content_type="text/html", body=f"<a target=_blank href='{shown.url}/{REPORT}'>report.html</a>"
            ),
        )
        page.goto("http://127.0.0.1:1/")  # as Prefect's UI: another port of the same machine
        with context.expect_page() as opened:
            page.get_by_role("link").click()
        report = opened.value.locator("p")
        expect(report).to_have_text("Passed")
        expect(report).to_have_css("color", "rgb(1, 2, 3)")
        expect(report).to_have_css("margin-left", "7px")
        context.close()
