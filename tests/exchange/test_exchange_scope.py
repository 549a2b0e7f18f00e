"""A request in its connection's scope ends as one in its own does, whatever ends it and whenever."""

from __future__ import annotations

from contextlib import nullcontext

import msgspec
import pytest
import trio
from exchange_world import JSON, SSE, Answer, Client, World, forever, guarding, inbound
from trio.testing import MockClock

from slotd.errors import ServerStopping, SlotdError
from slotd.exchange.inbound import ClientGone, Inbound

STOPPING = ServerStopping("slotd is shutting down")
STREAM = inbound()
DOCUMENT = inbound(b'{"model":"m"}')


async def story(world: World, request: Inbound, at: float, *, entered: bool) -> tuple[object, ...]:
    """What came of a request that is ended at a time: its answer, what was raised, its record."""
    client, raised = Client(), ""
    scope = trio.CancelScope()
    request = msgspec.structs.replace(request, scope=scope, scope_entered=entered)

    async def carry() -> None:
        nonlocal raised
        try:
            await world.exchange.run(request, client)
        except (SlotdError, ClientGone) as error:
            raised = type(error).__name__

    async with guarding(world.exchange), trio.open_nursery() as nursery:

        async def serve() -> None:
            with scope if entered else nullcontext():
                await carry()

        nursery.start_soon(serve)
        await trio.sleep(at)
        world.records.end_all(STOPPING)
    assert world.held == [], "a lease leaked"
    assert world.records.live_count == 0
    assert all(answer.ended for answer in world.used), "a connection leaked"
    (record,) = world.finished
    return client.status, client.body, raised, record.outcome, record.error, record.replays


def worlds() -> list[tuple[str, Inbound, World]]:
    def done(kind: tuple[bytes, bytes], *chunks: bytes) -> Answer:
        answer = Answer(*chunks, 1000.0, kind=kind)
        if kind is JSON:
            answer.length = 2
        return answer

    return [
        ("queued", STREAM, World(chat=[forever])),
        ("queued document", DOCUMENT, World(chat=[forever])),
        ("granted late", STREAM, World(Answer(b"data: 1\n\n", 1000.0, kind=SSE), chat=[3.0, None])),
        ("no first byte", STREAM, World(Answer(b"", kind=SSE, delay_s=1000))),
        ("no first byte of a document", DOCUMENT, World(Answer(b"{}", delay_s=1000))),
        ("half a frame", STREAM, World(Answer(b"data: 1\n\ndata: 2", 1000.0, kind=SSE))),
        ("all said", STREAM, World(done(SSE, b"data: 1\n\ndata: [DONE]\n\n"))),
        ("half a document", DOCUMENT, World(done(JSON, b"{"))),
        ("a whole document", DOCUMENT, World(done(JSON, b"{}"))),
        ("over", DOCUMENT, World(Answer(b"{}"))),
    ]


@pytest.mark.parametrize("at", [0.0, 0.5, 4.0, 8.0, 12.0])
@pytest.mark.parametrize("case", range(len(worlds())), ids=[name for name, *_ in worlds()])
async def test_both_scopes_tell_the_same_story(case: int, at: float, autojump_clock: MockClock) -> None:
    """Ended by slotd, by a stall before that (from 5 s on), or not at all."""
    told = []
    for entered in (False, True):
        _, request, world = worlds()[case]
        told.append(await story(world, request, at, entered=entered))
    assert told[0] == told[1]
