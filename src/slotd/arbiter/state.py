"""All that the arbiter knows, as one frozen value."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from slotd.arbiter.exclusive import Mode
from slotd.arbiter.room import Balance, Limits, Reading, Room, capacity, room_of, total
from slotd.arbiter.tenant import Need, TenantFacts, TenantView

__all__ = ["Debt", "Demand", "Hold", "Parting", "Release", "State", "ordered"]


@dataclass(frozen=True, slots=True)
class Parting:
    """A slot has been told to leave: since when, and for whose load ("": for nobody's).

    ``hard``: its leases last only so long.
    """

    since: float
    winner: str
    hard: bool = False


@dataclass(frozen=True, slots=True)
class Hold:
    """A slot that holds room: admitted, and not gone.

    ``since``: when it was admitted, or, once ``up``, when it came up.
    ``measured``: it is known what it takes up, and ``need`` says it.
    ``down_since``: it serves no more and is on its way out, or its load has
    ``failed`` and what is left of it should be ending. ``ask_after``: it has
    refused to leave and is not asked again before then.
    """

    slot: str
    ticket: int
    need: Need
    digest: str
    since: float
    up: bool = False
    measured: bool = False
    failed: bool = False
    parting: Parting | None = None
    down_since: float | None = None
    ask_after: float = -math.inf

    @property
    def room(self) -> Room:
        return room_of(self.need)


@dataclass(frozen=True, slots=True)
class Demand:
    """A slot that waits for room.

    ``since`` is its place in the line: when the oldest of those who wait for
    it came, but not before it was last driven out itself (it has had its
    turn). ``why`` says what it waits for, ``told`` what of that was published last.
    ``lost_since``: since when not even the end of all of ours would make room for it.
    """

    slot: str
    ticket: int
    need: Need
    digest: str
    since: float
    asked_at: float
    seq: int
    why: str = ""
    told: str = ""
    lost_since: float | None = None

    @property
    def room(self) -> Room:
        return room_of(self.need)


@dataclass(frozen=True, slots=True)
class Debt:
    """Who has left for a load that has not come up yet."""

    ticket: int
    losers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Release:
    """An engine is gone, and its memory not yet seen to be free.

    ``before``: what was free when it was last measured. ``winner``: whose load
    it has left for, if it was told to.
    """

    slot: str
    room: Room
    since: float
    until: float
    before: Room | None
    winner: str


@dataclass(frozen=True, slots=True)
class State:
    """All that the arbiter knows. Times are seconds on the actor's clock.

    ``tickets``: the newest of each slot. ``left``: when a slot that was told
    to leave had gone. ``debts``: by the slot that they were incurred for.
    ``owed``: slots to be told to come back, once they are out. ``unheard``:
    slots that have not yet said, since this arbiter began, what they hold;
    until ``resync_until`` nobody is admitted.

    ``number`` and ``measuring``: of the last measurement, and of the one under
    way. ``fresh_from``: older ones do not count for a decision.
    """

    limits: Limits = field(default_factory=Limits)
    facts: Mapping[str, TenantFacts] = field(default_factory=dict)
    views: Mapping[str, TenantView] = field(default_factory=dict)
    holds: Mapping[str, Hold] = field(default_factory=dict)
    demands: Mapping[str, Demand] = field(default_factory=dict)
    debts: Mapping[str, Debt] = field(default_factory=dict)
    owed: frozenset[str] = frozenset()
    tickets: Mapping[str, int] = field(default_factory=dict)
    left: Mapping[str, float] = field(default_factory=dict)
    releases: tuple[Release, ...] = ()
    modes: Mapping[str, Mode] = field(default_factory=dict)
    load_s: Mapping[str, float] = field(default_factory=dict)
    contended: frozenset[str] = frozenset()
    unheard: frozenset[str] = frozenset()
    resync_until: float | None = None
    reading: Reading | None = None
    read_number: int = 0
    read_at: float = -math.inf
    number: int = 0
    measuring: int | None = None
    began_at: float = -math.inf
    fresh_from: int = 0
    seq: int = 0
    next_due: float = math.inf

    def capacity(self) -> Room | None:
        """What all loads may take up together, once the machine has been measured."""
        return None if self.reading is None else capacity(self.limits, self.reading)

    def going(self, hold: Hold, now: float) -> bool:
        """Whether its room can be counted on to come back soon."""
        view = self.views.get(hold.slot)
        leaves = hold.parting is not None or hold.down_since is not None or (view is not None and view.going)
        return leaves and not self.stuck(hold, now)

    def stuck(self, hold: Hold, now: float) -> bool:
        """Whether its engine should have ended by now: its room may never come back."""
        return hold.down_since is not None and now >= hold.down_since + self.limits.stop_bound_s

    def balance(self, reading: Reading, now: float) -> Balance:
        """How memory stands, before any demand is looked at."""
        reserve = Room(self.limits.reserve_mb, self.limits.gpu_reserve_mb)
        holds = self.holds.values()
        return Balance(
            capacity=capacity(self.limits, reading),
            free=reading.free - reserve,
            held=total(h.room for h in holds),
            loading=total(h.room for h in holds if self.loading(h)),
            coming=total(h.room for h in holds if self.going(h, now)),
            releasing=total(r.room for r in self.releases),
        )

    def loading(self, hold: Hold) -> bool:
        """Whether its memory may not be taken up yet: also while it is loaded once more after a crash."""
        view = self.views.get(hold.slot)
        return hold.down_since is None and not (hold.up and (view is None or view.up))


def ordered(state: State) -> tuple[Demand, ...]:
    """Who waits, the oldest first."""
    return tuple(sorted(state.demands.values(), key=lambda d: (d.since, d.seq)))
