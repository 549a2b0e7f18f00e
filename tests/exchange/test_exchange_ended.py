"""Requests that are ended from outside, by an operator or because slotd stops: none is cut without a word."""

from __future__ import annotations

import pytest
import trio
from exchange_world import (
    JSON,
    SSE,
    Answer,
    Client,
    World,
    error_of,
    events_of,
    forever,
    inbound,
    last_error,
    run,
)
from trio.testing import MockClock

from slotd.errors import ServerStopping, SlotdError
from slotd.exchange.record import RecordBook, RequestRecord
from slotd.omni.child import Child

STOPPING = ServerStopping("slotd is shutting down")


async def ended(world: World, client: Client, request: object = None, at: float = 1.0) -> list[str]:
    """Run a request that is ended at a time; the codes of what it raises."""
    raised: list[str] = []

    async def ask() -> None:
        try:
            await run(world, client, request)  # type: ignore[arg-type] # an Inbound or None
        except SlotdError as error:
            raised.append(error.code)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await trio.sleep(at)
        world.records.end_all(STOPPING)
    return raised


async def test_a_stream_ends_with_an_event(autojump_clock: MockClock) -> None:
    world, client = World(Answer(b"data: 1\n\ndata: ha", 1000.0, kind=SSE)), Client()
    assert await ended(world, client) == []
    assert events_of(client)[0] == "data: 1"
    assert last_error(client)["code"] == "server.stopping"
    record = world.finished[0]
    assert (record.outcome, record.error) == ("error", "server.stopping")


async def test_one_that_is_being_answered_with_nothing_yet_is_told(autojump_clock: MockClock) -> None:
    world, client = World(Answer(b"{}", delay_s=1000)), Client()
    assert await ended(world, client, inbound(b"{}")) == []
    assert (client.status, error_of(client)["code"]) == (503, "server.stopping")


async def test_one_that_waits_and_has_heard_so_is_told(autojump_clock: MockClock) -> None:
    world, client = World(chat=[forever]), Client()
    assert await ended(world, client, at=12.0) == []
    assert events_of(client)[0] == ": slotd: chat is about to start"
    assert last_error(client)["code"] == "server.stopping"


async def test_half_a_document_is_broken_off(autojump_clock: MockClock) -> None:
    world, client = World(Answer(b'{"half', 1000.0, kind=JSON)), Client()
    assert await ended(world, client) == ["server.stopping"]
    assert client.body == b'{"half'


async def test_one_that_has_its_answer_is_left_alone(autojump_clock: MockClock) -> None:
    """Nothing comes after the end, though the upstream has not closed yet."""
    world, client = World(Answer(b"data: 1\n\ndata: [DONE]\n\n", 1000.0, kind=SSE)), Client()
    assert await ended(world, client) == []
    assert client.body.endswith(b"data: [DONE]\n\n")
    assert (world.finished[0].outcome, world.finished[0].error) == ("ok", None)


async def test_one_that_comes_later_is_told_at_once(autojump_clock: MockClock) -> None:
    world, client = World(Answer(b"{}", delay_s=1000)), Client()
    assert world.records.end_all(STOPPING) == 0
    await run(world, client)
    assert (client.status, error_of(client)["code"]) == (503, "server.stopping")
    assert world.sent == []


async def test_the_first_cause_stands() -> None:
    book = RecordBook(10, lambda record: None)
    record = RequestRecord("r", "/", "", 0.0, 0.0)
    book.open(record)
    assert book.cancel("r")
    book.end_all(STOPPING)
    assert record.cause is not None
    assert record.cause.code == "request.cancelled"
    assert not book.cancel("another")


@pytest.mark.parametrize("at", [0.0, 0.5, 1.0, 2.0, 11.0, 16.0])
async def test_at_any_time_it_gives_everything_back(autojump_clock: MockClock, at: float) -> None:
    world, client = World(Answer(b"data: 1\n\n", 1000.0, kind=SSE), chat=[15.0, None]), Client()
    await ended(world, client, at=at)
    assert b"server.stopping" in client.body


async def test_a_child_that_its_parent_has_no_more_time_for_is_an_error(autojump_clock: MockClock) -> None:
    """A tool that runs late: its client has not gone, and its record must not say so."""
    world = World(Answer(b"{}", delay_s=1000), Answer(b"{}", delay_s=1000))
    child = Child(world.exchange, inbound(b"{}"))
    with trio.move_on_after(5):
        await child.post_json("req-1.1.a", "/v1/chat/completions", {})
    assert [(r.outcome, r.error) for r in world.finished] == [("error", "slot.stalled")]
    with trio.CancelScope() as left, trio.move_on_after(50):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(child.post_json, "req-1.1.b", "/v1/chat/completions", {})
            await trio.sleep(1)
            left.cancel()
    assert [(r.outcome, r.error) for r in world.finished[1:]] == [("client_gone", None)]
