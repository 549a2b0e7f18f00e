"""Clients that wait: what streams are told meanwhile, and how long a client is ready to."""

from __future__ import annotations

from dataclasses import replace

import pytest
import trio
from exchange_world import (
    JSON,
    POLICY,
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
from trio.testing import MockClock, wait_all_tasks_blocked

from slotd.capability.endpoints import ENDPOINTS
from slotd.dispatch import Route, UpstreamTarget
from slotd.errors import SlotCrashLooping, SlotLoading
from slotd.exchange.heartbeat import can_stream, what_it_waits_for
from slotd.exchange.inbound import ClientGone
from slotd.slot.state import Fault, SlotSnapshot, SlotState
from slotd.wire.http1 import UpstreamBroken

BROKE = UpstreamBroken("the engine closed the connection", bytes_received=False)


def stream(*chunks: bytes) -> Answer:
    return Answer(*chunks, kind=SSE)


async def test_a_stream_that_waits_long_is_told_why(autojump_clock: MockClock) -> None:
    world, client = World(stream(b"data: 1\n\n"), chat=[27.0, None]), Client()
    world.show("chat", state=SlotState.PULLING, model="smollm2", progress=(43_000_000, 93_000_000))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run, world, client)
        await trio.sleep(21)
        assert client.status == 200
        assert client.headers[b"content-type"] == b"text/event-stream"
        assert client.headers[b"x-slotd-route"] == b"slot:chat; tier=1; rule=slot name"
        assert client.headers[b"x-request-id"] == b"req-1"
        world.show("chat", state=SlotState.STARTING, progress=None)
    assert events_of(client) == [
        ": slotd: chat is pulling smollm2, 43 of 93 MB",
        ": slotd: chat is pulling smollm2, 43 of 93 MB",
        ": slotd: chat is pulling smollm2, 43 of 93 MB",
        ": slotd: chat is starting",
        "data: 1",
    ]
    assert client.times == pytest.approx([10, 15, 20, 25, 27])
    assert (world.finished[0].outcome, world.finished[0].bytes_out) == ("ok", len(b"data: 1\n\n"))


async def test_who_is_served_in_time_hears_nothing(autojump_clock: MockClock) -> None:
    world, client = World(stream(b"data: 1\n\n"), chat=[9.9, None]), Client()
    await run(world, client)
    assert client.body == b"data: 1\n\n"
    # A long silence of an engine that has the request is the stall guard's.
    world, client = World(Answer(b"data: 1\n\n", kind=SSE, delay_s=9.0)), Client()
    await run(world, client)
    assert client.body == b"data: 1\n\n"


@pytest.mark.parametrize(
    "request_",
    [
        inbound(b'{"model":"m"}'),
        inbound(b'{"model":"m","stream":false}'),
        inbound(b'{"model":"m","stream":true}', "/v1/embeddings"),
        inbound(b'{"model":"m","stream":true}', "/v1/messages/count_tokens"),
    ],
)
async def test_what_is_no_stream_only_waits(autojump_clock: MockClock, request_: object) -> None:
    world, client = World(Answer(b"{}"), chat=[100.0, None]), Client()
    await run(world, client, request_)  # type: ignore[arg-type] # of parametrize
    assert (client.body, client.headers[b"content-type"]) == (b"{}", b"application/json")


async def test_heartbeats_can_be_off(autojump_clock: MockClock) -> None:
    policy = replace(POLICY, heartbeat_after_s=0)
    world, client = World(stream(b"data: 1\n\n"), chat=[100.0, None], policy=policy), Client()
    await run(world, client)
    assert client.body == b"data: 1\n\n"


def test_the_paths_that_stream() -> None:
    assert {path for path, endpoint in ENDPOINTS.items() if can_stream(endpoint)} == {
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/responses",
        "/v1/messages",
        "/infill",
    }


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
async def test_a_refusal_after_that_is_an_event(autojump_clock: MockClock, path: str) -> None:
    world, client = World(chat=[12.0, SlotCrashLooping("parked", retry_after_s=29.5)]), Client()
    record = await run(world, client, inbound(path=path))
    assert client.status == 200
    error = last_error(client)
    assert error["code"] == "slot.crash_looping"
    assert error["details"]["retry_after_s"] == 30, "it cannot be a header any more"
    assert (record.outcome, record.error, record.status) == ("error", "slot.crash_looping", 200)


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (Answer(b'{ "error": {"code": 400,\n', b'"message": "too long"}}', status=400), "too long"),
        (Answer(b"<html>oops", status=500), "the engine answered 500 and no event stream: <html>oops"),
        (Answer(b'{"choices": []}'), 'the engine answered 200 and no event stream: {"choices": []}'),
        (Answer(status=204), "the engine answered 204 and no event stream"),
        (
            Answer(b"data: x\n\n", status=503, kind=SSE),
            "the engine answered 503 and no event stream: data: x",
        ),
    ],
)
async def test_an_engines_own_error_after_that_is_an_event(
    autojump_clock: MockClock, answer: Answer, told: str
) -> None:
    world, client = World(answer, chat=[12.0, None]), Client()
    record = await run(world, client)
    assert last_error(client)["message"] == told
    assert (client.status, record.outcome, record.error) == (200, "error", "engine.error")


async def test_an_engine_dies_and_its_client_hears_of_it_till_the_next_one_speaks(
    autojump_clock: MockClock,
) -> None:
    world, client = (
        World(BROKE, Answer(b"data: 1\n\n", kind=SSE, delay_s=9), chat=[None, 32.0, None]),
        Client(),
    )
    world.show("chat", state=SlotState.STARTING)
    record = await run(world, client)
    frames = events_of(client)
    assert frames == [": slotd: chat is starting"] * 5 + [": slotd: chat is working on it"] * 2 + ["data: 1"]
    assert client.times[:6] == pytest.approx([10.25, 15.25, 20.25, 25.25, 30.25, 35.25])
    assert (record.outcome, record.replays) == ("ok", 1)


async def test_who_leaves_while_it_is_told_something_leaves_nothing(autojump_clock: MockClock) -> None:
    world = World(chat=[forever])
    with pytest.raises(ClientGone):
        await run(world, Client(reads=False))
    assert world.finished[0].outcome == "client_gone"


@pytest.mark.parametrize("at", [0.0, 5.0, 10.0, 12.0, 15.0, 30.0, 31.0])
async def test_cancelled_at_any_time_it_gives_everything_back(autojump_clock: MockClock, at: float) -> None:
    world, client = World(Answer(b"data: 1\n\n", 1.0, kind=SSE), chat=[30.0, None]), Client()
    with trio.move_on_after(at):
        await run(world, client)
    assert world.held == []


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"state": SlotState.OFFLINE}, "chat is about to start"),
        (
            {"state": SlotState.OFFLINE, "blocked": "waits for memory: 3 GB\nmore"},
            "chat waits for memory: 3 GB\nmore",
        ),
        ({"state": SlotState.PULLING, "model": "m"}, "chat is pulling m"),
        ({"state": SlotState.PULLING, "progress": (7_900_000, None)}, "chat is pulling its model, 7 MB"),
        ({"state": SlotState.WARMING}, "chat is starting"),
        ({"state": SlotState.UNLOADING}, "chat is stopping its last engine"),
        ({"state": SlotState.ERROR, "fault": Fault("exited", "it ended")}, "chat is in error: it ended"),
        (
            {"state": SlotState.SERVING, "leases": 4, "max_parallel": 4, "queued": 1},
            "chat is serving 4 of 4 requests",
        ),
        (
            {"state": SlotState.SERVING, "leases": 4, "max_parallel": 4, "queued": 4},
            "chat is serving 4 of 4 requests, 3 more waiting",
        ),
    ],
)
def test_what_is_waited_for_in_words(facts: dict[str, object], words: str) -> None:
    assert what_it_waits_for(replace(SlotSnapshot("chat", "llm", "x", SlotState.READY), **facts)) == words  # type: ignore[arg-type] # any field


async def test_a_comment_is_one_line_whatever_it_says(autojump_clock: MockClock) -> None:
    world, client = World(stream(b"data: 1\n\n"), chat=[11.0, None]), Client()
    world.show("chat", blocked="waits\n\ndata: for \r\n memory")
    await run(world, client)
    assert events_of(client)[0] == ": slotd: chat waits data: for memory"


# --- X-Slotd-Wait ------------------------------------------------------------------------

LOADING = SlotLoading("slot 'chat' is starting", retry_after_s=8)


async def test_a_client_that_waits_not_at_all(autojump_clock: MockClock) -> None:
    world, client = World(chat=[LOADING]), Client()
    await run(world, client, inbound(headers={"x-slotd-wait": "0"}))
    assert (client.status, error_of(client)["code"]) == (503, "slot.loading")
    assert client.headers[b"retry-after"] == b"8"
    assert [ask.wait for ask in world.asked] == [False]


async def test_a_client_that_waits_so_long_and_no_longer(autojump_clock: MockClock) -> None:
    world, client = World(chat=[forever, LOADING]), Client()
    record = await run(world, client, inbound(headers={"x-slotd-wait": "7.5"}))
    assert (client.status, client.headers[b"retry-after"]) == (503, b"8")
    assert [(ask.wait, ask.at) for ask in world.asked] == [(True, 0), (False, 7.5)]
    assert world.released[0] == ("chat", "req-1", True), "the load goes on without it"
    assert (record.wait_s, record.error) == (7.5, "slot.loading")


async def test_its_patience_is_for_waiting_only(autojump_clock: MockClock) -> None:
    """The time that a lost engine took is not counted."""
    slow = Answer(4.0, BROKE)
    world, client = World(slow, Answer(b"{}"), chat=[2.0, None, 2.5, None]), Client()
    record = await run(world, client, inbound(headers={"x-slotd-wait": "5"}))
    assert (client.status, record.replays, record.wait_s) == (200, 1, 4.5)
    world, client = World(Answer(4.0, BROKE), chat=[2.0, None, forever, LOADING]), Client()
    record = await run(world, client, inbound(headers={"x-slotd-wait": "5"}))
    assert (client.status, record.error, record.wait_s) == (503, "slot.loading", 5)


async def test_its_patience_holds_for_streams_that_are_told_something(autojump_clock: MockClock) -> None:
    world, client = World(chat=[forever, LOADING]), Client()
    await run(world, client, inbound(headers={"x-slotd-wait": "12"}))
    assert last_error(client)["code"] == "slot.loading"


@pytest.mark.parametrize("header", ["x-slotd-wait", "x-slotd-priority"])
@pytest.mark.parametrize("value", ["", "soon", "-1.5", "1e3", "101.5.5", "\u0661", "9999999"])
async def test_what_cannot_be_meant_is_refused(header: str, value: str) -> None:
    world, client = World(), Client()
    await run(world, client, inbound(headers={header: value}))
    error = error_of(client)
    assert (client.status, error["code"]) == (400, "request.invalid")
    assert error["param"].lower() == header
    assert not world.asked


@pytest.mark.parametrize(
    ("header", "key", "priority"),
    [
        (None, None, 0),
        ("7", None, 7),
        ("-100", None, -100),
        ("+3", None, 3),
        (None, 5, 5),
        ("9", 5, 5),
        ("-9", 5, -9),
        (None, -5, -5),
        ("0", -5, -5),
    ],
)
async def test_a_priority_is_asked_for_and_bounded_by_the_key(
    header: str | None, key: int | None, priority: int
) -> None:
    world = World(Answer(b"{}"))
    headers = {} if header is None else {"x-slotd-priority": header}
    record = await run(world, Client(), inbound(headers=headers, key_priority=key))
    assert world.asked[0].priority == record.priority == record.as_dict()["priority"] == priority


async def test_wishes_are_for_slotd_alone() -> None:
    """A remote has no slot to wait for; the header is checked all the same and does not travel on."""
    world = World(Answer(b"{}", kind=JSON), route=Route(UpstreamTarget("far"), "m", "m", 2, "c"))
    record = await run(world, Client(), inbound(headers={"x-slotd-wait": "0"}))
    assert record.outcome == "ok"


async def test_the_word_of_the_slot_reaches_a_waiting_client_at_once(autojump_clock: MockClock) -> None:
    world, client = World(chat=[3.0, SlotCrashLooping("parked")]), Client()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run, world, client)
        await wait_all_tasks_blocked()
    assert (client.status, client.times) == (503, [3.0])
