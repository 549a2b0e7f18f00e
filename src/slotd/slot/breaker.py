"""The crash-loop breaker: when a slot that keeps failing may be tried again. Pure.

The first failure costs nothing: most are accidents, and whoever was being
served is waiting. From the second on each is followed by a pause; after
``PARKED`` in a row the slot is parked and only tried again now and then (a
half-open trial), with a pause that grows up to an hour. An engine that has
proven sound sets the count back, and so does a person.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from slotd.slot.state import Fault

__all__ = ["PARKED", "SOUND", "Breaker", "pause_after"]

FIRST_PAUSE_S = 5.0
PARKED = 5
PARKED_PAUSE_S = 300.0
LONGEST_PAUSE_S = 3600.0


def pause_after(failures: int) -> float:
    """Seconds until the next try after so many failures in a row."""
    if failures <= 1:
        return 0.0
    doublings = min(failures, 64)
    if failures < PARKED:
        return FIRST_PAUSE_S * 2.0 ** (doublings - 2)
    return min(PARKED_PAUSE_S * 2.0 ** (doublings - PARKED), LONGEST_PAUSE_S)


@dataclass(frozen=True, slots=True)
class Breaker:
    """``failures`` in a row, the last one's ``fault``, and when the next try is allowed."""

    failures: int = 0
    until: float = 0.0
    fault: Fault | None = None

    @property
    def parked(self) -> bool:
        return self.failures >= PARKED

    def blocks(self, now: float) -> bool:
        return self.until > now

    def failed(self, fault: Fault, now: float) -> Breaker:
        failures = self.failures + 1
        pause = pause_after(failures)
        if fault.terminal:
            # Only a change can help: no use in trying with each request.
            pause = max(pause, FIRST_PAUSE_S)
        return Breaker(failures, now + pause, fault)

    def with_fault(self, fault: Fault) -> Breaker:
        """More has become known of the last failure."""
        return replace(self, fault=fault)


SOUND = Breaker()
"""Of a slot whose engine has proven sound, or that a person or a change wants tried at once."""
