"""What a slot's actor is told: the events of its state machine, and asks around them.

Events are plain data. Those of an engine or a download carry the generation
they belong to; the machine ignores those of an older one. An event that wants
an answer has an ``id``; it travels inside :class:`Asked` together with the
reply, so the machine itself never sees a reply.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import msgspec

from slotd.actor import Reply
from slotd.arbiter.tenant import Leave
from slotd.errors import SlotdError
from slotd.process.plan import Address, ExitStatus, StopReport
from slotd.slot.slot import SlotSpec
from slotd.slot.state import Fault, SlotState

__all__ = [
    "Acquire",
    "Admitted",
    "Asked",
    "CloseDoors",
    "ComeBack",
    "Contended",
    "Denied",
    "Drifted",
    "Due",
    "Event",
    "Exited",
    "Gone",
    "Hung",
    "Kill",
    "LaunchFailed",
    "Leave",
    "Load",
    "Message",
    "ModelSeen",
    "OutputJudged",
    "Passed",
    "PortOpened",
    "ProbeSaw",
    "PullFailed",
    "PullProgressed",
    "Pulled",
    "QueryState",
    "Ready",
    "Reconfigure",
    "Release",
    "Restart",
    "Resync",
    "Retire",
    "Shutdown",
    "Stalled",
    "Started",
    "StrangerFound",
    "Swap",
    "Unload",
]


# --- asks and commands ---------------------------------------------------------


class Acquire(msgspec.Struct, frozen=True):
    """A request wants a lease. ``id`` is the lease's name, chosen by the caller.

    ``model``: what the caller's route promised; refused as stale if the slot
    has been swapped to another since. ``wait`` False: refuse instead of queueing.
    ``since``: when the request came to slotd (None: now); its deadline counts
    from there. ``priority``: higher goes first. ``replay``: it had a lease of an
    engine that is lost, so a full queue or a back-off is no reason to refuse it.
    """

    id: str
    model: str = ""
    wait: bool = True
    since: float | None = None
    priority: int = 0
    replay: bool = False


class Passed(msgspec.Struct, frozen=True):
    """Leases have been granted and given back at the turnstile; these are held now.

    ``since``, ``last_used``, ``hold_s``: what has become of the slot's by that.
    Its transitions, if there were any, have been told. To be applied as of
    ``last_used``.
    """

    leases: Mapping[str, float]
    since: float
    last_used: float
    hold_s: float | None


class Release(msgspec.Struct, frozen=True):
    """The lease is over, or was never granted: withdraws it wherever it is.

    ``keep_load``: the load that it waited for goes on.
    """

    id: str
    keep_load: bool = False


@dataclass(frozen=True, slots=True)
class Stalled:
    """The lease's answer has stopped coming, and its exchange has given up on it."""

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


@dataclass(frozen=True, slots=True)
class Retire:
    """The slot is no longer configured: who holds a lease may finish, nobody else is served."""

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
class ProbeSaw:
    """What the last look at a loading engine found, in words; posted when it changes."""

    generation: int
    words: str


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
    """The leading process has ended; others of its group may still be there.

    ``oom``: the kernel has killed for want of memory since the engine started.
    """

    generation: int
    status: ExitStatus
    log: tuple[str, ...] = ()
    oom: bool = False


@dataclass(frozen=True, slots=True)
class Gone:
    """Nothing of the engine is left (or it is named in the report's survivors).

    ``port_taken``: its port is now held by a stranger, which is why it exited.
    """

    generation: int
    report: StopReport
    log: tuple[str, ...] = ()
    port_taken: bool = False
    oom: bool = False


@dataclass(frozen=True, slots=True)
class Hung:
    """The engine neither works nor answers."""

    generation: int
    fault: Fault


@dataclass(frozen=True, slots=True)
class OutputJudged:
    """What the check of a loaded engine's output found: words (True), garbage (False), or nothing (None)."""

    generation: int
    sane: bool | None
    why: str = ""


# --- what the arbiter says ---------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Admitted:
    ticket: int


@dataclass(frozen=True, slots=True)
class Denied:
    ticket: int
    error: SlotdError


@dataclass(frozen=True, slots=True)
class Contended:
    """Others need the slot gone, or no longer do."""

    on: bool


@dataclass(frozen=True, slots=True)
class ComeBack:
    """What the slot had to leave for is over."""


@dataclass(frozen=True, slots=True)
class Resync:
    """The arbiter is a new one and knows nothing."""


# --- what the owner of the config says -----------------------------------------------


@dataclass(frozen=True, slots=True)
class Drifted:
    """Whether what runs is not what would be started now: it is replaced in the next quiet moment."""

    stale: bool


@dataclass(frozen=True, slots=True)
class Reconfigure:
    """Another configuration from now on.

    ``relaunch``: what runs, or was tried last, is not what is configured now;
    requests that come wait until those that run are done and it is replaced.
    ``model`` None: the slot's model stays as it is.
    """

    spec: SlotSpec
    relaunch: bool
    model: str | None = None


@dataclass(frozen=True, slots=True)
class Due:
    """A deadline of the machine has come."""

    timer: str


Command: TypeAlias = Load | Unload | Restart | Kill | Swap | Shutdown | Retire
Event: TypeAlias = (
    Acquire
    | Release
    | Passed
    | Command
    | CloseDoors
    | ModelSeen
    | PullProgressed
    | Pulled
    | PullFailed
    | Started
    | LaunchFailed
    | PortOpened
    | ProbeSaw
    | Ready
    | StrangerFound
    | Exited
    | Gone
    | Stalled
    | Hung
    | OutputJudged
    | Admitted
    | Denied
    | Contended
    | Leave
    | ComeBack
    | Resync
    | Drifted
    | Reconfigure
    | Due
)


@dataclass(frozen=True, slots=True)
class QueryState:
    """What state is the slot in? Answered by the owner, without a step."""

    reply: Reply[SlotState]


class Asked(msgspec.Struct, frozen=True):
    """An event whose ``id`` awaits an answer at ``reply``."""

    event: Acquire | Command
    reply: Reply[Any]


Message: TypeAlias = Event | Asked | QueryState
