"""From a slot's name to a lease: on the slot, or on one that answers in its place."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial

import trio

from slotd.actor import Reply
from slotd.errors import SlotdError, SlotLoading
from slotd.exchange.carriage import Carriage
from slotd.exchange.fallback import calls_for_fallback, can_answer_now
from slotd.exchange.heartbeat import what_it_waits_for
from slotd.exchange.policy import NO_FALLBACKS
from slotd.exchange.race import first_of
from slotd.slot.lease import Lease
from slotd.slot.manager import SlotManager
from slotd.slot.messages import Acquire

__all__ = ["Claims"]


class Claims:
    """All the leases that one request has asked for, granted or not.

    Each is named before it is asked for and noted here, so that whoever made
    this gives back everything by :meth:`release`, in a ``finally`` and without
    waiting, whatever became of the asking.
    """

    def __init__(self, slots: SlotManager, carriage: Carriage) -> None:
        self._slots = slots
        self._carriage = carriage
        self._open: dict[str, str] = {}  # name of a lease → slot
        self._named = 0
        self._patience_ends = math.inf

    def release(self, keep: Lease | None = None, *, keep_load: bool = False) -> None:
        """Give back or withdraw everything but ``keep``. Idempotent; never waits.

        ``keep_load``: loads that were waited for go on.
        """
        for id, slot in tuple(self._open.items()):
            if keep is None or id != keep.id:
                del self._open[id]
                self._slots.release(slot, id, keep_load=keep_load)

    def take(self, slot: str, model: str) -> Lease | None:
        """A lease on ``slot`` that needs nobody's decision; None: :meth:`claim` it."""
        id = self._next()
        self._note(id, slot)
        lease = self._slots.take(slot, id, model)
        if lease is None:
            del self._open[id]  # nobody has heard of it
            self._named -= 1
            return None
        record = self._carriage.record
        record.wait_s, record.fallback_error = record.wait_s or 0.0, None
        return self._granted(lease, slot)

    async def claim(self, slot: str, model: str) -> Lease:
        """A lease on ``slot`` while it serves ``model``, or on one of its fallbacks.

        Waits as long as the slot's queue lets it and the client is ready to
        (``X-Slotd-Wait``); a client of a stream hears comments meanwhile. A
        fallback takes over when it can answer at once and this has waited for
        ``fallback_after_s``, or when the slot refuses because it cannot. Raises
        the slot's refusal.
        """
        record, wait_s = self._carriage.record, self._carriage.wishes.wait_s
        record.phase, record.fallback_error = "waiting", None
        before = record.wait_s or 0.0
        asked: Reply[Lease] | None = None
        if wait_s is None:
            # Mostly there is a place at once, and then nothing that waiting takes is needed.
            with suppress(SlotdError):  # it is said again where somebody may stand in
                asked = self._put(slot, model, wait=True)
            if asked is not None and asked.answered:
                record.wait_s = before
                return self._granted(asked.result(), slot)
        began = trio.current_time()
        if wait_s is not None:
            self._patience_ends = began + wait_s - before
        try:
            lease = await self._claim(slot, model, asked)
        finally:
            record.wait_s = before + trio.current_time() - began
        return self._granted(lease, slot)

    def _granted(self, lease: Lease, slot: str) -> Lease:
        self._carriage.routed_to(lease, slot)
        return lease

    async def _claim(self, slot: str, model: str, asked: Reply[Lease] | None) -> Lease:
        plan = self._carriage.policy.fallbacks.get(slot, NO_FALLBACKS)
        # Some may have been removed since the request began.
        fallbacks = tuple(name for name in plan.slots if name in self._slots.names())
        after = self._carriage.record.began + plan.after_s
        try:
            return await self._patiently(slot, model, fallbacks, after, asked)
        except SlotdError as error:
            if not fallbacks or not calls_for_fallback(error):
                raise
            refusal = error
        try:
            self._carriage.record.fallback_error = refusal.code
            if (lease := await self._at_once(fallbacks)) is not None:
                return lease
            if not isinstance(refusal, SlotLoading):
                for fallback in fallbacks:
                    with suppress(SlotdError):  # what the slot itself said is the answer
                        return await self._patiently(fallback, "", fallbacks, after)
            raise refusal
        finally:
            del refusal  # whose traceback leads back here

    async def _patiently(
        self, slot: str, model: str, others: tuple[str, ...], after: float, asked: Reply[Lease] | None = None
    ) -> Lease:
        """Wait for the slot, or one of the ``others`` from ``after`` on, while the client is ready to.

        ``asked``: the slot has been asked already.
        """
        if self._patience_ends == math.inf:
            lease = await self._wait(slot, asked or self._put(slot, model, wait=True), others, after)
            if len(self._open) > 1:
                self.release(lease, keep_load=True)
            return lease
        if self._patience_ends > trio.current_time():
            with trio.move_on_at(self._patience_ends):
                lease = await self._wait(slot, self._put(slot, model, wait=True), others, after)
                # A load that this one has waited for is still wanted.
                self.release(lease, keep_load=True)
                return lease
            # Nor is it in vain now: the client will come back.
            self.release(keep_load=True)
        return await self._put(slot, model, wait=False).wait()

    async def _wait(self, slot: str, asked: Reply[Lease], others: tuple[str, ...], after: float) -> Lease:
        waits: list[Callable[[], Awaitable[Lease]]] = [asked.wait]
        if others:
            waits.append(partial(self._any_at_once, slot, others, after))
        heartbeat = self._carriage.heartbeat
        if heartbeat is not None:
            waits.append(partial(heartbeat.beat, lambda: what_it_waits_for(self._slots.snapshot(slot))))
        return await (first_of(*waits) if len(waits) > 1 else waits[0]())

    async def _any_at_once(self, slot: str, others: tuple[str, ...], after: float) -> Lease:
        """From ``after`` on, a lease of the first of ``others`` that gives one at once."""
        await trio.sleep_until(after)
        others = tuple(name for name in others if name != slot)
        cells = [self._slots.cell(name) for name in (slot, *others)]
        while True:
            seen = [cell.version for cell in cells]
            # One that can answer at once itself is just about to.
            if not can_answer_now(cells[0].value) and (lease := await self._at_once(others)) is not None:
                return lease
            changes = [partial(cell.wait_change, at) for cell, at in zip(cells, seen, strict=True)]
            await first_of(*changes)

    async def _at_once(self, names: tuple[str, ...]) -> Lease | None:
        for name in names:
            try:
                if can_answer_now(self._slots.snapshot(name)):
                    return await self._put(name, "", wait=False).wait()
            except SlotdError:
                continue  # it was not so, is so no more, or has been removed
        return None

    def _next(self) -> str:
        """The name of the next lease."""
        # A name of its own for each: a grant that an asker has left makes the
        # slot take that lease back, at a time of its own.
        id = self._carriage.record.id
        return f"{id}#{self._named + 1}" if self._named else id

    def _note(self, id: str, slot: str) -> None:
        self._named += 1
        self._open[id] = slot

    def _put(self, slot: str, model: str, *, wait: bool) -> Reply[Lease]:
        """Ask for a lease; it may have been given, or refused, already."""
        record, id = self._carriage.record, self._next()
        self._note(id, slot)
        return self._slots.ask_for(
            slot, Acquire(id, model, wait, record.began, record.priority, record.replays > 0)
        )
