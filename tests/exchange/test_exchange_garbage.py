"""What a request leaves: nothing that only the garbage collector takes away, least of all its body."""

from __future__ import annotations

import gc
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress

import httpx
import pytest
import trio
from exchange_world import SSE, Answer, Chunk, Client, World, again, guarding, inbound
from trio.testing import MockClock

from slotd.comfy.beside import beside
from slotd.errors import NoRouteFound, SlotdError, SlotQueueFull, SpawnFailed
from slotd.exchange.inbound import Inbound, Outbound
from slotd.exchange.policy import Fallbacks, Policy
from slotd.exchange.remote import Remote, RemoteTransport
from slotd.gateway.connection import _pump
from slotd.slot.lease import Lease
from slotd.wire.broken import UpstreamBroken
from slotd.wire.fields import Fields

FALLBACK = Policy(fallbacks={"chat": Fallbacks(("small",), 1.0)})
EVENT: Chunk = b'data: {"x":1}\n\n'


def full() -> SlotQueueFull:
    return SlotQueueFull("full", retry_after_s=1)


def broke() -> UpstreamBroken:
    return UpstreamBroken("the engine closed the connection", bytes_received=False)


# Made in each test: what is raised and kept keeps what it passed through.
WORLDS: dict[str, Callable[[], World]] = {
    "answered": lambda: World(Answer(b"{}")),
    "no route": lambda: World(route=[NoRouteFound("nobody has it")]),
    "queue full": lambda: World(chat=[full()]),
    "load failed": lambda: World(chat=[1.0, SpawnFailed("gone")]),
    "nor can the fallback": lambda: World(policy=FALLBACK, chat=[full()], small=[full()]),
    "replayed": lambda: World(broke(), Answer(b"{}")),
    "engine lost for good": lambda: World(broke(), broke(), broke()),
    "broken off": lambda: World(Answer(b"{", broke())),
    "cut": lambda: World(Answer(EVENT, broke(), kind=SSE)),
    "invalid": lambda: World(),
}
BODIES = {"cut": b'{"model":"m","stream":true}', "invalid": b"{"}


@pytest.fixture
def _no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def left() -> int:
    """How many requests there are still, bodies and all."""
    return sum(isinstance(thing, Inbound) for thing in gc.get_objects())


@pytest.mark.usefixtures("_no_collector")
@pytest.mark.parametrize("how", WORLDS)
async def test_a_request_that_is_over_is_gone(autojump_clock: MockClock, how: str) -> None:
    world, before = WORLDS[how](), left()
    request = again(inbound(BODIES.get(how, b'{"model":"m"}')))
    async with guarding(world.exchange):
        with suppress(SlotdError):  # half an answer is broken off
            await world.exchange.run(request, Client())
        del request
    assert left() == before
    assert len(world.finished) == 1


@pytest.mark.usefixtures("_no_collector")
@pytest.mark.parametrize("whole", [True, False])
async def test_nor_does_one_to_a_remote_leave_its_body(whole: bool) -> None:
    def requests() -> int:
        return sum(isinstance(thing, httpx.Request) for thing in gc.get_objects())

    async def ask() -> None:
        response = await transport.request(b"POST", b"/v1/chat/completions", Fields(), b"a body")
        if whole:
            assert await response.receive_some() == b"{}"
            assert await response.receive_some() == b""
            assert response.complete
        else:
            await response.aclose()

    answer = httpx.MockTransport(lambda request: httpx.Response(200, stream=Pieces()))
    async with httpx.AsyncClient(transport=answer) as http:
        transport, before = RemoteTransport(http, Remote("lab", "http://lab/v1", {}, 5.0)), requests()
        await ask()
        assert requests() == before


class Pieces(httpx.AsyncByteStream):
    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield b"{}"


class Kept:
    """Something large that a task has."""


@pytest.mark.usefixtures("_no_collector")
async def test_what_fails_beside_a_helper_is_let_go() -> None:
    async def fail() -> None:
        await trio.lowlevel.checkpoint()
        raise ValueError("it failed")

    async def ask() -> weakref.ref[Kept]:
        kept = Kept()
        with suppress(ValueError):
            await beside(trio.sleep_forever, fail)
        return weakref.ref(kept)

    assert (await ask())() is None


@pytest.mark.usefixtures("_no_collector")
async def test_an_answer_of_the_other_lane_that_breaks_off_is_let_go() -> None:
    class Cut:
        async def run(self, request: Inbound, out: Outbound) -> None:
            out.start(200, ())
            raise SlotdError("half an answer")

    async def ask() -> dict[str, BaseException]:
        sender, receiver = trio.open_memory_channel[bytes](0)
        outcome: dict[str, BaseException] = {}
        async with trio.open_nursery() as nursery:
            await nursery.start(_pump, Cut(), inbound(), sender, outcome, 1.0)
            receiver.close()
        return outcome

    before = left()
    assert str((await ask())["error"]) == "half an answer"
    assert left() == before


async def test_a_lease_is_noted_before_it_is_taken() -> None:
    """Whatever becomes of the taking, it is given back."""

    class Faulty(World):
        def take(self, slot: str, lease_id: str, model: str = "") -> Lease | None:
            self.held.append(lease_id)
            raise RuntimeError("a bug behind the turnstile")

    world, client = Faulty(), Client()
    async with guarding(world.exchange):
        await world.exchange.run(again(inbound(b'{"model":"m"}')), client)
    assert client.status == 500
    assert [(slot, id) for slot, id, _ in world.released] == [("chat", "req-1")]
