"""A slot's states, the legal transitions, and the snapshot that others read."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from slotd.process.plan import Address

__all__ = ["LEGAL", "LOADING", "TRANSITIONAL", "UP", "Fault", "SlotSnapshot", "SlotState"]


class SlotState(StrEnum):
    OFFLINE = "offline"
    PULLING = "pulling"
    STARTING = "starting"
    WARMING = "warming"
    READY = "ready"
    SERVING = "serving"
    IDLE = "idle"
    UNLOADING = "unloading"
    ERROR = "error"


_S = SlotState

LEGAL: dict[SlotState, frozenset[SlotState]] = {
    _S.OFFLINE: frozenset({_S.PULLING, _S.STARTING}),
    _S.PULLING: frozenset({_S.STARTING, _S.OFFLINE, _S.ERROR}),
    _S.STARTING: frozenset({_S.WARMING, _S.UNLOADING, _S.ERROR}),
    _S.WARMING: frozenset({_S.READY, _S.UNLOADING, _S.ERROR}),
    _S.READY: frozenset({_S.SERVING, _S.IDLE, _S.UNLOADING, _S.ERROR}),
    _S.SERVING: frozenset({_S.READY, _S.UNLOADING, _S.ERROR}),
    _S.IDLE: frozenset({_S.SERVING, _S.UNLOADING, _S.ERROR}),
    _S.UNLOADING: frozenset({_S.OFFLINE, _S.ERROR}),
    _S.ERROR: frozenset({_S.PULLING, _S.STARTING, _S.OFFLINE}),
}
"""Every edge there is. Nothing goes around it; there is no force flag."""

TRANSITIONAL = frozenset({_S.PULLING, _S.STARTING, _S.WARMING, _S.UNLOADING})
"""States that must end by themselves: each has a deadline while it lasts."""

LOADING = frozenset({_S.PULLING, _S.STARTING, _S.WARMING})
UP = frozenset({_S.READY, _S.SERVING, _S.IDLE})


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a slot is in ``error``, or why its engine went away.

    ``reason`` is a stable word: ``pull_failed``, ``pull_stalled``,
    ``plan_invalid``, ``spawn_failed``, ``stranger_on_port``, ``load_timeout``,
    ``exited_during_load``, ``exited``, those of
    :func:`slotd.process.postmortem.explain` (``out_of_memory``, ``bad_model``,
    ``missing_library``, ...), ``hung``, ``stalled``, ``output_sanity_failed``,
    ``unkillable``, ``actor_crashed``, ``killed``, ``unloaded``, ``stopping``.
    ``message`` is for people. ``log`` holds the engine's last lines.
    ``terminal``: trying again without a change cannot help.
    """

    reason: str
    message: str
    exit: str | None = None
    log: tuple[str, ...] = ()
    terminal: bool = False

    def details(self) -> dict[str, Any]:
        return {"reason": self.reason, "exit": self.exit, "log": list(self.log)}


@dataclass(frozen=True, slots=True)
class SlotSnapshot:
    """What a slot's actor last published. Times are on trio's clock, in seconds.

    ``models``: the names that the running engine lists, empty while it is not
    up. ``progress``: bytes pulled and total, while pulling. ``blocked``: what a
    load waits for before it may begin. ``probe``: what the last look at a
    loading engine found. ``retry_at``: when a slot that keeps
    failing is tried again. ``drift``: what runs is not what is configured.
    ``checked``: what became of the output check. ``ram_mb``, ``gpu_mb``: what
    it takes up, measured or reserved. ``context``: tokens that one request may
    come to, None if unknown. ``notes``: what a user should know of
    the engine (for example that it offers no way to stop a non-streaming
    request).
    """

    name: str
    type: str
    engine: str
    state: SlotState
    generation: int = 0
    since: float = 0.0
    model: str = ""
    models: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    default: bool = False
    pinned: bool = False
    draining: bool = False
    address: Address | None = None
    pid: int | None = None
    leases: int = 0
    max_parallel: int = 1
    queued: int = 0
    fault: Fault | None = None
    progress: tuple[int, int | None] | None = None
    progress_phase: str = ""
    plan_digest: str = ""
    load_s: float | None = None
    last_used: float | None = None
    starts: int = 0
    nonstream_cancel: str = ""
    priority: int = 50
    device: str = ""
    exclusive: str = ""
    blocked: str = ""
    probe: str = ""
    retry_at: float | None = None
    failures: int = 0
    drift: bool = False
    checked: str = ""
    ram_mb: int | None = None
    gpu_mb: int | None = None
    context: int | None = None
    variants: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=())

    @property
    def quiet_since(self) -> float | None:
        """Since when nobody has used it or waited for it; None while somebody does, or it is not up."""
        if self.state not in (SlotState.READY, SlotState.IDLE) or self.queued or self.draining:
            return None
        if self.last_used is None or (self.state is SlotState.READY and self.last_used < self.since):
            return self.since
        return self.last_used

    def after_crash(self, fault: Fault) -> SlotSnapshot:
        """What is true of a slot whose actor has crashed: nobody is served or waits any more."""
        return replace(
            self,
            state=SlotState.ERROR,
            fault=fault,
            models=(),
            leases=0,
            queued=0,
            draining=False,
            progress=None,
            progress_phase="",
        )
