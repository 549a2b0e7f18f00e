"""An engine that is lost before it has answered costs the client nothing but time."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import trio
from exchange_world import (
    JSON,
    POLICY,
    SSE,
    Answer,
    Chunk,
    Client,
    World,
    error_of,
    events_of,
    inbound,
    last_error,
    run,
)
from trio.testing import MockClock

from slotd.dispatch import Route, SlotTarget, UpstreamTarget
from slotd.errors import (
    RouteStale,
    ServerStopping,
    SlotCrashLooping,
    SlotQueueTimeout,
    UpstreamUnavailable,
)
from slotd.events import Event
from slotd.exchange.stall import LATE_S
from slotd.slot.backend import Abilities
from slotd.slot.state import Fault
from slotd.wire.broken import Broken
from slotd.wire.http1 import BadResponse, ConnectFailed, UpstreamBroken

REFUSED = ConnectFailed("refused")
BROKE = UpstreamBroken("the engine closed the connection", bytes_received=False)
CHATTY: list[Chunk] = [4.0, b": on and on\n\n"]
WHOLE = inbound(b'{"model":"m"}')


def chat(*words: str) -> list[bytes]:
    """A chat's stream, event by event."""
    common = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    deltas: list[dict[str, str]] = [{"role": "assistant", "content": ""}, *({"content": w} for w in words)]
    chunks = [{**common, "choices": [{"index": 0, "delta": d, "finish_reason": None}]} for d in deltas]
    chunks.append({**common, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    chunks.append({**common, "choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": len(words)}})
    return [*(b"data: " + json.dumps(c).encode() + b"\n\n" for c in chunks), b"data: [DONE]\n\n"]


@pytest.mark.parametrize("first", [REFUSED, BROKE, Answer(BROKE), Answer(BROKE, kind=SSE)])
async def test_an_engine_that_is_lost_before_a_byte_is_replaced(
    autojump_clock: MockClock, first: Answer | Exception
) -> None:
    world, client = World(first, Answer(b'{"ok":1}')), Client()
    await trio.sleep(5)
    record = await run(world, client, WHOLE)
    assert (client.status, client.body) == (200, b'{"ok":1}')
    assert (record.outcome, record.error, record.replays) == ("ok", None, 1)
    again = world.asked[1]
    assert again.replay
    assert not world.asked[0].replay
    assert again.since == world.asked[0].since == record.began, "it keeps its place by its first arrival"
    assert world.released[0] == ("chat", "req-1", False), "the old lease is given back first"
    with (
        trio.fail_after(1),
        world.bus.subscribe(after=0, match=lambda e: e.kind == "request.replayed") as seen,
    ):
        event = await anext(seen)
    assert isinstance(event, Event)
    assert (event.slot, event.data["id"], event.data["replays"]) == ("chat", "req-1", 1)


@pytest.mark.parametrize("reason", ["exited", "killed", "unloaded", "hung", "actor_crashed"])
async def test_whatever_the_engine_died_of(reason: str) -> None:
    world, client = World(BROKE, Answer(b"{}")), Client()
    world.fate.seal(Fault(reason, "it is gone"))
    assert (await run(world, client)).replays == 1
    assert client.status == 200


async def test_it_is_sent_again_so_often_and_no_more(autojump_clock: MockClock) -> None:
    world, client = World(REFUSED, REFUSED, REFUSED, Answer(b"too late")), Client()
    record = await run(world, client)
    assert (client.status, error_of(client)["code"], record.replays) == (502, "slot.engine_lost", 2)
    assert len(world.asked) == 3


async def test_each_attempt_begins_from_nothing(autojump_clock: MockClock) -> None:
    """Neither half a frame nor half an assembly of the lost engine gets into the next one's answer."""
    world, client = World(Answer(b"data: ha", BROKE, kind=SSE), Answer(b"data: 1\n\n", kind=SSE)), Client()
    assert (await run(world, client)).replays == 1
    assert client.body == b"data: 1\n\n"

    first = Answer(*chat("half", "an")[:3], BROKE, kind=SSE)
    world, client = World(first, Answer(*chat("whole"), kind=SSE)), Client()
    world.abilities = Abilities("assemble")
    record = await run(world, client, WHOLE)
    assert json.loads(client.body)["choices"][0]["message"]["content"] == "whole"
    assert (record.replays, record.tokens_out) == (1, 1)


async def test_a_stream_that_ends_too_early_is_a_lost_engine(autojump_clock: MockClock) -> None:
    """An engine that dies may end its chunked body properly."""
    world, client = World(Answer(*chat("half")[:2], kind=SSE), Answer(*chat("whole"), kind=SSE)), Client()
    world.abilities = Abilities("assemble")
    assert (await run(world, client, WHOLE)).replays == 1
    assert json.loads(client.body)["choices"][0]["message"]["content"] == "whole"


async def test_the_head_of_an_assembled_answer_tells_the_whole_time(autojump_clock: MockClock) -> None:
    head, *rest = chat("whole")
    world, client = World(Answer(head, 4.0, *rest, kind=SSE)), Client()
    world.abilities = Abilities("assemble")
    record = await run(world, client, WHOLE)
    assert record.first_byte_s is not None
    assert record.first_byte_s < 1
    assert float(client.headers[b"server-timing"].rpartition(b"dur=")[2]) >= 4000


async def test_nothing_is_said_between_the_parts_of_an_answer(autojump_clock: MockClock) -> None:
    policy = replace(POLICY, heartbeat_after_s=1.0, heartbeat_every_s=1.0)
    slow: list[Chunk] = [4.5, b"data: 1\n\n", 4.5, b"data: 2\n\n"]
    world, client = World(BROKE, Answer(*slow, kind=SSE), policy=policy), Client()
    await run(world, client)
    *told, one, two = events_of(client)
    assert told == [": slotd: chat is working on it"] * 4
    assert (one, two) == ("data: 1", "data: 2")


async def test_after_the_first_byte_it_is_over(autojump_clock: MockClock) -> None:
    world, client = World(Answer(b"data: 1\n\n", BROKE, kind=SSE)), Client()
    record = await run(world, client)
    assert (last_error(client)["code"], record.replays) == ("slot.engine_lost", 0)


async def test_nonsense_is_not_asked_for_twice(autojump_clock: MockClock) -> None:
    world, client = World(BadResponse("not HTTP")), Client()
    assert (await run(world, client)).replays == 0
    assert client.status == 502

    world, client = World(Answer(b"data: {]\n\n", kind=SSE)), Client()
    world.abilities = Abilities("assemble")
    assert (await run(world, client, WHOLE)).replays == 0
    assert client.status == 502


@pytest.mark.parametrize("refusal", [SlotCrashLooping("parked", retry_after_s=60), ServerStopping("bye")])
async def test_what_the_slot_says_then_is_the_answer(autojump_clock: MockClock, refusal: Exception) -> None:
    world, client = World(BROKE, chat=[None, refusal]), Client()
    record = await run(world, client)
    assert (client.status, record.error) == (503, getattr(refusal, "code"))  # noqa: B009 # of either kind


async def test_past_its_deadline_it_is_told_what_happened(autojump_clock: MockClock) -> None:
    world, client = World(BROKE, chat=[None, SlotQueueTimeout("waited")]), Client()
    world.fate.seal(Fault("exited", "killed by the kernel"))
    record = await run(world, client)
    assert (client.status, record.error) == (502, "slot.engine_lost")


async def test_a_swap_in_between_is_a_stale_route(autojump_clock: MockClock) -> None:
    world, client = World(BROKE, Answer(b"{}"), chat=[None, RouteStale("swapped")]), Client()
    record = await run(world, client)
    assert (client.status, record.replays) == (200, 1)
    assert [ask.replay for ask in world.asked] == [False, True, True]


async def test_the_next_generation_serves_what_the_lost_one_listed(autojump_clock: MockClock) -> None:
    listed = Route(SlotTarget("chat"), "m", "m", 2, "list", slot_model="m", generation=1)
    world, client = World(BROKE, Answer(b"{}"), route=listed), Client()
    assert (await run(world, client)).replays == 1
    assert client.status == 200


@pytest.mark.parametrize("error", [Broken("gone"), UpstreamUnavailable("refused")])
async def test_a_remote_is_asked_once(error: Exception) -> None:
    """What it has done with the request is not known."""
    world = World(error, Answer(b"{}"), route=Route(UpstreamTarget("far"), "m", "m", 2, "catalog"))
    client = Client()
    assert (await run(world, client)).replays == 0
    assert client.status == 502


async def test_the_whole_of_an_answer_counts_from_the_first_attempt(autojump_clock: MockClock) -> None:
    bits: list[Chunk] = [4.0, b"half a frame"]
    slow = [Answer(*bits * 9, BROKE, kind=SSE) for _ in range(3)]
    world, client = World(*slow, policy=replace(POLICY, heartbeat_after_s=0)), Client()
    record = await run(world, client)
    assert (client.status, record.error) == (504, "slot.stalled")
    assert 0 <= trio.current_time() - POLICY.stall.total_s <= LATE_S


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (Answer(b"data: 1\n\n", 1000.0, kind=SSE), True),
        (Answer(b"{}", delay_s=1000), True),
        (Answer(*CHATTY * 100, kind=SSE), False),
    ],
)
async def test_a_stall_is_told_to_the_slot(autojump_clock: MockClock, answer: Answer, told: bool) -> None:
    """Silence, not that an answer is long."""
    world, client = World(answer), Client()
    record = await run(world, client)
    assert record.error == "slot.stalled"
    assert world.stalls == ([("chat", "req-1")] if told else [])
    assert record.replays == 0


async def test_a_stall_of_a_remote_is_nobodys(autojump_clock: MockClock) -> None:
    route = Route(UpstreamTarget("far"), "m", "m", 2, "catalog")
    world, client = World(Answer(1000.0, kind=JSON), route=route), Client()
    await run(world, client)
    assert (client.status, world.stalls) == (504, [])
