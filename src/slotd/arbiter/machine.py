"""The arbiter's machine: ``step(state, event, now) -> (state, effects)``. Pure.

Who may load and who must go is decided here; no task, clock or tenant is
touched. Events change facts; :func:`_settle` then looks at every demand anew
and derives what the facts call for, so that no event has to remember what it
makes possible. The shell gives what the slots show of themselves through
:func:`see` before each step; what free memory is measured comes as ``Read``.

The parts: :mod:`~slotd.arbiter.room` is the arithmetic,
:mod:`~slotd.arbiter.exclusive` the modes, :mod:`~slotd.arbiter.turn` the
verbs, :mod:`~slotd.arbiter.devices` and :mod:`~slotd.arbiter.sharing` the
decisions about devices and about memory.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import assert_never

from slotd.arbiter import effects as fx
from slotd.arbiter import messages as ev
from slotd.arbiter import tenant as tn
from slotd.arbiter.devices import claim_devices, committed, owner_gone, release_device, restore_devices
from slotd.arbiter.exclusive import Mode, Phase, claims_alone, refuses
from slotd.arbiter.room import UNLIMITED, Reading, Room
from slotd.arbiter.sharing import deny_hopeless, fresh, share_out
from slotd.arbiter.state import Demand, Hold, Release, State
from slotd.arbiter.turn import REFUSED_PAUSE_S, Turn

__all__ = ["resume", "see", "step"]

HEARD_S = 0.01
"""Who waits for room asks for it again right after it has said that it holds none."""

SEEN = 0.9
"""The part of an engine's memory that has to show as free for all of it to count as given back."""


def step(state: State, event: ev.Event, now: float) -> tuple[State, tuple[fx.Effect, ...]]:
    """Apply one event. Total: words of older tickets and of unknown slots change nothing."""
    t = Turn(state, now)
    _apply(t, event)
    _settle(t)
    return t.state, tuple(t.effects)


def see(state: State, views: Mapping[str, tn.TenantView]) -> State:
    """What the slots show of themselves at this moment."""
    return state if views == state.views else replace(state, views=dict(views))


def resume(before: State, now: float) -> tuple[State, tuple[fx.Effect, ...]]:
    """The state of a new arbiter after ``before``'s has crashed: it asks all what they hold.

    What no slot can tell is kept: who is to come back when which load fails or
    which mode ends, and how long loads take.
    """
    state = State(
        limits=before.limits,
        facts=before.facts,
        debts=before.debts,
        owed=before.owed,
        tickets=before.tickets,
        left=before.left,
        modes=before.modes,
        load_s=before.load_s,
        # Late answers to the old arbiter's measurements must not pass for its own.
        number=before.number,
        fresh_from=before.number + 1,
        unheard=frozenset(before.facts),
        resync_until=now + before.limits.resync_s,
    )
    t = Turn(state, now)
    for slot in state.facts:
        t.do(fx.Resync(slot))
    _settle(t)
    return t.state, tuple(t.effects)


# --- events -----------------------------------------------------------------------


def _apply(t: Turn, event: ev.Event) -> None:
    match event:
        case tn.Admit():
            _admit(t, event)
        case tn.Withdraw(slot, ticket):
            _withdraw(t, slot, ticket)
        case tn.Up(slot, ticket):
            _up(t, slot, ticket)
        case tn.Failed(slot, ticket):
            hold = _held(t, slot, ticket)
            if hold is not None:
                # If it can be ended, its Gone comes next; if not, its room is lost.
                t.put_hold(replace(hold, failed=True, down_since=t.now))
                t.failed(slot, ticket, "its load has failed")
        case tn.Gone(slot, ticket):
            hold = _held(t, slot, ticket)
            if hold is not None:
                _gone(t, hold)
        case tn.Quiet(slot, ticket):
            hold = _held(t, slot, ticket)
            if hold is not None:
                t.put_hold(replace(hold, ask_after=t.now))
        case tn.Stays(slot, ticket, _):
            hold = _held(t, slot, ticket)
            if hold is not None and hold.parting is not None:
                _stays(t, hold)
        case tn.Measured():
            _measured(t, event)
        case tn.Holding():
            _holding(t, event)
        case ev.Read(number, reading):
            _read(t, number, reading)
        case ev.Registered(facts):
            t.set(facts={**t.state.facts, facts.slot: facts})
        case ev.Unregistered(slot):
            _unregistered(t, slot)
        case ev.Reconfigured(limits):
            t.set(limits=limits)
        case ev.ReleaseDevice(device):
            release_device(t, device)
        case ev.Due():
            pass
        case _:
            assert_never(event)


def _held(t: Turn, slot: str, ticket: int) -> Hold | None:
    hold = t.state.holds.get(slot)
    return hold if hold is not None and hold.ticket == ticket else None


def _admit(t: Turn, event: tn.Admit) -> None:
    s, slot = t.state, event.slot
    if slot not in s.facts or event.ticket < s.tickets.get(slot, event.ticket):
        return
    hold, waiting = s.holds.get(slot), s.demands.get(slot)
    if hold is not None and hold.ticket == event.ticket:
        return
    if hold is not None:
        # One engine at a time: a new load means that the old one is over.
        _gone(t, hold)
    if waiting is not None and waiting.ticket != event.ticket:
        _withdraw(t, slot, waiting.ticket)
    if slot in s.unheard and s.resync_until is None:
        t.do(fx.Resync(slot))
    need = event.need if t.facts(slot).owns_memory else tn.Need(0, 0, event.need.source)
    since = max(event.since, s.left.get(slot, event.since))
    if waiting is not None and waiting.ticket == event.ticket:
        t.put_demand(replace(waiting, need=need, digest=event.digest, since=since))
        return
    seq = s.seq + 1
    t.set(seq=seq, tickets={**s.tickets, slot: event.ticket})
    t.put_demand(Demand(slot, event.ticket, need, event.digest, since, t.now, seq))


def _withdraw(t: Turn, slot: str, ticket: int) -> None:
    demand = t.state.demands.get(slot)
    if demand is not None and demand.ticket == ticket:
        t.drop_demand(slot)
        t.failed(slot, ticket, "its load was withdrawn")
        return
    hold = _held(t, slot, ticket)
    if hold is not None and not hold.up:
        # It has crossed our word that it may spawn, and heeds that no more.
        t.set(holds={k: h for k, h in t.state.holds.items() if k != slot})
        t.failed(slot, ticket, "its load was withdrawn")


def _up(t: Turn, slot: str, ticket: int) -> None:
    hold = _held(t, slot, ticket)
    if hold is None:
        return
    if not hold.up:
        t.set(load_s={**t.state.load_s, slot: t.now - hold.since})
    # After a crash it comes up again under the same ticket.
    t.put_hold(replace(hold, up=True, since=t.now, failed=False, down_since=None))
    t.forgive(slot)
    committed(t, slot, ticket)
    t.stale()


def _gone(t: Turn, hold: Hold) -> None:
    s, slot = t.state, hold.slot
    t.set(holds={k: h for k, h in s.holds.items() if k != slot})
    if hold.parting is not None:
        t.set(left={**s.left, slot: t.now})
    if hold.room:
        winner = "" if hold.parting is None else hold.parting.winner
        before = None if s.reading is None else s.reading.free
        until = t.now + s.limits.release_timeout_s
        release = Release(slot, hold.room, t.now, until, before, winner)
        t.set(releases=(*(r for r in s.releases if r.slot != slot), release))
    t.failed(slot, hold.ticket, "its slot has gone before it was up")
    owner_gone(t, slot, driven_out=hold.parting is not None and bool(hold.parting.winner))
    t.stale()


def _stays(t: Turn, hold: Hold) -> None:
    slot = hold.slot
    pause = max(t.state.limits.turn_hold_s, REFUSED_PAUSE_S)
    t.put_hold(replace(hold, parting=None, ask_after=t.now + pause))
    t.settled(slot)
    for mode in tuple(t.state.modes.values()):
        if mode.owner == slot and mode.phase is Phase.RESTORING:
            t.put_mode(replace(mode, phase=Phase.COMMITTED))


def _measured(t: Turn, event: tn.Measured) -> None:
    """What it takes up replaces an estimate; what was configured, or measured before, it only raises."""
    hold = _held(t, event.slot, event.ticket)
    if hold is None or not t.facts(event.slot).owns_memory:
        return
    peak = Room(event.ram_mb, event.gpu_mb)
    if hold.measured or hold.need.source in ("configured", "measured"):
        peak = peak.upper(hold.room)
    source = hold.need.source if hold.need.source == "configured" else "measured"
    t.put_hold(replace(hold, need=tn.Need(peak.ram_mb, peak.gpu_mb, source), measured=True))
    t.do(fx.Remember(event.digest, event.ram_mb, event.gpu_mb))


def _holding(t: Turn, event: tn.Holding) -> None:
    """What a slot has, whatever was believed of it."""
    s, slot = t.state, event.slot
    if slot not in s.facts:
        return
    t.set(unheard=s.unheard - {slot})
    if s.resync_until is not None and s.unheard == {slot}:
        t.set(resync_until=min(s.resync_until, t.now + HEARD_S))
    hold = s.holds.get(slot)
    if hold is not None and hold.ticket != event.ticket:
        _gone(t, hold)
    if event.ticket is None:
        return
    t.set(tickets={**s.tickets, slot: event.ticket})
    waiting = s.demands.get(slot)
    if waiting is not None and waiting.ticket <= event.ticket:
        t.drop_demand(slot)
    if hold is None or hold.ticket != event.ticket:
        need = event.need if t.facts(slot).owns_memory else tn.Need(0)
        # Since when it is up, nobody knows: it counts as having had its turn.
        t.put_hold(Hold(slot, event.ticket, need, "", -math.inf if event.up else t.now, up=event.up))
    elif event.up and not hold.up:
        _up(t, slot, event.ticket)


def _unregistered(t: Turn, slot: str) -> None:
    hold, demand = t.state.holds.get(slot), t.state.demands.get(slot)
    if demand is not None:
        _withdraw(t, slot, demand.ticket)
    if hold is not None:
        _gone(t, hold)
    t.settled(slot)
    s = t.state
    t.set(
        unheard=s.unheard - {slot},
        facts={k: v for k, v in s.facts.items() if k != slot},
        tickets={k: v for k, v in s.tickets.items() if k != slot},
        left={k: v for k, v in s.left.items() if k != slot},
        load_s={k: v for k, v in s.load_s.items() if k != slot},
    )


def _read(t: Turn, number: int, reading: Reading | None) -> None:
    s = t.state
    if number != s.measuring:
        return
    t.set(measuring=None)
    if reading is None:
        return
    t.set(reading=reading, read_number=number, read_at=s.began_at)
    for release in s.releases:
        if number >= s.fresh_from and _shows(release, reading):
            t.end_release(release, seen=True)


def _shows(release: Release, reading: Reading) -> bool:
    """Whether what is free has grown by what the engine took up."""
    if release.before is None:
        return False
    grown, room = reading.free - release.before, release.room
    unknown = UNLIMITED // 2
    ram = reading.free.ram_mb > unknown or grown.ram_mb >= SEEN * room.ram_mb
    gpu = reading.free.gpu_mb > unknown or grown.gpu_mb >= SEEN * room.gpu_mb
    return ram and gpu


# --- what follows -------------------------------------------------------------------


def _settle(t: Turn) -> None:
    _look(t)
    if _resyncing(t):
        t.set(next_due=min(t.wakes))
        return
    for _ in range(len(t.state.demands) + 2):
        before = t.state.demands.keys(), t.state.modes
        t.contended.clear()
        deny_hopeless(t)
        claim_devices(t)
        share_out(t)
        if before == (t.state.demands.keys(), t.state.modes):
            break
    restore_devices(t)
    _call_back(t)
    _contend(t)
    _measure(t)
    t.set(next_due=min(t.wakes, default=float("inf")))


def _look(t: Turn) -> None:
    """What the slots show, and what the clock has ended."""
    for hold in tuple(t.state.holds.values()):
        view = t.state.views.get(hold.slot)
        # One that still drains may take its time.
        gone = hold.failed or (view is not None and view.going and not view.up)
        if gone and hold.down_since is None:
            t.put_hold(replace(hold, down_since=t.now))
        elif not gone and hold.down_since is not None:
            t.put_hold(replace(hold, down_since=None))
        if hold.down_since is not None:
            t.wake(hold.down_since + t.state.limits.stop_bound_s)
    for release in t.state.releases:
        t.wake(release.until)
        if release.until <= t.now:
            t.end_release(release, seen=False)


def _resyncing(t: Turn) -> bool:
    s = t.state
    if s.resync_until is None:
        return False
    if t.now < s.resync_until:
        t.wake(s.resync_until)
        return True
    t.set(resync_until=None)
    _reconcile(t)
    return False


def _reconcile(t: Turn) -> None:
    """All have said what they hold: what was kept of the arbiter before is fitted to that."""
    s = t.state
    for slot, debt in s.debts.items():
        hold, demand = s.holds.get(slot), s.demands.get(slot)
        if hold is not None and hold.up and hold.ticket == debt.ticket:
            t.forgive(slot)
        elif debt.ticket not in (hold and hold.ticket, demand and demand.ticket):
            t.forgive(slot)
            t.owe(debt.losers)
    for mode in s.modes.values():
        hold, demand = s.holds.get(mode.owner), s.demands.get(mode.owner)
        if hold is not None:
            phase = Phase.COMMITTED if hold.up else Phase.ENTERING
            t.put_mode(replace(mode, ticket=hold.ticket, phase=phase))
        elif demand is not None:
            t.put_mode(replace(mode, ticket=demand.ticket, phase=Phase.ENTERING))
        else:
            t.end_mode(mode, "its slot has gone")
    for hold in s.holds.values():
        device = claims_alone(t.facts(hold.slot))
        if device and device not in t.state.modes:
            phase = Phase.COMMITTED if hold.up else Phase.ENTERING
            t.put_mode(Mode(device, hold.slot, hold.ticket, t.now, phase))


def _call_back(t: Turn) -> None:
    """Those who left for nothing, once they are out and unless they come by themselves."""
    for slot in sorted(t.state.owed):
        s = t.state
        hold = s.holds.get(slot)
        if hold is not None and hold.parting is not None:
            continue  # still on its way out
        t.set(owed=s.owed - {slot})
        if hold is not None or slot in s.demands or slot not in s.facts:
            continue
        mode = next((m for m in s.modes.values() if refuses(m, t.facts(slot))), None)
        if mode is not None:
            t.put_mode(replace(mode, losers=tuple(dict.fromkeys((*mode.losers, slot)))))
            continue
        t.settled(slot)
        t.do(fx.ComeBack(slot))


def _contend(t: Turn) -> None:
    wanted = frozenset(t.contended)
    for slot in sorted(wanted ^ t.state.contended):
        if slot in t.state.facts:
            t.do(fx.Contend(slot, slot in wanted))
    t.set(contended=wanted)


def _measure(t: Turn) -> None:
    """Measure what is free, as often as somebody's wait calls for."""
    s, limits = t.state, t.state.limits
    if s.measuring is not None:
        return
    if s.demands:
        every = limits.measure_every_s if s.releases or fresh(t) is None else limits.look_every_s
    else:
        every = limits.look_every_s if s.releases else limits.idle_look_every_s
    if every <= 0:
        return
    at = s.began_at + every
    if at > t.now:
        t.wake(at)
        return
    number = s.number + 1
    t.set(number=number, measuring=number, began_at=t.now)
    t.do(fx.Measure(number))
