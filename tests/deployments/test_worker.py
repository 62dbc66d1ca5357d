"""Prefect's worker goes on looking for cancellations while its server is away; its private parts that we rely on are there."""

import asyncio
import inspect

import httpx
import pytest
from prefect._internal import observers

from deployments.worker import look_on_after_outages


def test_a_worker_looks_for_cancellations_however_often_its_server_does_not_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    failing, looks = 9, 0

    class AnsweredError(Exception):
        pass

    async def look() -> None:
        nonlocal looks
        looks += 1
        if looks > failing:
            raise AnsweredError
        raise httpx.ConnectError("nobody is there")

    monkeypatch.setattr(observers, "critical_service_loop", observers.critical_service_loop)
    with pytest.raises(RuntimeError, match="exceeded error threshold"):
        asyncio.run(observers.critical_service_loop(workload=look, interval=0.001))
    look_on_after_outages()
    with pytest.raises(AnsweredError):
        asyncio.run(observers.critical_service_loop(workload=look, interval=0.001))
    assert looks == failing + 1


def test_cancellations_are_looked_for_in_the_loop_that_is_replaced() -> None:
    source = inspect.getsource(observers.FlowRunCancellingObserver)
    assert source.count("critical_service_loop(") == source.count("workload=self._check_for_cancelled_flow_runs") == 2
