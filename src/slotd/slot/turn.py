"""One step of a slot's machine in the making: the verbs that all its parts use."""

from __future__ import annotations

from typing import Any, Final

from slotd.slot import effects as fx
from slotd.slot.slot import Slot
from slotd.slot.state import LEGAL, SlotState

__all__ = [
    "ABANDON",
    "BREAKER",
    "CHECK",
    "DRAIN",
    "HOLD",
    "IDLE",
    "LEASED",
    "PHASE",
    "PROVEN",
    "QUEUE",
    "RESTS",
    "TTL",
    "Turn",
]

PHASE: Final = "phase"
"""A transitional state must have ended by then."""
QUEUE: Final = "queue"
IDLE: Final = "idle"
TTL: Final = "ttl"
ABANDON: Final = "abandon"
DRAIN: Final = "drain"
BREAKER: Final = "breaker"
"""The end of a back-off, while somebody wants the slot."""
HOLD: Final = "hold"
"""A slot that others need gone has been quiet for long enough."""
CHECK: Final = "check"
"""The output check no longer waits for a quiet moment."""
PROVEN: Final = "proven"
"""An engine that has lived so long counts as sound, even if nobody has used it."""

LEASED: Final = "leased"
"""Why a slot begins to serve."""
RESTS: Final = "last lease released"
"""Why it ceases to."""


class Turn:
    """The next state and its effects, as far as they are known."""

    __slots__ = ("effects", "now", "slot")

    def __init__(self, slot: Slot, now: float) -> None:
        self.slot = slot
        self.now = now
        self.effects: list[fx.Effect] = []

    def set(self, **changes: Any) -> None:
        self.slot = self.slot.but(**changes)

    def do(self, effect: fx.Effect) -> None:
        self.effects.append(effect)

    def arm(self, timer: str, at: float) -> None:
        if self.slot.deadlines.get(timer) != at:
            self.set(deadlines={**self.slot.deadlines, timer: at})

    def disarm(self, *timers: str) -> None:
        if self.slot.deadlines and not self.slot.deadlines.keys().isdisjoint(timers):
            self.set(deadlines={t: at for t, at in self.slot.deadlines.items() if t not in timers})

    def move(self, to: SlotState, why: str) -> None:
        """Go to another state, and tell it."""
        before = self.slot.state
        if to not in LEGAL[before]:
            raise AssertionError(f"slot {self.slot.spec.name!r}: {before} -> {to} is not a legal transition")
        self.be(to, self.now)
        self.do(fx.Moved(before, to, why))

    def be(self, state: SlotState, since: float) -> None:
        """The only place where the state changes."""
        self.disarm(PHASE, IDLE, TTL, DRAIN)
        self.set(state=state, since=since)
