"""Processes that share a ledger, one thread in truth: whose turn it is, how late everything comes, and who is killed when
is drawn from a seed, so that each schedule can be had again.

A process acts on the world by commits and by requests only. Killed between two callbacks, or in a commit, it is killed at
every place where that makes a difference.
"""

import asyncio
import heapq
import random
from collections import Counter
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor, Future
from functools import partial
from itertools import count
from typing import Any, Literal

KillKind = Literal["in a callback", "before a commit", "after a commit", "as a request left", "as a reply came"]
MOST_STEPS = 50_000
STALL_SHARE = 0.002
LONGEST_STALL_SECONDS = 3.0


class Killed(BaseException):
    """SIGKILL within a transaction."""


class World:
    """The clock, what is on its way, and the processes."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.now = 0.0
        self.processes: list[Process] = []
        self.steps = 0
        self._failures: list[str] = []
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = count()

    def after(self, seconds: float, act: Callable[[], None]) -> None:
        """Have something happen, whoever lives then."""
        heapq.heappush(self._events, (self.now + seconds, next(self._numbers), act))

    def expect(self, holds: bool, otherwise: str) -> None:
        """An assertion from within a process, whose own code would take it for an error of its own."""
        if not holds:
            self._failures.append(otherwise)

    def run(self) -> None:
        """Until nothing is left to happen.

        Errors: `AssertionError` for a schedule that goes on and on, and for what a process was not expected to do.
        """
        while (upcoming := self._upcoming()) is not None:
            self.steps += 1
            assert self.steps < MOST_STEPS, "it never ends"
            self.now = max(self.now, upcoming)
            turns: list[Callable[[], None]] = [p.step for p in self.processes if p.wakes_at() <= self.now]
            if self._events and self._events[0][0] <= self.now:
                turns.append(self._happen)
            self.random.choice(turns)()
            assert not self._failures, self._failures[0]

    def bury(self) -> None:
        """Dispose of all coroutines. What their last words ask for is done by nobody."""
        for process in self.processes:
            process.loop.bury()

    def _upcoming(self) -> float | None:
        moments = [process.wakes_at() for process in self.processes]
        moments += [self._events[0][0]] if self._events else []
        earliest = min(moments, default=float("inf"))
        return None if earliest == float("inf") else earliest

    def _happen(self) -> None:
        heapq.heappop(self._events)[2]()


class Loop(asyncio.BaseEventLoop):
    """An event loop that runs one callback when it is told to, and whose time is the world's."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world
        self.set_exception_handler(self._note)

    def time(self) -> float:
        return self._world.now

    def wakes_at(self) -> float:
        """When it has a callback to run; infinity where none is planned."""
        while self._scheduled and self._scheduled[0].cancelled():
            heapq.heappop(self._scheduled)
        if self._ready:
            return self._world.now
        return self._scheduled[0].when() if self._scheduled else float("inf")

    def step(self) -> None:
        while self._scheduled and self._scheduled[0].when() <= self._world.now:
            self._ready.append(heapq.heappop(self._scheduled))
        handle = self._ready.popleft()
        if not handle.cancelled():
            asyncio._set_running_loop(self)
            try:
                handle._run()
            finally:
                asyncio._set_running_loop(None)

    def bury(self) -> None:
        asyncio._set_running_loop(self)
        try:
            while tasks := [task for task in asyncio.all_tasks(self) if task._log_destroy_pending]:
                for task in tasks:
                    task._log_destroy_pending = False
                    task.get_coro().close()
        finally:
            asyncio._set_running_loop(None)

    def _note(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """What is found out when a killed process is disposed of is no news."""
        self._world.expect("handle" not in context, f"{context['message']}: {context.get('exception')!r}")

    def _write_to_self(self) -> None:
        """There is no selector to wake."""


class Thread(Executor):
    """The ledger's thread: what it is given is done in order, and both its doing and its result are late."""

    def __init__(self, process: "Process") -> None:
        self._process = process
        self._world = process.world
        self._jobs: list[tuple[Future[Any], Callable[[], Any]]] = []

    def submit(self, function: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self._jobs.append((future, lambda: function(*arguments, **named)))
        if len(self._jobs) == 1:
            self._world.after(self._lateness(), self._work)
        return future

    def _lateness(self) -> float:
        return self._world.random.choice([0.0, 0.001, 0.02]) * self._world.random.random()

    def _work(self) -> None:
        if not self._process.is_alive:
            return
        future, job = self._jobs[0]
        if not future.set_running_or_notify_cancel():
            self._next()
            return
        try:
            result = job()
        except Killed:
            self._process.die()
        except AssertionError:
            raise
        except Exception as error:  # noqa: BLE001 - as a thread pool does
            self._world.after(self._lateness(), partial(self._deliver, future.set_exception, error))
        else:
            self._world.after(self._lateness(), partial(self._deliver, future.set_result, result))

    def _deliver(self, tell: Callable[[Any], None], outcome: Any) -> None:
        if not self._process.is_alive:
            return
        tell(outcome)
        self._next()

    def _next(self) -> None:
        del self._jobs[0]
        if self._jobs:
            self._world.after(self._lateness(), self._work)


class Process:
    """One life of an owner.

    Args:
        world: where it lives.
        kills: after how many occasions of a kind it is killed; the first that comes counts.
        on_death: told once it is dead, with the kind; nothing of its own runs any more.
    """

    def __init__(
        self, world: World, kills: dict[KillKind, int], on_death: Callable[["Process", KillKind], None]
    ) -> None:
        self.world = world
        self.loop = Loop(world)
        self.thread = Thread(self)
        self.is_alive = True
        self.waits: Counter[str] = Counter()
        """Where its tasks waited when it was killed."""
        self._kills = kills
        self._on_death = on_death
        self._seen: Counter[KillKind] = Counter()
        self._doom: KillKind | None = None
        self._stalled_until = 0.0
        self._main: asyncio.Task[None] | None = None
        world.processes.append(self)

    def start(self, main: Coroutine[Any, Any, None]) -> None:
        """Run it, and expect no error of it."""
        self._main = self.loop.create_task(main)

    def run_besides(self, coroutine: Coroutine[Any, Any, None]) -> None:
        self._besides = self.loop.create_task(coroutine)

    def wakes_at(self) -> float:
        return max(self.loop.wakes_at(), self._stalled_until) if self.is_alive else float("inf")

    def step(self) -> None:
        self.loop.step()
        if self.world.random.random() < STALL_SHARE:
            self._stalled_until = self.world.now + LONGEST_STALL_SECONDS * self.world.random.random()
        if self._main is not None and self._main.done():
            self._main.result()
        self.meet("in a callback")
        if self._doom is not None:
            self.die()

    def meet(self, kind: KillKind) -> None:
        """An occasion to be killed; it happens when the callback that runs is over."""
        self._seen[kind] += 1
        if self._doom is None and self._kills.get(kind) == self._seen[kind]:
            self._doom = kind

    def meet_in_a_transaction(self, kind: KillKind) -> None:
        """The same within what the ledger's thread does. Errors: `Killed`."""
        self.meet(kind)
        if self._doom is not None:
            raise Killed

    def meet_from_outside(self, kind: KillKind) -> None:
        """The same while nothing of it runs."""
        self.meet(kind)
        if self._doom is not None:
            self.die()

    def die(self) -> None:
        if not self.is_alive:
            return
        assert self._doom is not None
        self.is_alive = False
        self.waits.update(_place(task) for task in asyncio.all_tasks(self.loop))
        self._on_death(self, self._doom)

    def end(self) -> None:
        """It ends by itself."""
        self.is_alive = False


def _place(task: asyncio.Task[Any]) -> str:
    """The innermost coroutine of the project that a task waits in."""
    coroutine: Any = task.get_coro()
    place = coroutine.__qualname__
    while coroutine is not None and hasattr(coroutine, "cr_await"):
        if "potstill" in coroutine.cr_code.co_filename.split("/"):
            place = coroutine.__qualname__
        coroutine = coroutine.cr_await
    return place
