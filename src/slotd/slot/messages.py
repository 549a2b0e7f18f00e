"""What a slot's actor is told: the events of its state machine, and asks around them.

Events are plain data. Those of an engine or a download carry the generation
they belong to; the machine ignores those of an older one. An event that wants
an answer has an ``id``; it travels inside :class:`Asked` together with the
reply, so the machine itself never sees a reply.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

from slotd.actor import Reply
from slotd.process.plan import Address, ExitStatus, StopReport
from slotd.slot.state import Fault, SlotState

__all__ = [
    "Acquire",
    "Asked",
    "CloseDoors",
    "Due",
    "Event",
    "Exited",
    "Gone",
    "Kill",
    "LaunchFailed",
    "Load",
    "Message",
    "ModelSeen",
    "PortOpened",
    "PullFailed",
    "PullProgressed",
    "Pulled",
    "QueryState",
    "Ready",
    "Release",
    "Restart",
    "Shutdown",
    "Started",
    "StrangerFound",
    "Swap",
    "Unload",
]


# --- asks and commands ---------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Acquire:
    """A request wants a lease. ``id`` is the lease's name, chosen by the caller.

    ``model``: what the caller's route promised; refused as stale if the slot
    has been swapped to another since. ``wait`` False: refuse instead of queueing.
    """

    id: str
    model: str = ""
    wait: bool = True


@dataclass(frozen=True, slots=True)
class Release:
    """The lease is over, or was never granted: withdraws it wherever it is."""

    id: str


@dataclass(frozen=True, slots=True)
class Load:
    id: str


@dataclass(frozen=True, slots=True)
class Unload:
    """Drain, then stop. Requests that wait now are refused; later ones load again."""

    id: str


@dataclass(frozen=True, slots=True)
class Restart:
    id: str


@dataclass(frozen=True, slots=True)
class Kill:
    """Stop at once with SIGKILL: no drain, no grace."""

    id: str


@dataclass(frozen=True, slots=True)
class Swap:
    """Serve another model from now on: desired state first, then drain and reload."""

    id: str
    model: str
    present: bool


@dataclass(frozen=True, slots=True)
class CloseDoors:
    """slotd is about to end: who holds a lease may finish, nobody else is served any more."""


@dataclass(frozen=True, slots=True)
class Shutdown:
    """slotd ends: stop, and start nothing any more."""

    id: str


# --- what children report -------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ModelSeen:
    """Whether the model's file is there, as looked up just before a demand."""

    present: bool


@dataclass(frozen=True, slots=True)
class PullProgressed:
    generation: int
    phase: str
    done_bytes: int
    total_bytes: int | None


@dataclass(frozen=True, slots=True)
class Pulled:
    generation: int


@dataclass(frozen=True, slots=True)
class PullFailed:
    generation: int
    fault: Fault


@dataclass(frozen=True, slots=True)
class Started:
    """The process exists."""

    generation: int
    address: Address
    pid: int | None


@dataclass(frozen=True, slots=True)
class LaunchFailed:
    """No process came into being."""

    generation: int
    fault: Fault


@dataclass(frozen=True, slots=True)
class PortOpened:
    """The engine's own listener answers."""

    generation: int


@dataclass(frozen=True, slots=True)
class Ready:
    """Health is good, ``models`` are listed, and the listener is the engine's own."""

    generation: int
    models: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class StrangerFound:
    """A process that is not ours listens on the engine's port."""

    generation: int


@dataclass(frozen=True, slots=True)
class Exited:
    """The leading process has ended; others of its group may still be there."""

    generation: int
    status: ExitStatus
    log: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Gone:
    """Nothing of the engine is left (or it is named in the report's survivors).

    ``port_taken``: its port is now held by a stranger, which is why it exited.
    """

    generation: int
    report: StopReport
    log: tuple[str, ...] = ()
    port_taken: bool = False


@dataclass(frozen=True, slots=True)
class Due:
    """A deadline of the machine has come."""

    timer: str


Command: TypeAlias = Load | Unload | Restart | Kill | Swap | Shutdown
Event: TypeAlias = (
    Acquire
    | Release
    | Command
    | CloseDoors
    | ModelSeen
    | PullProgressed
    | Pulled
    | PullFailed
    | Started
    | LaunchFailed
    | PortOpened
    | Ready
    | StrangerFound
    | Exited
    | Gone
    | Due
)


@dataclass(frozen=True, slots=True)
class QueryState:
    """What state is the slot in? Answered by the owner, without a step."""

    reply: Reply[SlotState]


@dataclass(frozen=True, slots=True)
class Asked:
    """An event whose ``id`` awaits an answer at ``reply``."""

    event: Acquire | Command
    reply: Reply[Any]


Message: TypeAlias = Event | Asked | QueryState
