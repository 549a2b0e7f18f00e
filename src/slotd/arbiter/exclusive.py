"""Devices that one slot has for itself for a while: the mode of a device. Pure.

A slot whose ``exclusive`` names a device claims it to load: whoever else uses
the device is driven out and refused. The mode is committed when the claimant
is up, and ends when it has been quiet for long enough, has gone, or has failed
to come up; then those it drove out are told to come back.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

from slotd.arbiter.tenant import TenantFacts

__all__ = ["Mode", "Phase", "claims_alone", "refuses", "restore_delay", "retry_after", "uses"]

LOAD_GUESS_S = 30.0
"""How long a load takes of which nothing is known."""

BY_HAND_S = 60.0
"""When to try again if only a person ends the mode."""

RETRY_MAX_S = 3600.0


class Phase(Enum):
    """``entering``: the claimant is not up yet. ``restoring``: the owner has been told to leave."""

    ENTERING = "entering"
    COMMITTED = "committed"
    RESTORING = "restoring"


@dataclass(frozen=True, slots=True)
class Mode:
    """One slot has a device for itself, or is about to.

    ``losers``: who was driven out and comes back at the end. ``former``: the
    owner that the present one has driven out. ``released``: somebody wants it
    over, so it ends as soon as the owner is quiet.
    """

    device: str
    owner: str
    ticket: int
    since: float
    phase: Phase = Phase.ENTERING
    losers: tuple[str, ...] = ()
    former: str = ""
    released: bool = False


def uses(facts: TenantFacts, device: str) -> bool:
    """Whether the slot takes up anything of the device, shared or alone."""
    return facts.owns_memory and device in (facts.device, facts.exclusive)


def claims_alone(facts: TenantFacts) -> str:
    """The device that the slot needs for itself; empty: none."""
    return facts.exclusive if facts.owns_memory else ""


def refuses(mode: Mode, facts: TenantFacts) -> bool:
    """Whether a slot that shares the device is turned away now. Another claimant waits its turn instead."""
    shares = facts.owns_memory and facts.device == mode.device and facts.exclusive != mode.device
    return shares and mode.owner != facts.slot and mode.phase is not Phase.RESTORING


def restore_delay(mode: Mode, owner: TenantFacts, turn_hold_s: float) -> float:
    """How long the owner must have been quiet for the mode to end; inf: it does not end by itself."""
    if mode.released:
        return max(turn_hold_s, 0.05)
    return owner.restore_after_s if owner.restore_after_s > 0 else math.inf


def retry_after(
    mode: Mode, delay: float, quiet_from: float | None, load_s: float | None, now: float
) -> float:
    """Seconds after which the device may be shared again, as far as can be known; 1 to 3600.

    While it is entered, the load has still to end: as long as the last one
    took. ``quiet_from`` None: the owner is busy.
    """
    delay = delay if math.isfinite(delay) else BY_HAND_S
    if mode.phase is Phase.ENTERING:
        wait = max(1.0, mode.since + (LOAD_GUESS_S if load_s is None else load_s) - now) + delay
    elif quiet_from is None:
        wait = delay
    else:
        wait = quiet_from + delay - now
    return min(max(1.0, wait), RETRY_MAX_S)
