"""Hundreds of seeded trials: whatever is asked, cancelled and broken, nothing is left over.

Askers are cancelled at random times, among them the very tick of their grant;
engines fail, hang and die at random; operators interfere. At the end of every
trial no lease is held, nobody waits, and the engine can be unloaded.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable

import pytest
import trio
from slot_fakes import NEVER, FakeBackend, House, Pull, Script, in_house
from trio.testing import MockClock, wait_all_tasks_blocked

from slotd.errors import SlotdError
from slotd.process.plan import ExitStatus
from slotd.slot.state import LOADING, SlotState

S = SlotState


def on_virtual_time(trial: Callable[[], Awaitable[None]]) -> None:
    trio.run(trial, clock=MockClock(autojump_threshold=0))


@pytest.mark.parametrize("seed", range(200))
def test_a_lease_is_released_whatever_the_interleaving(seed: int) -> None:
    """Cancelled before, in, or after the tick of the grant: it makes no difference."""
    rng = random.Random(seed)
    ready = 1.1

    async def test(house: House) -> None:
        async def asker(n: int, start: float, leave: float, hops: int) -> None:
            await trio.sleep_until(start)
            with trio.CancelScope() as scope:
                nursery.start_soon(leaves, scope, leave, hops)
                await house.use(f"r{n}", hold_s=1)

        async def leaves(scope: trio.CancelScope, leave: float, hops: int) -> None:
            await trio.sleep_until(leave)
            for _ in range(hops):  # within the tick: before, between and after the actor's turn
                await trio.lowlevel.checkpoint()
            scope.cancel()

        async with trio.open_nursery() as nursery:
            for n in range(rng.randrange(1, 9)):
                start = rng.choice([0.0, 0.5, ready])
                # With two at a time holding for 1 s, grants happen at 1.1, 2.1, 3.1, ...
                leave = rng.choice([0.3, ready, ready, ready + 1, ready + 2, 50.0])
                nursery.start_soon(asker, n, start, leave, rng.randrange(4))
        await wait_all_tasks_blocked()
        assert house.now().leases == 0
        assert house.now().queued == 0
        assert not house.slots.mailbox("chat").open_asks
        await house.slots.unload("chat")
        assert house.now().state is S.OFFLINE

    async def trial() -> None:
        await in_house(test)

    on_virtual_time(trial)


def some_script(rng: random.Random) -> Script:
    """An engine that may do anything that engines do."""
    return Script(
        spawn_s=rng.choice([0.0, 0.1, 3.0]),
        spawn_yields=rng.random() < 0.5,
        spawn_error="refused" if rng.random() < 0.05 else "",
        plan_error="bad flag" if rng.random() < 0.03 else "",
        words=("word",),
        opens_s=0.5,
        ready_s=rng.choice([0.5, 1.0, 5.0, NEVER]),
        stranger_s=0.4 if rng.random() < 0.1 else NEVER,
        stranger_at_exit=rng.random() < 0.1,
        exits_s=rng.choice([NEVER, rng.random() * 60]),
        exit=rng.choice([ExitStatus(0), ExitStatus(1), ExitStatus(None, 11)]),
        obeys_s=rng.choice([0.0, 0.2, 4.0, 1000.0]),
        sweep_s=rng.choice([0.0, 0.05, 2.0]),
        survivors=(77,) if rng.random() < 0.03 else (),
        run_bug_s=rng.random() * 30 if rng.random() < 0.05 else NEVER,
        probe_bug_s=rng.random() if rng.random() < 0.05 else NEVER,
    )


def some_pull(rng: random.Random) -> Pull:
    return Pull(
        error="no network" if rng.random() < 0.2 else "",
        stalls=rng.random() < 0.2,
        bug=rng.random() < 0.05,
    )


@pytest.mark.parametrize("seed", range(150))
def test_nothing_is_left_over_whatever_happens(seed: int) -> None:
    rng = random.Random(seed)
    backend = FakeBackend(
        *(some_script(rng) for _ in range(40)),
        pulls=tuple(some_pull(rng) for _ in range(10)),
        absent=("m",) if rng.random() < 0.3 else (),
    )
    asked = answered = 0

    async def test(house: House) -> None:
        async def request(n: int, patience_s: float, hold_s: float) -> None:
            nonlocal asked, answered
            asked += 1
            with trio.move_on_after(patience_s):
                await house.use(f"r{n}", hold_s=hold_s, wait=hold_s < 8)
            answered += 1

        async def command(what: str) -> None:
            nonlocal asked, answered
            asked += 1
            try:
                if what == "swap":
                    await house.slots.swap("chat", "m2" if house.now().model == "m" else "m")
                else:
                    await getattr(house.slots, what)("chat")
            except SlotdError:
                pass  # a typed refusal is an answer
            answered += 1

        async with trio.open_nursery() as nursery:
            for n in range(40):
                await trio.sleep(rng.expovariate(1.0))
                match rng.randrange(12):
                    case 0:
                        what = rng.choice(["load", "unload", "restart", "kill", "swap"])
                        nursery.start_soon(command, what)
                    case 1 if rng.random() < 0.2:
                        house.crash()
                    case _:
                        patience = rng.choice([NEVER, rng.random() * 10])
                        nursery.start_soon(request, n, patience, rng.random() * 10)
        # Every ask has come back: the nursery has ended. Now let it come to rest.
        assert asked == answered
        with trio.fail_after(1000):
            await house.slots.mailbox("chat").wait_open()
            backend.scripts.clear()
            while house.now().state in LOADING | {S.UNLOADING}:  # noqa: ASYNC110 # virtual time
                await trio.sleep(1)
        await wait_all_tasks_blocked()
        s = house.now()
        assert (s.leases, s.queued, s.draining) == (0, 0, False)
        assert not house.slots.mailbox("chat").open_asks
        await house.slots.shutdown()
        assert house.now().state in (S.OFFLINE, S.ERROR)

    async def trial() -> None:
        await in_house(test, backend)

    on_virtual_time(trial)
