"""What the arbiter shows of itself: frozen, for lists and metrics."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from slotd.arbiter.exclusive import Phase
from slotd.arbiter.room import Room
from slotd.arbiter.state import State, ordered
from slotd.arbiter.tenant import Need
from slotd.arbiter.turn import Turn

__all__ = ["ArbiterSnapshot", "HeldRoom", "ModeShown", "WaitingDemand"]


@dataclass(frozen=True, slots=True)
class HeldRoom:
    """What is reserved for a slot. ``leaving``: it has been told to go, or is going."""

    slot: str
    need: Need
    up: bool
    leaving: bool


@dataclass(frozen=True, slots=True)
class WaitingDemand:
    """A slot that waits for room, since when (trio's clock), and for what."""

    slot: str
    need: Need
    since: float
    why: str


@dataclass(frozen=True, slots=True)
class ModeShown:
    """A device that one slot has for itself: ``phase`` is ``entering``, ``committed`` or ``restoring``.

    ``ends_at``: when it ends if the slot stays quiet (trio's clock); None: it
    is in use, or only a person ends it.
    """

    device: str
    owner: str
    phase: str
    losers: tuple[str, ...]
    ends_at: float | None


@dataclass(frozen=True, slots=True)
class ArbiterSnapshot:
    """How memory and devices stand.

    ``budget``: what all loads may take up together, None before the first
    measurement. ``free``: measured, ``measured_at`` on trio's clock.
    """

    budget: Room | None = None
    reserve: Room = field(default_factory=Room)
    free: Room | None = None
    measured_at: float | None = None
    held: tuple[HeldRoom, ...] = ()
    waiting: tuple[WaitingDemand, ...] = ()
    modes: tuple[ModeShown, ...] = ()
    resyncing: bool = False

    @property
    def reserved(self) -> Room:
        """What is reserved for all of them together."""
        return Room(sum(h.need.ram_mb for h in self.held), sum(h.need.gpu_mb for h in self.held))

    @staticmethod
    def of(state: State, now: float) -> ArbiterSnapshot:
        t = Turn(state, now)
        modes = []
        for mode in state.modes.values():
            hold, delay = state.holds.get(mode.owner), t.mode_delay(mode)
            quiet_from = None if hold is None or mode.phase is not Phase.COMMITTED else t.quiet_from(hold)
            ends_at = None if quiet_from is None or not math.isfinite(delay) else quiet_from + delay
            modes.append(ModeShown(mode.device, mode.owner, mode.phase.value, mode.losers, ends_at))
        return ArbiterSnapshot(
            budget=state.capacity(),
            reserve=Room(state.limits.reserve_mb, state.limits.gpu_reserve_mb),
            free=None if state.reading is None else state.reading.free,
            measured_at=None if state.reading is None else state.read_at,
            held=tuple(
                HeldRoom(h.slot, h.need, h.up, h.parting is not None or h.down_since is not None)
                for h in state.holds.values()
            ),
            waiting=tuple(WaitingDemand(d.slot, d.need, d.since, d.why) for d in ordered(state)),
            modes=tuple(modes),
            resyncing=state.resync_until is not None,
        )
