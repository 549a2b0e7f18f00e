"""Places of a slot that its actor has given away beforehand.

While a slot serves, has a place left and nobody waits, the next lease is no
decision any more. Then the actor opens its turnstile: who comes takes a place
and gives it back without a message. Before the actor looks at its own state
again, whatever the reason, it *closes* the turnstile and takes over what has
happened (:class:`slotd.slot.messages.Passed`). So the machine decides
everything, as ever, and is asked only where there is something to decide. The
last lease is one of those: with it the slot's state changes.
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from slotd.slot.lease import Lease
from slotd.slot.messages import Passed
from slotd.slot.queueing import average_hold_s
from slotd.slot.slot import Slot

__all__ = ["Turnstile"]


class Turnstile:
    """Opened and closed by the slot's actor only; used by whoever wants a lease. Nothing here waits.

    It outlives its actor, closed, as its mailbox does. ``clock``: in seconds. ``on_change`` is called
    when somebody has passed and the last look at :attr:`held` is out of date.
    """

    __slots__ = (
        "_changed",
        "_clock",
        "_grant",
        "_held",
        "_hold_s",
        "_last_used",
        "_looked",
        "_model",
        "_most",
        "_open",
    )

    def __init__(self, clock: Callable[[], float] = trio.current_time) -> None:
        self._clock = clock
        self._open = False
        self._changed: Callable[[], None]
        self._grant: Callable[[str], Lease]
        self._held: dict[str, float] = {}
        self._hold_s: float | None = None
        self._last_used: float | None = None  # None: nobody has passed
        self._looked = False
        self._model = ""
        self._most = 0

    # --- for the actor ---------------------------------------------------------------

    def open(self, slot: Slot, grant: Callable[[str], Lease], on_change: Callable[[], None]) -> None:
        """Let through whoever comes: ``slot`` is in a state in which that is no decision.

        See :func:`~slotd.slot.queueing.passes_freely`. No message may be waiting
        for the actor. ``grant`` makes the lease of that name, which is valid at once.
        """
        self._open = True
        self._grant, self._changed = grant, on_change
        self._held = dict(slot.leases)
        self._hold_s, self._last_used = slot.hold_s, None
        self._looked = False
        self._model, self._most = slot.model, slot.spec.max_parallel

    def shut(self) -> None:
        """Let nobody through until it is opened again; what has happened is still to be taken over."""
        self._open = False

    def close(self) -> Passed | None:
        """Let nobody through any more; tells what has happened meanwhile, None for nothing."""
        self._open = False
        passed = self.passed()
        self._held, self._last_used = {}, None
        return passed

    def passed(self) -> Passed | None:
        """What has happened since it was opened; None for nothing. Any later change is announced."""
        self._looked = True
        if self._last_used is None:
            return None
        return Passed(self._held, self._last_used, self._hold_s)

    # --- for who wants a lease ---------------------------------------------------------

    def take(self, id: str, model: str) -> Lease | None:
        """A lease of this name, if there is nothing to decide about it; None: ask the actor.

        ``model``: what the slot must be serving; "" if that is no matter. As
        with the actor's, whoever takes one gives it back in a ``finally``.
        """
        if (
            not self._open
            or len(self._held) >= self._most
            or (model and self._model and model != self._model)
        ):
            return None
        lease = self._grant(id)
        self._held[id] = self._last_used = self._clock()
        if self._looked:
            self._looked = False
            self._changed()
        return lease

    def give_back(self, id: str) -> bool:
        """The end of a lease, whoever has granted it; False: tell the actor."""
        if not self._open or len(self._held) < 2:
            return False
        granted = self._held.pop(id, None)
        if granted is None:
            return False
        now = self._last_used = self._clock()
        self._hold_s = average_hold_s(self._hold_s, now - granted)
        if self._looked:
            self._looked = False
            self._changed()
        return True
