"""A new ledger, and a teacher that nobody waits for."""

from pathlib import Path

import pytest

from potstill.ledger import Ledger


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'ledger.db'}"


@pytest.fixture
def ledger(url: str) -> Ledger:
    return Ledger(url)


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the pace before the first answer nor the pause after a refusal takes time; tests of the pace see to both."""
    monkeypatch.setattr("potstill.llm.pacing.congestion.FIRST_PER_SECOND", 1000.0)
    monkeypatch.setattr("potstill.llm.limiter.PAUSE_SECONDS", 0.01)
