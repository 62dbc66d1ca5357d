"""A running teacher: one event loop, one client, one limiter and one cap for a whole run, in a thread of its own.

Any number of threads may hand it batches at once.
"""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from decimal import Decimal
from types import TracebackType
from typing import Any, Self, TypeVar

from potstill.ledger import Ledger
from potstill.llm.client import ChatClient
from potstill.llm.retrying import RetryPolicy
from potstill.teacher.asking import Asker
from potstill.teacher.outcome import BatchReport, Step
from potstill.teacher.plan import PlannedAnswer, TeachPlan

T = TypeVar("T")


class TeacherSession:
    """A context manager; `answer` blocks its caller, not the others.

    Args:
        budget_usd: the cap of the plan's run over all its resumptions; None for none.
        policy: when one request is asked again.

    Errors: those of `Asker.answer`, and `NotAuthorisedError` at once for a key that is missing or another host's.
    """

    def __init__(
        self, plan: TeachPlan, ledger: Ledger, budget_usd: Decimal | None = None, policy: RetryPolicy | None = None
    ) -> None:
        teacher = plan.teacher
        self._client = ChatClient(
            teacher.provider,
            teacher.base_url,
            api_key_env=teacher.api_key_env,
            headers=teacher.headers,
            api_version=teacher.api_version,
            concurrency=teacher.concurrency,
            timeout_seconds=teacher.timeout_seconds,
        )
        self._ledger = ledger
        self._asker = Asker(plan, ledger, self._client, budget_usd, policy or RetryPolicy())
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="teacher-session", daemon=True)

    def __enter__(self) -> Self:
        self._ledger.close_orphans()
        self._thread.start()
        self._submit(self._client.__aenter__()).result()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._submit(self._end()).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def answer(self, batch: Sequence[PlannedAnswer], on_step: Callable[[Step], None] | None = None) -> BatchReport:
        """Ask for what the ledger does not hold of this batch, and wait; an interrupted caller stops its requests."""
        future = self._submit(self._asker.answer(batch, on_step or (lambda _: None)))
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def cancel(self) -> None:
        """Stop all that is being asked, for whichever caller, once it has closed its row in the ledger."""
        self._submit(self._cancel()).result()

    async def _cancel(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _end(self) -> None:
        await self._cancel()
        await self._client.__aexit__(None, None, None)

    def _submit(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)
