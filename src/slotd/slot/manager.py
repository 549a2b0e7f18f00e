"""The slots of one slotd: their actors, their names, and the public way to ask."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol, TypeVar

import structlog
import trio

from slotd.actor import ChildCrashed, ChildSpec, Intensity, Mailbox, Reply, Snapshot, Supervisor
from slotd.arbiter import tenant
from slotd.arbiter.tenant import TenantFacts
from slotd.capability.choice import LoadedSlot, choose, refusal
from slotd.errors import ActorGone, ServerStopping, SlotdError, SlotNotFound, SlotUnkillable
from slotd.events import EventBus, Subscription, types
from slotd.names import nearest
from slotd.process.logs import LogRing
from slotd.slot import messages as ev
from slotd.slot.actor import Configure, SlotActor, SlotIdentity
from slotd.slot.backend import Backend
from slotd.slot.lease import Lease
from slotd.slot.machine import Room, Slot
from slotd.slot.state import UP, Fault, SlotSnapshot, SlotState
from slotd.slot.turnstile import Turnstile

T = TypeVar("T")

__all__ = ["Landlord", "SlotManager"]

log = structlog.get_logger("slotd")

HINTED = 12
"""So many slots are named to who asks for one that is not there."""


class Landlord(Protocol):
    """The arbiter, as the slots need it; all synchronous."""

    def register(self, facts: TenantFacts, tenant: tenant.Tenant) -> None: ...

    def unregister(self, slot: str) -> None: ...

    def report(self, report: tenant.Report) -> object: ...

    def waits_for(self, slot: str) -> str:
        """What the slot's load waits for, in words; empty if it does not wait for room."""


@dataclass(slots=True)
class _Entry:
    """A slot and where to reach it. Implements :class:`slotd.arbiter.tenant.Tenant`."""

    identity: SlotIdentity
    backend: Backend
    mailbox: Mailbox[ev.Message | Configure]
    snapshot: Snapshot[SlotSnapshot]
    logs: LogRing
    child: str
    turnstile: Turnstile = field(default_factory=Turnstile)
    actor: SlotActor | None = None

    def admitted(self, ticket: int) -> None:
        self.mailbox.post(ev.Admitted(ticket))

    def denied(self, ticket: int, error: SlotdError) -> None:
        self.mailbox.post(ev.Denied(ticket, error))

    def contended(self, on: bool) -> None:
        self.mailbox.post(ev.Contended(on))

    def leave(self, order: tenant.Leave) -> None:
        self.mailbox.post(order)

    def come_back(self) -> None:
        self.mailbox.post(ev.ComeBack())

    def resync(self) -> None:
        self.mailbox.post(ev.Resync())

    def view(self) -> tenant.TenantView:
        s = self.snapshot.value
        going = s.draining and not s.queued
        return tenant.TenantView(s.state in UP, s.leases, s.queued, s.last_used, s.quiet_since, going)


class SlotManager:
    """Starts a supervised actor per slot and passes questions on to them.

    It owns no slot's state. Reads (:meth:`snapshot`, :meth:`snapshots`) come
    from what the actors published and never wait; everything else asks the
    slot's actor and raises :class:`slotd.errors.ActorGone` if it dies first.
    Deadlines are the caller's (``trio.fail_after``).
    """

    def __init__(
        self, bus: EventBus, *, intensity: Intensity | None = None, landlord: Landlord | None = None
    ) -> None:
        self._bus = bus
        self._landlord = landlord
        self._intensity = intensity or Intensity()
        self._entries: dict[str, _Entry] = {}
        self._supervisor = Supervisor(self._crashed)
        self._ids = itertools.count(1)
        self._stopping = False
        self._running = False
        self._removed: dict[str, list[_Entry]] = {}
        self._routing = 0

    def add(self, identity: SlotIdentity, backend: Backend, *, log_kb: int = 256) -> None:
        """Declare a slot; its actor starts with :meth:`run`, or at once if that runs already."""
        spec = identity.spec
        if spec.name in self._entries:
            raise ValueError(f"slot {spec.name!r} exists already")
        first = SlotSnapshot(
            spec.name, identity.type, identity.engine, SlotState.OFFLINE, model=identity.model
        )
        mailbox: Mailbox[ev.Message | Configure] = Mailbox(f"slot {spec.name}")
        # One that was removed may still be ending under the same name.
        again = len(self._removed.get(spec.name, ()))
        child = f"{mailbox.name}#{next(self._ids)}" if again else mailbox.name
        entry = _Entry(identity, backend, mailbox, Snapshot(first), LogRing(log_kb * 1024), child)
        self._entries[spec.name] = entry
        self._routed()
        if self._running:
            self._start(entry)

    def reconfigure(self, name: str, identity: SlotIdentity, backend: Backend) -> None:
        """Give a slot another configuration.

        Its numbers hold at once. If what it would start is not what it runs,
        it is drained (who comes meanwhile waits), and loaded again if somebody
        waits or it was to be up.
        """
        entry = self._entry(name)
        entry.identity, entry.backend = identity, backend
        if self._landlord is not None:
            self._landlord.register(identity.facts(), entry)
        entry.mailbox.post(Configure(identity, backend))

    def arrange(self, names: Iterable[str]) -> None:
        """Give the slots this declared order; any that is not named comes after those that are."""
        order = {name: i for i, name in enumerate(names)}
        last = len(order)
        self._entries = dict(sorted(self._entries.items(), key=lambda item: order.get(item[0], last)))

    async def remove(self, name: str) -> None:
        """Take a slot away: unknown at once, gone when its requests are done."""
        entry = self._entry(name)
        del self._entries[name]
        self._routed()
        leaving = self._removed.setdefault(name, [])
        leaving.append(entry)
        try:
            with suppress(ActorGone, SlotUnkillable):
                await self._ask(entry, ev.Retire)
            await self._supervisor.stop(entry.child)
            if self._landlord is not None and name not in self._entries:
                self._landlord.unregister(name)
        finally:
            leaving.remove(entry)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run every slot's actor until cancelled."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self._supervisor.run)
            self._running = True
            entries = list(self._entries.values())
            for entry in entries:
                self._start(entry)
            for entry in entries:
                await entry.mailbox.wait_open()
            task_status.started()

    def _start(self, entry: _Entry) -> None:
        if self._landlord is not None:
            self._landlord.register(entry.identity.facts(), entry)
        spec = ChildSpec(
            entry.child,
            self._incarnate(entry),
            intensity=self._intensity,
            # One slot's trouble stays its own.
            exhausted="park",
        )
        self._supervisor.start(spec)

    def _incarnate(self, entry: _Entry) -> Callable[[], Any]:
        async def run() -> None:
            before = entry.actor
            if before is None:
                resume = Slot(entry.identity.spec, model=entry.identity.model, since=trio.current_time())
            else:
                # What it owned ended with it; its model and count of
                # generations stay, so nothing old is mistaken for new.
                fault = Fault("actor_crashed", "slotd's own actor for this slot crashed and was restarted")
                resume = Slot(
                    before.slot.spec,
                    model=before.slot.model,
                    state=SlotState.ERROR,
                    since=trio.current_time(),
                    generation=before.slot.generation,
                    starts=before.slot.starts,
                    ticket=before.slot.ticket,
                    breaker=before.slot.breaker,
                    condemned=before.slot.condemned,
                    fault=fault,
                )
                self._room_lost(before.slot)
            entry.actor = SlotActor(
                entry.mailbox,
                entry.identity,
                entry.backend,
                self._bus,
                entry.snapshot,
                entry.logs,
                resume,
                None if self._landlord is None else self._landlord.report,
                self._routed,
                entry.turnstile,
            )
            await entry.actor.run()

        return run

    def _room_lost(self, slot: Slot) -> None:
        """A crashed actor cannot say that its engine is gone; its incarnations end with their engines."""
        if self._landlord is None:
            return
        if slot.room is Room.HELD:
            self._landlord.report(tenant.Gone(slot.spec.name, slot.ticket))
        elif slot.room is Room.ASKED:
            self._landlord.report(tenant.Withdraw(slot.spec.name, slot.ticket))

    def _crashed(self, crash: ChildCrashed) -> None:
        name = crash.name.removeprefix("slot ").split("#")[0]
        entry = self._entries.get(name)
        error = f"{type(crash.error).__name__}: {crash.error}"
        log.error("actor crashed", actor=crash.name, restart_in_s=crash.restart_in_s, exc_info=crash.error)
        if entry is not None:
            fault = Fault("actor_crashed", f"slotd's own actor for this slot crashed ({error})")
            gone = replace(entry.snapshot.value.after_crash(fault), pid=None, address=None)
            entry.snapshot.publish(gone)
            self._routed()
        self._bus.publish(
            types.ACTOR_CRASHED,
            {"actor": crash.name, "error": error, "restart_in_s": crash.restart_in_s},
            slot=name,
        )

    def _routed(self) -> None:
        self._routing += 1

    # --- reads ------------------------------------------------------------------------

    def names(self) -> tuple[str, ...]:
        return tuple(self._entries)

    @property
    def routing(self) -> int:
        """A number that grows when something changes by which requests are routed: a state, a model,
        a slot that comes or goes. Not with leases."""
        return self._routing

    def snapshot(self, name: str) -> SlotSnapshot:
        """What the slot last published. Raises :class:`SlotNotFound`."""
        return self._shown(self._entry(name))

    def _shown(self, entry: _Entry) -> SlotSnapshot:
        """What the slot published; of a wait for room the arbiter knows more than the slot."""
        shown = entry.snapshot.value
        if shown.blocked and self._landlord is not None:
            words = self._landlord.waits_for(shown.name)
            return replace(shown, blocked=words) if words else shown
        return shown

    def cell(self, name: str) -> Snapshot[SlotSnapshot]:
        """Where the slot publishes itself, for who waits for a change. Raises :class:`SlotNotFound`."""
        return self._entry(name).snapshot

    def snapshots(self) -> Mapping[str, SlotSnapshot]:
        """All slots in declared order, from what they published."""
        return {name: self._shown(e) for name, e in self._entries.items()}

    def mailbox(self, name: str) -> Mailbox[ev.Message | Configure]:
        """The slot's mailbox, for tests that drive or break its actor."""
        return self._entry(name).mailbox

    def logs(self, name: str) -> LogRing:
        """The slot's log, across its engine's restarts."""
        return self._entry(name).logs

    def observe(self, name: str) -> AbstractContextManager[Subscription]:
        """Every transition of the slot from now on, as bus events, none skipped silently."""
        self._entry(name)
        return self._bus.subscribe(kinds=(types.SLOT_TRANSITION,), match=lambda e: e.slot == name)

    # --- the capability axis ----------------------------------------------------------

    def loaded_slots(self) -> tuple[LoadedSlot, ...]:
        """Every configured slot in declared order, by what it can do. Whether it runs is no matter."""
        return tuple(e.identity.loaded(e.snapshot.value.model) for e in self._entries.values())

    def resolve_for_request(self, type: str, required_labels: Collection[str] = ()) -> LoadedSlot:
        """The slot for something of ``type`` that needs these labels.

        See :func:`slotd.capability.choice.choose`.
        Reads what is configured, wakes nothing, never waits. Raises
        :class:`slotd.errors.NoCapableSlot`.
        """
        slots = self.loaded_slots()
        chosen = choose(slots, type, required_labels)
        if chosen is None:
            raise refusal(slots, type, required_labels)
        return chosen

    def route_for_request(self, type: str, required_labels: Collection[str] = ()) -> str:
        """The name of :meth:`resolve_for_request`'s slot."""
        return self.resolve_for_request(type, required_labels).name

    async def wait_for(self, name: str, states: Iterable[SlotState]) -> SlotSnapshot:
        """Wait until the slot's snapshot shows one of ``states``."""
        cell, wanted = self._entry(name).snapshot, frozenset(states)
        version = cell.version
        while cell.value.state not in wanted:
            version = await cell.wait_change(version)
        return cell.value

    # --- asks -------------------------------------------------------------------------

    async def state(self, name: str) -> SlotState:
        """The slot's state, from its owner."""
        return await self._entry(name).mailbox.ask(ev.QueryState)

    async def acquire(
        self,
        name: str,
        lease_id: str,
        *,
        model: str = "",
        wait: bool = True,
        since: float | None = None,
        priority: int = 0,
        replay: bool = False,
    ) -> Lease:
        """A lease named ``lease_id``, loading the slot if need be; see :class:`~slotd.slot.messages.Acquire`.

        Raises the typed refusal. Whoever calls this posts :meth:`release` with
        the same name in a ``finally`` around the call, whatever came of it.
        """
        if (lease := self.take(name, lease_id, model)) is not None:
            await trio.lowlevel.checkpoint_if_cancelled()
            return lease
        return await self.ask_for(name, ev.Acquire(lease_id, model, wait, since, priority, replay)).wait()

    def take(self, name: str, lease_id: str, model: str = "") -> Lease | None:
        """A lease, if the slot's turnstile lets this one through; None: ask with :meth:`ask_for`.

        To be given back as any other.
        """
        entry = self._entries.get(name)
        if entry is None or self._stopping or not entry.mailbox.is_open:
            return None
        return entry.turnstile.take(lease_id, model)

    def ask_for(self, name: str, event: ev.Acquire) -> Reply[Lease]:
        """:meth:`acquire` as far as it needs no waiting: a slot with a free place has answered already."""
        if self._stopping:
            raise ServerStopping("slotd is shutting down")
        return self._entry(name).mailbox.put(partial(ev.Asked, event))

    def release(self, name: str, lease_id: str, *, keep_load: bool = False) -> None:
        """Give a lease back, or withdraw the wish for it. Idempotent; never waits.

        ``keep_load``: the load that it waited for goes on.
        """
        entry = self._entries.get(name)
        if entry is not None and entry.turnstile.give_back(lease_id):
            return
        event = ev.Release(lease_id, keep_load)
        for entry in self._all(name):
            entry.mailbox.post(event)

    def stalled(self, name: str, lease_id: str) -> None:
        """The answer of this lease has stopped coming. Post it before the release."""
        for entry in self._all(name):
            entry.mailbox.post(ev.Stalled(lease_id))

    def _all(self, name: str) -> Iterator[_Entry]:
        """The slot of this name, and those that had it and are still ending."""
        if name in self._entries:
            yield self._entries[name]
        yield from self._removed.get(name, ())

    async def load(self, name: str) -> None:
        """Load the slot; returns when it is ready."""
        await self._command(name, ev.Load)

    async def unload(self, name: str) -> None:
        """Drain and unload; returns when it is offline."""
        await self._command(name, ev.Unload)

    async def restart(self, name: str) -> None:
        """Unload and load; returns when it is ready."""
        await self._command(name, ev.Restart)

    async def kill(self, name: str) -> None:
        """SIGKILL the engine now; returns when nothing of it is left."""
        await self._command(name, ev.Kill)

    async def swap(self, name: str, model: str) -> None:
        """Serve ``model`` instead; returns when it is ready."""
        entry = self._entry(name)
        present = entry.backend.present(model)
        await self._command(name, lambda id: ev.Swap(id, model, present))

    def close_doors(self) -> None:
        """Refuse all who hold no lease, from now on; those who do may finish."""
        self._stopping = True
        for entry in self._everyone():
            entry.mailbox.post(ev.CloseDoors())

    async def shutdown(self) -> None:
        """Stop every slot, all at once; returns when all are down."""
        self._stopping = True
        async with trio.open_nursery() as nursery:
            for entry in self._everyone():
                if entry.mailbox.is_open:
                    nursery.start_soon(self._shutdown_one, entry)

    async def _shutdown_one(self, entry: _Entry) -> None:
        # A crash is as good as a stop, and no reason to leave the others: the
        # actor took its engine with it, and its next incarnation starts none.
        with suppress(ActorGone, SlotUnkillable):
            await self._ask(entry, ev.Shutdown)

    def _everyone(self) -> tuple[_Entry, ...]:
        """Every slot, those too that were removed and still serve somebody."""
        removed = (entry for leaving in self._removed.values() for entry in leaving)
        return (*self._entries.values(), *removed)

    async def _command(self, name: str, make: Callable[[str], ev.Command]) -> None:
        await self._ask(self._entry(name), make)

    async def _ask(self, entry: _Entry, make: Callable[[str], ev.Command]) -> None:
        event = make(f"command-{next(self._ids)}")

        def asked(reply: Reply[None]) -> ev.Message:
            return ev.Asked(event, reply)

        await entry.mailbox.ask(asked)

    def _hint(self, name: str) -> str:
        if close := nearest(name, self._entries):
            return f"; did you mean {close!r}?"
        for slot, entry in self._entries.items():
            if name == entry.identity.model or name in entry.identity.aliases:
                return f", but slot {slot!r} answers to that name; did you mean it?"
        names = list(self._entries)
        more = f" and {len(names) - HINTED} more" if len(names) > HINTED else ""
        return f"; slots: {', '.join(names[:HINTED]) or 'none'}{more}"

    def _entry(self, name: str) -> _Entry:
        entry = self._entries.get(name)
        if entry is None:
            raise SlotNotFound(
                f"there is no slot {name!r}{self._hint(name)}", details={"slots": list(self._entries)}
            )
        return entry
