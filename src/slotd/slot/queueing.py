"""Leases, the queue for them, and loads that nobody waits for any more."""

from __future__ import annotations

from collections.abc import Callable

from slotd.errors import RouteStale, ServerStopping, SlotdError, SlotLoading, SlotQueueFull
from slotd.slot import effects as fx
from slotd.slot import messages as ev
from slotd.slot.slot import Ending, Waiter
from slotd.slot.state import LOADING, UP, SlotState
from slotd.slot.turn import ABANDON, QUEUE, Turn

__all__ = ["Queueing"]

S = SlotState


class Queueing(Turn):
    """Who may use the slot now, and who waits. First come, first served."""

    def _load_if_down(self, why: str) -> None:
        raise NotImplementedError

    def _arm_idle(self) -> None:
        raise NotImplementedError

    def _begin_unload(self, ending: Ending, grace_s: float | None = None) -> None:
        raise NotImplementedError

    def _can_grant(self) -> bool:
        s = self.slot
        return s.state in UP and s.ending is None and len(s.leases) < s.spec.max_parallel

    def _acquire(self, event: ev.Acquire) -> None:
        s, spec = self.slot, self.slot.spec
        if s.stopping:
            return self._do(fx.Refuse(event.id, ServerStopping("slotd is shutting down")))
        if event.model and s.model and event.model != s.model:
            return self._do(
                fx.Refuse(
                    event.id,
                    RouteStale(
                        f"slot {spec.name!r} now serves {s.model!r}, not {event.model!r}; ask again",
                        retry_after_s=1,
                    ),
                )
            )
        if self._can_grant() and not s.waiting:
            return self._grant(event.id)
        if not event.wait:
            if s.state in (S.OFFLINE, S.ERROR):
                # Who does not wait comes back: the load must outlive this request.
                self._set(wanted=True)
                self._load_if_down("requested")
            doing = "busy" if s.state in UP else str(self.slot.state)
            return self._do(
                fx.Refuse(event.id, SlotLoading(f"slot {spec.name!r} is {doing}", retry_after_s=2))
            )
        if len(s.waiting) >= spec.max_queue:
            return self._do(
                fx.Refuse(
                    event.id,
                    SlotQueueFull(
                        f"slot {spec.name!r} has {len(s.waiting)} requests waiting already "
                        f"(max_queue = {spec.max_queue})",
                        retry_after_s=1,
                    ),
                )
            )
        waiter = Waiter(event.id, self.now, self.now + spec.queue_timeout_s)
        self._set(waiting=(*s.waiting, waiter))
        self._watch_queue()
        self._load_if_down("requested")
        return None

    def _grant(self, id: str) -> None:
        self._set(leases=(*self.slot.leases, id), last_used=self.now)
        if self.slot.state is not S.SERVING:
            self._move(S.SERVING, "leased")
        self._do(fx.Grant(id))

    def _promote(self) -> None:
        while self.slot.waiting and self._can_grant():
            first, *rest = self.slot.waiting
            self._set(waiting=tuple(rest))
            self._grant(first.id)
        self._watch_queue()

    def _release(self, id: str) -> None:
        s = self.slot
        if id in s.leases:
            self._set(leases=tuple(x for x in s.leases if x != id), last_used=self.now)
            self._promote()
            if not self.slot.leases and self.slot.state is S.SERVING:
                self._move(S.READY, "last lease released")
                if self.slot.ending is not None:
                    self._begin_unload(self.slot.ending)
                else:
                    self._arm_idle()
        elif any(w.id == id for w in s.waiting):
            self._set(waiting=tuple(w for w in s.waiting if w.id != id))
            self._watch_queue()

    def _watch_queue(self) -> None:
        first = min((w.deadline for w in self.slot.waiting), default=None)
        if first is None:
            self._disarm(QUEUE)
        elif self.slot.deadlines.get(QUEUE) != first:
            self._arm(QUEUE, first - self.now)

    def _refuse_waiting(self, error: Callable[[], SlotdError]) -> None:
        for w in self.slot.waiting:
            self._do(fx.Refuse(w.id, error()))
        self._set(waiting=())
        self._watch_queue()

    def _watch_abandonment(self) -> None:
        """A load that nobody wants any more ends after a short grace."""
        s = self.slot
        unwanted = s.state in LOADING and not s.waiting and not s.wanted and not any(p.up for p in s.pending)
        if unwanted and ABANDON not in s.deadlines:
            self._arm(ABANDON, s.spec.abandon_after_s)
        elif not unwanted:
            self._disarm(ABANDON)
