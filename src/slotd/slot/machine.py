"""A slot's state machine: ``step(slot, event, now) -> (slot, effects)``. Pure.

The whole of a slot's behaviour is decided here; no task, clock, process or
socket is touched. Deadlines are part of the state (:attr:`Slot.deadlines`):
the shell only waits for the earliest and reports it as ``Due``, so that a
transitional state without a deadline can be seen in a test.

Who waits, who holds a lease and which commands are open is part of the state
as well: every id that comes in with an event leaves in exactly one ``Grant``,
``Refuse`` or ``Done``, unless a ``Release`` withdraws it.

The parts: :mod:`~slotd.slot.slot` is the state, :mod:`~slotd.slot.turn` the
verbs (the one line that changes the state is there),
:mod:`~slotd.slot.queueing`, :mod:`~slotd.slot.loading` and
:mod:`~slotd.slot.commands` the behaviour, each resting on the one before.
"""

from __future__ import annotations

from typing import assert_never

from slotd.errors import SlotQueueTimeout
from slotd.slot import effects as fx
from slotd.slot import messages as ev
from slotd.slot.commands import Commands
from slotd.slot.slot import Ending, Goal, Slot, SlotSpec, Waiter, next_deadline
from slotd.slot.state import Fault, SlotState
from slotd.slot.turn import PHASE, TTL

__all__ = ["Ending", "Goal", "Slot", "SlotSpec", "Waiter", "next_deadline", "step"]

S = SlotState


def step(slot: Slot, event: ev.Event, now: float) -> tuple[Slot, tuple[fx.Effect, ...]]:
    """Apply one event. Never raises for any event in any state."""
    turn = _Machine(slot, now)
    turn.apply(event)
    return turn.slot, tuple(turn.effects)


class _Machine(Commands):
    """Events and deadlines, each to the part that knows what to do."""

    def apply(self, event: ev.Event) -> None:
        match event:
            case ev.Acquire():
                self._acquire(event)
            case ev.Release(id):
                self._release(id)
            case ev.Load(id):
                self._load(id)
            case ev.Unload(id):
                self._unload(id)
            case ev.Restart(id):
                self._restart(id, "restart")
            case ev.Kill(id):
                self._kill(id)
            case ev.Swap(id, model, present):
                self._swap(id, model, present)
            case ev.CloseDoors():
                self._close_doors()
            case ev.Shutdown(id):
                self._shutdown(id)
            case ev.ModelSeen(present):
                if self.slot.state in (S.OFFLINE, S.ERROR):
                    self._set(model_present=present)
            case ev.Due(timer):
                self._due(timer)
            case ev.PullProgressed() | ev.Pulled() | ev.PullFailed():
                if self.slot.state is S.PULLING and event.generation == self.slot.generation:
                    self._pull_event(event)
            case (
                ev.Started()
                | ev.LaunchFailed()
                | ev.PortOpened()
                | ev.Ready()
                | ev.StrangerFound()
                | ev.Exited()
                | ev.Gone()
            ):
                # A late word of an engine that has been replaced means nothing.
                if event.generation == self.slot.alive:
                    self._engine_event(event)
            case _:
                assert_never(event)
        self._watch_abandonment()
        self._watch_remains()

    # --- deadlines ------------------------------------------------------------------

    def _due(self, timer: str) -> None:
        if self.slot.deadlines.get(timer, self.now + 1) > self.now:
            return
        self._disarm(timer)
        s = self.slot
        match timer:
            case "phase":
                self._phase_over()
            case "queue":
                waited = s.spec.queue_timeout_s
                for w in s.waiting:
                    if w.deadline <= self.now:
                        error = SlotQueueTimeout(
                            f"waited {waited:g} s for slot {s.spec.name!r} ({s.state}); "
                            "raise server.queue_timeout_s if that is normal"
                        )
                        self._do(fx.Refuse(w.id, error))
                self._set(waiting=tuple(w for w in s.waiting if w.deadline > self.now))
                self._watch_queue()
            case "idle":
                if s.state is S.READY:
                    self._move(S.IDLE, "quiet")
                    if s.spec.ttl_s > 0 and not s.spec.pinned:
                        self._arm(TTL, s.spec.ttl_s)
            case "ttl":
                if s.state is S.IDLE:
                    self._begin_unload(Ending(Goal.OFFLINE, "idle for ttl_s"))
            case "abandon":
                why = "nobody waits for it any more"
                if s.state is S.PULLING:
                    self._do(fx.EndPull(s.generation))
                    self._move(S.OFFLINE, why)
                elif s.state in (S.STARTING, S.WARMING):
                    self._begin_unload(Ending(Goal.OFFLINE, why))
            case "drain":
                if s.state is S.SERVING and s.ending is not None:
                    self._begin_unload(s.ending)

    def _phase_over(self) -> None:
        s = self.slot
        match s.state:
            case S.PULLING:
                fault = Fault("pull_stalled", f"no byte of the model came for {s.spec.pull_stall_s:g} s")
                self._do(fx.EndPull(s.generation))
                self._move(S.ERROR, fault.reason)
                self._fail(fault)
            case S.STARTING | S.WARMING:
                fault = Fault(
                    "load_timeout",
                    f"not ready within ready_timeout_s = {s.spec.ready_timeout_s:g} s "
                    f"(it was still {s.state})",
                )
                self._begin_unload(Ending(Goal.ERROR, fault.reason, fault))
            case S.UNLOADING:
                # The launcher bounds its own stop; this is for when it does not.
                # `alive` stays: no second engine starts beside one that may
                # still hold the memory. Its Gone, if it ever comes, frees the slot.
                fault = Fault("unkillable", "the engine did not end within its stop and kill time-outs")
                self._move(S.ERROR, fault.reason)
                self._fail(fault)
            case S.ERROR if s.alive is not None:
                # Commands have waited for remains that do not go; as above, `alive` stays.
                self._fail(Fault("unkillable", "the last engine has still not ended; nothing can be started"))
            case _:
                pass

    def _watch_remains(self) -> None:
        """In ``error``, commands wait a bounded time for the last engine to be gone."""
        s = self.slot
        if s.state is not S.ERROR:
            return  # every other state that must end has armed its own
        waited_for = s.alive is not None and bool(s.pending)
        if waited_for and PHASE not in s.deadlines:
            self._arm(PHASE, s.spec.stop_timeout_s + 2 * s.spec.kill_timeout_s)
        elif not waited_for:
            self._disarm(PHASE)
