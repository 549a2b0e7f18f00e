"""What a slot's state machine wants done. The actor's shell carries it out."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias

import msgspec

from slotd.errors import SlotdError
from slotd.slot.state import Fault, SlotState

__all__ = [
    "AskRoom",
    "BeginPull",
    "CheckOutput",
    "Done",
    "Effect",
    "EndPull",
    "EngineLost",
    "Grant",
    "Launch",
    "Moved",
    "Probe",
    "Refuse",
    "StopCheck",
    "StopEngine",
    "Tell",
    "Word",
]


@dataclass(frozen=True, slots=True)
class BeginPull:
    """Fetch the model; report progress and the outcome with this generation."""

    generation: int


@dataclass(frozen=True, slots=True)
class EndPull:
    """Stop fetching. What has come so far is kept for later."""

    generation: int


@dataclass(frozen=True, slots=True)
class Launch:
    """Start the engine as this generation."""

    generation: int


@dataclass(frozen=True, slots=True)
class Probe:
    """Watch the engine until it is ready."""

    generation: int


@dataclass(frozen=True, slots=True)
class StopEngine:
    """End the engine: SIGTERM now, SIGKILL after ``grace_s`` (0: at once)."""

    generation: int
    grace_s: float


@dataclass(frozen=True, slots=True)
class EngineLost:
    """This generation answers no more: break what it still serves, and say why."""

    generation: int
    fault: Fault


class Grant(msgspec.Struct, frozen=True):
    """Give the lease ``id`` out."""

    id: str


@dataclass(frozen=True, slots=True)
class Refuse:
    """Answer ``id`` with an error."""

    id: str
    error: SlotdError


@dataclass(frozen=True, slots=True)
class Done:
    """Answer the command ``id``: it has been carried out."""

    id: str


@dataclass(frozen=True, slots=True)
class Moved:
    """A transition has happened."""

    before: SlotState
    after: SlotState
    why: str


@dataclass(frozen=True, slots=True)
class AskRoom:
    """Ask the arbiter for room. ``since``: when the oldest of those who wait came."""

    ticket: int
    since: float


class Word(Enum):
    """What a slot tells the arbiter about a ticket: see :mod:`slotd.arbiter.tenant`."""

    WITHDRAW = "withdraw"
    UP = "up"
    FAILED = "failed"
    GONE = "gone"
    QUIET = "quiet"
    STAYS = "stays"
    HOLDING = "holding"


@dataclass(frozen=True, slots=True)
class Tell:
    """Tell the arbiter; ``why`` goes with ``STAYS``."""

    word: Word
    ticket: int
    why: str = ""


@dataclass(frozen=True, slots=True)
class CheckOutput:
    """See whether the engine writes words."""

    generation: int


@dataclass(frozen=True, slots=True)
class StopCheck:
    """Leave off: somebody needs the engine."""


Effect: TypeAlias = (
    BeginPull
    | EndPull
    | Launch
    | Probe
    | StopEngine
    | EngineLost
    | Grant
    | Refuse
    | Done
    | Moved
    | AskRoom
    | Tell
    | CheckOutput
    | StopCheck
)
