"""What follows from a slot's state once an event has been applied to it.

Events change facts; this derives what the facts call for, in one pass and in
one place: free places are given to those who wait, a slot that is wanted is
loaded, one that is to go and serves nobody goes, and each deadline that the
state needs is armed. So no event has to remember what it makes possible.
"""

from __future__ import annotations

from slotd.slot import effects as fx
from slotd.slot.ending import begin_unload, start
from slotd.slot.queueing import can_grant, grant_waiting, nothing_follows
from slotd.slot.slot import Check, Ending, Goal, Room
from slotd.slot.state import LOADING, UP, SlotState
from slotd.slot.turn import ABANDON, BREAKER, CHECK, HOLD, IDLE, PHASE, QUEUE, RESTS, TTL, Turn

__all__ = ["derive", "settle"]

S = SlotState


def settle(t: Turn) -> None:
    if not nothing_follows(t.slot):
        derive(t)


def derive(t: Turn) -> None:
    """Everything that follows, whatever the state is."""
    grant_waiting(t)
    _rest(t)
    _depart(t)
    if t.slot.down and not t.slot.undecided:
        _bring_up(t)
    _check_output(t)
    _watch(t)


def _rest(t: Turn) -> None:
    if t.slot.state is S.SERVING and not t.slot.leases:
        t.move(S.READY, RESTS)


def _depart(t: Turn) -> None:
    """What is to go goes when it serves nobody any more."""
    s = t.slot
    if s.state not in UP or s.leases:
        return
    if s.ending is not None:
        begin_unload(t, s.ending)
    elif s.stale and s.quiet:
        t.set(leaving=True)  # what is started next may need more or less room
        begin_unload(t, Ending(Goal.OFFLINE, "what is configured has changed"))


def _bring_up(t: Turn) -> None:
    """Whoever wants a slot that is down gets it loaded: pulled, given room, started."""
    s = t.slot
    if s.stopping or not s.wish or s.condemned is not None:
        return _give_up(t)
    if s.breaker.blocks(t.now):
        return _give_up(t, failed=True)
    if s.leaving or not s.model_present:
        # Others want it, or it cannot be used for a while.
        _give_up(t)
    s = t.slot
    if not s.model_present:
        _begin_load(t)
        t.move(S.PULLING, _why(t))
        t.arm(PHASE, t.now + s.spec.pull_stall_s)
        return t.do(fx.BeginPull(t.slot.generation))
    if s.room is Room.HELD:
        _begin_load(t)
        return start(t, _why(t))
    if s.room is Room.NONE:
        t.set(room=Room.ASKED, ticket=s.ticket + 1)
        t.do(fx.AskRoom(t.slot.ticket, min((w.since for w in s.waiting), default=t.now)))
    return None


def _why(t: Turn) -> str:
    return "requested" if t.slot.waiting else "asked to load"


def _begin_load(t: Turn) -> None:
    t.set(
        generation=t.slot.generation + 1,
        port_attempts=0,
        fault=None,
        ending=None,
        load_began=t.now,
        progress=None,
        progress_phase="",
    )


def _give_up(t: Turn, *, failed: bool = False) -> None:
    """Give back the room that is held or asked for."""
    s = t.slot
    if s.room is Room.HELD:
        if failed:
            t.do(fx.Tell(fx.Word.FAILED, s.ticket))
        t.do(fx.Tell(fx.Word.GONE, s.ticket))
    elif s.room is Room.ASKED:
        t.do(fx.Tell(fx.Word.WITHDRAW, s.ticket))
    if s.room is not Room.NONE:
        t.set(room=Room.NONE, leaving=False)


def _check_output(t: Turn) -> None:
    """Judge a loaded engine's words in a quiet moment, or, if there is none, beside the requests."""
    s = t.slot
    if s.check is Check.DUE and s.alive is not None and (s.quiet or (_urgent(t) and can_grant(s))):
        t.set(check=Check.RUNNING)
        t.do(fx.CheckOutput(s.alive))


def _urgent(t: Turn) -> bool:
    return CHECK not in t.slot.deadlines


# --- deadlines ----------------------------------------------------------------------


def _watch(t: Turn) -> None:
    _watch_queue(t)
    _watch_idle(t)
    _watch_hold(t)
    _watch_abandonment(t)
    _watch_breaker(t)
    _watch_remains(t)


def _watch_queue(t: Turn) -> None:
    if not t.slot.waiting:
        t.disarm(QUEUE)
    else:
        t.arm(QUEUE, min(w.deadline for w in t.slot.waiting))


def _watch_idle(t: Turn) -> None:
    s = t.slot
    if s.state is S.READY and s.spec.idle_after_s > 0 and IDLE not in s.deadlines:
        t.arm(IDLE, t.now + s.spec.idle_after_s)
    elif s.state is S.IDLE and s.spec.ttl_s > 0 and not s.spec.pinned and TTL not in s.deadlines:
        t.arm(TTL, t.now + s.spec.ttl_s)


def _watch_hold(t: Turn) -> None:
    """A slot that others need gone says so when it has been quiet for its hold."""
    s = t.slot
    if not (s.contended and s.quiet and not s.told_quiet):
        t.disarm(HOLD)
    elif HOLD not in s.deadlines:
        t.arm(HOLD, t.now + s.spec.turn_hold_s)


def _watch_abandonment(t: Turn) -> None:
    """A load that nobody wants any more ends after a short grace."""
    s = t.slot
    if s.state not in LOADING or s.wish:
        t.disarm(ABANDON)
    elif ABANDON not in s.deadlines:
        t.arm(ABANDON, t.now + s.spec.abandon_after_s)


def _watch_breaker(t: Turn) -> None:
    s = t.slot
    if s.down and s.wish and s.condemned is None and s.breaker.blocks(t.now):
        t.arm(BREAKER, s.breaker.until)
    else:
        t.disarm(BREAKER)


def _watch_remains(t: Turn) -> None:
    """In ``error``, commands wait a bounded time for the last engine to be gone."""
    s = t.slot
    if s.state is not S.ERROR:
        return  # every other state that must end has armed its own
    if s.alive is None or not (s.pending or s.waiting):
        t.disarm(PHASE)
    elif PHASE not in s.deadlines:
        t.arm(PHASE, t.now + s.spec.stop_timeout_s + 2 * s.spec.kill_timeout_s)
