"""What a slot and the arbiter say to one another, seen from the slot."""

from __future__ import annotations

import dataclasses

import pytest
from slot_world import SPEC, World

from slotd.errors import GpuExclusive, OutOfMemory
from slotd.process.plan import ExitStatus
from slotd.slot import effects as fx
from slotd.slot import messages as ev
from slotd.slot.machine import Check, Room

W = fx.Word
NONE_LEFT = GpuExclusive("an image model has the GPU", retry_after_s=60)


def up(world: World, *held: str) -> World:
    world.ask(ev.Load("load"))
    world.come_up()
    for id in held:
        world.acquire(id)
    return world


def test_nothing_starts_without_room_and_who_leaves_takes_the_wish_along() -> None:
    world = World()
    world.acquire("a")
    world.acquire("b")
    assert world.asked == 1
    assert world.state == "offline"
    for id in ("a", "b"):
        world.open.discard(id)
        world.send(ev.Release(id))
    assert world.told == [W.WITHDRAW]
    assert world.asked is None


def test_room_is_asked_for_when_the_model_is_here_not_while_it_comes() -> None:
    world = World(present=False)
    world.acquire("a")
    assert world.state == "pulling"
    assert world.asked is None
    world.pull_step("done")
    assert world.asked == 1
    world.come_up()
    assert world.granted == ["a"]


def test_no_room_is_told_to_all_who_wait_and_is_no_fault() -> None:
    world = World()
    world.acquire("a")
    world.ask(ev.Load("l"))
    world.arbiter_step(deny=True)
    assert all(isinstance(world.refused[id], OutOfMemory) for id in ("a", "l"))
    assert world.state == "offline"
    world.acquire("b")
    assert world.asked == 2, "asked anew, not refused out of hand"


def test_quiet_it_leaves_when_asked_and_in_use_it_stays() -> None:
    world = up(World(), "a")
    world.send(ev.Leave(1, "others"))
    assert W.STAYS in world.told
    world.release("a")
    world.send(ev.Leave(1, "others"))
    assert world.state == "unloading"
    world.end()
    assert world.told[-1] is W.GONE
    assert world.state == "offline"


def test_pinned_it_stays() -> None:
    world = up(World(dataclasses.replace(SPEC, pinned=True)))
    world.send(ev.Leave(1, "others", drain=True))
    assert world.told[-1] is W.STAYS
    assert world.state == "ready"


def test_contended_it_says_when_it_has_been_quiet_for_its_hold() -> None:
    world = up(World(), "a")
    world.send(ev.Contended(True))
    world.pass_time(5)
    assert W.QUIET not in world.told
    world.release("a")
    world.pass_time(0.9)
    world.acquire("b")
    world.pass_time(5)
    assert W.QUIET not in world.told, "back in use within its hold"
    world.release("b")
    world.pass_time(1.1)
    assert world.told.count(W.QUIET) == 1
    world.pass_time(9)
    assert world.told.count(W.QUIET) == 1, "said once for each quiet time"


def test_drained_it_lets_those_finish_whom_it_serves_and_keeps_those_who_wait() -> None:
    world = up(World(), "a", "b", "c")
    assert world.held == {"a", "b"}
    world.send(ev.Leave(1, "others wait too long", drain=True))
    world.release("a")
    assert "c" in world.open, "no further lease"
    world.pass_time(20)
    world.release("b")
    assert world.state == "unloading"
    world.end()
    assert world.told[-1] is W.GONE
    assert world.asked == 2, "for the one who waits"
    world.come_up()
    assert "c" in world.granted


def test_driven_out_it_refuses_those_who_wait_and_who_come_and_cuts_the_rest() -> None:
    world = up(World(), "a", "b", "c")
    world.send(ev.Leave(1, "image mode", drain=True, refusal=NONE_LEFT, cut_after_s=5))
    assert world.refused["c"] is NONE_LEFT
    world.acquire("d")
    assert world.refused["d"] is NONE_LEFT
    world.pass_time(4.9)
    assert world.held == {"a", "b"}
    world.pass_time(0.2)
    assert not world.held
    world.end()
    assert world.state == "offline"
    assert world.asked is None


def test_brought_back_it_loads_though_nobody_waits() -> None:
    world = up(World())
    world.send(ev.Leave(1, "others"))
    world.end()
    world.send(ev.ComeBack())
    world.come_up()
    assert world.state == "ready"
    world.pass_time(10)
    assert world.state == "ready", "it is wanted, not abandoned"


def test_a_lost_engine_is_started_again_in_the_room_it_has() -> None:
    world = up(World(), "a")
    world.acquire("b")
    world.acquire("c")
    before = list(world.told)
    world.die(ExitStatus(None, 9))
    assert world.state == "starting"
    assert world.told == before
    assert world.slot.ticket == 1


def test_a_lost_engine_that_nobody_wants_gives_its_room_back() -> None:
    world = up(World())
    world.slot = world.slot.but(wanted=False)
    world.die(ExitStatus(None, 9))
    assert world.told[-1] is W.GONE


def test_a_failed_load_is_told_before_its_room_is_given_back() -> None:
    world = World()
    world.acquire("a")
    world.arbiter_step()
    world.engine_step("start")
    world.die()
    assert world.told == [W.FAILED, W.GONE]


def test_a_back_off_holds_no_room() -> None:
    world = World()
    for _ in range(2):
        world.acquire(world.new_id("r"))
        world.come_up()
        world.acquire("waits", since=0.0)
        world.die(ExitStatus(None, 11))
        world.open.discard("waits")
        world.send(ev.Release("waits"))
    world.acquire("replayed", since=0.0, replay=True)
    assert world.slot.breaker.blocks(world.now)
    assert world.slot.room is Room.NONE
    world.pass_time(6)
    assert world.asked is not None


def test_another_model_asks_for_room_of_its_own() -> None:
    world = up(World())
    world.ask(ev.Swap("s", "big", present=True))
    world.end()
    assert world.told[-1] is W.GONE
    assert world.asked == 2
    world.come_up()
    assert world.slot.model == "big"


def test_a_new_arbiter_is_told_what_is_held_and_what_is_wished() -> None:
    world = up(World())
    world.send(ev.Resync())
    assert world.told[-1] is W.HOLDING
    waiting = World()
    waiting.acquire("a")
    waiting.asked = None  # the old arbiter took it along
    waiting.send(ev.Resync())
    assert waiting.told == [W.HOLDING]
    assert waiting.asked == 1
    waiting.come_up()
    assert waiting.granted == ["a"]


def test_a_changed_plan_replaces_what_runs_when_its_requests_are_done() -> None:
    world = up(World(), "a")
    world.send(ev.Reconfigure(dataclasses.replace(SPEC, max_queue=1), relaunch=True))
    world.acquire("b")
    world.pass_time(30)
    assert world.held == {"a"}, "what runs may finish"
    assert "b" in world.open
    world.release("a")
    world.end()
    world.come_up()
    assert world.granted == ["a", "b"]
    assert world.slot.generation == 2
    assert world.slot.spec.max_queue == 1


def test_a_plan_that_did_not_change_leaves_the_engine_alone() -> None:
    world = up(World(), "a")
    world.send(ev.Reconfigure(dataclasses.replace(SPEC, ttl_s=7, idle_after_s=3), relaunch=False))
    world.release("a")
    world.pass_time(3.1)
    assert world.state == "idle"
    world.pass_time(7.1)
    assert world.state == "unloading"
    assert world.slot.starts == 1


def test_drift_is_mended_in_a_quiet_moment_only() -> None:
    world = up(World(), "a")
    world.send(ev.Drifted(True))
    world.acquire("b")
    assert world.held == {"a", "b"}
    world.release("a")
    world.release("b")
    assert world.state == "unloading"
    world.end()
    assert world.asked == 2, "it was loaded by hand, so it is loaded again"


@pytest.mark.parametrize("sane", [True, None])
def test_output_is_checked_once_in_a_quiet_moment(sane: bool | None) -> None:
    world = World(dataclasses.replace(SPEC, check_output=True))
    world.acquire("a")
    world.come_up()
    assert not world.checking, "somebody is served"
    world.release("a")
    assert world.checking
    world.acquire("b")
    assert not world.checking, "it gives way"
    world.release("b")
    world.judge(sane)
    assert world.slot.check is (Check.OK if sane else Check.UNKNOWN)
    world.acquire("c")
    world.release("c")
    assert not world.checking


def test_never_quiet_it_is_checked_beside_requests_after_a_minute() -> None:
    world = World(dataclasses.replace(SPEC, check_output=True, max_parallel=2))
    world.acquire("a")
    world.come_up()
    world.pass_time(59)
    assert not world.checking
    world.pass_time(2)
    assert world.checking
    world.acquire("b")
    assert world.checking


def test_garbage_condemns_the_slot_until_something_changes() -> None:
    world = World(dataclasses.replace(SPEC, check_output=True))
    world.ask(ev.Load("l"))
    world.come_up()
    world.judge(False)
    assert world.state == "unloading"
    world.end()
    assert world.state == "error"
    world.now += 100_000
    world.acquire("a")
    assert world.refused["a"].code == "slot.output_sanity_failed"
    assert world.asked is None
    world.ask(ev.Load("again"))
    world.come_up()
    world.acquire("b")
    assert "b" in world.granted
