"""Who is served next, who waits how long, and what those are told who cannot wait."""

from __future__ import annotations

import dataclasses
import random

import pytest
from slot_world import SPEC, World

from slotd.errors import SlotLoading, SlotQueueFull, SlotQueueTimeout
from slotd.process.plan import ExitStatus
from slotd.slot import messages as ev

ONE = dataclasses.replace(
    SPEC, max_parallel=1, max_queue=50, max_wait_s=30, queue_timeout_s=500, idle_after_s=0
)


def busy(spec: object = ONE) -> World:
    world = World(ONE)
    world.acquire("first")
    world.come_up()
    return world


def drain(world: World) -> list[str]:
    while world.held:
        world.release(next(iter(world.held)))
    return world.granted


def test_priority_then_order_of_arrival() -> None:
    world = busy()
    for id, priority in (("low", -1), ("a", 0), ("high", 5), ("b", 0)):
        world.acquire(id, priority=priority)
        world.now += 1
    assert drain(world) == ["first", "high", "a", "b", "low"]


def test_nobody_is_overtaken_for_longer_than_the_bound() -> None:
    world = busy()
    world.acquire("low", priority=-1)
    for n in range(40):
        world.now += 1
        world.acquire(f"high{n}", priority=9)
        world.release(next(iter(world.held)))
        if "low" in world.granted:
            break
    assert world.granted.index("low") == 30
    assert world.now == pytest.approx(30)


def test_with_no_overtaking_priority_is_nothing() -> None:
    world = World(dataclasses.replace(ONE, max_wait_s=0))
    world.acquire("first")
    world.come_up()
    world.acquire("low", priority=-1)
    world.acquire("high", priority=9)
    assert drain(world) == ["first", "low", "high"]


def test_a_replayed_request_is_served_first_by_its_own_age() -> None:
    world = World(dataclasses.replace(SPEC, max_parallel=2, max_queue=2))
    world.acquire("a")
    world.now += 1
    world.acquire("b")
    world.come_up()
    world.now += 1
    world.acquire("c")
    world.acquire("d")
    world.now += 1
    world.die(ExitStatus(None, 9))
    world.acquire("b again", since=1.0, replay=True)
    world.acquire("a again", since=0.0, replay=True)
    assert not world.refused, "they had their places"
    world.come_up()
    assert world.granted[2:] == ["a again", "b again"]
    assert drain(world)[4:] == ["c", "d"]


def test_a_replayed_requests_deadline_counts_from_its_arrival() -> None:
    world = World()
    world.now = 40
    world.acquire("old", since=0.0, replay=True)
    world.acquire("new")
    world.pass_time(10)
    assert isinstance(world.refused["old"], SlotQueueTimeout)
    assert "new" in world.open


def test_a_full_queue_says_when_a_place_will_be_free() -> None:
    world = World(dataclasses.replace(ONE, max_queue=1))
    world.acquire("a")
    world.come_up()
    for n in range(20):
        world.now += 8
        world.acquire(f"n{n}")
        world.release(next(iter(world.held)))
    world.acquire("waits")
    world.acquire("too many")
    error = world.refused["too many"]
    assert isinstance(error, SlotQueueFull)
    assert error.retry_after_s == pytest.approx(8, rel=0.1), "as long as a lease is held"
    world.open.discard("waits")
    world.send(ev.Release("waits"))
    world.acquire("fits again")
    assert "fits again" in world.open


def test_while_it_loads_retry_after_is_what_is_left_of_the_load() -> None:
    world = World()
    world.acquire("a")
    world.arbiter_step()
    for kind, s in (("start", 10), ("open", 10), ("ready", 0)):
        world.engine_step(kind)
        world.now += s
    world.release("a")
    assert world.slot.load_s == pytest.approx(20)
    world.ask(ev.Unload("u"))
    world.end()
    world.acquire("b", wait=False)
    first = world.refused["b"]
    assert isinstance(first, SlotLoading)
    assert first.retry_after_s == pytest.approx(20)
    world.arbiter_step()
    world.engine_step("start")
    world.now += 15
    world.acquire("c", wait=False)
    assert world.refused["c"].retry_after_s == pytest.approx(5)


def test_a_load_can_outlive_the_request_that_went_elsewhere() -> None:
    for keep in (True, False):
        world = World()
        world.acquire("a")
        world.arbiter_step()
        world.engine_step("start")
        world.open.discard("a")
        world.send(ev.Release("a", keep_load=keep))
        world.pass_time(6)
        assert world.state == ("starting" if keep else "unloading")


@pytest.mark.parametrize("seed", range(30))
def test_everyone_is_served_once_and_in_bounds(seed: int) -> None:
    rng = random.Random(seed)
    world = busy()
    asked = {"first": 0.0}
    served: dict[str, float] = {}
    for n in range(300):
        world.now += rng.random()
        if rng.random() < 0.5 and len(world.slot.waiting) < 40:
            asked[f"r{n}"] = world.now
            world.acquire(f"r{n}", priority=rng.randrange(-3, 4))
        elif world.held:
            id = next(iter(world.held))
            world.release(id)
        for id in world.granted:
            served.setdefault(id, world.now)
    drain(world)
    assert sorted(world.granted) == sorted(asked)
    # Once it has waited for max_wait_s, only older ones go before it.
    late = [id for id, at in served.items() if at - asked[id] > 30]
    for id in late:
        after = [x for x in world.granted[: world.granted.index(id)] if asked[x] > asked[id]]
        assert all(served.get(x, world.now) <= asked[id] + 31 for x in after)
