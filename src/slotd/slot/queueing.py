"""Leases, and the queue for them.

Who waits is served by priority, then in order of arrival; nobody is overtaken
for longer than ``max_wait_s``. What these functions change is made good by
:mod:`slotd.slot.settle`: it grants, loads and arms the deadlines.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from slotd.errors import (
    OutputSanityFailed,
    RouteStale,
    ServerStopping,
    SlotCrashLooping,
    SlotdError,
    SlotLoadFailed,
    SlotLoading,
    SlotQueueFull,
    SpawnFailed,
)
from slotd.slot import effects as fx
from slotd.slot import messages as ev
from slotd.slot.breaker import SOUND
from slotd.slot.slot import Check, Slot, Waiter
from slotd.slot.state import LOADING, UP, Fault, SlotState
from slotd.slot.turn import CHECK, LEASED, PROVEN, Turn

__all__ = [
    "acquire",
    "average_hold_s",
    "can_grant",
    "expire",
    "fault_error",
    "grant_waiting",
    "load_left_s",
    "nothing_follows",
    "passed",
    "passes_freely",
    "refuse_waiting",
    "release",
]

S = SlotState

HOLD_WEIGHT = 0.2
"""How much the last lease counts in the average of how long one is held."""
GUESSED_LOAD_S = 10.0
"""For a slot that has never been loaded."""
_OF_SERVING = frozenset({CHECK, PROVEN})
"""Deadlines that what is derived neither arms nor disarms."""


def fault_error(slot: str, fault: Fault) -> SlotdError:
    """The error of a request that a failed load has let down."""
    kind: type[SlotdError] = SlotLoadFailed
    if fault.reason == "spawn_failed":
        kind = SpawnFailed
    elif fault.reason == "output_sanity_failed":
        kind = OutputSanityFailed
    why = fault.message.removeprefix(f"slot {slot!r}: ")
    return kind(f"slot {slot!r} could not be loaded: {why}", details=fault.details())


def can_grant(slot: Slot) -> bool:
    return slot.state in UP and slot.ending is None and len(slot.leases) < slot.spec.max_parallel


def passes_freely(slot: Slot) -> bool:
    """Whether granting one more of its places, or taking a lease back, decides nothing.

    That is: :func:`acquire` would grant as long as there is a place, :func:`release`
    would change no more than the leases and the times, and nothing would follow
    but that it serves or rests. Only leases come and go meanwhile, so it stays so.

    While it serves, that is so for any lease but the last, whose end arms a
    deadline that nobody waits for yet. One that rests may begin to serve and come
    to rest again as often as it likes: whoever waits for the deadline of this rest
    is in time for that of any later one.
    """
    return (
        ((slot.spec.max_parallel > 1 and nothing_follows(slot)) or _rests(slot))
        and slot.condemned is None
        and slot.breaker is SOUND
        and not (slot.stopping or slot.stalls or slot.stalled)
    )


def _rests(s: Slot) -> bool:
    """Whether it is ready, and nothing but that is going on.

    Of one that has settled: nobody waits at it, it is not to go, and the deadline
    of its rest is armed, with the numbers that hold for later ones.
    """
    return s.state is S.READY and s.check is not Check.RUNNING and not s.contended


def nothing_follows(s: Slot) -> bool:
    """Whether it serves, and nothing but that is going on: then :func:`~slotd.slot.settle.derive`
    would change nothing.

    So it is before and after most leases, and looking at it once costs a tenth of deriving.
    """
    return (
        s.state is S.SERVING
        and bool(s.leases)
        and not s.waiting
        and s.ending is None
        and s.check is not Check.DUE
        and s.deadlines.keys() <= _OF_SERVING
    )


def average_hold_s(average: float | None, held_s: float) -> float:
    """How long a lease is held on average, with one more that was."""
    return held_s if average is None else average + HOLD_WEIGHT * (held_s - average)


def passed(t: Turn, event: ev.Passed) -> None:
    """Leases have come and gone that needed no decision: see :func:`passes_freely`."""
    t.set(leases=event.leases, last_used=event.last_used, hold_s=event.hold_s)
    t.be(S.SERVING if event.leases else S.READY, event.since)


def load_left_s(slot: Slot, now: float) -> float:
    """How long a load is likely to take from now; 0 if it is up."""
    if slot.state in UP:
        return 0.0
    whole = slot.load_s or GUESSED_LOAD_S
    elapsed = now - slot.load_began if slot.state in LOADING else 0.0
    return max(whole - elapsed, 1.0)


def _place_free_in_s(slot: Slot, now: float) -> float:
    """When a place in the queue is likely to be free: when the next lease ends."""
    return load_left_s(slot, now) + (slot.hold_s or 1.0) / slot.spec.max_parallel


def acquire(t: Turn, event: ev.Acquire) -> None:
    """Queue the request, or refuse it; a free place is given to it as the step settles."""
    s = t.slot
    refusal = _refusal(s, event, t.now)
    if refusal is None and can_grant(s) and not s.waiting:
        return _grant(t, event.id)
    if refusal is None and not event.wait:
        if s.down:
            # Who does not wait comes back: the load must outlive this request.
            t.set(wanted=True)
        refusal = _loading(s, t.now)
    if refusal is not None:
        return t.do(fx.Refuse(event.id, refusal))
    since = t.now if event.since is None else min(event.since, t.now)
    waiter = Waiter(event.id, since, since + s.spec.queue_timeout_s, event.priority)
    t.set(waiting=(*s.waiting, waiter))
    return None


def _loading(s: Slot, now: float) -> SlotLoading:
    """For who does not wait, of a slot that cannot serve at once."""
    if s.state in UP:
        doing = "is busy"
    elif s.down:
        doing = "is not loaded; its load has begun"
    elif s.state in LOADING:
        doing = f"is {s.state}; its load goes on"
    else:
        doing = f"is {s.state}"
    left_s = max(load_left_s(s, now), s.hold_s or 1.0)
    return SlotLoading(
        f"slot {s.spec.name!r} {doing}. This request does not wait (X-Slotd-Wait): "
        f"come back in about {math.ceil(left_s)} s",
        retry_after_s=left_s,
    )


def _refusal(s: Slot, event: ev.Acquire, now: float) -> SlotdError | None:
    """Why the request may not even wait. Costs nothing: no transition, no start."""
    name = s.spec.name
    if s.stopping:
        return ServerStopping("slotd is shutting down")
    if event.model and s.model and event.model != s.model:
        return RouteStale(
            f"slot {name!r} now serves {s.model!r}, not {event.model!r}; ask again", retry_after_s=1
        )
    if s.ending is not None and s.ending.refusal is not None:
        return s.ending.refusal
    if s.condemned is not None:
        return fault_error(name, s.condemned)
    if s.state in (S.OFFLINE, S.ERROR) and s.breaker.blocks(now):
        return _breaker_refusal(s, event, now)
    if len(s.waiting) >= s.spec.max_queue and not event.replay and not (can_grant(s) and not s.waiting):
        if not event.wait:
            return None
        return SlotQueueFull(
            f"slot {name!r} has {len(s.waiting)} requests waiting already (max_queue = {s.spec.max_queue})",
            retry_after_s=_place_free_in_s(s, now),
        )
    return None


def _breaker_refusal(s: Slot, event: ev.Acquire, now: float) -> SlotdError | None:
    b = s.breaker
    if event.replay and event.wait and not b.parked:
        return None
    if b.fault is not None and b.fault.terminal:
        return fault_error(s.spec.name, b.fault)
    why = f": {b.fault.message}" if b.fault is not None else ""
    name, left = s.spec.name, f"for another {max(math.ceil(b.until - now), 1)} s"
    return SlotCrashLooping(
        f"slot {name!r} has failed {b.failures} times in a row and is left alone {left} "
        f"(`slotd load {name}` tries at once){why}",
        details={"failures": b.failures, "parked": b.parked, **(b.fault.details() if b.fault else {})},
        retry_after_s=b.until - now,
    )


def _grant(t: Turn, id: str) -> None:
    s = t.slot
    t.set(leases={**s.leases, id: t.now}, last_used=t.now, told_quiet=False)
    if s.check is Check.RUNNING and CHECK in s.deadlines:
        # It is to have an idle engine's time, unless it has waited for that in vain.
        t.set(check=Check.DUE)
        t.do(fx.StopCheck())
    if s.state is not S.SERVING:
        t.move(S.SERVING, LEASED)
    t.do(fx.Grant(id))


def _next(waiting: tuple[Waiter, ...], now: float, max_wait_s: float) -> Waiter:
    overdue = [w for w in waiting if now - w.since >= max_wait_s]
    if overdue:
        return min(overdue, key=lambda w: w.since)
    return min(waiting, key=lambda w: (-w.priority, w.since))


def grant_waiting(t: Turn) -> None:
    """Give the free places to those who wait."""
    while t.slot.waiting and can_grant(t.slot):
        first = _next(t.slot.waiting, t.now, t.slot.spec.max_wait_s)
        t.set(waiting=tuple(w for w in t.slot.waiting if w is not first))
        _grant(t, first.id)


def release(t: Turn, id: str, *, keep_load: bool = False) -> None:
    s = t.slot
    granted = s.leases.get(id)
    if granted is not None:
        average = average_hold_s(s.hold_s, t.now - granted)
        leases = dict(s.leases)
        del leases[id]
        if id in s.stalled:
            t.set(leases=leases, last_used=t.now, hold_s=average, stalled=s.stalled - {id})
        else:
            # It has served somebody to the end.
            t.set(leases=leases, last_used=t.now, hold_s=average, stalls=0, breaker=SOUND)
    elif any(w.id == id for w in s.waiting):
        t.set(waiting=tuple(w for w in s.waiting if w.id != id))
        if keep_load and not s.stopping:
            t.set(wanted=True)


def expire(t: Turn, error: Callable[[], SlotdError]) -> None:
    """Refuse those whose deadline has come."""
    for w in t.slot.waiting:
        if w.deadline <= t.now:
            t.do(fx.Refuse(w.id, error()))
    t.set(waiting=tuple(w for w in t.slot.waiting if w.deadline > t.now))


def refuse_waiting(t: Turn, error: Callable[[], SlotdError]) -> None:
    for w in t.slot.waiting:
        t.do(fx.Refuse(w.id, error()))
    t.set(waiting=())
