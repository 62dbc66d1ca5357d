"""`compute.train: pool` where the pool's worker is another machine: it has a home of its own, and shares the bucket alone."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from potstill.release import aliases
from tests.drills.operations.conftest import BY_HAND, Scene
from tests.s3_server import S3Server

pytestmark = pytest.mark.drill


def test_a_worker_that_shares_only_the_bucket_trains_and_answers_for_a_run(
    stage: Callable[..., AbstractContextManager[Scene]],
    s3_server: S3Server,
    tiny_base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = s3_server.environment()
    with stage(workers=("cpu",), **settings) as scene:
        line, other = scene.line, tmp_path / "other"
        line.start_worker("gpu", POTSTILL_HOME=str(other), POTSTILL_DATA_ROOTS=str(tiny_base))
        ended = line.run(BY_HAND, scene.recipe("elsewhere", compute={"train": "pool"}))
        assert ended["name"] == "Completed", ended["message"]
        assert list(other.glob("runs/train/*/progress.jsonl")), "trained there"
        assert not list(line.home.glob("runs/train/*")), "and not here"
        assert not list(other.glob("ledger*")), "it pays for nothing"
        assert scene.requests() == 400
        for name, value in settings.items():
            monkeypatch.setenv(name, value)
        assert aliases(line.home, "elsewhere").champion is not None
