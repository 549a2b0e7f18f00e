"""What operators and slotd itself ask of a slot: load, unload, restart, kill, swap, shut down."""

from __future__ import annotations

from collections.abc import Callable

from slotd.errors import RouteStale, ServerStopping, SlotdError, SlotPinned, SlotStopped
from slotd.slot import effects as fx
from slotd.slot.loading import Loading
from slotd.slot.slot import Ending, Goal, Pending
from slotd.slot.state import UP, SlotState
from slotd.slot.turn import DRAIN

__all__ = ["Commands"]

S = SlotState


class Commands(Loading):
    """Each command is answered once: when its aim is reached, or cannot be."""

    def _refused_for_stop(self, id: str) -> bool:
        if self.slot.stopping:
            self._do(fx.Refuse(id, ServerStopping("slotd is shutting down")))
            return True
        return False

    def _stopped_error(self) -> SlotdError:
        return SlotStopped(
            f"slot {self.slot.spec.name!r} was stopped while this waited for it", retry_after_s=1
        )

    def _drop_demand(self, error: Callable[[], SlotdError]) -> None:
        """Nobody is to be served by what runs or loads now."""
        self._refuse_waiting(error)
        for p in self.slot.pending:
            if p.up:
                self._do(fx.Refuse(p.id, error()))
        self._set(pending=tuple(p for p in self.slot.pending if not p.up), wanted=False)

    def _await(self, id: str, *, up: bool) -> None:
        self._set(pending=(*self.slot.pending, Pending(id, up)))

    def _load(self, id: str) -> None:
        if self._refused_for_stop(id):
            return
        s = self.slot
        self._set(wanted=True)
        if s.state in UP and s.ending is None:
            self._do(fx.Done(id))
        elif s.state in UP and s.ending is not None and s.ending.goal is Goal.OFFLINE:
            # Still draining: it need not go at all.
            self._set(ending=None)
            self._disarm(DRAIN)
            for p in s.pending:
                self._do(fx.Refuse(p.id, self._stopped_error()) if p.up else fx.Done(p.id))
            self._set(pending=())
            self._promote()
            self._do(fx.Done(id))
        else:
            self._await(id, up=True)
            self._load_if_down("asked to load")

    def _unload(self, id: str) -> None:
        s = self.slot
        if s.spec.pinned and s.state not in (S.OFFLINE, S.ERROR):
            error = SlotPinned(f"slot {s.spec.name!r} is pinned; set pinned = false, or kill it")
            return self._do(fx.Refuse(id, error))
        self._drop_demand(self._stopped_error)
        self._go_down(id, "asked to unload", drain=True)
        return None

    def _kill(self, id: str) -> None:
        self._drop_demand(self._stopped_error)
        self._go_down(id, "asked to kill", drain=False, grace_s=0.0)

    def _close_doors(self) -> None:
        self._set(stopping=True)
        self._drop_demand(lambda: ServerStopping("slotd is shutting down"))

    def _shutdown(self, id: str) -> None:
        self._close_doors()
        self._go_down(id, "slotd is shutting down", drain=False)

    def _go_down(self, id: str, why: str, *, drain: bool, grace_s: float | None = None) -> None:
        s = self.slot
        ending = Ending(Goal.OFFLINE, why)
        match s.state:
            case S.OFFLINE:
                return self._do(fx.Done(id))
            case S.PULLING:
                self._do(fx.EndPull(s.generation))
                self._move(S.OFFLINE, why)
                return self._do(fx.Done(id))
            case S.ERROR if s.alive is None:
                self._move(S.OFFLINE, why)
                return self._do(fx.Done(id))
            case _:
                pass
        self._await(id, up=False)
        match s.state:
            case S.ERROR:
                self._set(ending=ending)
            case S.UNLOADING:
                self._set(ending=ending)
                if grace_s is not None and s.alive is not None:
                    self._do(fx.StopEngine(s.alive, grace_s))
            case S.SERVING if drain:
                self._set(ending=ending)
                self._arm(DRAIN, s.spec.drain_timeout_s)
            case _:
                self._begin_unload(ending, grace_s)
        return None

    def _restart(self, id: str, why: str) -> None:
        """Down and up again; whoever waits goes on waiting."""
        if self._refused_for_stop(id):
            return
        s = self.slot
        ending = Ending(Goal.RESTART, why)
        self._await(id, up=True)
        self._set(wanted=True)
        match s.state:
            case S.OFFLINE | S.ERROR:
                if s.alive is not None:
                    self._set(ending=ending)
                self._load_if_down(why)
            case S.PULLING:
                self._do(fx.EndPull(s.generation))
                self._move(S.OFFLINE, why)
                self._load_if_down(why)
            case S.UNLOADING:
                self._set(ending=ending)
            case S.SERVING:
                self._set(ending=ending)
                self._arm(DRAIN, s.spec.drain_timeout_s)
            case _:
                self._begin_unload(ending)
        # Whoever wanted it down is overruled by a later wish.
        for p in self.slot.pending:
            if not p.up:
                self._do(fx.Refuse(p.id, self._stopped_error()))
        self._set(pending=tuple(p for p in self.slot.pending if p.up))

    def _swap(self, id: str, model: str, present: bool) -> None:
        if self._refused_for_stop(id):
            return
        s = self.slot
        if model == s.model:
            self._load(id)
            return
        self._refuse_waiting(
            lambda: RouteStale(
                f"slot {s.spec.name!r} is being swapped to {model!r}; ask again", retry_after_s=1
            )
        )
        self._set(model=model, model_present=present)
        self._restart(id, f"swap to {model}")
