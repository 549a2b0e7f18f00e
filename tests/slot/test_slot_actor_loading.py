"""The slot's actor from demand to a lease: who is served, in which order, and who hears what went wrong."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import trio
from slot_fakes import SPEC, FakeBackend, House, Pull, Script, in_house
from trio.testing import MockClock

from slotd.errors import (
    RequestCancelled,
    RouteStale,
    SlotdError,
    SlotLoadFailed,
    SlotLoading,
    SlotNotFound,
    SlotQueueFull,
    SlotQueueTimeout,
    SpawnFailed,
)
from slotd.process.plan import ExitStatus
from slotd.slot.lease import Lease
from slotd.slot.state import SlotState

S = SlotState


async def test_off_one_start_serves_all_who_wait_in_order_of_arrival(autojump_clock: MockClock) -> None:
    async def test(house: House) -> None:
        async with trio.open_nursery() as nursery:
            for n in range(6):

                async def use(n: int = n) -> None:
                    await trio.sleep(n * 0.01)
                    assert isinstance(await house.use(f"r{n}", hold_s=1), Lease)

                nursery.start_soon(use)
        assert house.granted == [f"r{n}" for n in range(6)]
        assert house.now().starts == 1
        assert house.states()[:4] == ["starting", "warming", "ready", "serving"]

    await in_house(test, spec=dataclasses.replace(SPEC, max_parallel=1))


async def test_a_lease_says_all_that_a_request_needs(autojump_clock: MockClock) -> None:
    async def test(house: House) -> None:
        lease = await house.slots.acquire("chat", "r")
        engine = house.backend.engines[0]
        assert (lease.slot, lease.generation, lease.model) == ("chat", 1, "m")
        assert lease.address == engine.address
        assert lease.abilities is house.backend.abilities
        assert lease.fate.fault is None
        s = house.now()
        assert (s.state, s.leases, s.pid, s.models) == (S.SERVING, 1, engine.pid, ("m",))
        assert s.load_s == pytest.approx(1.1)
        assert s.plan_digest
        house.slots.release("chat", "r")
        await house.wait_state(S.READY)
        house.slots.release("chat", "r")  # once more does no harm
        house.slots.release("nowhere", "r")
        assert await house.slots.state("chat") is S.READY

    await in_house(test)


async def test_a_load_that_fails_answers_everyone_with_the_logs_last_words(
    autojump_clock: MockClock,
) -> None:
    answers: list[object] = []

    async def test(house: House) -> None:
        async with trio.open_nursery() as nursery:

            async def use(n: int) -> None:
                answers.append(await house.use(f"r{n}"))

            async def load() -> None:
                try:
                    await house.slots.load("chat")
                except SlotdError as error:
                    answers.append(error)

            for n in range(3):
                nursery.start_soon(use, n)
            nursery.start_soon(load)
        assert house.now().state is S.ERROR
        fault = house.now().fault
        assert fault is not None
        assert fault.log == ("loading", "no such tensor")

    script = Script(exits_s=0.7, exit=ExitStatus(3), words=("loading", "no such tensor"))
    await in_house(test, FakeBackend(script))
    assert len(answers) == 4
    for error in answers:
        assert isinstance(error, SlotLoadFailed)
        assert error.details["log"] == ["loading", "no such tensor"]
        assert error.details["exit"] == "exit code 3"
        assert error.details["reason"] == "exited_during_load"


@pytest.mark.parametrize(
    ("script", "kind", "reason"),
    [
        (Script(spawn_error="no such program"), SpawnFailed, "spawn_failed"),
        (Script(plan_error="a flag is wrong"), SlotLoadFailed, "plan_invalid"),
        (Script(ready_s=float("inf")), SlotLoadFailed, "load_timeout"),
        (Script(opens_s=float("inf"), ready_s=float("inf")), SlotLoadFailed, "load_timeout"),
        (Script(ready_s=float("inf"), immortal=True, spawn_yields=True), SlotLoadFailed, "unkillable"),
    ],
)
async def test_every_way_to_fail_a_load_is_typed_and_ends_in_error(
    autojump_clock: MockClock, script: Script, kind: type[SlotdError], reason: str
) -> None:
    async def test(house: House) -> None:
        error = await house.use("r")
        assert isinstance(error, kind)
        assert error.details["reason"] == reason
        assert house.now().state is S.ERROR
        assert house.now().queued == 0

    await in_house(test, FakeBackend(script))


async def test_after_a_failed_load_the_next_request_tries_again(autojump_clock: MockClock) -> None:
    async def test(house: House) -> None:
        assert isinstance(await house.use("r1"), SpawnFailed)
        lease = await house.use("r2")
        assert isinstance(lease, Lease)
        assert lease.generation == 2

    await in_house(test, FakeBackend(Script(spawn_error="no memory")))


@pytest.mark.parametrize(
    "backend",
    [
        lambda: FakeBackend(Script(spawn_error="slot 'chat': no such program", spawn_terminal=True)),
        lambda: FakeBackend(pulls=(Pull(error="no such file", terminal=True),), absent=("m",)),
    ],
)
async def test_what_only_a_change_can_mend_is_told_at_once_and_not_to_be_retried(
    autojump_clock: MockClock, backend: Callable[[], FakeBackend]
) -> None:
    async def test(house: House) -> None:
        first = await house.use("r1")
        tried = len(house.backend.planned)
        again = await house.use("r2")
        for error in (first, again):
            assert isinstance(error, SpawnFailed | SlotLoadFailed)
            assert error.retry_after_s is None
            assert "slot 'chat' could not be loaded: no such" in error.message
        assert len(house.backend.planned) == tried, "refused without another try"
        await trio.sleep(6)
        assert isinstance(await house.use("r3"), Lease), "somebody may have mended it"

    await in_house(test, backend())


async def test_a_stranger_on_the_port_means_another_port(autojump_clock: MockClock) -> None:
    async def test(house: House) -> None:
        lease = await house.use("r")
        assert isinstance(lease, Lease)
        assert lease.address == house.backend.engines[2].address
        assert [e.stops for e in house.backend.engines] == [[0.0], [], []]

    # The first port answers with a stranger, the second kills the engine: its bind fails.
    await in_house(test, FakeBackend(Script(stranger_s=0.4), Script(exits_s=0.2, stranger_at_exit=True)))


async def test_strangers_on_every_port_are_a_failure(autojump_clock: MockClock) -> None:
    async def test(house: House) -> None:
        error = await house.use("r")
        assert isinstance(error, SlotLoadFailed)
        assert error.details["reason"] == "stranger_on_port"
        assert house.now().starts == 3

    await in_house(test, FakeBackend(default=Script(stranger_s=0.4)))


async def test_who_does_not_wait_is_told_so_and_the_load_outlives_the_request(
    autojump_clock: MockClock,
) -> None:
    async def test(house: House) -> None:
        refusals = [await house.use(f"r{n}", wait=False) for n in (1, 2)]
        for refusal, words in zip(
            refusals, ("its load has begun", "is starting; its load goes on"), strict=True
        ):
            assert isinstance(refusal, SlotLoading)
            assert words in refusal.message
            assert "come back in about" in refusal.message
        await house.wait_state(S.READY)
        lease = await house.use("r3", wait=False)
        assert isinstance(lease, Lease)

    await in_house(test)


async def test_the_queue_is_bounded_and_a_withdrawn_waiter_frees_its_place(autojump_clock: MockClock) -> None:
    async def test(house: House) -> None:
        async with trio.open_nursery() as nursery:
            scopes = [trio.CancelScope() for _ in range(3)]

            async def use(n: int) -> None:
                await trio.sleep(n * 0.001)  # a batch has no order of its own
                with scopes[n]:
                    await house.use(f"r{n}", hold_s=1)

            for n in range(3):
                nursery.start_soon(use, n)
            await trio.sleep(0.01)
            full = await house.use("r3")
            assert isinstance(full, SlotQueueFull)
            assert full.retry_after_s
            scopes[1].cancel()
            await trio.sleep(0.01)
            assert isinstance(await house.use("r4"), Lease)
        assert house.granted == ["r0", "r2", "r4"]

    await in_house(test, spec=dataclasses.replace(SPEC, max_parallel=1, max_queue=3))


async def test_a_request_waits_no_longer_than_the_queue_timeout(autojump_clock: MockClock) -> None:
    async def test(house: House) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: house.use("holds", hold_s=200))
            await house.wait_state(S.SERVING)
            began = trio.current_time()
            error = await house.use("late")
            assert isinstance(error, SlotQueueTimeout)
            assert trio.current_time() - began == pytest.approx(60)
            assert house.now().queued == 0

    await in_house(test, spec=dataclasses.replace(SPEC, max_parallel=1))


async def test_a_load_that_nobody_waits_for_any_more_is_given_up(autojump_clock: MockClock) -> None:
    async def test(house: House) -> None:
        with trio.move_on_after(1):
            await house.use("r")
        left = trio.current_time()
        await house.wait_state(S.UNLOADING)
        assert trio.current_time() - left == pytest.approx(4)
        await house.wait_state(S.OFFLINE)
        assert house.backend.engines[0].ended

    await in_house(test, FakeBackend(Script(opens_s=50, ready_s=50)))


async def test_one_of_two_leaves_and_the_other_is_served(autojump_clock: MockClock) -> None:
    async def test(house: House) -> None:
        async with trio.open_nursery() as nursery:

            async def leaves() -> None:
                with trio.move_on_after(1):
                    await house.use("leaves")

            nursery.start_soon(leaves)
            assert isinstance(await house.use("stays"), Lease)
        assert house.now().starts == 1

    await in_house(test, FakeBackend(Script(ready_s=20)))


async def test_a_load_by_command_is_not_given_up(autojump_clock: MockClock) -> None:
    async def test(house: House) -> None:
        with trio.move_on_after(1):
            await house.slots.load("chat")
        await house.wait_state(S.READY)

    await in_house(test, FakeBackend(Script(ready_s=20)))


async def test_a_pull_shows_its_progress_and_then_loads(autojump_clock: MockClock) -> None:
    async def test(house: House) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: house.use("r"))
            await house.wait_state(S.PULLING)
            await trio.sleep(2.5)
            assert house.now().progress == (200, 300)
            assert house.now().progress_phase == "downloading"
        assert house.states()[:3] == ["pulling", "offline", "starting"]

    await in_house(test, FakeBackend(absent=("m",)))


@pytest.mark.parametrize(
    ("pull", "reason"), [(Pull(error="no network"), "pull_failed"), (Pull(stalls=True), "pull_stalled")]
)
async def test_a_pull_that_fails_or_stalls_answers_those_who_wait(
    autojump_clock: MockClock, pull: Pull, reason: str
) -> None:
    async def test(house: House) -> None:
        error = await house.use("r1")
        assert isinstance(error, SlotLoadFailed)
        assert error.details["reason"] == reason
        assert house.now().state is S.ERROR
        assert isinstance(await house.use("r2"), Lease)

    await in_house(test, FakeBackend(pulls=(pull,), absent=("m",)))


async def test_a_pull_that_nobody_waits_for_is_stopped(autojump_clock: MockClock) -> None:
    async def test(house: House) -> None:
        with trio.move_on_after(1):
            await house.use("r")
        await house.wait_state(S.OFFLINE)
        await trio.testing.wait_all_tasks_blocked()
        assert house.backend.pulling == 0

    await in_house(test, FakeBackend(pulls=(Pull(steps=100),), absent=("m",)))


async def test_a_route_to_another_model_is_stale(autojump_clock: MockClock) -> None:
    async def test(house: House) -> None:
        assert isinstance(await house.use("r", model="other"), RouteStale)
        assert house.now().state is S.OFFLINE, "a stale route loads nothing"

    await in_house(test)


async def test_a_slot_that_does_not_exist_is_named_with_the_closest(autojump_clock: MockClock) -> None:
    async def test(house: House) -> None:
        with pytest.raises(SlotNotFound, match="did you mean 'chat'"):
            await house.slots.acquire("chta", "r")

    await in_house(test)


async def test_a_wish_that_someone_else_withdraws_is_answered(autojump_clock: MockClock) -> None:
    async def test(house: House) -> None:
        async with trio.open_nursery() as nursery:
            answers: list[object] = []

            async def use() -> None:
                answers.append(await house.use("r"))

            nursery.start_soon(use)
            await house.wait_state(S.WARMING)
            house.slots.release("chat", "r")
        assert [type(a) for a in answers] == [RequestCancelled]
        assert house.now().queued == 0

    await in_house(test)
