"""The slots of one slotd: their actors, their names, and the public way to ask."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import structlog
import trio

from slotd.actor import ChildCrashed, ChildSpec, Intensity, Mailbox, Reply, Snapshot, Supervisor
from slotd.errors import ActorGone, ServerStopping, SlotNotFound
from slotd.events import EventBus, Subscription, types
from slotd.names import nearest
from slotd.process.logs import LogRing
from slotd.slot import messages as ev
from slotd.slot.actor import SlotActor, SlotIdentity
from slotd.slot.backend import Backend
from slotd.slot.lease import Lease
from slotd.slot.machine import Slot
from slotd.slot.state import Fault, SlotSnapshot, SlotState

T = TypeVar("T")

__all__ = ["SlotManager"]

log = structlog.get_logger("slotd")


@dataclass(slots=True)
class _Entry:
    identity: SlotIdentity
    backend: Backend
    mailbox: Mailbox[ev.Message]
    snapshot: Snapshot[SlotSnapshot]
    logs: LogRing
    actor: SlotActor | None = None


class SlotManager:
    """Starts a supervised actor per slot and passes questions on to them.

    It owns no slot's state. Reads (:meth:`snapshot`, :meth:`snapshots`) come
    from what the actors published and never wait; everything else asks the
    slot's actor and raises :class:`slotd.errors.ActorGone` if it dies first.
    Deadlines are the caller's (``trio.fail_after``).
    """

    def __init__(self, bus: EventBus, *, intensity: Intensity | None = None) -> None:
        self._bus = bus
        self._intensity = intensity or Intensity()
        self._entries: dict[str, _Entry] = {}
        self._supervisor = Supervisor(self._crashed)
        self._ids = itertools.count(1)
        self._stopping = False

    def add(self, identity: SlotIdentity, backend: Backend, *, log_kb: int = 256) -> None:
        """Declare a slot; its actor starts with :meth:`run`."""
        spec = identity.spec
        first = SlotSnapshot(
            spec.name, identity.type, identity.engine, SlotState.OFFLINE, model=identity.model
        )
        self._entries[spec.name] = _Entry(
            identity, backend, Mailbox(f"slot {spec.name}"), Snapshot(first), LogRing(log_kb * 1024)
        )

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run every slot's actor until cancelled."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self._supervisor.run)
            for entry in self._entries.values():
                self._supervisor.start(
                    ChildSpec(
                        entry.mailbox.name,
                        self._incarnate(entry),
                        intensity=self._intensity,
                        # One slot's trouble stays its own.
                        exhausted="park",
                    )
                )
            for entry in self._entries.values():
                await entry.mailbox.wait_open()
            task_status.started()

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
                    fault=fault,
                )
            entry.actor = SlotActor(
                entry.mailbox, entry.identity, entry.backend, self._bus, entry.snapshot, entry.logs, resume
            )
            await entry.actor.run()

        return run

    def _crashed(self, crash: ChildCrashed) -> None:
        name = crash.name.removeprefix("slot ")
        entry = self._entries.get(name)
        error = f"{type(crash.error).__name__}: {crash.error}"
        log.error("actor crashed", actor=crash.name, restart_in_s=crash.restart_in_s, exc_info=crash.error)
        if entry is not None:
            fault = Fault("actor_crashed", f"slotd's own actor for this slot crashed ({error})")
            gone = replace(entry.snapshot.value.after_crash(fault), pid=None, address=None)
            entry.snapshot.publish(gone)
        self._bus.publish(
            types.ACTOR_CRASHED,
            {"actor": crash.name, "error": error, "restart_in_s": crash.restart_in_s},
            slot=name,
        )

    # --- reads ------------------------------------------------------------------------

    def names(self) -> tuple[str, ...]:
        return tuple(self._entries)

    def snapshot(self, name: str) -> SlotSnapshot:
        """What the slot last published. Raises :class:`SlotNotFound`."""
        return self._entry(name).snapshot.value

    def snapshots(self) -> Mapping[str, SlotSnapshot]:
        """All slots in declared order, from what they published."""
        return {name: e.snapshot.value for name, e in self._entries.items()}

    def mailbox(self, name: str) -> Mailbox[ev.Message]:
        """The slot's mailbox, for tests that drive or break its actor."""
        return self._entry(name).mailbox

    def logs(self, name: str) -> LogRing:
        """The slot's log, across its engine's restarts."""
        return self._entry(name).logs

    def observe(self, name: str) -> AbstractContextManager[Subscription]:
        """Every transition of the slot from now on, as bus events, none skipped silently."""
        self._entry(name)
        return self._bus.subscribe(match=lambda e: e.slot == name and e.kind == types.SLOT_TRANSITION)

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

    async def acquire(self, name: str, lease_id: str, *, model: str = "", wait: bool = True) -> Lease:
        """A lease named ``lease_id``, loading the slot if need be.

        Raises the typed refusal. Whoever calls this posts :meth:`release` with
        the same name in a ``finally`` around the call, whatever came of it.
        """
        if self._stopping:
            raise ServerStopping("slotd is shutting down")
        event = ev.Acquire(lease_id, model, wait)
        lease: Lease = await self._entry(name).mailbox.ask(lambda reply: ev.Asked(event, reply))
        return lease

    def release(self, name: str, lease_id: str) -> None:
        """Give a lease back, or withdraw the wish for it. Idempotent; never waits."""
        entry = self._entries.get(name)
        if entry is not None:
            entry.mailbox.post(ev.Release(lease_id))

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
        for entry in self._entries.values():
            entry.mailbox.post(ev.CloseDoors())

    async def shutdown(self) -> None:
        """Stop every slot, all at once; returns when all are down."""
        self._stopping = True
        async with trio.open_nursery() as nursery:
            for name, entry in self._entries.items():
                if entry.mailbox.is_open:
                    nursery.start_soon(self._shutdown_one, name)

    async def _shutdown_one(self, name: str) -> None:
        # A crash is as good as a stop, and no reason to leave the others: the
        # actor took its engine with it, and its next incarnation starts none.
        with suppress(ActorGone):
            await self._command(name, ev.Shutdown)

    async def _command(self, name: str, make: Callable[[str], ev.Command]) -> None:
        event = make(f"command-{next(self._ids)}")

        def asked(reply: Reply[None]) -> ev.Message:
            return ev.Asked(event, reply)

        await self._entry(name).mailbox.ask(asked)

    def _entry(self, name: str) -> _Entry:
        entry = self._entries.get(name)
        if entry is None:
            close = nearest(name, self._entries)
            hint = f"; did you mean {close!r}?" if close else ""
            raise SlotNotFound(f"there is no slot {name!r}{hint}", details={"slots": list(self._entries)})
        return entry
