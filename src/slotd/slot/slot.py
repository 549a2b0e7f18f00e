"""All that a slot's actor knows, as one frozen value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from slotd.process.plan import Address
from slotd.slot.state import Fault, SlotState

__all__ = ["Ending", "Goal", "Pending", "Slot", "SlotSpec", "Waiter", "next_deadline"]


@dataclass(frozen=True, slots=True)
class SlotSpec:
    """The numbers of a slot that its machine decides by. Seconds and counts."""

    name: str
    max_parallel: int = 4
    max_queue: int = 64
    queue_timeout_s: float = 300.0
    pull_stall_s: float = 120.0
    ready_timeout_s: float = 180.0
    stop_timeout_s: float = 10.0
    kill_timeout_s: float = 5.0
    drain_timeout_s: float = 30.0
    abandon_after_s: float = 5.0
    idle_after_s: float = 300.0
    ttl_s: float = 0.0
    pinned: bool = False


class Goal(Enum):
    """What an unload leads to."""

    OFFLINE = "offline"
    RESTART = "restart"
    NEXT_PORT = "next port"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Ending:
    """An engine that is to go (draining) or going (unloading): whereto and why."""

    goal: Goal
    why: str
    fault: Fault | None = None


@dataclass(frozen=True, slots=True)
class Waiter:
    id: str
    since: float
    deadline: float


@dataclass(frozen=True, slots=True)
class Pending:
    """A command that is answered when the slot is up, or down."""

    id: str
    up: bool


@dataclass(frozen=True, slots=True)
class Slot:
    """All that a slot's actor knows. Times are seconds on the actor's clock.

    ``alive``: the generation whose engine is not completely gone yet.
    ``ending`` is set while it drains (in an up state) and while it unloads.
    ``undecided``: in ``error``, the engine's remains are still being swept and
    its last words read; those who wait are answered when that is done.
    """

    spec: SlotSpec
    model: str = ""
    state: SlotState = SlotState.OFFLINE
    since: float = 0.0
    generation: int = 0
    alive: int | None = None
    address: Address | None = None
    pid: int | None = None
    models: tuple[str, ...] = ()
    model_present: bool = True
    waiting: tuple[Waiter, ...] = ()
    leases: tuple[str, ...] = ()
    pending: tuple[Pending, ...] = ()
    wanted: bool = False
    stopping: bool = False
    ending: Ending | None = None
    undecided: bool = False
    port_attempts: int = 0
    fault: Fault | None = None
    progress: tuple[int, int | None] | None = None
    progress_phase: str = ""
    load_began: float = 0.0
    load_s: float | None = None
    last_used: float | None = None
    starts: int = 0
    deadlines: Mapping[str, float] = field(default_factory=dict)


def next_deadline(slot: Slot) -> tuple[float, str] | None:
    """The earliest deadline and its timer's name."""
    return min(((at, name) for name, at in slot.deadlines.items()), default=None)
