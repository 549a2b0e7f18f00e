"""The slot's actor when slotd itself is at fault: a bug ends one incarnation, and nobody hangs."""

from __future__ import annotations

import pytest
import trio
from slot_fakes import FakeBackend, House, Pull, Script, in_house
from trio.testing import MockClock, wait_all_tasks_blocked

from slotd.actor import Intensity
from slotd.errors import ActorGone, SlotdError
from slotd.events import Event, types
from slotd.slot.lease import Lease
from slotd.slot.state import SlotState

S = SlotState


def crashes(house: House) -> list[Event]:
    return [e for e in house.journal if isinstance(e, Event) and e.kind == types.ACTOR_CRASHED]


async def test_a_crash_ends_the_engine_and_every_open_ask_and_the_next_request_loads(
    autojump_clock: MockClock,
) -> None:
    async def test(house: House) -> None:
        lease = await house.slots.acquire("chat", "served")
        async with trio.open_nursery() as nursery:
            answers: list[object] = []

            async def use(id: str) -> None:
                answers.append(await house.use(id, hold_s=50))

            async def swap() -> None:
                try:
                    await house.slots.swap("chat", "m2")
                except SlotdError as error:
                    answers.append(error)

            nursery.start_soon(use, "second")
            await wait_all_tasks_blocked()
            nursery.start_soon(use, "waits")
            await wait_all_tasks_blocked()
            nursery.start_soon(swap)
            await wait_all_tasks_blocked()
            house.crash()
            await house.wait_state(S.ERROR)
            await house.slots.mailbox("chat").wait_open()
            assert not house.backend.running, "the engine ended before the next incarnation began"
            fault = house.now().fault
            assert fault is not None
            assert fault.reason == "actor_crashed"
            assert lease.fate.fault is not None
            await house.slots.mailbox("chat").wait_open()
            # The new incarnation serves again; the old leases mean nothing to it.
            again = await house.use("next")
            assert isinstance(again, Lease)
            assert again.generation == lease.generation + 1
            assert again.model == "m2", "what the slot is to serve outlives the crash"
            house.slots.release("chat", "served")
        kinds = sorted(type(a).__name__ for a in answers)
        assert kinds == ["ActorGone", "Lease", "RouteStale"], (
            "the waiter was stale already; the swap was open"
        )
        assert house.now().starts == 2
        assert len(crashes(house)) == 1

    await in_house(test)


@pytest.mark.parametrize(
    ("backend", "words"),
    [
        (FakeBackend(Script(probe_bug_s=0.7)), "the probe is broken"),
        (FakeBackend(Script(ready_s=20, run_bug_s=0.7)), "the launcher is broken"),
        (FakeBackend(pulls=(Pull(bug=True),), absent=("m",)), "the store is broken"),
    ],
)
async def test_a_bug_in_a_child_is_a_crash_of_its_actor_alone(
    autojump_clock: MockClock, backend: FakeBackend, words: str
) -> None:
    async def test(house: House) -> None:
        await house.slots.load("embed")
        error = await house.use("r")
        assert isinstance(error, ActorGone)
        assert error.retry_after_s
        assert house.now().state is S.ERROR
        await house.slots.mailbox("chat").wait_open()
        assert len(crashes(house)) == 1
        assert house.now("embed").state is S.READY
        await house.slots.mailbox("chat").wait_open()
        assert isinstance(await house.use("next"), Lease)

    house = await in_house(test, backend, FakeBackend())
    (crash,) = crashes(house)
    assert crash.data["restart_in_s"] == 0
    assert crash.slot == "chat"


async def test_a_crash_in_the_middle_of_a_spawn_leaves_no_process(autojump_clock: MockClock) -> None:
    async def test(house: House) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: house.use("r"))
            await house.wait_state(S.STARTING)
            house.crash()
        with pytest.raises(ActorGone):
            await house.slots.state("chat")
        # The spawn cannot be interrupted; what it brings forth is killed at once.
        await house.slots.mailbox("chat").wait_open()
        assert house.now().state is S.ERROR
        assert len(house.backend.engines) == 1
        assert not house.backend.running

    await in_house(test, FakeBackend(Script(spawn_s=5)))


async def test_a_slot_that_keeps_crashing_is_parked_and_comes_back(autojump_clock: MockClock) -> None:
    async def test(house: House) -> None:
        mailbox = house.slots.mailbox("chat")
        for _ in range(3):
            await mailbox.wait_open()
            house.crash()
            await wait_all_tasks_blocked()
        assert [e.data["restart_in_s"] for e in crashes(house)] == [0, 1, 60]
        parked = house.now()
        assert parked.state is S.ERROR
        with pytest.raises(ActorGone):
            await house.slots.load("chat")
        assert isinstance(await house.use("r", name="embed"), Lease), "its siblings never notice"
        await mailbox.wait_open()
        assert isinstance(await house.use("r"), Lease)

    await in_house(
        test, FakeBackend(), FakeBackend(), intensity=Intensity(max_restarts=2, within_s=60, backoff_s=1)
    )


async def test_what_is_shown_of_a_crashed_slot_is_not_left_from_before(autojump_clock: MockClock) -> None:
    async def test(house: House) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: house.use("r"))
            await house.wait_state(S.PULLING)
            await trio.sleep(1.5)
            assert house.now().progress is not None
            house.crash()
            await wait_all_tasks_blocked()
        await wait_all_tasks_blocked()
        s = house.now()
        assert (s.state, s.progress, s.draining, s.queued) == (S.ERROR, None, False, 0)

    # Parked at the first crash: what is seen is the supervisor's word, not a new incarnation's.
    await in_house(test, FakeBackend(absent=("m",)), intensity=Intensity(max_restarts=0))


async def test_an_actor_that_crashes_during_shutdown_does_not_keep_the_others_from_stopping(
    autojump_clock: MockClock,
) -> None:
    async def test(house: House) -> None:
        for name in house.backends:
            await house.slots.load(name)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(house.slots.shutdown)
            await house.wait_state(S.UNLOADING)
            house.crash("chat")
        assert not any(b.running for b in house.backends.values())
        assert house.now("embed").state is S.OFFLINE
        assert house.now("chat").state is S.ERROR

    deaf = Script(obeys_s=1000)
    await in_house(test, FakeBackend(deaf), FakeBackend(deaf))


async def test_shutdown_with_a_parked_slot(autojump_clock: MockClock) -> None:
    async def test(house: House) -> None:
        await house.slots.load("embed")
        house.crash()
        await wait_all_tasks_blocked()
        await house.slots.shutdown()
        assert house.now("embed").state is S.OFFLINE

    await in_house(test, FakeBackend(), FakeBackend(), intensity=Intensity(max_restarts=0))


async def test_a_crash_shows_at_once_though_its_engine_takes_time_to_end(autojump_clock: MockClock) -> None:
    async def test(house: House) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: house.use("r"))
            await house.wait_state(S.STARTING)
            house.crash()
            await wait_all_tasks_blocked()
            assert not house.slots.mailbox("chat").is_open
            seen = house.now().state
            await house.slots.mailbox("chat").wait_open()
        assert seen is S.ERROR

    await in_house(test, FakeBackend(Script(spawn_s=5)))
