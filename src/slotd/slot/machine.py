"""A slot's state machine: ``step(slot, event, now) -> (slot, effects)``. Pure.

The whole of a slot's behaviour is decided here; no task, clock, process or
socket is touched. Deadlines are part of the state (:attr:`Slot.deadlines`):
the shell only waits for the earliest and reports it as ``Due``, so that a
transitional state without a deadline can be seen in a test.

Who waits, who holds a lease and which commands are open is part of the state
as well: every id that comes in with an event leaves in exactly one ``Grant``,
``Refuse`` or ``Done``, unless a ``Release`` withdraws it.

The parts, each resting on the ones before: :mod:`~slotd.slot.slot` is the
state and :mod:`~slotd.slot.breaker` a part of it; :mod:`~slotd.slot.turn` are
the verbs (the one line that changes the state is there);
:mod:`~slotd.slot.queueing`, :mod:`~slotd.slot.ending`,
:mod:`~slotd.slot.loading`, :mod:`~slotd.slot.commands` and
:mod:`~slotd.slot.room` say what each event changes, and
:mod:`~slotd.slot.settle` what follows from that.
"""

from __future__ import annotations

from typing import assert_never

from slotd.errors import SlotQueueTimeout
from slotd.slot import commands
from slotd.slot import effects as fx
from slotd.slot import messages as ev
from slotd.slot.breaker import SOUND
from slotd.slot.ending import begin_unload, fail, stuck
from slotd.slot.loading import engine_event, hung, pull_event
from slotd.slot.queueing import acquire, expire, passed, release
from slotd.slot.room import room_event
from slotd.slot.settle import settle
from slotd.slot.slot import Check, Ending, Goal, Room, Slot, SlotSpec, Waiter, next_deadline
from slotd.slot.state import UP, Fault, SlotState
from slotd.slot.turn import CHECK, Turn

__all__ = ["Check", "Ending", "Goal", "Room", "Slot", "SlotSpec", "Waiter", "next_deadline", "step"]

S = SlotState

STALLS = 2
"""So many requests in a row whose answers stop coming, and nobody served meanwhile: it hangs."""


def step(slot: Slot, event: ev.Event, now: float) -> tuple[Slot, tuple[fx.Effect, ...]]:
    """Apply one event. Never raises for any event in any state."""
    t = Turn(slot, now)
    if _apply(t, event):
        settle(t)
    return t.slot, tuple(t.effects)


def _apply(t: Turn, event: ev.Event) -> bool:
    """Change what the event changes; False if it means nothing (any more)."""
    match event:
        case ev.Acquire():
            acquire(t, event)
        case ev.Release(id, keep_load):
            release(t, id, keep_load=keep_load)
        case ev.Passed():
            passed(t, event)
        case ev.Load(id):
            commands.load(t, id)
        case ev.Unload(id):
            commands.unload(t, id)
        case ev.Restart(id):
            commands.restart(t, id, "restart")
        case ev.Kill(id):
            commands.kill(t, id)
        case ev.Swap(id, model, present):
            commands.swap(t, id, model, present)
        case ev.CloseDoors():
            commands.close_doors(t)
        case ev.Shutdown(id):
            commands.shutdown(t, id)
        case ev.Retire(id):
            commands.retire(t, id)
        case ev.Reconfigure():
            commands.reconfigure(t, event)
        case ev.ModelSeen(present):
            if t.slot.down:
                t.set(model_present=present)
        case ev.Due(timer):
            return _due(t, timer)
        case ev.PullProgressed() | ev.Pulled() | ev.PullFailed():
            if t.slot.state is not S.PULLING or event.generation != t.slot.generation:
                return False
            pull_event(t, event)
        case ev.Drifted(stale):
            t.set(stale=stale and t.slot.state in UP)
        case ev.Stalled(id):
            _stalled(t, id)
        case ev.OutputJudged():
            if event.generation != t.slot.alive:
                return False
            _judged(t, event)
        case (
            ev.Started()
            | ev.LaunchFailed()
            | ev.PortOpened()
            | ev.ProbeSaw()
            | ev.Ready()
            | ev.StrangerFound()
            | ev.Exited()
            | ev.Gone()
            | ev.Hung()
        ):
            # A late word of an engine that has been replaced means nothing.
            if event.generation != t.slot.alive:
                return False
            engine_event(t, event)
        case ev.Admitted() | ev.Denied() | ev.Contended() | ev.Leave() | ev.ComeBack() | ev.Resync():
            room_event(t, event)
        case _:
            assert_never(event)
    return True


def _stalled(t: Turn, id: str) -> None:
    s = t.slot
    if id not in s.leases or id in s.stalled:
        return
    t.set(stalled=s.stalled | {id}, stalls=s.stalls + 1)
    if t.slot.stalls >= STALLS and t.slot.stalled >= s.leases.keys():
        hung(t, Fault("stalled", f"{t.slot.stalls} answers in a row stopped coming"))


def _judged(t: Turn, event: ev.OutputJudged) -> None:
    s = t.slot
    if s.check is not Check.RUNNING:
        return  # it was stopped; what it says now is of half an answer
    if event.sane is not False:
        t.set(check=Check.OK if event.sane else Check.UNKNOWN)
        t.disarm(CHECK)
        return
    fault = Fault("output_sanity_failed", f"the engine writes no words: {event.why}", terminal=True)
    t.set(condemned=fault, check=Check.OFF)
    if s.state in UP:
        begin_unload(t, Ending(Goal.ERROR, fault.reason, fault))


# --- deadlines ------------------------------------------------------------------------


def _due(t: Turn, timer: str) -> bool:
    if t.slot.deadlines.get(timer, t.now + 1) > t.now:
        return False
    t.disarm(timer)
    s = t.slot
    match timer:
        case "phase":
            _phase_over(t)
        case "queue":
            expire(
                t,
                lambda: SlotQueueTimeout(
                    f"waited {s.spec.queue_timeout_s:g} s for slot {s.spec.name!r} ({s.state}); "
                    "raise server.queue_timeout_s if that is normal"
                ),
            )
        case "idle":
            if s.state is S.READY:
                t.move(S.IDLE, "quiet")
        case "ttl":
            if s.state is S.IDLE:
                t.set(wanted=False)
                begin_unload(t, Ending(Goal.OFFLINE, "idle for ttl_s"))
        case "abandon":
            why = "nobody waits for it any more"
            if s.state is S.PULLING:
                t.do(fx.EndPull(s.generation))
                t.move(S.OFFLINE, why)
            elif s.state in (S.STARTING, S.WARMING):
                begin_unload(t, Ending(Goal.OFFLINE, why))
        case "drain":
            if s.state is S.SERVING and s.ending is not None:
                begin_unload(t, s.ending)
        case "hold":
            t.set(told_quiet=True)
            t.do(fx.Tell(fx.Word.QUIET, s.ticket))
        case "proven":
            if s.state in UP:
                t.set(breaker=SOUND)
        case _:
            pass  # breaker, check: what they held back is found as the step settles
    return True


def _phase_over(t: Turn) -> None:
    s = t.slot
    match s.state:
        case S.PULLING:
            fault = Fault("pull_stalled", f"no byte of the model came for {s.spec.pull_stall_s:g} s")
            t.do(fx.EndPull(s.generation))
            t.move(S.ERROR, fault.reason)
            fail(t, fault)
        case S.STARTING | S.WARMING:
            fault = Fault(
                "load_timeout",
                f"not ready within ready_timeout_s = {s.spec.ready_timeout_s:g} s (it was still {s.state}"
                + (f"; {s.probe})" if s.probe else ")"),
            )
            begin_unload(t, Ending(Goal.ERROR, fault.reason, fault))
        case S.UNLOADING:
            # The launcher bounds its own stop; this is for when it does not.
            # `alive` stays: no second engine starts beside one that may
            # still hold the memory. Its Gone, if it ever comes, frees the slot.
            fault = Fault("unkillable", "the engine did not end within its stop and kill time-outs")
            t.move(S.ERROR, fault.reason)
            stuck(t, fault)
        case S.ERROR if s.alive is not None:
            # They have waited for remains that do not go; as above, `alive` stays.
            stuck(t, Fault("unkillable", "the last engine has still not ended; nothing can be started"))
        case _:
            pass
