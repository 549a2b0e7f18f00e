"""Whose turn it is on a device that some slots need for themselves."""

from __future__ import annotations

import math
from dataclasses import replace

from slotd.arbiter import denials
from slotd.arbiter.exclusive import Mode, Phase, claims_alone, refuses, uses
from slotd.arbiter.state import Demand, Hold, ordered
from slotd.arbiter.turn import Turn

__all__ = ["blocked", "claim_devices", "committed", "owner_gone", "release_device", "restore_devices"]


def _others(t: Turn, device: str, slot: str) -> tuple[Hold, ...]:
    """Who but ``slot`` holds room on the device."""
    holds = t.state.holds.values()
    return tuple(h for h in holds if h.slot != slot and uses(t.facts(h.slot), device))


def _pinned(t: Turn, device: str, slot: str) -> tuple[str, ...]:
    return tuple(h.slot for h in _others(t, device, slot) if t.facts(h.slot).pinned)


def blocked(t: Turn, demand: Demand) -> tuple[str, bool]:
    """What about its device keeps the demand from loading, in words, and whether it is its turn.

    No words: nothing does. Only one whose turn it is counts when memory is shared out.
    """
    slot, facts = demand.slot, t.facts(demand.slot)
    own = claims_alone(facts)
    mode = t.state.modes.get(own) if own else None
    if mode is not None and mode.owner != slot:
        return f"waits for device {own!r}, which slot {mode.owner!r} has for itself", False
    if facts.owns_memory and facts.device and facts.device != own:
        alone = [
            h.slot for h in _others(t, facts.device, slot) if claims_alone(t.facts(h.slot)) == facts.device
        ]
        if alone:
            return f"waits until {_names(alone)} has left device {facts.device!r}", False
    if own:
        others = [h.slot for h in _others(t, own, slot)]
        if others:
            return f"waits until {_names(others)} has left device {own!r}", True
    return "", True


def _names(slots: list[str]) -> str:
    return ", ".join(repr(s) for s in slots)


def claim_devices(t: Turn) -> None:
    """Enter modes for those who claim a device, drive the others out, refuse who shares it."""
    _refuse_sharers(t)
    for demand in ordered(t.state):
        device = claims_alone(t.facts(demand.slot))
        if not device or demand.slot not in t.state.demands or demand.slot in t.state.unheard:
            continue
        if demand.room and t.state.reading is None:
            continue  # it may be one that never fits: nobody leaves for that
        mode = t.state.modes.get(device)
        if mode is None:
            _enter(t, demand, device)
        elif mode.owner != demand.slot:
            _contest(t, mode, demand)
    for mode in tuple(t.state.modes.values()):
        if mode.phase is Phase.ENTERING:
            _drive_out(t, mode)
    _refuse_sharers(t)


def _refuse_sharers(t: Turn) -> None:
    for demand in ordered(t.state):
        for mode in t.state.modes.values():
            if refuses(mode, t.facts(demand.slot)):
                t.deny(demand, denials.exclusive(mode, demand.slot, t.mode_retry_after(mode)))
                break


def _enter(t: Turn, demand: Demand, device: str, losers: tuple[str, ...] = (), former: str = "") -> None:
    pinned = _pinned(t, device, demand.slot)
    if pinned:
        t.deny(demand, denials.pinned_on_device(demand, device, pinned))
        return
    mode = Mode(device, demand.slot, demand.ticket, t.now, losers=losers, former=former)
    t.put_mode(mode)
    t.tell_mode(mode, "entering", "its slot is to be loaded")


def _drive_out(t: Turn, mode: Mode) -> None:
    """All who use the device besides its new owner have to go, whether they are busy or not."""
    demand = t.state.demands.get(mode.owner)
    if demand is None:
        return  # it is loading: nobody else is left
    pinned = _pinned(t, mode.device, mode.owner)
    if pinned:  # only since it has claimed the device
        t.deny(demand, denials.pinned_on_device(demand, mode.device, pinned))
        return
    for hold in _others(t, mode.device, mode.owner):
        t.wake(hold.ask_after)
        told = hold.parting is not None and hold.parting.hard
        if told or hold.down_since is not None or hold.ask_after > t.now:
            continue
        mode = replace(mode, losers=tuple(dict.fromkeys((*mode.losers, hold.slot))))
        t.put_mode(mode)
        t.order(
            hold,
            demand,
            f"slot {mode.owner!r} needs device {mode.device!r} for itself",
            drain=True,
            refusal=denials.exclusive(mode, hold.slot, t.mode_retry_after(mode)),
            cut_after_s=t.facts(hold.slot).drain_timeout_s,
            owe=False,  # the mode's losers are called back by the mode's end
        )


def _contest(t: Turn, mode: Mode, demand: Demand) -> None:
    """Another claims the device as well: it takes over when the owner is quiet, or has had long enough."""
    hold = t.state.holds.get(mode.owner)
    if mode.phase is not Phase.COMMITTED or hold is None:
        return
    if t.facts(mode.owner).pinned:
        t.deny(demand, denials.pinned_on_device(demand, mode.device, (mode.owner,)))
        return
    why = f"slot {demand.slot!r} needs device {mode.device!r} for itself"
    at = demand.since + t.state.limits.max_wait_s
    t.wake(at)
    if not t.askable(hold):
        return
    if t.quiet(hold):
        t.order(hold, demand, why, owe=False)
        return
    t.contended.add(hold.slot)
    if at <= t.now and t.had_turn(hold):
        t.order(hold, demand, why, drain=True, owe=False)


def restore_devices(t: Turn) -> None:
    """End modes whose owner has been quiet for long enough."""
    for mode in tuple(t.state.modes.values()):
        hold, delay = t.state.holds.get(mode.owner), t.mode_delay(mode)
        if mode.phase is not Phase.COMMITTED or hold is None or not math.isfinite(delay):
            continue
        if t.facts(mode.owner).pinned or not t.askable(hold):
            continue
        quiet_from = t.quiet_from(hold)
        # While it is busy, its quiet cannot begin before now.
        at = t.now + delay if quiet_from is None else quiet_from + delay
        t.wake(at)
        if at <= t.now:
            t.put_mode(replace(mode, phase=Phase.RESTORING))
            t.order(hold, None, f"its turn on device {mode.device!r} is over", owe=False)


def committed(t: Turn, slot: str, ticket: int) -> None:
    """The slot is up: if it has claimed a device, it has it now."""
    for mode in tuple(t.state.modes.values()):
        if mode.owner == slot and mode.ticket == ticket and mode.phase is Phase.ENTERING:
            mode = replace(mode, phase=Phase.COMMITTED, since=t.now, former="")
            t.put_mode(mode)
            t.tell_mode(mode, "exclusive", "its slot is up")


def owner_gone(t: Turn, slot: str, *, driven_out: bool) -> None:
    """The slot has left: the next claimant takes its devices over, or they are shared again."""
    for mode in tuple(t.state.modes.values()):
        if mode.owner != slot:
            continue
        heirs = (d for d in ordered(t.state) if claims_alone(t.facts(d.slot)) == mode.device)
        heir = next((d for d in heirs if d.slot != slot), None)
        t.end_mode(mode, "its slot has gone")
        if heir is not None and mode.phase is not Phase.ENTERING:
            # Those whom the old mode drove out stay out, and are the new one's to call back.
            t.set(owed=t.state.owed.difference(mode.losers))
            _enter(t, heir, mode.device, mode.losers, slot if driven_out else "")
            if mode.device not in t.state.modes:
                t.owe(mode.losers)


def release_device(t: Turn, device: str) -> None:
    """A person wants the mode over."""
    mode = t.state.modes.get(device)
    if mode is not None:
        t.put_mode(replace(mode, released=True))
