"""What a slot's state machine wants done. The actor's shell carries it out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from slotd.errors import SlotdError
from slotd.slot.state import Fault, SlotState

__all__ = [
    "BeginPull",
    "Done",
    "Effect",
    "EndPull",
    "EngineLost",
    "Grant",
    "Launch",
    "Moved",
    "Probe",
    "Refuse",
    "StopEngine",
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


@dataclass(frozen=True, slots=True)
class Grant:
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


Effect: TypeAlias = (
    BeginPull | EndPull | Launch | Probe | StopEngine | EngineLost | Grant | Refuse | Done | Moved
)
