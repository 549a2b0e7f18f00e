"""All that a slot's actor knows, as one frozen value."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass
from enum import Enum
from typing import Any

import msgspec
from msgspec.structs import force_setattr

from slotd.errors import SlotdError
from slotd.process.plan import Address
from slotd.slot.breaker import SOUND, Breaker
from slotd.slot.state import UP, Fault, SlotState

__all__ = ["Check", "Ending", "Goal", "Pending", "Room", "Slot", "SlotSpec", "Waiter", "next_deadline"]


@dataclass(frozen=True, slots=True)
class SlotSpec:
    """The numbers of a slot that its machine decides by. Seconds and counts.

    ``keep_up``: an engine that is lost is started again though nobody waits
    for it. ``check_output``: judge its words once after each load.
    """

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
    max_wait_s: float = 30.0
    turn_hold_s: float = 1.0
    liveness_timeout_s: float = 30.0
    log_lines: int = 20
    pinned: bool = False
    keep_up: bool = False
    check_output: bool = False


class Goal(Enum):
    """What an unload leads to."""

    OFFLINE = "offline"
    RESTART = "restart"
    NEXT_PORT = "next port"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Ending:
    """An engine that is to go (draining) or going (unloading): whereto and why.

    ``refusal``: what those who come meanwhile are told; None: they wait.
    """

    goal: Goal
    why: str
    fault: Fault | None = None
    refusal: SlotdError | None = None


@dataclass(frozen=True, slots=True)
class Waiter:
    """``since``: when the request came to slotd; a replayed one keeps it, and so its place."""

    id: str
    since: float
    deadline: float
    priority: int = 0


@dataclass(frozen=True, slots=True)
class Pending:
    """A command that is answered when the slot is up, or down."""

    id: str
    up: bool


class Room(Enum):
    """The room that a load needs, as agreed with the arbiter."""

    NONE = "none"
    ASKED = "asked"
    HELD = "held"


class Check(Enum):
    """The check of what a loaded engine writes. ``UNKNOWN``: it could not be judged."""

    OFF = ""
    DUE = "due"
    RUNNING = "running"
    OK = "ok"
    UNKNOWN = "unknown"


class Slot(msgspec.Struct, frozen=True):
    """All that a slot's actor knows. Times are seconds on the actor's clock.

    ``alive``: the generation whose engine is not completely gone yet.
    ``probe``: what the last look at a loading engine found.
    ``leases``: when each was granted. ``wanted``: it is to be up though nobody
    waits for it. ``ending`` is set while it drains (in an up state) and while
    it unloads. ``undecided``: in ``error``, the engine's remains are still
    being swept and its last words read; those who wait are answered when that
    is done. ``ticket`` names the room that is asked for or held; ``leaving``:
    the arbiter wants it back. ``stale``: what runs is not what is configured.
    ``condemned``: its output was garbage, and nothing has changed since.
    ``hold_s``: how long a lease is held, on average.
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
    probe: str = ""
    model_present: bool = True
    waiting: tuple[Waiter, ...] = ()
    leases: Mapping[str, float] = msgspec.field(default_factory=dict)
    stalled: frozenset[str] = frozenset()
    stalls: int = 0
    pending: tuple[Pending, ...] = ()
    wanted: bool = False
    stopping: bool = False
    ending: Ending | None = None
    undecided: bool = False
    port_attempts: int = 0
    fault: Fault | None = None
    condemned: Fault | None = None
    breaker: Breaker = SOUND
    room: Room = Room.NONE
    ticket: int = 0
    leaving: bool = False
    contended: bool = False
    told_quiet: bool = False
    stale: bool = False
    check: Check = Check.OFF
    progress: tuple[int, int | None] | None = None
    progress_phase: str = ""
    load_began: float = 0.0
    load_s: float | None = None
    last_used: float | None = None
    hold_s: float | None = None
    starts: int = 0
    deadlines: Mapping[str, float] = msgspec.field(default_factory=dict)

    def but(self, **changes: Any) -> Slot:
        """The same with some fields changed.

        What ``msgspec.structs.replace`` does, at a fifth of its cost: it is called
        several times for each request. Raises :class:`AttributeError` for a field
        that there is not.
        """
        other = copy(self)
        for name, value in changes.items():
            force_setattr(other, name, value)  # of one that nobody else has seen yet
        return other

    @property
    def down(self) -> bool:
        """Whether nothing runs and nothing of what ran is left."""
        return self.state in (SlotState.OFFLINE, SlotState.ERROR) and self.alive is None

    @property
    def quiet(self) -> bool:
        """Whether it is up and nobody uses it or waits for it."""
        return self.state in UP and not self.leases and not self.waiting and self.ending is None

    @property
    def wish(self) -> bool:
        """Whether anybody wants it up."""
        return bool(self.waiting) or self.wanted or any(p.up for p in self.pending)


def next_deadline(slot: Slot) -> tuple[float, str] | None:
    """The earliest deadline and its timer's name."""
    if not slot.deadlines:
        return None
    return min((at, name) for name, at in slot.deadlines.items())
