"""The loss by step as one line that a person reads."""

from potstill.training.spec import DRAWN, Point, describe_curve


def curve(*losses: float | None) -> list[Point]:
    return [
        Point(step=step, total_steps=len(losses), loss=loss, elapsed_seconds=step)
        for step, loss in enumerate(losses, start=1)
    ]


def test_it_is_drawn_from_the_first_loss_to_the_last() -> None:
    said = describe_curve(curve(*(4 - step / 100 for step in range(301))))
    assert said.startswith("loss 4.0000 █")
    assert "▁ 1.0000; the last: step 301 of 301: loss 1.0000" in said
    bars = said.split()[2]
    assert len(bars) == DRAWN
    assert list(bars) == sorted(bars, reverse=True)


def test_a_few_points_and_a_flat_curve_are_drawn_too() -> None:
    assert "▁" * DRAWN in describe_curve(curve(2.0, None, 2.0))
    assert describe_curve(curve(2.0)) == "step 1 of 1: loss 2.0000"
    assert describe_curve([]) == "no loss is on record"
