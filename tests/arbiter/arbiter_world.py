"""A machine's memory and the slots on it, as the arbiter's tests need them: pure, on a clock of its own."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from slotd.arbiter import effects as fx
from slotd.arbiter import messages as ev
from slotd.arbiter import tenant as tn
from slotd.arbiter.machine import resume, see, step
from slotd.arbiter.room import Limits, Reading
from slotd.arbiter.state import State
from slotd.errors import SlotdError

LIMITS = Limits(
    budget_mb=0,
    reserve_mb=10,
    gpu_reserve_mb=0,
    wait_s=100,
    release_timeout_s=5,
    max_wait_s=30,
    turn_hold_s=1,
    idle_look_every_s=0,
)
"""The worlds below have 110 MiB, so 100 for models unless a test says otherwise."""


@dataclass
class FakeSlot:
    """A slot that behaves: ``phase`` is off, asked, loading, up, draining or unloading."""

    facts: tn.TenantFacts
    need: tn.Need
    phase: str = "off"
    ticket: int = 0
    leases: int = 0
    queued: int = 0
    last_used: float | None = None
    quiet_since: float | None = None
    contended: bool = False
    taken: int = 0
    gpu_taken: int = 0
    holds: bool = False
    driven_out: bool = False
    orders: list[tn.Leave] = field(default_factory=list)
    errors: list[SlotdError] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.facts.slot

    def view(self) -> tn.TenantView:
        up = self.phase in ("up", "draining")
        going = self.phase in ("draining", "unloading")
        return tn.TenantView(up, self.leases, self.queued, self.last_used, self.quiet_since, going)


class World:
    """Slots, memory, clock and arbiter. ``log`` says what the arbiter did, in short words."""

    def __init__(self, limits: Limits = LIMITS, *, total: int = 110, gpu: int | None = None) -> None:
        self.now = 0.0
        self.total = total
        self.gpu = gpu
        self.strangers = 0
        self.slots: dict[str, FakeSlot] = {}
        self.state = State(limits=limits)
        self.log: list[str] = []
        self.published: list[fx.Publish] = []
        self.remembered: list[fx.Remember] = []
        self.measuring: int | None = None
        self.auto_measure = True
        self.answers: dict[tuple[str, int], list[str]] = {}
        self._todo: deque[ev.Event] = deque()
        self._busy = False

    def add(
        self, name: str, ram: int = 0, gpu: int = 0, *, source: str = "estimated", **facts: object
    ) -> None:
        known = tn.TenantFacts(name, **facts)  # type: ignore[arg-type] # a test's shorthand
        self.slots[name] = FakeSlot(known, tn.Need(ram, gpu, source))  # type: ignore[arg-type] # as above
        self.send(ev.Registered(known))

    # --- the arbiter ---

    def views(self) -> Mapping[str, tn.TenantView]:
        return {name: slot.view() for name, slot in self.slots.items()}

    def send(self, event: ev.Event) -> None:
        """Post to the arbiter: what slots say in answer to it comes later, as with a mailbox."""
        self._todo.append(event)
        if self._busy:
            return
        self._busy = True
        try:
            while self._todo:
                self.state, effects = step(see(self.state, self.views()), self._todo.popleft(), self.now)
                self.perform(effects)
                if self.auto_measure:
                    self.measure()
        finally:
            self._busy = False

    def crash(self) -> None:
        """A new arbiter takes over; what was on its way to the old one is lost."""
        self.measuring = None
        self.state, effects = resume(self.state, self.now)
        self._busy = True
        self.perform(effects)
        self._busy = False
        self.send(ev.Due())

    def perform(self, effects: tuple[fx.Effect, ...]) -> None:
        for effect in effects:
            match effect:
                case fx.Admitted(name, ticket):
                    self.admitted(name, ticket)
                case fx.Denied(name, ticket, error):
                    self.denied(name, ticket, error)
                case fx.Order(name, leave):
                    self.ordered(self.slots[name], leave)
                case fx.Contend(name, on):
                    self.log.append(f"contended {name} {'on' if on else 'off'}")
                    self.slots[name].contended = on
                case fx.ComeBack(name):
                    self.log.append(f"back {name}")
                    self.came_back(self.slots[name])
                case fx.Resync(name):
                    self.resynced(self.slots[name])
                case fx.Measure(number):
                    assert self.measuring is None, "one measurement at a time"
                    self.measuring = number
                case fx.Remember():
                    self.remembered.append(effect)
                case fx.Publish():
                    self.published.append(effect)

    def measure(self) -> None:
        if self.measuring is not None:
            number, self.measuring = self.measuring, None
            self.send(ev.Read(number, self.reading()))

    def reading(self) -> Reading:
        used = sum(s.taken for s in self.slots.values()) + self.strangers
        gpu = None if self.gpu is None else self.gpu - sum(s.gpu_taken for s in self.slots.values())
        return Reading(self.total, self.total - used, self.gpu, gpu)

    def took(self) -> list[str]:
        log, self.log = self.log, []
        return log

    def why(self, name: str) -> str:
        return self.state.demands[name].why

    def kinds(self, kind: str) -> list[dict[str, object]]:
        return [{"slot": p.slot, **p.data} for p in self.published if p.kind == kind]

    def run_until(self, at: float) -> None:
        for _ in range(10_000):
            due = self.state.next_due
            if due > at:
                break
            assert due > self.now, "a deadline came due and was not dealt with"
            self.now = due
            self.send(ev.Due())
        else:
            raise AssertionError("the clock does not get on")
        self.now = at

    def wait(self, seconds: float) -> None:
        self.run_until(self.now + seconds)

    # --- what the arbiter says to slots ---

    def admitted(self, name: str, ticket: int) -> None:
        self.log.append(f"admitted {name}")
        self.answers.setdefault((name, ticket), []).append("admitted")
        slot = self.slots[name]
        if slot.phase == "asked" and slot.ticket == ticket:
            slot.phase, slot.holds, slot.driven_out = "loading", True, False

    def denied(self, name: str, ticket: int, error: SlotdError) -> None:
        self.log.append(f"denied {name} {error.code}")
        self.answers.setdefault((name, ticket), []).append("denied")
        slot = self.slots[name]
        slot.errors.append(error)
        if slot.phase == "asked" and slot.ticket == ticket:
            slot.phase, slot.queued = "off", 0

    def ordered(self, slot: FakeSlot, leave: tn.Leave) -> None:
        mark = "!" if leave.refusal is not None else "~" if leave.drain else ""
        self.log.append(f"leave{mark} {slot.name}")
        slot.orders.append(leave)
        if leave.ticket != slot.ticket or not slot.holds:
            return
        busy = slot.leases > 0 or slot.queued > 0 or slot.phase == "loading"
        if slot.facts.pinned or (not leave.drain and busy):
            self.send(tn.Stays(slot.name, slot.ticket, "in use"))
            return
        slot.driven_out = True
        if leave.refusal is not None:
            slot.queued = 0
        slot.phase = "draining" if slot.leases else "unloading"

    def came_back(self, slot: FakeSlot) -> None:
        if slot.phase == "off":
            self.want(slot.name)

    def resynced(self, slot: FakeSlot) -> None:
        slot.contended = False
        held = slot.ticket if slot.holds else None
        up = slot.phase in ("up", "draining")
        self.send(tn.Holding(slot.name, held, slot.need, up))
        if slot.phase == "asked":
            self.send(tn.Admit(slot.name, slot.ticket, slot.need, slot.name, self.now))

    # --- what slots do ---

    def want(self, name: str, since: float | None = None, queued: int = 0) -> None:
        slot = self.slots[name]
        assert slot.phase == "off"
        slot.phase, slot.ticket, slot.queued = "asked", slot.ticket + 1, queued
        digest = f"digest of {name}"
        at = self.now if since is None else since
        self.send(tn.Admit(name, slot.ticket, slot.need, digest, at))

    def withdraw(self, name: str) -> None:
        slot = self.slots[name]
        slot.phase, slot.holds, slot.queued = "off", False, 0
        self.send(tn.Withdraw(name, slot.ticket))

    def up(self, name: str, *, leases: int = 0) -> None:
        """The load ends well, and the engine has taken up what it needs."""
        slot = self.slots[name]
        assert slot.phase == "loading"
        slot.phase, slot.taken, slot.gpu_taken = "up", slot.need.ram_mb, slot.need.gpu_mb
        slot.leases, slot.queued = leases, 0
        slot.quiet_since = None if leases else self.now
        slot.last_used = self.now if leases else slot.last_used
        self.send(tn.Up(name, slot.ticket))

    def fail(self, name: str) -> None:
        slot = self.slots[name]
        slot.phase, slot.holds, slot.taken, slot.gpu_taken, slot.queued = "off", False, 0, 0, 0
        ticket = slot.ticket
        self.send(tn.Failed(name, ticket))
        self.send(tn.Gone(name, ticket))

    def gone(self, name: str, *, free: bool = True) -> None:
        slot = self.slots[name]
        slot.phase, slot.holds, slot.leases = "off", False, 0
        if free:
            slot.taken = slot.gpu_taken = 0
        self.send(tn.Gone(name, slot.ticket))

    def freed(self, name: str) -> None:
        """Its memory shows as free, some time after it has gone."""
        self.slots[name].taken = self.slots[name].gpu_taken = 0

    def lease(self, name: str, n: int = 1) -> None:
        slot = self.slots[name]
        slot.leases, slot.quiet_since, slot.last_used = n, None, self.now

    def release(self, name: str) -> None:
        slot = self.slots[name]
        slot.leases, slot.last_used, slot.quiet_since = 0, self.now, self.now
        if slot.phase == "draining":
            slot.phase = "unloading"

    def quiet(self, name: str) -> None:
        self.send(tn.Quiet(name, self.slots[name].ticket))

    def loaded(self, *names: str, leases: int = 0) -> None:
        """Bring slots up, one after another, and forget what was said of that."""
        for name in names:
            self.want(name)
            self.up(name, leases=leases)
            self.wait(2)
        self.took()

    def facts(self, name: str, **changes: object) -> None:
        slot = self.slots[name]
        slot.facts = replace(slot.facts, **changes)  # type: ignore[arg-type] # a test's shorthand
        self.send(ev.Registered(slot.facts))
