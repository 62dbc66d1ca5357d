import pytest

from potstill.recipe import Teacher
from tasks.policies import batches_at_once


@pytest.mark.parametrize(
    ("concurrency", "batch_size", "at_once"),
    [(16, 64, 4), (64, 64, 4), (65, 64, 7), (1024, 64, 49), (12, 1, 37), (1024, 4, 64)],
)
def test_so_many_batches_run_at_once_that_concurrency_is_used_up_to_a_limit(
    concurrency: int, batch_size: int, at_once: int
) -> None:
    assert batches_at_once(Teacher(model="m", concurrency=concurrency, batch_size=batch_size)) == at_once
