"""What Prefect's UI shows of a run: the verdict first, figures with units, links that a browser can open."""

from decimal import Decimal
from pathlib import Path

import pytest

from potstill.evaluation.metrics import ArmMetrics
from potstill.ledger.spend import ModelSpend
from potstill.report.run_report import REPORTS_VARIABLE, RunSummary
from potstill.training.spec import Point

VERDICT = "Passed: retention 0.990; tickets@0123456789ab is released"


@pytest.fixture
def summary(tmp_path: Path) -> RunSummary:
    return RunSummary(
        recipe="tickets",
        verdict="passed",
        headline=VERDICT,
        arms={},
        spent_usd=Decimal("0.0128"),
        unknown_usd=Decimal(0),
        cost_per_1k_usd={"teacher": Decimal("0.5"), "student": None},
        release="0123456789ab",
        is_served=True,
        approval=None,
        report=str(tmp_path / "reports" / "tickets" / "abc" / "report.html"),
    )


def test_the_summary_begins_with_the_verdict_and_names_report_and_release(
    summary: RunSummary, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(REPORTS_VARIABLE, "http://127.0.0.1:8390/")
    verdict, links, *_ = summary.describe().split("\n\n")
    assert verdict == f"**{VERDICT}**"
    assert "[report.html](http://127.0.0.1:8390/tickets/abc/report.html)" in links
    assert "Release: `tickets@0123456789ab`" in links
    taken_out = summary.model_copy(update={"is_served": False})
    assert "Version, which does not serve: `tickets@0123456789ab`" in taken_out.describe()


def test_a_report_that_no_server_shows_is_named_by_its_path(
    summary: RunSummary, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(REPORTS_VARIABLE, raising=False)
    assert f"`{summary.report}`" in summary.describe()
    assert "](file:" not in summary.describe(), "a browser does not open it from a page of a server"


def test_the_lines_of_tables_are_rounded_and_say_their_units() -> None:
    arm = ArmMetrics(
        arm="candidate", metric="accuracy", score=2 / 3, low=0.5, high=None, n=9, unscored=1, truncated=0, errors=0
    )
    assert (arm.row["score"], arm.row["95 % interval"], arm.row["scored"]) == ("0.667", "0.500 – –", 9)
    point = Point(step=3, total_steps=9, loss=1 / 3, tokens_per_second=1234.5, elapsed_seconds=2.04)
    assert point.row == {"step": 3, "loss": "0.3333", "validation loss": "", "tokens/s": "1,234", "seconds": "2.0"}
    tokens = {"input_tokens": 7, "cached_input_tokens": 0, "output_tokens": 2, "reasoning_tokens": 0}
    spend = ModelSpend(
        purpose="teach",
        model="m",
        attempts=3,
        answered=2,
        unknown=1,
        cost_usd=Decimal("0.012767000000"),
        unknown_usd=Decimal("0.10"),
        estimate_usd=Decimal(0),
        **tokens,
    )
    assert (spend.row["cost, USD"], spend.row["at most more, USD"]) == ("0.012767", "0.1")
