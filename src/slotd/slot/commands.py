"""What operators and slotd itself ask of a slot: load, unload, restart, kill, swap, reconfigure, shut down.

Each command is answered once: when its aim is reached, or cannot be.
"""

from __future__ import annotations

from collections.abc import Callable

from slotd.errors import RouteStale, ServerStopping, SlotdError, SlotPinned, SlotStopped
from slotd.slot import effects as fx
from slotd.slot import messages as ev
from slotd.slot.breaker import SOUND
from slotd.slot.ending import begin_unload
from slotd.slot.queueing import refuse_waiting
from slotd.slot.slot import Ending, Goal, Pending, Room
from slotd.slot.state import LOADING, UP, SlotState
from slotd.slot.turn import DRAIN, IDLE, TTL, Turn

__all__ = ["close_doors", "kill", "load", "reconfigure", "restart", "retire", "shutdown", "swap", "unload"]

S = SlotState


def _refused_for_stop(t: Turn, id: str) -> bool:
    if t.slot.stopping:
        t.do(fx.Refuse(id, ServerStopping("slotd is shutting down")))
        return True
    return False


def _stopped_error(t: Turn) -> SlotdError:
    return SlotStopped(f"slot {t.slot.spec.name!r} was stopped while this waited for it", retry_after_s=1)


def _drop_demand(t: Turn, error: Callable[[], SlotdError]) -> None:
    """Nobody is to be served by what runs or loads now."""
    refuse_waiting(t, error)
    for p in t.slot.pending:
        if p.up:
            t.do(fx.Refuse(p.id, error()))
    t.set(pending=tuple(p for p in t.slot.pending if not p.up), wanted=False)


def _await(t: Turn, id: str, *, up: bool) -> None:
    t.set(pending=(*t.slot.pending, Pending(id, up)))


def _pardon(t: Turn) -> None:
    """A person wants it: what has failed before is no reason to wait."""
    t.set(breaker=SOUND, condemned=None)


def _renounce_room(t: Turn) -> None:
    """What is started next may need more or less: ask for room again then."""
    s = t.slot
    if s.room is Room.ASKED:
        t.do(fx.Tell(fx.Word.WITHDRAW, s.ticket))
        t.set(room=Room.NONE)
    elif s.room is Room.HELD:
        t.set(leaving=True)


def load(t: Turn, id: str) -> None:
    if _refused_for_stop(t, id):
        return
    s = t.slot
    _pardon(t)
    t.set(wanted=True)
    if s.state in UP and s.ending is None:
        t.do(fx.Done(id))
    elif s.state in UP and s.ending is not None and s.ending.goal is Goal.OFFLINE and not s.leaving:
        # Still draining: it need not go at all.
        t.set(ending=None)
        t.disarm(DRAIN)
        for p in s.pending:
            t.do(fx.Refuse(p.id, _stopped_error(t)) if p.up else fx.Done(p.id))
        t.set(pending=())
        t.do(fx.Done(id))
    else:
        _await(t, id, up=True)


def unload(t: Turn, id: str) -> None:
    s = t.slot
    if s.spec.pinned and s.state not in (S.OFFLINE, S.ERROR):
        error = SlotPinned(f"slot {s.spec.name!r} is pinned; set pinned = false, or kill it")
        return t.do(fx.Refuse(id, error))
    _drop_demand(t, lambda: _stopped_error(t))
    return _go_down(t, id, "asked to unload", drain=True)


def kill(t: Turn, id: str) -> None:
    _drop_demand(t, lambda: _stopped_error(t))
    _go_down(t, id, "asked to kill", drain=False, grace_s=0.0)


def close_doors(t: Turn) -> None:
    t.set(stopping=True)
    _drop_demand(t, lambda: ServerStopping("slotd is shutting down"))


def shutdown(t: Turn, id: str) -> None:
    close_doors(t)
    _go_down(t, id, "slotd is shutting down", drain=False)


def retire(t: Turn, id: str) -> None:
    """Leave for good. What runs may finish, without a deadline of ours."""
    t.set(stopping=True)
    name = t.slot.spec.name
    _drop_demand(t, lambda: RouteStale(f"slot {name!r} is no longer configured; ask again", retry_after_s=1))
    _go_down(t, id, "no longer configured", drain=True)
    t.disarm(DRAIN)


def _go_down(t: Turn, id: str, why: str, *, drain: bool, grace_s: float | None = None) -> None:
    s = t.slot
    ending = Ending(Goal.OFFLINE, why)
    match s.state:
        case S.OFFLINE:
            return t.do(fx.Done(id))
        case S.PULLING:
            t.do(fx.EndPull(s.generation))
            t.move(S.OFFLINE, why)
            return t.do(fx.Done(id))
        case S.ERROR if s.alive is None:
            t.move(S.OFFLINE, why)
            return t.do(fx.Done(id))
        case _:
            pass
    _await(t, id, up=False)
    match s.state:
        case S.ERROR:
            t.set(ending=ending)
        case S.UNLOADING:
            t.set(ending=ending)
            if grace_s is not None and s.alive is not None:
                t.do(fx.StopEngine(s.alive, grace_s))
        case S.SERVING if drain:
            _drain(t, ending)
        case _:
            begin_unload(t, ending, grace_s)
    return None


def _drain(t: Turn, ending: Ending) -> None:
    t.set(ending=ending)
    t.arm(DRAIN, t.now + t.slot.spec.drain_timeout_s)


def restart(t: Turn, id: str, why: str) -> None:
    """Down and up again; whoever waits goes on waiting."""
    if _refused_for_stop(t, id):
        return
    s = t.slot
    ending = Ending(Goal.RESTART, why)
    _pardon(t)
    # Whoever wanted it down is overruled by a later wish.
    for p in s.pending:
        if not p.up:
            t.do(fx.Refuse(p.id, _stopped_error(t)))
    t.set(pending=tuple(p for p in s.pending if p.up), wanted=True)
    _await(t, id, up=True)
    match s.state:
        case S.OFFLINE | S.ERROR:
            if s.alive is not None:
                t.set(ending=ending)
        case S.PULLING:
            t.do(fx.EndPull(s.generation))
            t.move(S.OFFLINE, why)
        case S.UNLOADING:
            t.set(ending=ending)
        case S.SERVING:
            _drain(t, ending)
        case _:
            begin_unload(t, ending)


def swap(t: Turn, id: str, model: str, present: bool) -> None:
    if _refused_for_stop(t, id):
        return
    s = t.slot
    if model == s.model:
        load(t, id)
        return
    refuse_waiting(
        t,
        lambda: RouteStale(f"slot {s.spec.name!r} is being swapped to {model!r}; ask again", retry_after_s=1),
    )
    t.set(model=model, model_present=present)
    _renounce_room(t)
    restart(t, id, f"swap to {model}")


def reconfigure(t: Turn, event: ev.Reconfigure) -> None:
    """Take over another configuration. What runs is replaced when its requests are done."""
    s = t.slot
    t.set(spec=event.spec)
    t.disarm(IDLE, TTL)  # they are armed anew, with the new numbers
    if event.model is not None and event.model != s.model:
        refuse_waiting(
            t,
            lambda: RouteStale(
                f"slot {s.spec.name!r} serves {event.model!r} from now on; ask again", retry_after_s=1
            ),
        )
        t.set(model=event.model)
    if not event.relaunch:
        return
    why = "its configuration has changed"
    _pardon(t)
    _renounce_room(t)
    if s.state is S.PULLING:
        t.do(fx.EndPull(s.generation))
        t.move(S.OFFLINE, why)
    elif s.state in LOADING:
        begin_unload(t, Ending(Goal.OFFLINE, why))
    elif s.state in UP and s.ending is None:
        # No deadline: what runs may finish, who comes now waits.
        t.set(ending=Ending(Goal.OFFLINE, why))
