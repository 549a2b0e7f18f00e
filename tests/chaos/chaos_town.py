"""Live slot actors and the live arbiter on virtual time, with engines that take up memory.

What a house of slots (``slot_fakes``) is to one slot's actor, a town is to all
of them together: real mailboxes, real actors, nothing below them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable
from typing import cast

import trio
from slot_fakes import FakeBackend, _Bus, _Cell, check_journal, check_snapshot

from slotd.actor import ChildSpec, Intensity, Supervisor
from slotd.arbiter.actor import Arbiter
from slotd.arbiter.room import Limits, Reading
from slotd.arbiter.tenant import Need
from slotd.errors import SlotdError
from slotd.events import Event, EventBus
from slotd.slot.actor import SlotIdentity
from slotd.slot.machine import SlotSpec
from slotd.slot.manager import SlotManager
from slotd.slot.state import LOADING, UP, SlotSnapshot, SlotState

__all__ = ["BUDGET_MB", "NAMES", "NEED_MB", "SPEC", "Town", "in_town"]

NAMES = ("chat", "embed", "image")
NEED_MB = 100
BUDGET_MB = 250
"""Two of the three slots fit."""

SPEC = SlotSpec(
    "",
    max_parallel=2,
    max_queue=6,
    queue_timeout_s=60,
    pull_stall_s=20,
    ready_timeout_s=30,
    stop_timeout_s=4,
    kill_timeout_s=5,
    drain_timeout_s=8,
    abandon_after_s=3,
    idle_after_s=10,
    ttl_s=40,
    max_wait_s=20,
    turn_hold_s=1,
)
LIMITS = Limits(budget_mb=BUDGET_MB, reserve_mb=0, wait_s=50, max_wait_s=20, turn_hold_s=1)


class Footprints:
    """What was learned of engines, in memory."""

    def __init__(self) -> None:
        self.known: dict[str, Need] = {}

    def get(self, digest: str) -> Need | None:
        return self.known.get(digest)

    def put(self, digest: str, ram_mb: int, gpu_mb: int) -> None:
        self.known[digest] = Need(ram_mb, gpu_mb, "measured")


class Town:
    """Slots, their arbiter, and what they have published."""

    def __init__(self, backends: dict[str, FakeBackend], spec: SlotSpec = SPEC) -> None:
        self.backends = backends
        self.journal: list[Event | SlotSnapshot] = []
        self.bus = cast(EventBus, _Bus(self.journal))
        self.arbiter = Arbiter(LIMITS, self.bus, footprints=Footprints(), measure=self._measure)
        self.slots = SlotManager(self.bus, landlord=self.arbiter, intensity=Intensity(1000, 1))
        self.most_mb = 0
        for name, backend in backends.items():
            backend.need_mb = NEED_MB
            own = dataclasses.replace(spec, name=name)
            self.slots.add(SlotIdentity(own, "llm", "fake", "m"), backend)
            entry = self.slots._entries[name]
            entry.snapshot = _Cell(entry.snapshot.value, self.journal)

    def used_mb(self) -> int:
        """What the engines that exist take up."""
        return sum(e.script.ram_mb for backend in self.backends.values() for e in backend.running)

    async def _measure(self) -> Reading:
        await trio.sleep(0.001)
        return Reading(BUDGET_MB + 10_000, BUDGET_MB + 10_000 - self.used_mb(), None, None)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """All the actors, until cancelled."""
        supervisor = Supervisor(lambda crash: None)
        async with trio.open_nursery() as nursery:
            await nursery.start(supervisor.run)
            supervisor.start(ChildSpec("arbiter", self.arbiter.run, intensity=Intensity(1000, 1)))
            await nursery.start(self.slots.run)
            task_status.started()

    # --- what is done to it ---------------------------------------------------------------

    def now(self, name: str) -> SlotSnapshot:
        return self.slots.snapshot(name)

    def crash_slot(self, name: str) -> None:
        """Post something that no slot knows."""
        self.slots.mailbox(name).post(object())  # type: ignore[arg-type] # that is the bug

    def crash_arbiter(self) -> None:
        """The same for the arbiter."""
        self.arbiter.mailbox.post(object())  # type: ignore[arg-type] # that is the bug

    def kill(self, name: str) -> bool:
        """End the slot's engine behind everybody's back. False if it has none."""
        engine = next(iter(self.backends[name].running), None)
        if engine is None or engine.ended:
            return False
        engine.script = dataclasses.replace(engine.script, exits_s=trio.current_time() - engine.born)
        engine._changed.set()
        engine._changed = trio.Event()
        return True

    async def command(self, name: str, verb: str) -> SlotdError | None:
        """An operator's command; the refusal, if there is one."""
        try:
            if verb == "swap":
                await self.slots.swap(name, "m2" if self.now(name).model == "m" else "m")
            else:
                await getattr(self.slots, verb)(name)
        except SlotdError as error:
            return error
        return None

    # --- what must be true of it ------------------------------------------------------------

    def check(self) -> None:
        """At any moment when all actors wait."""
        used = self.used_mb()
        assert used <= BUDGET_MB, f"{used} MiB in use of {BUDGET_MB}"
        self.most_mb = max(self.most_mb, used)
        held = {h.slot for h in self.arbiter.snapshot.held}
        for name, backend in self.backends.items():
            s = self.now(name)
            check_snapshot(s)
            if backend.running and s.state is not SlotState.ERROR and not self.arbiter.snapshot.resyncing:
                assert name in held, f"{name} runs without room: {s}"
            if s.state in UP:
                assert backend.running, f"{name} is {s.state} without an engine"

    def at_rest(self) -> bool:
        """Whether nothing is on its way."""
        return all(self.now(name).state not in LOADING | {SlotState.UNLOADING} for name in self.backends)

    def check_end(self) -> None:
        """When all is shut down."""
        for name, backend in self.backends.items():
            check_journal(name, self.journal)
            assert not backend.running, "an engine outlived its slot"
            assert not backend.pulling
            s = self.now(name)
            assert (s.leases, s.queued, s.draining) == (0, 0, False), s
            assert not self.slots.mailbox(name).open_asks
        shown = self.arbiter.snapshot
        assert (shown.held, shown.waiting) == ((), ()), shown


async def in_town(
    test: Callable[[Town], Awaitable[None]], backends: dict[str, FakeBackend], *, hang_guard_s: float = 50_000
) -> Town:
    """Run ``test`` in a town of these slots, shut it down, and check what is left."""
    town = Town(backends)
    with trio.fail_after(hang_guard_s):
        async with trio.open_nursery() as nursery:
            await nursery.start(town.run)
            await test(town)
            await town.slots.shutdown()
            await trio.testing.wait_all_tasks_blocked()
            town.check_end()
            nursery.cancel_scope.cancel()
    return town
