"""The arbiter's actor, and the handle through which others reach it.

The actor decides nothing: each message becomes an event for
:func:`slotd.arbiter.machine.step`, and the effects are carried out here
without awaiting. Measuring runs in a child task.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Protocol, assert_never

import trio

from slotd.actor import Actor, Mailbox, Snapshot
from slotd.arbiter import effects as fx
from slotd.arbiter import messages as ev
from slotd.arbiter.machine import resume, see, step
from slotd.arbiter.room import Limits, Reading, settled_need
from slotd.arbiter.snapshot import ArbiterSnapshot
from slotd.arbiter.state import State
from slotd.arbiter.tenant import Admit, Holding, Need, Report, Tenant, TenantFacts
from slotd.events import EventBus

__all__ = ["Arbiter", "ArbiterActor", "FootprintStore", "Measure"]

Measure = Callable[[], Awaitable[Reading]]
"""Finds out what is free. May be cancelled when it takes too long."""

MEASURE_S = 5.0
"""A measurement that takes longer has failed."""


class FootprintStore(Protocol):
    """What engines were seen to take up, by the digest of their launch plan."""

    def get(self, digest: str) -> Need | None: ...

    def put(self, digest: str, ram_mb: int, gpu_mb: int) -> None: ...


@dataclass(frozen=True, slots=True)
class Registration:
    facts: TenantFacts
    tenant: Tenant


class ArbiterActor(Actor[ev.Message]):
    """Owner of the reservations, of those who wait, and of the devices' modes."""

    def __init__(
        self,
        mailbox: Mailbox[ev.Message],
        bus: EventBus,
        footprints: FootprintStore,
        measure: Measure,
        tenants: dict[str, Registration],
        snapshot: Snapshot[ArbiterSnapshot],
        state: State,
        effects: tuple[fx.Effect, ...] = (),
    ) -> None:
        super().__init__(mailbox)
        self._bus = bus
        self._footprints = footprints
        self._take_measure = measure
        self._tenants = tenants
        self._snapshot = snapshot
        self._state = state
        self._first = effects

    @property
    def state(self) -> State:
        """The machine's present state. Only for whoever restarts the actor."""
        return self._state

    # --- the loop ---

    def started(self) -> None:
        for effect in self._first:
            self._perform(effect)
        self._step(ev.Due())

    def handle(self, message: ev.Message) -> None:
        if isinstance(message, Admit):
            learned = self._footprints.get(message.digest)
            message = replace(message, need=settled_need(message.need, learned))
        self._step(message)

    def next_deadline(self) -> float:
        return self._state.next_due

    def on_deadline(self, now: float) -> None:
        self._step(ev.Due())

    def _step(self, event: ev.Event) -> None:
        now = trio.current_time()
        # Nobody else can hold room when the step is done: of a thousand slots most need no look.
        concerned = {*self._state.holds, *self._state.demands}
        if isinstance(event, Admit | Holding):
            concerned.add(event.slot)
        views = {name: self._tenants[name].tenant.view() for name in concerned if name in self._tenants}
        self._state, effects = step(see(self._state, views), event, now)
        for effect in effects:
            self._perform(effect)
        self._snapshot.publish(ArbiterSnapshot.of(self._state, now))

    # --- effects ---

    def _perform(self, effect: fx.Effect) -> None:
        match effect:
            case fx.Measure(number):
                self.children.start_soon(self._measure, number)
            case fx.Remember(digest, ram_mb, gpu_mb):
                self._footprints.put(digest, ram_mb, gpu_mb)
            case fx.Publish(kind, slot, data):
                self._bus.publish(kind, data, slot=slot)
            case _:
                entry = self._tenants.get(effect.slot)
                if entry is not None:
                    self._tell(entry.tenant, effect)

    def _tell(
        self,
        tenant: Tenant,
        effect: fx.Admitted | fx.Denied | fx.Order | fx.Contend | fx.ComeBack | fx.Resync,
    ) -> None:
        match effect:
            case fx.Admitted(_, ticket):
                tenant.admitted(ticket)
            case fx.Denied(_, ticket, error):
                tenant.denied(ticket, error)
            case fx.Order(_, leave):
                tenant.leave(leave)
            case fx.Contend(_, on):
                tenant.contended(on)
            case fx.ComeBack():
                tenant.come_back()
            case fx.Resync():
                tenant.resync()
            case _:
                assert_never(effect)

    async def _measure(self, number: int) -> None:
        reading: Reading | None = None
        with trio.move_on_after(MEASURE_S):
            reading = await self._take_measure()
        self.mailbox.post(ev.Read(number, reading))


class Arbiter:
    """The way to the arbiter's actor, which outlives its crashes.

    Slots are registered before they ask for room. All methods are synchronous
    and only post; what comes of it is told to the slot's :class:`Tenant`.
    ``footprints`` is asked in the actor's loop and must not block.
    """

    def __init__(
        self, limits: Limits, bus: EventBus, *, footprints: FootprintStore, measure: Measure
    ) -> None:
        self._limits = limits
        self._bus = bus
        self._footprints = footprints
        self._measure = measure
        self._mailbox: Mailbox[ev.Message] = Mailbox("arbiter")
        self._tenants: dict[str, Registration] = {}
        self._snapshot = Snapshot(ArbiterSnapshot())
        self._actor: ArbiterActor | None = None

    @property
    def mailbox(self) -> Mailbox[ev.Message]:
        """The actor's mailbox, for tests that drive or break it."""
        return self._mailbox

    @property
    def snapshot(self) -> ArbiterSnapshot:
        """What the actor last published."""
        return self._snapshot.value

    @property
    def changes(self) -> Snapshot[ArbiterSnapshot]:
        """The snapshot's cell, for whoever waits for a change."""
        return self._snapshot

    def waits_for(self, slot: str) -> str:
        """What the slot's load waits for, in words; empty if it does not wait for room."""
        return next((w.why for w in self.snapshot.waiting if w.slot == slot), "")

    async def run(self) -> None:
        """Be the actor, once: until cancelled or a crash. For a supervisor to call.

        After a crash it asks every slot what it holds and lets nobody in
        before all have answered, or ``Limits.resync_s`` has passed.
        """
        now, before = trio.current_time(), self._actor
        facts = {name: entry.facts for name, entry in self._tenants.items()}
        state, effects = State(limits=self._limits, facts=facts), tuple[fx.Effect, ...]()
        if before is not None:
            state, effects = resume(replace(before.state, limits=self._limits, facts=facts), now)
        self._actor = ArbiterActor(
            self._mailbox,
            self._bus,
            self._footprints,
            self._measure,
            self._tenants,
            self._snapshot,
            state,
            effects,
        )
        await self._actor.run()

    # --- posts ---

    def register(self, facts: TenantFacts, tenant: Tenant) -> None:
        """A slot exists, or is configured otherwise than before. Idempotent."""
        self._tenants[facts.slot] = Registration(facts, tenant)
        self._mailbox.post(ev.Registered(facts))

    def unregister(self, slot: str) -> None:
        """A slot exists no more; nothing of its engine is left. Idempotent."""
        if self._tenants.pop(slot, None) is not None:
            self._mailbox.post(ev.Unregistered(slot))

    def report(self, message: Report) -> None:
        """A slot says something. Lost while the actor is down: its next incarnation asks."""
        self._mailbox.post(message)

    def release_device(self, device: str) -> None:
        """End the exclusive use of a device as soon as its slot serves nobody."""
        self._mailbox.post(ev.ReleaseDevice(device))

    def reconfigure(self, limits: Limits) -> None:
        """Decide by other limits from now on. What is loaded stays."""
        self._limits = limits
        self._mailbox.post(ev.Reconfigured(limits))
