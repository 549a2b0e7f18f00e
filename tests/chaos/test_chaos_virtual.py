"""Random faults on live slot actors and the live arbiter, on virtual time, jumps of the clock among them.

A jump is what a suspended laptop does to its programs: all at once every
deadline has passed, though nothing has happened.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from contextlib import suppress

import pytest
import trio
from chaos_town import BUDGET_MB, NAMES, NEED_MB, Town, in_town
from slot_fakes import NEVER, FakeBackend, Script
from structlog.testing import capture_logs
from trio.testing import MockClock, wait_all_tasks_blocked

from slotd.errors import SlotdError
from slotd.process.plan import ExitStatus
from slotd.slot.state import UP

REQUESTS = 60


def some_script(rng: random.Random) -> Script:
    """An engine that may do anything that engines do, short of what cannot be killed."""
    return Script(
        spawn_s=rng.choice([0.0, 0.1, 2.0]),
        spawn_yields=rng.random() < 0.5,
        spawn_error="refused" if rng.random() < 0.04 else "",
        plan_error="bad flag" if rng.random() < 0.03 else "",
        opens_s=0.5,
        ready_s=rng.choice([0.5, 1.0, 5.0, 5.0, NEVER]),
        stranger_s=0.4 if rng.random() < 0.08 else NEVER,
        exits_s=rng.choice([NEVER, NEVER, rng.random() * 60]),
        exit=rng.choice([ExitStatus(0), ExitStatus(1), ExitStatus(None, 11)]),
        obeys_s=rng.choice([0.0, 0.2, 3.0, 1000.0]),
        sweep_s=rng.choice([0.0, 0.05, 2.0]),
        frozen_s=rng.choice([NEVER, NEVER, rng.random() * 40]),
        ram_mb=NEED_MB,
    )


def on_virtual_time(trial: Callable[[MockClock], Awaitable[None]]) -> None:
    clock = MockClock(autojump_threshold=0)
    with capture_logs():  # actors crash on purpose, and loudly
        trio.run(trial, clock, clock=clock)


@pytest.mark.parametrize("seed", range(40))
def test_nothing_is_left_over_whatever_happens_to_all_of_them(seed: int) -> None:
    rng = random.Random(seed)
    backends = {name: FakeBackend(*(some_script(rng) for _ in range(40))) for name in NAMES}
    asked = answered = served = 0

    async def trial(clock: MockClock) -> None:
        async def test(town: Town) -> None:
            async def request(n: int, name: str, patience_s: float, hold_s: float) -> None:
                nonlocal asked, answered, served
                asked += 1
                with trio.move_on_after(patience_s):
                    with suppress(SlotdError):  # a typed refusal is an answer
                        try:
                            await town.slots.acquire(name, f"r{n}", wait=hold_s < 8, priority=n % 3)
                            served += 1
                            await trio.sleep(hold_s)
                        finally:
                            town.slots.release(name, f"r{n}")
                answered += 1

            async def command(name: str, verb: str) -> None:
                nonlocal asked, answered
                asked += 1
                await town.command(name, verb)
                answered += 1

            async def look() -> None:
                while True:
                    await wait_all_tasks_blocked()
                    town.check()
                    await trio.sleep(0.25)

            async with trio.open_nursery() as watched:
                watched.start_soon(look)
                async with trio.open_nursery() as nursery:
                    for n in range(REQUESTS):
                        await trio.sleep(rng.expovariate(1.0))
                        name = rng.choice(NAMES)
                        match rng.randrange(16):
                            case 0 | 1:
                                verb = rng.choice(["load", "unload", "restart", "kill", "swap"])
                                nursery.start_soon(command, name, verb)
                            case 2:
                                town.kill(name)
                            case 3:
                                clock.jump(rng.choice([0.5, 5.0, 31.0, 90.0, 3600.0]))
                            case 4 if rng.random() < 0.3:
                                town.crash_slot(name)
                            case 5 if rng.random() < 0.5:
                                town.crash_arbiter()
                            case _:
                                patience = rng.choice([NEVER, NEVER, rng.random() * 10])
                                nursery.start_soon(request, n, name, patience, rng.random() * 10)
                # Every ask has come back: the nursery has ended.
                assert asked == answered
                for backend in backends.values():
                    backend.scripts.clear()
                with trio.fail_after(2000):
                    for name in NAMES:
                        await town.slots.mailbox(name).wait_open()
                    while not town.at_rest():  # noqa: ASYNC110 # virtual time
                        await trio.sleep(1)
                await sound(town)
                watched.cancel_scope.cancel()

        await in_town(test, backends)

    on_virtual_time(trial)
    assert served > 0


async def sound(town: Town) -> None:
    """After all that, each slot can still be loaded, in turn, though not all fit at once."""
    assert len(NAMES) * NEED_MB > BUDGET_MB
    for name in NAMES:
        with trio.fail_after(1000):
            await town.slots.load(name)
            assert town.now(name).state in UP
