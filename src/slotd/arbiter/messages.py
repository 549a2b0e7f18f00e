"""What the arbiter is told: the slots' reports, and the events of its own shell."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from slotd.arbiter.room import Limits, Reading
from slotd.arbiter.tenant import Report, TenantFacts

__all__ = ["Due", "Event", "Message", "Read", "Reconfigured", "Registered", "ReleaseDevice", "Unregistered"]


@dataclass(frozen=True, slots=True)
class Registered:
    """A slot exists from now on, or is configured otherwise."""

    facts: TenantFacts


@dataclass(frozen=True, slots=True)
class Unregistered:
    """A slot exists no more; nothing of it is left."""

    slot: str


@dataclass(frozen=True, slots=True)
class Reconfigured:
    """Other limits apply from now on."""

    limits: Limits


@dataclass(frozen=True, slots=True)
class ReleaseDevice:
    """A person wants the exclusive use of a device to end."""

    device: str


@dataclass(frozen=True, slots=True)
class Read:
    """The measurement of this number has ended; None: it has failed."""

    number: int
    reading: Reading | None


@dataclass(frozen=True, slots=True)
class Due:
    """The state's ``next_due`` has come."""


Message: TypeAlias = Report | Registered | Unregistered | Reconfigured | ReleaseDevice | Read
"""What comes in at the actor's mailbox."""

Event: TypeAlias = Message | Due
"""What the machine is told."""
