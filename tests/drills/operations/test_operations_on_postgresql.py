"""The drills of operations that a database could disturb, once more: Prefect and the ledger on PostgreSQL."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest

from tests.drills.operations.conftest import Scene
from tests.drills.operations.test_operations import (
    test_a_student_waits_for_approval_with_no_process_and_is_released_with_who_and_why,
    test_nights_are_skipped_then_real_then_incremental_and_missed_ones_are_made_up_for_once,
    test_two_runs_of_one_recipe_at_once_pay_once,
)
from tests.postgres import PostgresServer

pytestmark = pytest.mark.drill

__all__ = [
    "test_a_student_waits_for_approval_with_no_process_and_is_released_with_who_and_why",
    "test_nights_are_skipped_then_real_then_incremental_and_missed_ones_are_made_up_for_once",
    "test_two_runs_of_one_recipe_at_once_pay_once",
]


@pytest.fixture(scope="module")
def scene(stage: Callable[..., AbstractContextManager[Scene]], postgres: PostgresServer) -> Iterator[Scene]:
    prefect = postgres.new_database().partition("?")[0].replace("postgresql://", "postgresql+asyncpg://")
    with stage(PREFECT_API_DATABASE_CONNECTION_URL=prefect, POTSTILL_LEDGER=postgres.new_database()) as scene:
        yield scene
