"""The arithmetic of memory: what fits, what is missing, and who suffices. Pure.

Everything is counted in MiB, for main memory and for a GPU side by side. A
load is let in when it fits twice: into the *ledger* (what is reserved for all
that hold room, within the capacity) and into what is *measured* as free at
that moment. What a load does not need of a kind of memory it cannot lack.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from slotd.arbiter.tenant import Need

__all__ = [
    "UNLIMITED",
    "Balance",
    "Limits",
    "Reading",
    "Room",
    "capacity",
    "choose",
    "room_of",
    "settled_need",
    "total",
]

UNLIMITED = 1 << 40
"""MiB of a kind of memory that nobody counts."""


@dataclass(frozen=True, slots=True)
class Room:
    """An amount of memory, of both kinds; may be negative, as a difference."""

    ram_mb: int = 0
    gpu_mb: int = 0

    def __add__(self, other: Room) -> Room:
        return Room(self.ram_mb + other.ram_mb, self.gpu_mb + other.gpu_mb)

    def __sub__(self, other: Room) -> Room:
        return Room(self.ram_mb - other.ram_mb, self.gpu_mb - other.gpu_mb)

    def __bool__(self) -> bool:
        return self.ram_mb > 0 or self.gpu_mb > 0

    def lower(self, other: Room) -> Room:
        """The smaller of the two, of each kind."""
        return Room(min(self.ram_mb, other.ram_mb), min(self.gpu_mb, other.gpu_mb))

    def upper(self, other: Room) -> Room:
        """The larger of the two, of each kind."""
        return Room(max(self.ram_mb, other.ram_mb), max(self.gpu_mb, other.gpu_mb))

    def where(self, other: Room) -> Room:
        """This, of the kinds that ``other`` needs at all."""
        return Room(self.ram_mb if other.ram_mb > 0 else 0, self.gpu_mb if other.gpu_mb > 0 else 0)

    def beyond(self, free: Room) -> Room:
        """What of this does not go into ``free``, of each kind; 0 where nothing is needed."""
        return (self - free).where(self).upper(Room())

    def as_dict(self) -> dict[str, int | None]:
        """For people and programs; None: nobody counts it."""
        kinds = {"ram_mb": self.ram_mb, "gpu_mb": self.gpu_mb}
        return {kind: None if mb > UNLIMITED // 2 else mb for kind, mb in kinds.items()}

    def __str__(self) -> str:
        shown = f"{self.ram_mb} MiB"
        return f"{shown} and {self.gpu_mb} MiB of GPU memory" if self.gpu_mb else shown


def total(rooms: Iterable[Room]) -> Room:
    return sum(rooms, start=Room())


def room_of(need: Need) -> Room:
    return Room(max(0, need.ram_mb), max(0, need.gpu_mb))


def settled_need(asked: Need, learned: Need | None) -> Need:
    """What to reckon with: what was measured before wins over an estimate; a configured need is a floor."""
    if learned is None:
        return asked
    if asked.source != "configured":
        return Need(learned.ram_mb, learned.gpu_mb, "measured")
    return Need(max(asked.ram_mb, learned.ram_mb), max(asked.gpu_mb, learned.gpu_mb), "configured")


@dataclass(frozen=True, slots=True)
class Limits:
    """The numbers that the arbiter decides by: MiB and seconds. Names as in the config.

    ``stop_bound_s``: a slot told to leave that serves nobody any more and is
    still not gone after so long is not counted on. ``look_every_s`` and
    ``idle_look_every_s``: how often free memory is measured while somebody
    waits for it (at most every ``measure_every_s`` while it is being given
    back), and while nobody does (0: never).
    """

    budget_mb: int = 0
    reserve_mb: int = 1024
    gpu_budget_mb: int = 0
    gpu_reserve_mb: int = 256
    wait_s: float = 300.0
    release_timeout_s: float = 10.0
    max_wait_s: float = 30.0
    turn_hold_s: float = 1.0
    resync_s: float = 1.0
    stop_bound_s: float = 30.0
    measure_every_s: float = 0.05
    look_every_s: float = 0.5
    idle_look_every_s: float = 10.0


@dataclass(frozen=True, slots=True)
class Reading:
    """What the machine has and what is free of it, MiB. None: it cannot be known, so it sets no limit."""

    ram_total_mb: int | None = None
    ram_free_mb: int | None = None
    gpu_total_mb: int | None = None
    gpu_free_mb: int | None = None

    @property
    def free(self) -> Room:
        return Room(
            UNLIMITED if self.ram_free_mb is None else self.ram_free_mb,
            UNLIMITED if self.gpu_free_mb is None else self.gpu_free_mb,
        )


def _capacity(budget: int, total: int | None, reserve: int) -> int:
    if total is None:
        return budget or UNLIMITED
    return max(0, min(budget or total, total - reserve))


def capacity(limits: Limits, reading: Reading) -> Room:
    """What all loaded models may take up together: the budget, and never the reserve.

    ``min(budget or total, total - reserve)``: a budget is for models alone,
    the reserve is kept from the machine's memory, not from the budget.
    """
    return Room(
        _capacity(limits.budget_mb, reading.ram_total_mb, limits.reserve_mb),
        _capacity(limits.gpu_budget_mb, reading.gpu_total_mb, limits.gpu_reserve_mb),
    )


@dataclass(frozen=True, slots=True)
class Balance:
    """How memory stands at one moment, and how it will.

    ``capacity``: for all of ours. ``free``: measured, less the reserve.
    ``held``: reserved by all that hold room. ``loading``: that part of it
    that may not be taken up yet. ``coming``: that part of it that is about
    to be given back. ``releasing``: given back, and not yet seen to be free.
    ``claims``: what older demands wait for; ``promised``: what they will get
    from slots that have not been told to leave yet.
    """

    capacity: Room
    free: Room
    held: Room = Room()
    loading: Room = Room()
    coming: Room = Room()
    releasing: Room = Room()
    claims: Room = Room()
    promised: Room = Room()

    def fits(self, need: Room) -> bool:
        """Whether it may load now, without taking what an older demand counts on.

        What others still load counts as not yet taken up, so that several
        loads side by side never each fit into the same free memory.
        """
        ledger, measured = self.capacity - self.held, self.free - self.loading
        later = self.coming + self.promised - self.claims
        beside = (ledger + later).lower(measured + self.releasing + later)
        return not need.beyond(ledger.lower(measured).lower(beside))

    def short(self, need: Room) -> Room:
        """What must still be given back for it, beside older demands.

        Nothing is short that is only awaited: memory on its way back, or the
        end of loads that are counted twice (reserved, and partly taken up).
        """
        later = self.coming + self.promised
        ledger, measured = self.capacity - self.held + later, self.free + self.releasing + later
        return (need + self.claims.where(need)).beyond(ledger.lower(measured))


def choose(ranked: Sequence[tuple[str, Room]], short: Room) -> tuple[str, ...]:
    """The smallest set, taken in the order given, that yields ``short``; empty if all would not do.

    Members that the later ones make needless are dropped again, the most
    valuable (last) first.
    """
    taken: list[tuple[str, Room]] = []
    sum_ = Room()
    for name, room in ranked:
        if not short.beyond(sum_):
            break
        if room.where(short):
            taken.append((name, room))
            sum_ += room
    if short.beyond(sum_):
        return ()
    for member in reversed(taken.copy()):
        if not short.beyond(sum_ - member[1]):
            taken.remove(member)
            sum_ -= member[1]
    return tuple(name for name, _ in taken)
