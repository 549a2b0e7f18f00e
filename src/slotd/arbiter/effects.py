"""What the arbiter's machine wants done. The actor's shell carries it out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from slotd.arbiter.tenant import Leave
from slotd.errors import SlotdError

__all__ = [
    "Admitted",
    "ComeBack",
    "Contend",
    "Denied",
    "Effect",
    "Measure",
    "Order",
    "Publish",
    "Remember",
    "Resync",
]


@dataclass(frozen=True, slots=True)
class Admitted:
    """The slot may spawn: its room is reserved."""

    slot: str
    ticket: int


@dataclass(frozen=True, slots=True)
class Denied:
    """There is no room for the slot's load."""

    slot: str
    ticket: int
    error: SlotdError


@dataclass(frozen=True, slots=True)
class Order:
    """Ask the slot to leave."""

    slot: str
    leave: Leave


@dataclass(frozen=True, slots=True)
class Contend:
    """Tell the slot whether others need it gone."""

    slot: str
    on: bool


@dataclass(frozen=True, slots=True)
class ComeBack:
    """What the slot had to leave for is over: it may load again."""

    slot: str


@dataclass(frozen=True, slots=True)
class Resync:
    """Ask the slot what it has."""

    slot: str


@dataclass(frozen=True, slots=True)
class Measure:
    """Find out what is free; the answer is ``Read`` with this number."""

    number: int


@dataclass(frozen=True, slots=True)
class Remember:
    """An engine of this launch plan takes up so much."""

    digest: str
    ram_mb: int
    gpu_mb: int


@dataclass(frozen=True, slots=True)
class Publish:
    """Tell the bus."""

    kind: str
    slot: str
    data: Mapping[str, Any]


Effect: TypeAlias = Admitted | Denied | Order | Contend | ComeBack | Resync | Measure | Remember | Publish
