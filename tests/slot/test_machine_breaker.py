"""The crash-loop breaker: what failures cost, and what sets them right."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st
from slot_world import SPEC, World

from slotd.errors import SlotCrashLooping, SlotLoadFailed
from slotd.process.plan import ExitStatus
from slotd.slot import messages as ev
from slotd.slot.breaker import PARKED, pause_after
from slotd.slot.state import Fault

BAD_FILE = (
    "gguf_init_from_file_ptr: invalid magic characters: 'oops', expected 'GGUF'",
    "error loading model",
)
KILLED = ExitStatus(None, 9)


def fails(world: World, id: str, log: tuple[str, ...] = ()) -> None:
    world.acquire(id)
    world.arbiter_step()
    world.engine_step("start")
    world.die(log=log)
    assert isinstance(world.refused[id], SlotLoadFailed)


@given(st.integers(0, 1000))
def test_pauses_grow_to_an_hour_and_the_first_failure_costs_nothing(failures: int) -> None:
    assert pause_after(0) == pause_after(1) == 0
    assert [pause_after(n) for n in (2, 3, 4)] == [5, 10, 20]
    assert pause_after(PARKED) == 300
    assert 0 <= pause_after(failures) <= pause_after(failures + 1) <= 3600


def test_the_second_failure_in_a_row_makes_a_pause_in_which_refusals_cost_nothing() -> None:
    world = World()
    fails(world, "a")
    fails(world, "b")
    before = world.slot
    world.now += 2
    world.acquire("c")
    error = world.refused["c"]
    assert isinstance(error, SlotCrashLooping)
    assert error.retry_after_s == pytest.approx(3)
    assert error.details["failures"] == 2
    assert world.slot.but(deadlines=before.deadlines) == before, "no transition, no start"
    world.now += 3
    world.acquire("d")
    world.come_up()
    assert world.granted == ["d"]


def test_five_failures_park_it_and_a_person_gets_it_out() -> None:
    world = World()
    for n in range(PARKED):
        world.now += pause_after(n)
        fails(world, f"r{n}")
    world.acquire("x")
    error = world.refused["x"]
    assert isinstance(error, SlotCrashLooping)
    assert error.details["parked"]
    assert error.retry_after_s == pytest.approx(300)
    world.ask(ev.Load("by hand"))
    world.come_up()
    assert "by hand" in world.answered
    world.acquire("y")
    assert world.granted == ["y"]


def test_a_half_open_trial_that_fails_pauses_longer_and_one_that_serves_is_forgiven() -> None:
    world = World()
    for n in range(PARKED):
        world.now += pause_after(n)
        fails(world, f"r{n}")
    world.now += 300
    fails(world, "trial")
    world.acquire("x")
    assert world.refused["x"].retry_after_s == pytest.approx(600)
    world.now += 600
    world.acquire("y")
    world.come_up()
    assert world.slot.breaker.failures == PARKED + 1, "to be up is not to be sound"
    world.release("y")
    assert world.slot.breaker.failures == 0
    world.die()
    fails(world, "z")
    assert world.slot.breaker.failures == 2


def test_being_up_for_a_while_proves_it_too() -> None:
    world = World()
    fails(world, "a")
    world.ask(ev.Load("l"))
    assert world.slot.breaker.failures == 0
    fails_once = World()
    fails(fails_once, "a")
    fails_once.acquire("b")
    fails_once.come_up()
    fails_once.pass_time(61)
    assert fails_once.slot.breaker.failures == 0


def test_an_engine_that_dies_at_its_first_request_counts_even_though_it_was_ready() -> None:
    world = World()
    for n, pause in enumerate((0, 0, 5, 10, 20)):
        world.now += pause
        world.acquire(f"r{n}")
        world.come_up()
        world.die(ExitStatus(None, 11))
    assert world.slot.breaker.failures == PARKED
    world.acquire("x")
    assert isinstance(world.refused["x"], SlotCrashLooping)


def test_what_cannot_be_mended_by_trying_again_is_not_called_retryable() -> None:
    world = World()
    fails(world, "a", BAD_FILE)
    assert world.slot.fault is not None
    assert world.slot.fault.reason == "bad_model"
    world.now += 1
    starts = world.slot.starts
    world.acquire("b")
    error = world.refused["b"]
    assert isinstance(error, SlotLoadFailed)
    assert error.retry_after_s is None
    assert error.details["reason"] == "bad_model"
    assert world.slot.starts == starts


def test_another_configuration_is_another_chance() -> None:
    world = World()
    fails(world, "a", BAD_FILE)
    world.send(ev.Reconfigure(SPEC, relaunch=True))
    world.acquire("b")
    world.come_up()
    assert world.granted == ["b"]


def test_a_load_killed_from_outside_is_tried_again_and_nobody_hears_of_it() -> None:
    world = World()
    world.acquire("a")
    world.arbiter_step()
    world.engine_step("start")
    world.die(KILLED)
    assert world.state == "starting"
    assert not world.refused
    world.engine_step("start")
    world.die(KILLED)
    assert world.state == "error", "the second time it waits"
    world.acquire("late")
    assert isinstance(world.refused["late"], SlotCrashLooping)
    world.pass_time(5)
    world.come_up()
    assert world.granted == ["a"]


def test_a_slot_to_be_kept_up_is_started_again_though_nobody_waits() -> None:
    world = World(dataclasses.replace(SPEC, keep_up=True))
    world.ask(ev.Load("l"))
    world.come_up()
    world.die()
    assert world.state == "starting"
    world.engine_step("start")
    world.die()
    assert world.state == "error"
    assert world.slot.deadlines["breaker"] == pytest.approx(5)
    world.pass_time(5)
    world.come_up()
    plain = World()
    plain.ask(ev.Load("l"))
    plain.come_up()
    plain.die()
    assert plain.state == "error"


def test_hung_is_killed_at_once_and_who_waits_is_served_by_the_next() -> None:
    world = World()
    world.acquire("a")
    world.come_up()
    world.acquire("b")
    world.acquire("c")
    world.send(ev.Hung(1, Fault("hung", "it does nothing")))
    assert world.state == "error"
    assert world.stopped[-1] == 0
    world.die(KILLED)
    world.come_up()
    assert world.granted == ["a", "b", "c"]
    assert world.slot.breaker.failures == 1


def test_two_stalled_answers_and_nobody_served_meanwhile_mean_that_it_hangs() -> None:
    world = World()
    for id in ("a", "b"):
        world.acquire(id)
        if id == "a":
            world.come_up()
        world.send(ev.Stalled(id))
        world.send(ev.Stalled(id))
        if id == "a":
            world.release(id)
    assert world.state == "error"
    assert world.slot.fault is not None
    assert world.slot.fault.reason == "stalled"


def test_a_stall_beside_somebody_who_is_served_is_no_reason_to_kill() -> None:
    world = World()
    world.acquire("a")
    world.come_up()
    world.acquire("b")
    world.send(ev.Stalled("a"))
    world.release("a")
    world.acquire("c")
    world.send(ev.Stalled("c"))
    assert world.state == "serving"
    world.release("b")
    world.release("c")
    world.acquire("d")
    world.send(ev.Stalled("d"))
    assert world.state == "serving", "b was served in between"
