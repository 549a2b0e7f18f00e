"""One step of a slot's machine in the making: the verbs that all its parts use."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from slotd.slot import effects as fx
from slotd.slot.slot import Slot
from slotd.slot.state import LEGAL, SlotState

__all__ = ["ABANDON", "DRAIN", "IDLE", "PHASE", "QUEUE", "TTL", "Turn"]

PHASE: Final = "phase"
QUEUE: Final = "queue"
IDLE: Final = "idle"
TTL: Final = "ttl"
ABANDON: Final = "abandon"
DRAIN: Final = "drain"


class Turn:
    """The next state and its effects, as far as they are known."""

    def __init__(self, slot: Slot, now: float) -> None:
        self.slot = slot
        self.now = now
        self.effects: list[fx.Effect] = []

    def _set(self, **changes: Any) -> None:
        self.slot = replace(self.slot, **changes)

    def _do(self, effect: fx.Effect) -> None:
        self.effects.append(effect)

    def _arm(self, timer: str, after_s: float) -> None:
        self._set(deadlines={**self.slot.deadlines, timer: self.now + after_s})

    def _disarm(self, *timers: str) -> None:
        if any(t in self.slot.deadlines for t in timers):
            self._set(deadlines={t: at for t, at in self.slot.deadlines.items() if t not in timers})

    def _move(self, to: SlotState, why: str) -> None:
        """The only place where the state changes."""
        before = self.slot.state
        if to not in LEGAL[before]:
            raise AssertionError(f"slot {self.slot.spec.name!r}: {before} -> {to} is not a legal transition")
        self._disarm(PHASE, IDLE, TTL, DRAIN)
        self._set(state=to, since=self.now)
        self._do(fx.Moved(before, to, why))
