"""What the arbiter and the slots say to one another.

A slot that wants to load asks for room and is told when it may (or that it
never may). A slot that others need gone is asked to leave; its own actor
accepts or refuses. Both ways by posts: nobody waits for anybody. A *ticket*
names one load of one slot, from the wish for room to the last byte of memory
given back; words about an older ticket mean nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

from slotd.errors import SlotdError

__all__ = [
    "Admit",
    "Failed",
    "Gone",
    "Holding",
    "Leave",
    "Measured",
    "Need",
    "Quiet",
    "Report",
    "Stays",
    "Tenant",
    "TenantFacts",
    "TenantView",
    "Up",
    "Withdraw",
]


@dataclass(frozen=True, slots=True)
class Need:
    """What an engine takes up when loaded, in MiB, and how that is known."""

    ram_mb: int
    gpu_mb: int = 0
    source: Literal["configured", "measured", "estimated", "unknown"] = "unknown"


@dataclass(frozen=True, slots=True)
class TenantFacts:
    """What is configured of a slot, as far as room is concerned.

    ``priority``: lower is evicted first. ``device`` and ``exclusive``: see the
    slot's config. ``owns_memory`` is False for a server that slotd does not run.
    ``drain_timeout_s``: how long its leases last when another needs its device.
    """

    slot: str
    priority: int = 50
    pinned: bool = False
    device: str = ""
    exclusive: str = ""
    restore_after_s: float = 3600.0
    owns_memory: bool = True
    drain_timeout_s: float = 30.0


@dataclass(frozen=True, slots=True)
class TenantView:
    """What a slot shows of itself right now; for ranking only, its actor decides.

    ``quiet_since``: when it last stopped being used, on trio's clock, or None
    while it serves or somebody waits for it. ``last_used`` is None if never.
    ``going``: it is on its way out by itself and does not need its room again.
    """

    up: bool
    leases: int
    queued: int
    last_used: float | None
    quiet_since: float | None
    going: bool = False


# --- slot → arbiter: posts -------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Admit:
    """Room is wanted for a load. ``since``: when the oldest of those who wait for it came."""

    slot: str
    ticket: int
    need: Need
    digest: str
    since: float


@dataclass(frozen=True, slots=True)
class Withdraw:
    """Nobody wants the load any more. Nothing of it has been spawned."""

    slot: str
    ticket: int


@dataclass(frozen=True, slots=True)
class Up:
    """The load has ended well: what was driven out for it stays out."""

    slot: str
    ticket: int


@dataclass(frozen=True, slots=True)
class Failed:
    """The load has failed: whoever was driven out for it may come back. ``Gone`` comes as well."""

    slot: str
    ticket: int


@dataclass(frozen=True, slots=True)
class Gone:
    """Nothing of the engine is left in the process table. The last word about its ticket."""

    slot: str
    ticket: int


@dataclass(frozen=True, slots=True)
class Quiet:
    """A slot that was told that others need it gone has not been used for ``turn_hold_s``."""

    slot: str
    ticket: int


@dataclass(frozen=True, slots=True)
class Stays:
    """The slot refuses to leave: it is in use again, pinned, or going anyway."""

    slot: str
    ticket: int
    why: str


@dataclass(frozen=True, slots=True)
class Measured:
    """What the engine really takes up, MiB."""

    slot: str
    ticket: int
    digest: str
    ram_mb: int
    gpu_mb: int


@dataclass(frozen=True, slots=True)
class Holding:
    """The answer to ``Tenant.resync``: what the slot has, for an arbiter that knows nothing.

    ``ticket`` None: nothing. A slot that waits for room posts its ``Admit`` again, after this.
    """

    slot: str
    ticket: int | None
    need: Need
    up: bool


Report: TypeAlias = Admit | Withdraw | Up | Failed | Gone | Quiet | Stays | Measured | Holding


# --- arbiter → slot ------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Leave:
    """Others need the room.

    ``drain`` False: only if nobody uses the slot or waits for it at this
    moment; else it answers ``Stays``. ``drain`` True: grant no further lease,
    go when those who hold one are done. ``refusal``: what those who wait, and
    who come meanwhile, are told; without one they wait on, and the slot asks
    for room again when it has gone. ``cut_after_s``: leases still held then
    are broken; None: never.
    """

    ticket: int
    why: str
    drain: bool = False
    refusal: SlotdError | None = None
    cut_after_s: float | None = None


class Tenant(Protocol):
    """A slot, as the arbiter reaches it. All of these post and return at once."""

    def admitted(self, ticket: int) -> None:
        """Spawn now: the room is reserved until ``Gone``."""

    def denied(self, ticket: int, error: SlotdError) -> None:
        """There will be no room for this load; those who wait for it get ``error``."""

    def contended(self, on: bool) -> None:
        """Others need the slot gone (True): report ``Quiet`` when it has been unused for its hold."""

    def leave(self, order: Leave) -> None:
        """Asked to go. The slot begins to unload and later posts ``Gone``, or posts ``Stays``."""

    def come_back(self) -> None:
        """The load that it had to leave for has failed, or its turn is over: load again."""

    def resync(self) -> None:
        """A new arbiter knows nothing: post ``Holding``, and ``Admit`` again if room is waited for."""

    def view(self) -> TenantView:
        """From the slot's snapshot."""
