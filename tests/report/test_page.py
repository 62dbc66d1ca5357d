import math
import re
from datetime import UTC, datetime
from decimal import Decimal
from html.parser import HTMLParser

import pytest

from potstill.report.charts import CurvePoint, interval_bar, loss_curve, share_bar
from potstill.report.page import (
    ArmRow,
    CheckRow,
    CostPer1k,
    CurveRow,
    DisagreementRow,
    FunnelRow,
    LineageRow,
    ReportData,
    SpendRow,
    cost_ratio,
    floor_score,
    format_figure,
    format_usd,
    render,
)

HOSTILE = "<script>alert('x')</script>\"><img src=http://evil.test onerror=x>"
EMPTY = ReportData(recipe_name="empty", created_at=datetime(2026, 11, 24, 4, 2, tzinfo=UTC))
FULL = ReportData(
    recipe_name="demo",
    created_at=datetime(2026, 11, 24, 4, 2, tzinfo=UTC),
    verdict="passed",
    reasons=("lower bound 0.884 is above the floor",),
    checks=(
        CheckRow(
            name="retention", verdict="passed", figure=0.9131, bound=0.8842, threshold=0.8, detail="Tang, n = 307"
        ),
        CheckRow(name="champion", verdict="undecided", figure=None, bound=None, threshold=-0.03),
    ),
    arms=(
        ArmRow(arm="teacher", metric="accuracy", score=0.99, low=0.97, high=0.997, n=307),
        ArmRow(arm="base", metric="accuracy", score=None, n=0, unscored=1307, truncated=301, errors=6),
        ArmRow(arm="candidate", metric="accuracy", score=0.9134, low=0.8765, high=0.9406, n=307),
    ),
    floor=0.8,
    retention=0.9226,
    retention_low=0.8951,
    spend=(
        SpendRow(
            purpose="teacher",
            model="replay-gpt-4o",
            attempts=1830,
            input_tokens=74_567,
            output_tokens=1_512,
            cost_usd=Decimal("0.2015"),
            unknown_usd=Decimal("0.0030"),
        ),
        SpendRow(purpose="judge", model="j", attempts=2, input_tokens=9, output_tokens=8, cost_usd=Decimal("3.5")),
    ),
    cost_per_1k_usd=CostPer1k(teacher=Decimal("0.243"), student=Decimal("0.0045"), how="Counted at list price."),
    training_curve=(CurveRow(step=1, loss=2.41), CurveRow(step=60, loss=0.127)),
    validation_curve=(CurveRow(step=30, loss=0.321),),
    funnel=(FunnelRow(label="lines read", count=1924), FunnelRow(label="distinct", count=481)),
    disagreements=(DisagreementRow(prompt="Rank of a matrix.", target="sympy", teacher="sympy", candidate="pandas"),),
    num_disagreements=27,
    lineage=(LineageRow(label="adapter", value="adapter/77d013c95b22"),),
    notes="The teacher scores 1.00 by construction.",
    commands=("make setup", "potstill run recipes/demo.yaml"),
)


class Page(HTMLParser):
    """The tags, attributes and visible text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in {"meta", "br"}:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text += data


def text_of(data: ReportData) -> str:
    return " ".join(Page(render(data)).text.split())


def test_every_figure_that_was_given_is_on_the_page() -> None:
    text = text_of(FULL)
    figures = (
        "0.913 0.884 0.800 -0.030 0.990 0.970 0.997 0.876 0.941 0.923 0.895 0.792 1,307 301 307 1,830 74,567 1,512"
    )
    money = "$0.202 $0.003 $3.50 $3.70 $0.243 $0.0045 54.0×"
    counts = "0.127 0.321 60 30 1,924 481 25.0 27"
    missing = [figure for figure in f"{figures} {money} {counts}".split() if figure not in text]
    assert missing == []
    for words in ("Passed", "lower bound 0.884 is above the floor", "Tang, n = 307", "Counted at list price.", "judge"):
        assert words in text
    for words in ("Rank of a matrix.", "adapter/77d013c95b22", "1.00 by construction", "make setup potstill run"):
        assert words in text


def test_the_verdict_comes_first_and_is_a_word() -> None:
    page = render(FULL)
    assert page.index("<h1>") < page.index("<h2>")
    assert heading_of("passed") == "Passed"
    assert heading_of("rejected") == "Rejected"
    assert heading_of("undecided") == "Undecided"
    assert heading_of(None) == "No verdict"


def heading_of(verdict: str | None) -> str:
    found = re.search(r"<h1>.*?</svg>(.*?)</h1>", render(FULL.model_copy(update={"verdict": verdict})), re.DOTALL)
    assert found is not None
    return found.group(1).strip()


def test_hostile_text_stays_text_in_every_field() -> None:
    data = EMPTY.model_copy(
        update={
            "recipe_name": HOSTILE,
            "notes": HOSTILE,
            "reasons": (HOSTILE,),
            "commands": (HOSTILE,),
            "checks": (CheckRow(name=HOSTILE, verdict="passed", detail=HOSTILE),),
            "arms": (ArmRow(arm=HOSTILE, metric=HOSTILE, score=0.5, n=1),),
            "spend": (FULL.spend[0].model_copy(update={"purpose": HOSTILE, "model": HOSTILE}),),
            "cost_per_1k_usd": CostPer1k(teacher=None, student=None, how=HOSTILE),
            "funnel": (FunnelRow(label=HOSTILE, count=1),),
            "disagreements": (DisagreementRow(prompt=HOSTILE, target=HOSTILE, teacher=HOSTILE, candidate=HOSTILE),),
            "lineage": (LineageRow(label=HOSTILE, value=HOSTILE),),
        }
    )
    page = Page(render(data))
    assert not {"script", "img"} & set(page.tags)
    assert page.text.count(HOSTILE) == 20


@pytest.mark.parametrize("data", [FULL, EMPTY], ids=["full", "empty"])
def test_the_page_is_whole_and_refers_to_nothing_outside_itself(data: ReportData) -> None:
    html = render(data)
    page = Page(html)
    assert page.open == []
    assert not {"script", "link", "img", "iframe", "object", "base"} & set(page.tags)
    assert not [
        pair for pair in page.attributes if pair[0] in {"href", "src", "srcset", "xlink:href"} or pair[0][:2] == "on"
    ]
    assert not re.search(r"https?://|url\(|@import", html)
    assert 'name="viewport"' in html
    assert "prefers-color-scheme: dark" in html
    assert "@media print" in html


def test_what_is_missing_is_said_in_words() -> None:
    text = text_of(EMPTY)
    for words in ("No verdict", "Nothing was evaluated", "No check was made", "No training curve", "No disagreement"):
        assert words in text
    for words in ("was not worked out", "No money was spent", "No counts were recorded", "No lineage", "unknown"):
        assert words in text
    assert "None" not in text


def test_a_large_run_still_fits_in_200_kilobytes() -> None:
    case = DisagreementRow(prompt="p" * 50_000, target="t" * 9_000, teacher="t" * 9_000, candidate="c" * 9_000)
    curve = tuple(CurveRow(step=step, loss=1 / (1 + step)) for step in range(20_000))
    html = render(FULL.model_copy(update={"disagreements": (case,) * 300, "training_curve": curve}))
    assert len(html.encode()) <= 200_000
    assert "20 of 27 test prompts" in " ".join(Page(html).text.split())


def test_the_floor_is_drawn_at_its_share_of_the_teachers_score() -> None:
    assert floor_score(FULL) == pytest.approx(0.8 * 0.99)
    assert floor_score(EMPTY) is None
    assert 'class="floor tall" x1="79.20%"' in render(FULL)


def test_a_bar_ends_at_its_score_and_its_whisker_at_the_interval() -> None:
    svg = interval_bar(0.9, 0.85, 0.95, 0.8)
    assert 'width="90.00%"' in svg
    assert 'x1="85.00%" x2="95.00%"' in svg
    assert 'aria-label="score 0.900, interval 0.850 to 0.950"' in svg
    assert "bar" not in interval_bar(None, None, None, None)
    assert 'width="100.00%"' in interval_bar(1.7, None, None, None)
    assert 'width="0.00%"' in share_bar(0, "after")
    assert 'width="0.40%"' in share_bar(0.0001, "after")


def test_a_loss_curve_starts_at_zero_and_leaves_out_what_is_no_number() -> None:
    curve = loss_curve([CurvePoint(10, 2.0), CurvePoint(20, math.nan), CurvePoint(40, 0.5)], [CurvePoint(40, 1.0)])
    assert curve is not None
    assert curve.y_labels == ("2", "1.5", "1", "0.5", "0")
    assert curve.x_labels == ("0", "10", "20", "30", "40")
    assert 'd="M25.00 0.00 L100.00 75.00"' in curve.svg
    assert "M100.00 50.00h0" in curve.svg
    assert loss_curve([CurvePoint(1, math.nan)], []) is None
    assert loss_curve([CurvePoint(0, 0.0)], []) is not None


@pytest.mark.parametrize(
    ("value", "shown"),
    [("0", "$0.00"), ("1234.5", "$1,234.50"), ("0.2015", "$0.202"), ("0.00402", "$0.00402"), ("0.5", "$0.500")],
)
def test_money_keeps_three_digits_below_a_dollar(value: str, shown: str) -> None:
    assert format_usd(Decimal(value)) == shown


def test_costs_are_compared_either_way() -> None:
    def costs(teacher: str | None, student: str) -> CostPer1k:
        return CostPer1k(teacher=None if teacher is None else Decimal(teacher), student=Decimal(student), how="")

    assert cost_ratio(costs("1.24", "0.1")) == "12.4× cheaper"
    assert cost_ratio(costs("0.1", "0.13")) == "1.3× dearer"
    assert cost_ratio(costs("250", "1")) == "250× cheaper"
    assert cost_ratio(costs(None, "1")) is None
    assert cost_ratio(costs("1", "0")) is None
    assert cost_ratio(None) is None


def test_counts_and_shares_are_told_apart() -> None:
    assert [format_figure(value) for value in (307.0, 0.5, 1.0, 1.5, None)] == ["307", "0.500", "1.000", "1.500", "–"]
