"""Another slot answers in a slot's place: when, which, and how that is told."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import trio
from exchange_world import (
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

from slotd.dispatch import Route, SlotTarget, UpstreamTarget
from slotd.errors import (
    GpuExclusive,
    OutOfMemory,
    OutputSanityFailed,
    RouteStale,
    ServerStopping,
    SlotCrashLooping,
    SlotdError,
    SlotLoadFailed,
    SlotLoading,
    SlotQueueFull,
    SlotQueueTimeout,
    SlotStopped,
)
from slotd.exchange.fallback import can_answer_now, model_for
from slotd.exchange.policy import Fallbacks
from slotd.slot.state import SlotSnapshot, SlotState
from slotd.wire.http1 import UpstreamBroken

WITH = replace(POLICY, fallbacks={"chat": Fallbacks(("small", "tiny"), 5.0)})
ASK = inbound(b'{"model":"m"}')
LOADING = SlotLoading("slot is busy", retry_after_s=2)


def free(world: World, *names: str) -> None:
    for name in names:
        world.show(name, state=SlotState.READY, models=(f"listed-{name}",), max_parallel=4)


async def test_who_has_waited_goes_to_one_that_is_free(autojump_clock: MockClock) -> None:
    world, client = World(Answer(b"{}"), policy=WITH, chat=[forever], small=[], tiny=[]), Client()
    free(world, "small", "tiny")
    record = await run(world, client, ASK)
    assert trio.current_time() == 5
    route = client.headers[b"x-slotd-route"]
    assert route == b"slot:small; tier=1; rule=slot name; fallback-for=chat"
    assert (record.target, record.target_model) == ("slot:small", "m-small")
    assert (record.fallback_from, record.fallback_error, record.wait_s) == ("chat", None, 5)
    assert record.as_dict()["fallback_from"] == "chat"
    first, second = world.asked
    assert (first.slot, first.wait, second.slot, second.wait, second.model) == (
        "chat",
        True,
        "small",
        False,
        "",
    )
    assert world.released[0] == ("chat", "req-1", True), "the load that it waited for goes on"
    assert json.loads(world.sent[0][1])["model"] == "listed-small"


async def test_who_is_served_in_time_stays(autojump_clock: MockClock) -> None:
    world, client = World(Answer(b"{}"), policy=WITH, chat=[4.9, None], small=[], tiny=[]), Client()
    free(world, "small", "tiny")
    record = await run(world, client, ASK)
    assert (record.target, record.fallback_from) == ("slot:chat", "")
    assert b"fallback" not in client.headers[b"x-slotd-route"]
    assert world.sent[0][1] == ASK.body


async def test_at_once_means_the_slot_first(autojump_clock: MockClock) -> None:
    """With no time at all to wait, a slot that is just about to serve still serves."""
    policy = replace(WITH, fallbacks={"chat": Fallbacks(("small",), 0.0)})
    world, client = World(Answer(b"{}"), policy=policy, chat=[0.1, None], small=[]), Client()
    free(world, "chat", "small")
    assert (await run(world, client, ASK)).target == "slot:chat"
    world, client = World(Answer(b"{}"), policy=policy, chat=[0.1, None], small=[]), Client()
    free(world, "small")
    assert (await run(world, client, ASK)).target == "slot:small"


async def test_the_first_that_can_is_taken(autojump_clock: MockClock) -> None:
    world, client = World(Answer(b"{}"), policy=WITH, chat=[forever], small=[LOADING], tiny=[]), Client()
    free(world, "small", "tiny")
    world.show("small", leases=4)
    assert (await run(world, client, ASK)).target == "slot:tiny"
    assert [ask.slot for ask in world.asked] == ["chat", "tiny"], "who is busy is not even asked"
    # One that looked free and is not:
    world, client = World(Answer(b"{}"), policy=WITH, chat=[forever], small=[LOADING], tiny=[]), Client()
    free(world, "small", "tiny")
    assert (await run(world, client, ASK)).target == "slot:tiny"


async def test_one_that_becomes_free_later_is_taken_then(autojump_clock: MockClock) -> None:
    world, client = World(Answer(b"{}"), policy=WITH, chat=[forever], small=[], tiny=[]), Client()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run, world, client, ASK)
        await trio.sleep(30)
        assert [ask.slot for ask in world.asked] == ["chat"], "it waits for a change and does not poll"
        free(world, "tiny")
        await wait_all_tasks_blocked()
    assert world.finished[0].target == "slot:tiny"
    assert trio.current_time() == 30


async def test_the_slot_may_still_win(autojump_clock: MockClock) -> None:
    world, client = World(Answer(b"{}"), policy=WITH, chat=[20.0, None], small=[], tiny=[]), Client()
    record = await run(world, client, ASK)
    assert (record.target, record.fallback_from, record.wait_s) == ("slot:chat", "", 20)


@pytest.mark.parametrize(
    "refusal",
    [
        SlotCrashLooping("parked"),
        SlotLoadFailed("no such file"),
        OutOfMemory("never fits"),
        SlotQueueFull("full"),
        GpuExclusive("painting"),
        OutputSanityFailed("garbage"),
    ],
)
async def test_a_slot_that_cannot_sends_it_on_at_once(autojump_clock: MockClock, refusal: SlotdError) -> None:
    world, client = World(Answer(b"{}"), policy=WITH, chat=[refusal], small=[], tiny=[]), Client()
    free(world, "small")
    record = await run(world, client, ASK)
    assert (client.status, trio.current_time()) == (200, 0)
    assert (record.fallback_from, record.fallback_error, record.error) == ("chat", refusal.code, None)


@pytest.mark.parametrize(
    "refusal", [SlotQueueTimeout("late"), SlotStopped("unloaded"), ServerStopping("bye")]
)
async def test_other_refusals_are_the_answer(autojump_clock: MockClock, refusal: SlotdError) -> None:
    world, client = World(policy=WITH, chat=[refusal], small=[], tiny=[]), Client()
    free(world, "small")
    record = await run(world, client, ASK)
    assert (record.error, record.fallback_from) == (refusal.code, "")
    assert [ask.slot for ask in world.asked] == ["chat"]


async def test_where_the_slot_cannot_a_fallback_is_worth_waiting_for(autojump_clock: MockClock) -> None:
    world = World(Answer(b"{}"), policy=WITH, chat=[SlotCrashLooping("parked")], small=[40.0, None], tiny=[])
    record = await run(world, Client(), ASK)
    assert (record.target, record.wait_s) == ("slot:small", 40)
    assert [(ask.slot, ask.wait) for ask in world.asked] == [("chat", True), ("small", True)]


async def test_while_it_waits_for_one_another_may_take_it(autojump_clock: MockClock) -> None:
    world = World(Answer(b"{}"), policy=WITH, chat=[SlotCrashLooping("parked")], small=[forever], tiny=[])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run, world, Client(), ASK)
        await trio.sleep(8)
        free(world, "tiny")
    assert world.finished[0].target == "slot:tiny"
    assert trio.current_time() == 8


async def test_if_all_fail_the_first_error_is_the_answer(autojump_clock: MockClock) -> None:
    world = World(
        policy=WITH,
        chat=[SlotCrashLooping("parked", retry_after_s=60)],
        small=[SlotLoadFailed("no file")],
        tiny=[OutOfMemory("too big")],
    )
    client = Client()
    record = await run(world, client, ASK)
    assert (client.status, error_of(client)["code"]) == (503, "slot.crash_looping")
    assert client.headers[b"retry-after"] == b"60"
    assert (record.error, record.fallback_error) == ("slot.crash_looping", "slot.crash_looping")
    assert (record.fallback_from, record.target) == ("", "slot:chat")


async def test_the_fallbacks_of_a_fallback_are_not_followed(autojump_clock: MockClock) -> None:
    policy = replace(
        POLICY, fallbacks={"chat": Fallbacks(("small",), 5.0), "small": Fallbacks(("chat", "tiny"), 0.0)}
    )
    world = World(policy=policy, chat=[OutOfMemory("a")], small=[OutOfMemory("b")], tiny=[])
    client = Client()
    free(world, "tiny")
    await run(world, client, ASK)
    assert [ask.slot for ask in world.asked] == ["chat", "small"]
    assert client.status == 507


async def test_a_fallback_that_was_removed_is_none(autojump_clock: MockClock) -> None:
    world = World(Answer(b"{}"), policy=WITH, chat=[forever], tiny=[])
    free(world, "tiny")
    assert (await run(world, Client(), ASK)).target == "slot:tiny"


async def test_a_client_without_patience_gets_what_is_there(autojump_clock: MockClock) -> None:
    none = inbound(b"{}", headers={"x-slotd-wait": "0"})
    world, client = World(Answer(b"{}"), policy=WITH, chat=[LOADING], small=[], tiny=[]), Client()
    free(world, "tiny")
    assert (await run(world, client, none)).target == "slot:tiny"
    world, client = World(policy=WITH, chat=[LOADING], small=[forever], tiny=[]), Client()
    await run(world, client, none)
    assert error_of(client)["code"] == "slot.loading"


async def test_streams_hear_of_it_if_their_head_is_out(autojump_clock: MockClock) -> None:
    world = World(Answer(b"data: 1\n\n", kind=SSE, delay_s=7), policy=WITH, chat=[forever], small=[], tiny=[])
    client = Client()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run, world, client)
        await trio.sleep(12)
        free(world, "small")
    assert events_of(client) == [
        ": slotd: chat is about to start",
        ": slotd: small, in place of chat, is working on it",
        "data: 1",
    ]
    world = World(policy=WITH, chat=[12.0, OutOfMemory("a")], small=[OutOfMemory("b")], tiny=[LOADING])
    client = Client()
    await run(world, client)
    assert last_error(client)["code"] == "slot.out_of_memory"


async def test_an_engine_lost_in_its_place_is_replayed_too(autojump_clock: MockClock) -> None:
    broke = UpstreamBroken("gone", bytes_received=False)
    world = World(broke, Answer(b"{}"), policy=WITH, chat=[OutOfMemory("a"), None], small=[], tiny=[])
    free(world, "small")
    record = await run(world, Client(), ASK)
    assert [(ask.slot, ask.replay) for ask in world.asked] == [
        ("chat", False),
        ("small", False),
        ("chat", True),
    ]
    assert (record.target, record.fallback_from, record.fallback_error) == ("slot:chat", "", None)
    assert world.sent[1][1] == ASK.body, "the name is as the slot itself needs it again"


async def test_a_stale_route_forgets_the_fallback(autojump_clock: MockClock) -> None:
    broke = UpstreamBroken("gone", bytes_received=False)
    routes = [
        Route(SlotTarget("chat"), "m", "m", 1, "slot name", slot_model="m"),
        Route(UpstreamTarget("far"), "m", "m", 2, "catalog"),
    ]
    chat = [OutOfMemory("a"), RouteStale("swapped")]
    world = World(broke, Answer(b"{}"), policy=WITH, route=routes, chat=chat, small=[], tiny=[])
    free(world, "small")
    record = await run(world, Client(), ASK)
    assert (record.target, record.fallback_from, record.replays) == ("upstream:far", "", 1)


async def test_both_at_the_same_moment_keep_one(autojump_clock: MockClock) -> None:
    """Whichever lease counts, the other is given back (``run`` looks)."""
    for _ in range(20):
        world = World(Answer(b"{}"), policy=WITH, chat=[5.0, None], small=[], tiny=[])
        free(world, "small")
        record = await run(world, Client(), ASK)
        assert record.target in ("slot:chat", "slot:small")


@pytest.mark.parametrize("at", [0, 4, 5, 6, 20, 25, 26])
async def test_cancelled_at_any_time_everything_is_given_back(autojump_clock: MockClock, at: float) -> None:
    world = World(
        Answer(b"{}", delay_s=2), policy=WITH, chat=[6.0, OutOfMemory("a")], small=[20.0, None], tiny=[]
    )
    with trio.move_on_after(at):
        await run(world, Client(), ASK)
    assert world.held == []


async def test_a_binding_that_renames_does_not_name_the_fallbacks_model(autojump_clock: MockClock) -> None:
    route = Route(SlotTarget("chat"), "renamed", "m", 1, "binding", slot_model="m")
    world = World(Answer(b"{}"), policy=WITH, route=route, chat=[OutOfMemory("a")], small=[], tiny=[])
    free(world, "small")
    await run(world, Client(), ASK)
    assert json.loads(world.sent[0][1])["model"] == "listed-small"


def test_the_name_that_a_fallback_reads() -> None:
    assert model_for("m", ("a", "b"), "served") == "a"
    assert model_for("b", ("a", "b"), "served") == ""
    assert model_for("m", (), "served") == "served"
    assert model_for(None, ("a",), "served") == ""


@pytest.mark.parametrize(
    ("facts", "able"),
    [
        ({"state": SlotState.READY}, True),
        ({"state": SlotState.IDLE}, True),
        ({"state": SlotState.SERVING, "leases": 3}, True),
        ({"state": SlotState.SERVING, "leases": 4}, False),
        ({"state": SlotState.SERVING, "queued": 1}, False),
        ({"state": SlotState.SERVING, "draining": True}, False),
        ({"state": SlotState.WARMING}, False),
        ({"state": SlotState.ERROR}, False),
    ],
)
def test_who_can_answer_at_once(facts: dict[str, object], able: bool) -> None:
    slot = SlotSnapshot("s", "llm", "x", SlotState.OFFLINE, max_parallel=4)
    assert can_answer_now(replace(slot, **facts)) is able  # type: ignore[arg-type] # any field
