"""What a request leaves: nothing that only the garbage collector takes away, least of all its body."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest
from exchange_world import SSE, Answer, Chunk, Client, World, again, guarding, inbound
from trio.testing import MockClock

from slotd.errors import NoRouteFound, SlotdError, SlotQueueFull, SpawnFailed
from slotd.exchange.inbound import Inbound
from slotd.exchange.policy import Fallbacks, Policy
from slotd.wire.broken import UpstreamBroken

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
