"""A provider that bills as it likes within what a request may cost, loses replies, and counts its true bill."""

import asyncio
import json
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import aiohttp

from potstill.llm.client import Attempt, ChatClient
from potstill.llm.endpoint import open_endpoint
from tests.fake_teacher import MARK, PRICE
from tests.teacher.simulation.world import Process, World

PICO_A_TOKEN = (int(PRICE.input_per_million * 10**6), int(PRICE.output_per_million * 10**6))
URL = "http://127.0.0.1:9/v1"
"""Nobody asks there."""
TIMEOUT_SECONDS = 20.0
REFUSED = "this prompt is refused"

Fault = Literal[
    "429",
    "500",
    "no connection",
    "reset before it was billed",
    "reset after it was billed",
    "lost with its process",
    "malformed",
    "empty",
    "without usage",
    "hangs before it is billed",
    "hangs after it was billed",
    "late",
]
FAULTS: tuple[Fault, ...] = get_args(Fault)
UNBILLED = {"429", "500", "no connection", "reset before it was billed", "hangs before it is billed"}
UNREADABLE = {"malformed", "without usage"}


class Traits(NamedTuple):
    """What one schedule's provider is like."""

    fault_share: float
    latency_seconds: float
    """The mean."""
    dearest_share: float
    """Of the requests, so many cost all that they may."""


class Request(NamedTuple):
    mark: str
    run: str
    month: str | None
    process: Process
    body: bytes


class Provider:
    """Bills at arrival.

    Args:
        bill: what it has billed, in pico-dollars by account.
        on_arrival: told after each arrival.
        may_cross: whether two living owners may ask the same at once, as where one is wrongly taken for dead.
    """

    def __init__(
        self, world: World, traits: Traits, bill: Counter[str], on_arrival: Callable[[], None], *, may_cross: bool
    ) -> None:
        self.requests = 0
        self.bill = bill
        self.readable: defaultdict[str, list[int]] = defaultdict(list)
        """What each reply that came whole said it cost, by the mark of its prompt."""
        self.arrivals: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self._world = world
        self._traits = traits
        self._on_arrival = on_arrival
        self._may_cross = may_cross
        self._asking: dict[str, Process] = {}

    async def ask(self, request: Request) -> tuple[int, bytes, dict[str, str]]:
        """The reply. Errors: those of the network."""
        other = self._asking.get(request.mark)
        crossed = other is not None and other.is_alive
        self._world.expect(self._may_cross or not crossed, f"{request.mark} is in flight twice")
        self._asking[request.mark] = request.process
        request.process.meet("as a request left")
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                return await self._send(request)
        finally:
            if self._asking.get(request.mark) is request.process:
                del self._asking[request.mark]

    def _send(self, request: Request) -> "asyncio.Future[tuple[int, bytes, dict[str, str]]]":
        reply = request.process.loop.create_future()
        draw = self._world.random
        fault = draw.choice(FAULTS) if draw.random() < self._traits.fault_share else None
        latency = draw.expovariate(1 / self._traits.latency_seconds) + (TIMEOUT_SECONDS if fault == "late" else 0.0)
        there = latency * draw.random()
        if fault == "no connection":
            self._deliver_later(there, request, reply, aiohttp.ConnectionTimeoutError("scripted"))
            return reply

        def arrive() -> None:
            if fault == "lost with its process" and not request.process.is_alive:
                return
            self._deliver_later(latency - there, request, reply, self._serve(request, fault))

        self._world.after(there, arrive)
        return reply

    def _serve(self, request: Request, fault: Fault | None) -> Any:
        """Bill a request that has arrived, and return its reply, an error, or None for nothing."""
        self.requests += 1
        self.arrivals[request.mark] += 1
        is_refused = REFUSED in request.body.decode()
        if fault is not None:
            self.faults[fault] += 1
        if is_refused and fault not in UNBILLED:
            fault, reply = None, (400, b'{"error": {"message": "scripted refusal"}}', {})
        elif fault in UNBILLED:
            reply = {"429": (429, b"{}", {"retry-after": "0.5"}), "500": (500, b"{}", {})}.get(fault or "")
            reply = aiohttp.ClientOSError("reset") if fault == "reset before it was billed" else reply
        else:
            reply = self._bill(request, fault)
        self._on_arrival()
        return reply

    def _bill(self, request: Request, fault: Fault | None) -> Any:
        draw = self._world.random
        most = (len(request.body), json.loads(request.body)["max_tokens"])
        used = most if draw.random() < self._traits.dearest_share else tuple(draw.randint(0, limit) for limit in most)
        cost = sum(tokens * price for tokens, price in zip(used, PICO_A_TOKEN, strict=True))
        for account in filter(None, (request.run, request.month)):
            self.bill[account] += cost
        if fault == "reset after it was billed":
            return aiohttp.ClientOSError("reset")
        if fault == "hangs after it was billed":
            return None
        if fault == "malformed":
            return (200, b"{not json", {})
        text = "" if fault == "empty" else f"answer to {request.mark}"
        choice = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        usage = {"prompt_tokens": used[0], "completion_tokens": used[1]}
        body = {"choices": [choice], **({} if fault == "without usage" else {"usage": usage})}
        return (200, json.dumps(body).encode(), {} if fault in UNREADABLE else {"cost": str(cost)})

    def _deliver_later(self, seconds: float, request: Request, reply: "asyncio.Future[Any]", outcome: Any) -> None:
        def deliver() -> None:
            if not request.process.is_alive or reply.done() or outcome is None:
                return
            request.process.meet_from_outside("as a reply came")
            if not request.process.is_alive:
                return
            if isinstance(outcome, Exception):
                reply.set_exception(outcome)
                return
            if cost := outcome[2].get("cost"):
                self.readable[request.mark].append(int(cost))
            reply.set_result(outcome)

        self._world.after(seconds, deliver)


class Client(ChatClient):
    """The real one up to the wire and from it on: what lies between is the provider above."""

    def __init__(self, provider: Provider, process: Process, account: tuple[str, str | None]) -> None:
        super().__init__(open_endpoint("openai_compatible", URL), timeout_seconds=TIMEOUT_SECONDS)
        self._theirs = provider
        self._process = process
        self._account = account
        self._last: dict[asyncio.Task[Any] | None, str] = {}

    async def ask(self, body: bytes) -> Attempt:
        found = MARK.search(json.loads(body)["messages"][-1]["content"])
        assert found is not None
        self._last[asyncio.current_task()] = found.group()
        try:
            reply = await self._theirs.ask(Request(found.group(), *self._account, self._process, body))
        except OSError as error:
            return self._unsent(error) or self._lost(error)
        return self._read(*reply)

    def last_mark(self) -> str:
        """What the task that runs has asked last."""
        return self._last[asyncio.current_task()]
