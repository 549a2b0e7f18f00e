"""Places of a slot that its actor has given away beforehand.

While a slot is up, has a place left and nobody waits, the next lease is no
decision any more. Then the actor opens its turnstile: who comes takes a place
and gives it back without a message. Before the actor looks at its own state
again, whatever the reason, it *closes* the turnstile and takes over what has
happened (:class:`slotd.slot.messages.Passed`). So the machine decides
everything, as ever, and is asked only where there is something to decide.

With the first lease the slot begins to serve, and with the last it comes to
rest: as these change its state, they are told at once. One that was opened
while the slot rested lets them through too; see
:func:`~slotd.slot.queueing.passes_freely`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import trio

from slotd.slot.lease import Lease
from slotd.slot.messages import Passed
from slotd.slot.queueing import average_hold_s
from slotd.slot.slot import Slot
from slotd.slot.state import SlotState
from slotd.slot.turn import IDLE, LEASED, RESTS

__all__ = ["Turnstile"]

Told = Callable[[SlotState, SlotState, str, float], None]


class Turnstile:
    """Opened and closed by the slot's actor only; used by whoever wants a lease. Nothing here waits.

    It outlives its actor, shut, as its mailbox does. ``clock``: in seconds.
    """

    __slots__ = (
        "_changed",
        "_clock",
        "_grant",
        "_held",
        "_hold_s",
        "_last_used",
        "_look_at",
        "_looked",
        "_model",
        "_most",
        "_moved",
        "_open",
        "_since",
        "_until",
    )

    def __init__(self, clock: Callable[[], float] = trio.current_time) -> None:
        self._clock = clock
        self._open = False
        self._changed: Callable[[], None]
        self._grant: Callable[[str], Lease]
        self._moved: Told
        self._held: dict[str, float] = {}
        self._hold_s: float | None = None
        self._last_used: float | None = None  # None: nobody has passed
        self._look_at = -math.inf
        self._looked = False
        self._model = ""
        self._most = 0
        self._since = 0.0
        self._until = math.inf

    # --- for the actor ---------------------------------------------------------------

    def open(
        self,
        slot: Slot,
        grant: Callable[[str], Lease],
        moved: Told,
        on_change: Callable[[], None],
        look_at: float = math.inf,
    ) -> None:
        """Let through whoever comes: ``slot`` is in a state in which that is no decision.

        See :func:`~slotd.slot.queueing.passes_freely`. No message may be waiting
        for the actor. ``grant`` makes the lease of that name, which is valid at
        once. ``moved`` is told each transition, in the words of the machine.
        ``on_change`` is called when somebody has passed and the last look at
        :meth:`passed` is out of date. From ``look_at`` on the actor wants to
        hear of the next rest itself.
        """
        self._open = True
        self._grant, self._moved, self._changed = grant, moved, on_change
        self._held = dict(slot.leases)
        self._since, self._hold_s, self._last_used = slot.since, slot.hold_s, None
        self._looked = False
        self._model, self._most = slot.model, slot.spec.max_parallel
        self._until = slot.deadlines.get(IDLE, math.inf)
        self._look_at = -math.inf if slot.leases else look_at

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
        return Passed(dict(self._held), self._since, self._last_used, self._hold_s)

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
        now = self._clock()
        begins = not self._held
        if begins and now >= self._until:
            return None  # the actor is about to look at its deadlines
        lease = self._grant(id)
        self._held[id] = self._last_used = now
        if begins:
            self._since = now
            self._moved(SlotState.READY, SlotState.SERVING, LEASED, now)
        if self._looked:
            self._looked = False
            self._changed()
        return lease

    def give_back(self, id: str) -> bool:
        """The end of a lease, whoever has granted it; False: tell the actor."""
        if not self._open:
            return False
        granted = self._held.get(id)
        if granted is None:
            return False
        now = self._clock()
        ends = len(self._held) == 1
        if ends and now >= self._look_at:
            return False
        del self._held[id]
        self._last_used = now
        self._hold_s = average_hold_s(self._hold_s, now - granted)
        if ends:
            self._since = now
            self._moved(SlotState.SERVING, SlotState.READY, RESTS, now)
        if self._looked:
            self._looked = False
            self._changed()
        return True
