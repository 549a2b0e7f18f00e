"""Who gets memory, and who has to give it back."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

from slotd.arbiter import denials
from slotd.arbiter.devices import blocked
from slotd.arbiter.room import Reading, Room, choose, total
from slotd.arbiter.state import Demand, Hold, ordered
from slotd.arbiter.turn import Turn
from slotd.events import types

__all__ = ["deny_hopeless", "share_out"]

READING_AGE_S = 1.0
"""How old a measurement may be that lets a load in."""


def deny_hopeless(t: Turn) -> None:
    """Whoever has waited too long, or could not be let in if everybody else left."""
    budget, limits = t.state.capacity(), t.state.limits
    kept = tuple(h for h in t.state.holds.values() if t.state.stuck(h, t.now) or t.facts(h.slot).pinned)
    for demand in ordered(t.state):
        until = demand.asked_at + limits.wait_s
        t.wake(until)
        if budget is not None and demand.room.beyond(left := budget - total(h.room for h in kept)):
            t.deny(demand, denials.never_fits(t.state, demand, left, kept))
        elif until <= t.now:
            words, _ = blocked(t, demand)
            device = t.facts(demand.slot).exclusive or t.facts(demand.slot).device
            if words and device:
                waited = replace(demand, why=words)
                t.deny(demand, denials.device_busy(t.state, waited, device))
            else:
                t.deny(demand, denials.waited_too_long(t.state, demand))


def fresh(t: Turn) -> Reading | None:
    """What was measured, if it still says what is free."""
    s = t.state
    current = s.read_number >= s.fresh_from and t.now - s.read_at <= READING_AGE_S
    return s.reading if current else None


def share_out(t: Turn) -> None:
    """Let in, in order, whoever fits; make room for whoever does not.

    What an older demand waits for is kept for it: a later one loads only
    beside it, and counts on none of the slots that the older one counts on.
    """
    claims = Room()
    spoken_for: frozenset[str] = frozenset()
    for demand in ordered(t.state):
        words, its_turn = blocked(t, demand)
        reading = fresh(t)
        if demand.slot in t.state.unheard:
            _wait(t, demand, "waits until it is known what its slot holds")
        elif not its_turn or (words and not demand.room):
            _wait(t, demand, words)
        elif not demand.room:
            t.admit(demand)
        elif reading is None:
            _wait(t, demand, "waits until the memory is measured", tell=False)
        else:
            promised = total(h.room for h in t.state.holds.values() if h.slot in spoken_for and not h.parting)
            balance = replace(t.state.balance(reading, t.now), claims=claims, promised=promised)
            if not words and balance.fits(demand.room):
                t.admit(demand)
                continue
            claims += demand.room
            spoken_for |= _make_room(t, demand, balance.short(demand.room), spoken_for, words, reading)


def _wait(t: Turn, demand: Demand, why: str, lost_since: float | None = None, *, tell: bool = True) -> None:
    """``tell``: what it waits for is news, and no other event says it."""
    if demand.slot not in t.state.demands:
        return
    told = why if tell else demand.told
    t.put_demand(replace(demand, why=why, told=told, lost_since=lost_since))
    if told != demand.told:
        t.publish(types.ARBITER_WAITING, demand.slot, {"why": why, **demand.room.as_dict()})


def _ranked(t: Turn, holds: Iterable[Hold]) -> list[Hold]:
    """The least valuable first: by priority, then by last use."""

    def value(hold: Hold) -> tuple[int, float, str]:
        view = t.state.views.get(hold.slot)
        used = None if view is None else view.last_used
        return t.facts(hold.slot).priority, -math.inf if used is None else used, hold.slot

    return sorted(holds, key=value)


def _evictable(t: Turn, hold: Hold) -> bool:
    view, facts = t.state.views.get(hold.slot), t.facts(hold.slot)
    up = hold.up and view is not None and view.up and not view.going
    staying = hold.parting is None and hold.down_since is None
    return up and staying and not facts.pinned


def _make_room(
    t: Turn, demand: Demand, short: Room, spoken_for: frozenset[str], words: str, reading: Reading
) -> frozenset[str]:
    """See to it that the demand will fit. Returns the slots whose room it counts on."""
    if not short:
        _await(t, demand, words)
        return frozenset()
    candidates = _ranked(t, (h for h in t.state.holds.values() if _evictable(t, h)))
    candidates = [h for h in candidates if h.slot not in spoken_for]
    idle = [h for h in candidates if t.askable(h) and t.quiet(h)]
    chosen = choose([(h.slot, h.room) for h in idle], short)
    if chosen:
        _send_off(t, demand, chosen, frozenset(chosen))
        return frozenset(chosen)
    busy = [h for h in candidates if h not in idle]
    chosen = choose([(h.slot, h.room) for h in (*idle, *busy)], short)
    if not chosen:
        _stand_by(t, demand, reading, words)
        return frozenset()
    t.contended.update(h.slot for h in busy if h.room.where(short))
    at = demand.since + t.state.limits.max_wait_s
    t.wake(at)
    if at <= t.now:
        ready = [*idle, *(h for h in busy if t.askable(h) and t.had_turn(h))]
        forced = choose([(h.slot, h.room) for h in ready], short)
        if forced:
            _send_off(t, demand, forced, frozenset(h.slot for h in idle))
            return frozenset(forced)
    names = ", ".join(repr(s) for s in chosen)
    _wait(t, demand, f"waits for memory: {names} is in use")
    return frozenset(chosen)


def _send_off(t: Turn, demand: Demand, slots: tuple[str, ...], idle: frozenset[str]) -> None:
    why = f"slot {demand.slot!r} needs the memory"
    for slot in slots:
        t.order(t.state.holds[slot], demand, why, drain=slot not in idle)
    words = f"waits for memory: {', '.join(repr(s) for s in slots)} has been told to leave"
    _wait(t, demand, words, tell=False)


def _await(t: Turn, demand: Demand, words: str) -> None:
    """Room will be made without anybody being told to leave. ``words``: what else it waits for."""
    s = t.state
    leaving = {h.slot for h in s.holds.values() if s.going(h, t.now)} | {r.slot for r in s.releases}
    loading = sorted(h.slot for h in s.holds.values() if s.loading(h))
    if words:
        _wait(t, demand, words)
    elif leaving:
        names = ", ".join(map(repr, sorted(leaving)))
        # That they leave for it was told when they were told to.
        own = {h.slot for h in s.holds.values() if h.parting is not None and h.parting.winner == demand.slot}
        own |= {r.slot for r in s.releases if r.winner == demand.slot}
        _wait(t, demand, f"waits for the memory of {names} to be given back", tell=not leaving <= own)
    elif loading:
        _wait(t, demand, f"waits until {', '.join(map(repr, loading))} has loaded")
    else:
        _wait(t, demand, "waits for memory that older loads wait for")


def _stand_by(t: Turn, demand: Demand, reading: Reading, words: str) -> None:
    """Nobody who could go now would be enough."""
    s = t.state
    ours = total(h.room for h in s.holds.values() if not s.stuck(h, t.now) and not t.facts(h.slot).pinned)
    balance = s.balance(reading, t.now)
    if not demand.room.beyond(balance.free + balance.releasing + ours):
        _await(t, demand, words)
        return
    since = t.now if demand.lost_since is None else demand.lost_since
    at = since + s.limits.release_timeout_s
    t.wake(at)
    if at <= t.now:
        t.deny(demand, denials.strangers(s, demand))
    else:
        _wait(t, demand, "waits for memory that other programs hold", since)
