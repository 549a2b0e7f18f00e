"""One exchange with everything around it faked, its client included."""

from __future__ import annotations

import json
import math
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import msgspec
import trio

from slotd.actor import Reply, Snapshot
from slotd.artifacts import Artifacts
from slotd.capability.endpoints import ENDPOINTS
from slotd.dispatch import Route, SlotTarget
from slotd.events import EventBus
from slotd.exchange.exchange import Exchange
from slotd.exchange.inbound import ClientGone, Headers, Inbound, all_headers
from slotd.exchange.policy import Policy
from slotd.exchange.record import RecordBook, RequestRecord
from slotd.exchange.stall import StallLimits
from slotd.process.plan import Address
from slotd.slot.backend import Abilities
from slotd.slot.lease import Fate, Lease
from slotd.slot.messages import Acquire
from slotd.slot.state import SlotSnapshot, SlotState
from slotd.wire.fields import Fields

JSON = (b"content-type", b"application/json")
SSE = (b"content-type", b"text/event-stream")

Chunk = bytes | Exception | float | Callable[[], None]
Do = None | Exception | float
forever = math.inf

HANGS_S = 10_000.0
"""On virtual time, after which a request will never end."""

POLICY = Policy(stall=StallLimits(10, 5, 60))


@dataclass(frozen=True)
class Ask:
    """What a slot was asked for."""

    slot: str
    id: str
    at: float
    model: str
    wait: bool
    since: float
    priority: int
    replay: bool


class Answer:
    """A scripted response: bytes to give, seconds to wait, errors to raise, things to do.

    ``delay_s``: how long its head takes.
    """

    def __init__(
        self,
        *chunks: Chunk,
        status: int = 200,
        kind: tuple[bytes, bytes] = JSON,
        delay_s: float = 0.0,
    ) -> None:
        self.delay_s = delay_s
        self.chunks = list(chunks)
        self.status = status
        self.headers = Fields([kind])
        self.length: int | None = None
        self.events = kind == SSE
        self.complete = False
        self.ended = False

    def take(self) -> bytes:
        return b""

    async def receive_some(self) -> bytes:
        await trio.lowlevel.checkpoint()
        while self.chunks:
            chunk = self.chunks.pop(0)
            match chunk:
                case bytes():
                    return chunk
                case Exception():
                    try:
                        raise chunk
                    finally:
                        del chunk  # its traceback leads here: tests of garbage want none of ours
                case float():
                    await trio.sleep(chunk)
                case _:
                    chunk()
        return b""

    async def aclose(self) -> None:
        self.ended = True


class _Scripted(Reply[Lease]):
    """A slot's reply: refusals and grants at once, seconds when they have passed."""

    def __init__(self, lease: Callable[[], Lease], todo: list[Do]) -> None:
        super().__init__()
        self._lease, self._todo = lease, todo
        self._seconds = 0.0

    def play(self) -> None:
        while self._todo:
            match self._todo.pop(0):
                case None:
                    break
                case Exception() as refusal:
                    self.refuse(refusal)
                    return
                case seconds:
                    self._seconds = float(seconds)
                    return
        self.answer(self._lease())

    async def wait(self) -> Lease:
        while not self.settled:
            await trio.sleep(self._seconds)
            self.play()
        return await super().wait()


class World:
    """Dispatcher, slot manager, pools and remote of one exchange.

    ``route``: what is resolved, or a list of what is, one after the other.
    ``slots``: what each slot does about the leases asked of it, in turn: None
    grants one, an exception refuses, a number of seconds waits before the next,
    ``forever`` waits for good; with nothing left to do it grants.
    """

    def __init__(
        self,
        *answers: Answer | Exception,
        route: object = None,
        policy: Policy = POLICY,
        **slots: Sequence[Do],
    ) -> None:
        self.answers = list(answers)
        self.used: list[Answer] = []
        self.sent: list[tuple[bytes, bytes]] = []
        self.route = route or Route(SlotTarget("chat"), "m", "m", 1, "slot name", slot_model="m")
        self.fate = Fate()
        self.abilities = Abilities("close")
        self.model_name = ""
        self.slots: dict[str, list[Do]] = {"chat": [], **{name: list(do) for name, do in slots.items()}}
        self.cells = {
            name: Snapshot(SlotSnapshot(name, "llm", "fake", SlotState.OFFLINE, model=f"m-{name}"))
            for name in self.slots
        }
        self.generation = 0
        self.held: list[str] = []
        self.asked: list[Ask] = []
        self.released: list[tuple[str, str, bool]] = []
        self.stalls: list[tuple[str, str]] = []
        self.failures: list[str] = []
        self.finished: list[RequestRecord] = []
        self.records = RecordBook(10, self.finished.append)
        self.bus = EventBus(100)
        self.exchange = Exchange(
            cast(Any, self),
            cast(Any, self),
            lambda name: self,
            self.records,
            lambda: policy,
            self.bus,
            Artifacts().together,
        )

    def show(self, name: str, **facts: Any) -> None:
        """Let a slot publish itself changed."""
        self.cells[name].publish(replace(self.cells[name].value, **facts))

    # dispatcher
    def known(self, model: str | None, path: str) -> Route | None:
        return None

    async def resolve(self, model: str | None, path: str) -> Route:
        await trio.lowlevel.checkpoint()
        route = self.route.pop(0) if isinstance(self.route, list) else self.route
        if isinstance(route, Exception):
            try:
                raise route
            finally:
                del route
        assert isinstance(route, Route)
        return route

    def report_failure(self, name: str) -> None:
        self.failures.append(name)

    # slots
    def take(self, slot: str, lease_id: str, model: str = "") -> Lease | None:
        return None

    def ask_for(self, slot: str, event: Acquire) -> Reply[Lease]:
        """Answers at once what the script lets it, as an actor at rest does."""
        assert event.id not in self.held, "each lease has a name of its own"
        self.held.append(event.id)
        assert event.since is not None
        now = trio.current_time()
        self.asked.append(
            Ask(slot, event.id, now, event.model, event.wait, event.since, event.priority, event.replay)
        )
        reply = _Scripted(partial(self._lease, slot, event.id), self.slots[slot])
        reply.play()
        return reply

    def _lease(self, slot: str, lease_id: str) -> Lease:
        self.generation += 1
        pool = cast(Any, self)
        return Lease(
            lease_id,
            slot,
            self.generation,
            f"m-{slot}",
            self.model_name,
            Address("h", 1),
            pool,
            self.fate,
            self.abilities,
        )

    def release(self, slot: str, lease_id: str, *, keep_load: bool = False) -> None:
        self.held.remove(lease_id)
        self.released.append((slot, lease_id, keep_load))

    def stalled(self, slot: str, lease_id: str) -> None:
        assert lease_id in self.held
        self.stalls.append((slot, lease_id))

    def names(self) -> tuple[str, ...]:
        return tuple(self.slots)

    def cell(self, slot: str) -> Snapshot[SlotSnapshot]:
        return self.cells[slot]

    def snapshot(self, slot: str) -> SlotSnapshot:
        return self.cells[slot].value

    # pool, remote
    async def request(self, method: bytes, target: bytes, headers: object, body: bytes) -> Answer:
        await trio.lowlevel.checkpoint()
        self.sent.append((target, body))
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            try:
                raise answer
            finally:
                del answer
        if answer.delay_s:
            await trio.sleep(answer.delay_s)
        self.used.append(answer)
        return answer


class Client:
    """Reads the answer; ``reads`` False: takes nothing, and is given up on."""

    def __init__(self, *, reads: bool = True) -> None:
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self.body = b""
        self.times: list[float] = []
        self._reads = reads

    def start(self, status: int, headers: Headers, length: int | None = None, own: bytes = b"") -> None:
        assert not self.status, "one head only"
        self.status, self.headers = status, dict(all_headers(headers, length, own))

    async def send(self, data: bytes) -> None:
        assert self.status
        await trio.lowlevel.checkpoint()
        if not self._reads:
            raise ClientGone("nothing was read")
        self.body += data
        self.times.append(trio.current_time())


def inbound(
    body: bytes = b'{"model":"m","stream":true}',
    path: str = "/v1/chat/completions",
    *,
    headers: dict[str, str] | None = None,
    key_priority: int | None = None,
) -> Inbound:
    given = [(k.encode(), v.encode()) for k, v in (headers or {}).items()]
    return Inbound(
        "req-1", "POST", path, b"", Fields(given), body, ENDPOINTS[path], key_priority=key_priority
    )


def again(request: Inbound) -> Inbound:
    """The same request, as another: each is carried once, in a scope of its own."""
    return msgspec.structs.replace(request, scope=trio.CancelScope())


@asynccontextmanager
async def guarding(exchange: Exchange) -> AsyncIterator[None]:
    """The exchange's own task beside what is done with it. Errors come out as they are."""
    failed: Exception | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(exchange.watch)
        try:
            yield
        except Exception as exc:
            failed = exc
        nursery.cancel_scope.cancel()
    if failed is not None:
        raise failed


async def run(world: World, client: Client, request: Inbound | None = None) -> RequestRecord:
    """One request, after which nothing is held, whatever came of it."""
    try:
        async with guarding(world.exchange):
            with trio.fail_after(HANGS_S):
                await world.exchange.run(again(request or inbound()), client)
    finally:
        assert world.held == [], "a lease leaked"
        assert world.records.live_count == 0
        assert all(answer.ended for answer in world.used), "a connection leaked"
    (record,) = world.finished
    return record


def error_of(client: Client) -> Any:
    return json.loads(client.body)["error"]


def events_of(client: Client) -> list[str]:
    """What came, frame by frame; comments and data in their order."""
    assert client.body.endswith(b"\n\n")
    return client.body.decode().removesuffix("\n\n").split("\n\n")


def last_error(client: Client) -> Any:
    """The error of the event that ends a stream."""
    *_, last = events_of(client)
    assert last.startswith("event: error\ndata: ")
    return json.loads(last.partition("data: ")[2])["error"]
