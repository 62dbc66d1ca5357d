"""What is only shown must not stop what is paid for: a server that refuses a bar or a table costs the run that, and no more."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import httpx
import pytest
from prefect import flow, task
from prefect.exceptions import ObjectNotFound

from tasks import progress, spending, teaching

pytestmark = pytest.mark.flow

REQUEST = httpx.Request("PATCH", "http://127.0.0.1/api/artifacts/1")
REFUSALS = [
    httpx.HTTPStatusError("500: database or disk is full", request=REQUEST, response=httpx.Response(500)),
    ObjectNotFound(KeyError("somebody has deleted it")),
]


class Step(NamedTuple):
    share: float

    def describe(self) -> str:
        return f"{self.share:.0%}"


@task
def shown_to_the_end(steps: int) -> int:
    show = progress.watch("training")
    for number in range(steps):
        show(Step((number + 1) / steps))
    return steps


@flow
def training(steps: int) -> int:
    return shown_to_the_end(steps)


@pytest.mark.parametrize("refusal", REFUSALS, ids=["its disk is full", "the bar is gone"])
@pytest.mark.parametrize("refused", ["create_progress_artifact", "update_progress_artifact"])
def test_a_bar_that_the_server_refuses_stops_no_training(
    monkeypatch: pytest.MonkeyPatch, refused: str, refusal: Exception
) -> None:
    asked: list[str] = []

    def refuse(*_: Any, **__: Any) -> None:
        asked.append(refused)
        raise refusal

    monkeypatch.setattr(progress, "EVERY_SECONDS", 0.0)
    monkeypatch.setattr(progress, refused, refuse)
    assert training(3) == 3
    assert asked == [refused] * (1 if refused.startswith("create") else 3)


def test_an_interrupt_while_batches_are_still_handed_in_stops_the_asking_before_anything_is_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    happened: list[str] = []

    class Interrupted:
        def map(self, *_: Any) -> None:
            raise KeyboardInterrupt

    @contextmanager
    def batch_runner(*_: Any, **__: Any) -> Iterator[Interrupted]:
        try:
            yield Interrupted()
        finally:
            happened.append("waits for the batches that run")

    monkeypatch.setattr(teaching, "batch_runner", batch_runner)
    monkeypatch.setattr(spending, "stop_sessions", lambda: happened.append("stops the asking"))
    for name in ("plan_of", "open_ledger", "open_batches"):
        monkeypatch.setattr(teaching, name, lambda *_: [])
    monkeypatch.setattr(teaching, "split_batches", lambda _: [range(10)])
    with pytest.raises(KeyboardInterrupt):
        teaching._ask_online(None, None, is_collected=False)  # type: ignore[arg-type]
    assert happened == ["stops the asking", "waits for the batches that run"]
