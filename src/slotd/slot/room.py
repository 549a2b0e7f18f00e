"""What a slot and the arbiter have to do with one another: see :mod:`slotd.arbiter.tenant`."""

from __future__ import annotations

from slotd.arbiter.tenant import Leave
from slotd.errors import SlotdError
from slotd.slot import effects as fx
from slotd.slot import messages as ev
from slotd.slot.ending import begin_unload
from slotd.slot.queueing import refuse_waiting
from slotd.slot.slot import Ending, Goal, Room
from slotd.slot.state import LOADING, UP, SlotState
from slotd.slot.turn import DRAIN, HOLD, Turn

__all__ = ["RoomEvent", "room_event"]

S = SlotState

RoomEvent = ev.Admitted | ev.Denied | ev.Contended | Leave | ev.ComeBack | ev.Resync


def room_event(t: Turn, event: RoomEvent) -> None:
    s = t.slot
    match event:
        case ev.Admitted(ticket):
            if ticket == s.ticket and s.room is Room.ASKED:
                t.set(room=Room.HELD)
        case ev.Denied(ticket, error):
            if ticket == s.ticket and s.room is Room.ASKED:
                _denied(t, error)
        case ev.Contended(on):
            t.set(contended=on, told_quiet=False)
            if not on:
                t.disarm(HOLD)
        case Leave():
            _leave(t, event)
        case ev.ComeBack():
            if not s.stopping:
                t.set(wanted=True)
        case ev.Resync():
            t.set(contended=False, told_quiet=False)
            t.do(fx.Tell(fx.Word.HOLDING, s.ticket))
            if s.room is Room.ASKED:
                t.do(fx.AskRoom(s.ticket, _oldest(t)))


def _oldest(t: Turn) -> float:
    return min((w.since for w in t.slot.waiting), default=t.now)


def _denied(t: Turn, error: SlotdError) -> None:
    """There is no room. No fault of the slot's: it may be asked for again at any time."""
    t.set(room=Room.NONE, wanted=False)
    refuse_waiting(t, lambda: error)
    for p in t.slot.pending:
        if p.up:
            t.do(fx.Refuse(p.id, error))
    t.set(pending=tuple(p for p in t.slot.pending if not p.up))


def _leave(t: Turn, order: Leave) -> None:
    s = t.slot
    if order.ticket != s.ticket or s.room is not Room.HELD:
        return None  # an older load: its Gone has been told
    if s.spec.pinned:
        return t.do(fx.Tell(fx.Word.STAYS, s.ticket, "it is pinned"))
    if not order.drain and not (s.quiet or s.ending is not None or s.state is S.ERROR):
        return t.do(fx.Tell(fx.Word.STAYS, s.ticket, "it is in use"))
    t.set(leaving=True, wanted=False)
    error = order.refusal
    if error is not None:
        refusal = error
        refuse_waiting(t, lambda: refusal)
        for p in t.slot.pending:
            if p.up:
                t.do(fx.Refuse(p.id, refusal))
        t.set(pending=tuple(p for p in t.slot.pending if not p.up))
    ending = Ending(Goal.OFFLINE, order.why, refusal=error)
    if s.state in UP and s.leases:
        if s.ending is None or error is not None:
            t.set(ending=ending)
        if order.cut_after_s is not None:
            at = t.now + order.cut_after_s
            t.arm(DRAIN, min(at, s.deadlines.get(DRAIN, at)))
    elif s.state in UP or s.state in LOADING:
        begin_unload(t, ending)
    elif error is not None and s.ending is not None:
        t.set(ending=ending)
    return None
