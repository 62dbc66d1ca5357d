"""The drills of operations once more, with Prefect and the ledger on PostgreSQL."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest

from tests.drills.operations.conftest import Scene
from tests.drills.operations.test_crashes import (
    test_a_killed_training_is_gone_on_with_and_a_killed_worker_does_not_stop_it,
    test_a_run_that_crashes_as_it_teaches_is_retried_and_asks_for_what_is_missing,
)
from tests.drills.operations.test_operations import (
    test_a_cancelled_run_cancels_its_training_and_a_cancelled_training_its_run,
    test_a_signed_webhook_ends_in_a_release,
    test_a_student_that_is_rejected_or_forgotten_is_not_released,
    test_a_student_waits_for_approval_with_no_process_and_is_released_with_who_and_why,
    test_nights_are_skipped_then_real_then_incremental_and_missed_ones_are_made_up_for_once,
    test_two_runs_of_one_recipe_at_once_pay_once,
)
from tests.postgres import PostgresServer

pytestmark = pytest.mark.drill

__all__ = [
    "test_a_cancelled_run_cancels_its_training_and_a_cancelled_training_its_run",
    "test_a_killed_training_is_gone_on_with_and_a_killed_worker_does_not_stop_it",
    "test_a_run_that_crashes_as_it_teaches_is_retried_and_asks_for_what_is_missing",
    "test_a_signed_webhook_ends_in_a_release",
    "test_a_student_that_is_rejected_or_forgotten_is_not_released",
    "test_a_student_waits_for_approval_with_no_process_and_is_released_with_who_and_why",
    "test_nights_are_skipped_then_real_then_incremental_and_missed_ones_are_made_up_for_once",
    "test_two_runs_of_one_recipe_at_once_pay_once",
]


@pytest.fixture(scope="module")
def scene(stage: Callable[..., AbstractContextManager[Scene]], postgres: PostgresServer) -> Iterator[Scene]:
    prefect = postgres.new_prefect_database()
    with stage(
        latency_ms=100, PREFECT_API_DATABASE_CONNECTION_URL=prefect, POTSTILL_LEDGER=postgres.new_database()
    ) as scene:
        yield scene
