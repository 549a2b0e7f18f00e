"""The slot's actor on the way down: quiet, drained, killed, restarted, swapped, lost, shut down."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import cast

import pytest
import trio
from slot_fakes import FakeBackend, House, Pull, Script, in_house
from trio.testing import MockClock, wait_all_tasks_blocked

from slotd.arbiter.tenant import Leave
from slotd.errors import GpuExclusive, RouteStale, ServerStopping, SlotdError, SlotStopped
from slotd.events import types
from slotd.process.plan import ExitStatus
from slotd.slot.lease import Lease
from slotd.slot.state import SlotState
from slotd.wire.http1 import Http1Pool

S = SlotState


def closed(lease: Lease) -> bool:
    """Whether the actor has broken the lease's connections."""
    return cast(Http1Pool, lease.http)._closed


async def refused(asking: Awaitable[None]) -> SlotdError:
    try:
        await asking
    except SlotdError as error:
        return error
    raise AssertionError("it was not refused")


async def test_quiet_then_idle_then_offline_after_ttl(autojump_clock: MockClock) -> None:
    async def test(house: House) -> None:
        await house.use("r")
        released = trio.current_time()
        await house.wait_state(S.IDLE)
        assert trio.current_time() - released == pytest.approx(15)
        await house.wait_state(S.OFFLINE)
        assert trio.current_time() - released == pytest.approx(15 + 40 + 0.25)
        assert house.states()[-3:] == ["idle", "unloading", "offline"]

    await in_house(test)


async def test_a_request_wakes_an_idle_slot_without_a_start(autojump_clock: MockClock) -> None:
    async def test(house: House) -> None:
        await house.use("r1")
        await house.wait_state(S.IDLE)
        assert isinstance(await house.use("r2"), Lease)
        assert house.now().starts == 1

    await in_house(test)


async def test_unload_waits_for_leases_and_refuses_those_who_wait(autojump_clock: MockClock) -> None:
    async def test(house: House) -> None:
        async with trio.open_nursery() as nursery:
            answers: list[object] = []

            async def use(id: str, hold_s: float) -> None:
                answers.append(await house.use(id, hold_s=hold_s))

            nursery.start_soon(use, "a", 5)
            nursery.start_soon(use, "b", 5)
            await house.wait_state(S.SERVING)
            nursery.start_soon(use, "waits", 5)
            await trio.sleep(1)
            began = trio.current_time()
            nursery.start_soon(house.slots.unload, "chat")
            await wait_all_tasks_blocked()
            assert house.now().draining
            assert [type(a) for a in answers] == [SlotStopped]
            await house.wait_state(S.OFFLINE)
            assert trio.current_time() - began == pytest.approx(4 + 0.25)
        assert [type(a) for a in answers[1:]] == [Lease, Lease]

    await in_house(test)


async def test_past_the_drain_deadline_leases_are_broken_and_told_why(autojump_clock: MockClock) -> None:
    async def test(house: House) -> None:
        lease = await house.slots.acquire("chat", "long")
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(house.slots.unload, "chat")
            fault = await lease.fate.wait()
            assert trio.current_time() - began == pytest.approx(8)
            assert fault.reason == "unloaded"
            assert closed(lease)
            assert house.now().leases == 0
        assert house.now().state is S.OFFLINE
        house.slots.release("chat", "long")
        assert isinstance(await house.use("next"), Lease)
        await house.wait_state(S.READY)

    await in_house(test)


async def test_a_load_during_the_drain_takes_it_back(autojump_clock: MockClock) -> None:
    async def test(house: House) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: house.use("long", hold_s=5))
            await house.wait_state(S.SERVING)
            answers: list[SlotdError | None] = []

            async def unload() -> None:
                await house.slots.unload("chat")
                answers.append(None)

            nursery.start_soon(unload)
            await wait_all_tasks_blocked()
            await house.slots.load("chat")
        assert answers == [None]
        await house.wait_state(S.READY)
        assert house.now().starts == 1

    await in_house(test)


async def test_an_engine_that_ignores_sigterm_is_killed_when_its_grace_is_over(
    autojump_clock: MockClock,
) -> None:
    async def test(house: House) -> None:
        await house.slots.load("chat")
        began = trio.current_time()
        await house.slots.unload("chat")
        assert trio.current_time() - began == pytest.approx(10.05)
        (stopped,) = [e for e in house.journal if getattr(e, "kind", "") == types.SLOT_STOPPED]
        assert stopped.data["killed"]  # type: ignore[union-attr] # it is an event

    await in_house(test, FakeBackend(Script(obeys_s=1000)))


async def test_kill_waits_for_nothing(autojump_clock: MockClock) -> None:
    async def test(house: House) -> None:
        lease = await house.slots.acquire("chat", "r")
        began = trio.current_time()
        await house.slots.kill("chat")
        assert trio.current_time() - began == pytest.approx(0.05)
        assert house.now().state is S.OFFLINE
        assert closed(lease)
        assert house.backend.engines[0].stops == [0.0]

    await in_house(test, FakeBackend(Script(obeys_s=1000)))


async def test_kill_shortens_an_unload_under_way(autojump_clock: MockClock) -> None:
    async def test(house: House) -> None:
        await house.slots.load("chat")
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(house.slots.unload, "chat")
            await trio.sleep(2)
            await house.slots.kill("chat")
        assert trio.current_time() - began == pytest.approx(2.05)

    await in_house(test, FakeBackend(Script(obeys_s=1000)))


async def test_restart_keeps_those_who_wait(autojump_clock: MockClock) -> None:
    async def test(house: House) -> None:
        async with trio.open_nursery() as nursery:
            leases: list[object] = []

            async def waits() -> None:
                leases.append(await house.use("waits"))

            nursery.start_soon(lambda: house.use("a", hold_s=5))
            nursery.start_soon(lambda: house.use("b", hold_s=5))
            await house.wait_state(S.SERVING)
            nursery.start_soon(waits)
            await wait_all_tasks_blocked()
            await house.slots.restart("chat")
        (lease,) = leases
        assert isinstance(lease, Lease)
        assert lease.generation == 2
        assert [e.ended for e in house.backend.engines] == [True, False]

    await in_house(test)


async def test_an_unload_answers_those_who_wait_for_a_load(autojump_clock: MockClock) -> None:
    async def test(house: House) -> None:
        async with trio.open_nursery() as nursery:
            answers: list[object] = []

            async def use() -> None:
                answers.append(await house.use("r"))

            async def load() -> None:
                answers.append(await refused(house.slots.load("chat")))

            nursery.start_soon(use)
            nursery.start_soon(load)
            await house.wait_state(S.WARMING)
            await house.slots.unload("chat")
        assert [type(a) for a in answers] == [SlotStopped, SlotStopped]
        assert house.now().state is S.OFFLINE

    await in_house(test, FakeBackend(Script(ready_s=20)))


@pytest.mark.parametrize("yields", [False, True])
async def test_stop_while_the_process_is_being_spawned(autojump_clock: MockClock, yields: bool) -> None:
    async def test(house: House) -> None:
        async with trio.open_nursery() as nursery:
            answers: list[object] = []

            async def use() -> None:
                answers.append(await house.use("r"))

            nursery.start_soon(use)
            await house.wait_state(S.STARTING)
            await trio.sleep(1)
            assert not house.backend.engines, "no handle yet: the spawn is under way"
            await house.slots.unload("chat")
        assert [type(a) for a in answers] == [SlotStopped]
        s = house.now()
        assert (s.state, s.pid, s.address) == (S.OFFLINE, None, None)
        assert not house.backend.running
        assert isinstance(await house.use("next"), Lease)

    # `yields`: cancelled before anything exists. Otherwise the process comes
    # into being, is announced, and is killed by the cancellation.
    await in_house(test, FakeBackend(Script(spawn_s=5, spawn_yields=yields)))


async def test_swap_refuses_the_old_models_waiters_and_serves_the_new(autojump_clock: MockClock) -> None:
    async def test(house: House) -> None:
        async with trio.open_nursery() as nursery:
            answers: dict[str, object] = {}

            async def use(id: str, model: str, hold_s: float = 0) -> None:
                answers[id] = await house.use(id, model=model, hold_s=hold_s)

            nursery.start_soon(use, "a", "m", 5)
            nursery.start_soon(use, "b", "m", 5)
            await house.wait_state(S.SERVING)
            nursery.start_soon(use, "old", "m")
            await wait_all_tasks_blocked()
            nursery.start_soon(house.slots.swap, "chat", "m2")
            await wait_all_tasks_blocked()
            assert isinstance(answers["old"], RouteStale)
            nursery.start_soon(use, "new", "m2")
            nursery.start_soon(use, "later", "m")
        assert isinstance(answers["a"], Lease), "who had a lease kept it"
        assert answers["a"].model == "m"
        assert isinstance(answers["new"], Lease)
        assert (answers["new"].model, answers["new"].generation) == ("m2", 2)
        assert isinstance(answers["later"], RouteStale)
        assert house.backend.planned == ["m", "m2"]

    await in_house(test)


async def test_swap_during_a_load_never_serves_the_old_model(autojump_clock: MockClock) -> None:
    async def test(house: House) -> None:
        async with trio.open_nursery() as nursery:
            answers: dict[str, object] = {}

            async def use(id: str, model: str) -> None:
                answers[id] = await house.use(id, model=model)

            nursery.start_soon(use, "old", "m")
            await house.wait_state(S.WARMING)
            nursery.start_soon(house.slots.swap, "chat", "m2")
            await wait_all_tasks_blocked()
            nursery.start_soon(use, "new", "m2")
        assert isinstance(answers["old"], RouteStale)
        assert isinstance(answers["new"], Lease)
        assert [e.model for e in house.backend.engines] == ["m", "m2"]

    await in_house(test)


async def test_swap_during_a_pull_pulls_the_new_model(autojump_clock: MockClock) -> None:
    async def test(house: House) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: house.use("old"))
            await house.wait_state(S.PULLING)
            await house.slots.swap("chat", "m2")
        assert house.backend.planned == ["m2"]
        assert "m" in house.backend.absent
        assert house.now().model == "m2"

    await in_house(test, FakeBackend(pulls=(Pull(steps=100), Pull()), absent=("m", "m2")))


async def test_swap_to_the_model_it_has_only_loads(autojump_clock: MockClock) -> None:
    async def test(house: House) -> None:
        await house.slots.swap("chat", "m")
        await house.slots.swap("chat", "m")
        assert house.now().starts == 1

    await in_house(test)


async def test_an_engine_that_dies_breaks_its_leases_and_the_next_request_loads(
    autojump_clock: MockClock,
) -> None:
    async def test(house: House) -> None:
        lease = await house.slots.acquire("chat", "r")
        fault = await lease.fate.wait()
        assert (fault.reason, fault.exit, fault.log) == ("killed", "killed by SIGKILL", ("bye",))
        assert closed(lease)
        assert house.now().state is S.ERROR
        house.slots.release("chat", "r")
        again = await house.use("next")
        assert isinstance(again, Lease)
        assert again.generation == 2
        assert again.fate.fault is None

    await in_house(test, FakeBackend(Script(exits_s=3, exit=ExitStatus(None, 9), words=("bye",))))


async def test_who_waited_at_an_engine_that_dies_is_served_by_the_next(autojump_clock: MockClock) -> None:
    async def test(house: House) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: house.use("a", hold_s=10))
            nursery.start_soon(lambda: house.use("b", hold_s=10))
            await house.wait_state(S.SERVING)
            lease = await house.use("waits")
        assert isinstance(lease, Lease)
        assert lease.generation == 2

    await in_house(test, FakeBackend(Script(exits_s=3, sweep_s=2)))


async def test_shutdown_stops_all_at_once_and_starts_nothing_any_more(autojump_clock: MockClock) -> None:
    async def test(house: House) -> None:
        for name in ("chat", "embed"):
            await house.slots.load(name)
        async with trio.open_nursery() as nursery:
            answers: list[object] = []

            async def waits() -> None:
                answers.append(await house.use("waits", name="image"))

            nursery.start_soon(waits)
            await house.wait_state(S.WARMING, name="image")
            began = trio.current_time()
            await house.slots.shutdown()
            assert trio.current_time() - began == pytest.approx(10.05), "the slowest, not the sum"
        assert [type(a) for a in answers] == [ServerStopping]
        assert {s.state for s in house.slots.snapshots().values()} == {S.OFFLINE}
        assert isinstance(await house.use("late"), ServerStopping)
        house.slots._stopping = False  # past the manager, the slot itself refuses
        assert isinstance(await house.use("late"), ServerStopping)
        assert isinstance(await refused(house.slots.load("chat")), ServerStopping)

    deaf = Script(obeys_s=1000)
    await in_house(test, FakeBackend(deaf), FakeBackend(deaf), FakeBackend(Script(ready_s=25)))


async def test_shutdown_ends_within_its_bound_though_an_engine_will_not_die(
    autojump_clock: MockClock,
) -> None:
    async def test(house: House) -> None:
        await house.slots.load("chat")
        began = trio.current_time()
        await house.slots.shutdown()
        assert trio.current_time() - began == pytest.approx(10 + 2 * 5)
        s = house.now()
        assert s.state is S.ERROR
        assert s.fault is not None
        assert s.fault.reason == "unkillable"
        assert s.pid is not None, "reported as what stayed"

    await in_house(test, FakeBackend(Script(immortal=True)))


@pytest.mark.parametrize("command", ["shutdown", "unload", "kill", "load", "restart"])
async def test_no_command_waits_for_ever_beside_an_engine_that_will_not_die(
    autojump_clock: MockClock, command: str
) -> None:
    async def test(house: House) -> None:
        await house.slots.load("chat")
        await refused_or_done(house.slots.unload("chat"))
        assert house.now().state is S.ERROR
        with trio.fail_after(100):
            if command == "shutdown":
                await house.slots.shutdown()
            else:
                await refused_or_done(getattr(house.slots, command)("chat"))
        assert len(house.backend.engines) == 1, "no second engine beside one that may hold the memory"

    await in_house(test, FakeBackend(Script(immortal=True)))


async def refused_or_done(asking: Awaitable[None]) -> None:
    try:
        await asking
    except SlotdError:
        return


async def test_processes_that_survive_a_sweep_are_told(autojump_clock: MockClock) -> None:
    async def test(house: House) -> None:
        await house.slots.load("chat")
        await refused_or_done(house.slots.unload("chat"))
        fault = house.now().fault
        assert fault is not None
        assert fault.reason == "unkillable"
        assert "77" in fault.message

    await in_house(test, FakeBackend(Script(survivors=(77,))))


async def test_cancelled_from_above_engines_end_with_their_actor(autojump_clock: MockClock) -> None:
    async def test(house: House) -> None:
        await house.slots.load("chat")

    await in_house(test)  # which checks that none outlives the house


async def test_each_who_is_refused_gets_an_error_of_its_own(autojump_clock: MockClock) -> None:
    """One that is raised leads by its traceback to whom it was raised at: shared, it would keep them all."""
    shared = GpuExclusive("image mode", retry_after_s=5)

    async def ask(house: House, name: str) -> SlotdError:
        try:
            await house.slots.acquire("chat", name)
        except SlotdError as error:
            return error
        finally:
            house.slots.release("chat", name)
        raise AssertionError("it has been let in")

    async def test(house: House) -> None:
        await house.slots.acquire("chat", "served")
        house.slots.mailbox("chat").post(Leave(1, "image mode", drain=True, refusal=shared, cut_after_s=50))
        told = [await ask(house, "a"), await ask(house, "b")]
        assert len({id(shared), *map(id, told)}) == 3
        assert [(str(e), e.code, e.retry_after_s) for e in told] == [("image mode", "gpu.exclusive", 5)] * 2
        assert shared.__traceback__ is None
        house.slots.release("chat", "served")

    await in_house(test)
