"""One step of the arbiter's machine in the making: the verbs that all its parts use."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from slotd.arbiter import effects as fx
from slotd.arbiter.exclusive import Mode, Phase, restore_delay, retry_after
from slotd.arbiter.state import Debt, Demand, Hold, Parting, Release, State
from slotd.arbiter.tenant import Leave, TenantFacts
from slotd.errors import SlotdError
from slotd.events import types

__all__ = ["Turn"]

REFUSED_PAUSE_S = 0.25
"""The least time before a slot that has refused to leave is asked again."""


class Turn:
    """The next state and its effects, as far as they are known.

    ``wakes``: when something may change by the clock alone. ``contended``:
    slots that a demand would like to see gone.
    """

    __slots__ = ("contended", "effects", "now", "state", "wakes")

    def __init__(self, state: State, now: float) -> None:
        self.state = state
        self.now = now
        self.effects: list[fx.Effect] = []
        self.wakes: list[float] = []
        self.contended: set[str] = set()

    def set(self, **changes: Any) -> None:
        self.state = replace(self.state, **changes)

    def do(self, effect: fx.Effect) -> None:
        self.effects.append(effect)

    def wake(self, at: float) -> None:
        """Look again then; what is past has been seen to already."""
        if at > self.now:
            self.wakes.append(at)

    def publish(self, kind: str, slot: str, data: Mapping[str, Any]) -> None:
        self.do(fx.Publish(kind, slot, data))

    # --- what is known ---------------------------------------------------------------

    def facts(self, slot: str) -> TenantFacts:
        return self.state.facts.get(slot) or TenantFacts(slot)

    def quiet_from(self, hold: Hold) -> float | None:
        """Since when nobody uses the slot or waits for it; None: somebody does, or it is not up."""
        view = self.state.views.get(hold.slot)
        if not hold.up or view is None or not view.up or view.leases or view.queued:
            return None
        # One that nobody has used yet is quiet from the moment it was up.
        return hold.since if view.quiet_since is None else max(view.quiet_since, hold.since)

    def quiet(self, hold: Hold) -> bool:
        """Whether it has been quiet for its hold."""
        since = self.quiet_from(hold)
        if since is None:
            return False
        at = since + self.state.limits.turn_hold_s
        self.wake(at)
        return at <= self.now

    def had_turn(self, hold: Hold) -> bool:
        """Whether it has served, since it came up, those for whom it was loaded."""
        view = self.state.views.get(hold.slot)
        at = hold.since + self.state.limits.turn_hold_s
        self.wake(at)
        if view is None or at > self.now:
            return False
        used = -math.inf if view.last_used is None else view.last_used
        return view.leases > 0 or view.queued == 0 or used >= hold.since

    def askable(self, hold: Hold) -> bool:
        """Whether it makes sense to tell it to leave now."""
        self.wake(hold.ask_after)
        leaves = hold.parting is not None or hold.down_since is not None
        return not leaves and hold.ask_after <= self.now

    # --- holds and demands -----------------------------------------------------------

    def put_hold(self, hold: Hold) -> None:
        self.set(holds={**self.state.holds, hold.slot: hold})

    def put_demand(self, demand: Demand) -> None:
        self.set(demands={**self.state.demands, demand.slot: demand})

    def drop_demand(self, slot: str) -> None:
        self.set(demands={k: d for k, d in self.state.demands.items() if k != slot})

    def put_mode(self, mode: Mode) -> None:
        self.set(modes={**self.state.modes, mode.device: mode})

    def stale(self) -> None:
        """What was measured until now no longer says what is free."""
        self.set(fresh_from=self.state.number + 1)

    def admit(self, demand: Demand) -> None:
        """Reserve, and tell it to spawn."""
        slot = demand.slot
        self.drop_demand(slot)
        self.put_hold(Hold(slot, demand.ticket, demand.need, demand.digest, self.now))
        self.settled(slot)
        for release in self.state.releases:
            if release.winner == slot:
                self.end_release(release, seen=True)
        self.do(fx.Admitted(slot, demand.ticket))

    def end_release(self, release: Release, *, seen: bool) -> None:
        """Wait no longer for the memory of one that has gone."""
        self.set(releases=tuple(r for r in self.state.releases if r is not release))
        if release.winner:
            data = {
                "for": release.winner,
                "waited_s": self.now - release.since,
                "seen": seen,
                **release.room.as_dict(),
            }
            self.publish(types.ARBITER_RELEASED, release.slot, data)

    def deny(self, demand: Demand, error: SlotdError) -> None:
        """There is no room for it: who has left for it may come back."""
        self.drop_demand(demand.slot)
        self.do(fx.Denied(demand.slot, demand.ticket, error))
        data = {"code": error.code, "message": error.message, "need": demand.room.as_dict()}
        self.publish(types.ARBITER_DENIED, demand.slot, data)
        self.failed(demand.slot, demand.ticket, "its load was denied")

    # --- who must go -------------------------------------------------------------------

    def order(
        self,
        hold: Hold,
        winner: Demand | None,
        why: str,
        *,
        drain: bool = False,
        refusal: SlotdError | None = None,
        cut_after_s: float | None = None,
        owe: bool = True,
    ) -> None:
        """Tell it to leave; if ``owe``, it comes back should the winner's load fail."""
        name = "" if winner is None else winner.slot
        self.put_hold(replace(hold, parting=Parting(self.now, name, hard=cut_after_s is not None)))
        if winner is not None and owe:
            debt = self.state.debts.get(name, Debt(winner.ticket, ()))
            losers = tuple(dict.fromkeys((*debt.losers, hold.slot)))
            self.set(debts={**self.state.debts, name: Debt(winner.ticket, losers)})
        self.do(fx.Order(hold.slot, Leave(hold.ticket, why, drain, refusal, cut_after_s)))
        data = {"for": name or None, "why": why, "drain": drain, **hold.room.as_dict()}
        self.publish(types.ARBITER_EVICTING, hold.slot, data)

    def failed(self, slot: str, ticket: int, why: str) -> None:
        """A load comes to nothing: what was undone for it is done again."""
        debt = self.state.debts.get(slot)
        if debt is not None and debt.ticket == ticket:
            self.forgive(slot)
            self.owe(debt.losers)
        for mode in tuple(self.state.modes.values()):
            if mode.owner == slot and mode.ticket == ticket and mode.phase is Phase.ENTERING:
                self.end_mode(mode, why)

    def forgive(self, slot: str) -> None:
        self.set(debts={k: d for k, d in self.state.debts.items() if k != slot})

    def owe(self, slots: Iterable[str]) -> None:
        self.set(owed=self.state.owed.union(slots))

    def settled(self, slot: str) -> None:
        """It is not out, or has been called: nobody owes it anything any more."""
        debts, modes = self.state.debts, self.state.modes
        self.set(
            debts={k: replace(d, losers=tuple(x for x in d.losers if x != slot)) for k, d in debts.items()},
            modes={k: replace(m, losers=tuple(x for x in m.losers if x != slot)) for k, m in modes.items()},
            owed=self.state.owed - {slot},
        )

    # --- modes ---------------------------------------------------------------------------

    def end_mode(self, mode: Mode, why: str) -> None:
        """The device is shared again; who was driven out for the mode comes back."""
        self.set(modes={k: m for k, m in self.state.modes.items() if k != mode.device})
        back = mode.losers
        if not back and mode.phase is Phase.ENTERING and mode.former:
            back = (mode.former,)
        self.owe(back)
        self.tell_mode(mode, "shared", why)

    def tell_mode(self, mode: Mode, word: str, why: str) -> None:
        data = {"device": mode.device, "mode": word, "why": why, "losers": list(mode.losers)}
        self.publish(types.ARBITER_MODE, mode.owner, data)

    def mode_delay(self, mode: Mode) -> float:
        return restore_delay(mode, self.facts(mode.owner), self.state.limits.turn_hold_s)

    def mode_retry_after(self, mode: Mode) -> float:
        hold = self.state.holds.get(mode.owner)
        quiet_from = None if hold is None else self.quiet_from(hold)
        return retry_after(
            mode, self.mode_delay(mode), quiet_from, self.state.load_s.get(mode.owner), self.now
        )
