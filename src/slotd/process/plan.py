"""What a launcher needs to know to start an engine, and what it gives back.

A slot actor starts its engine through a :class:`Launcher`. The local launcher
runs a child process; another one may place the engine on another machine.
Nothing above this module knows where an engine runs.
"""

from __future__ import annotations

import hashlib
import json
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from slotd.process.logs import LogRing
    from slotd.process.vitals import Footprint, Vitals

__all__ = ["Address", "EngineHandle", "ExitStatus", "LaunchPlan", "Launcher", "StopReport"]


@dataclass(frozen=True, slots=True)
class Address:
    """Where an engine listens: a host (name or literal) and a TCP port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class LaunchPlan:
    """Everything that decides what runs, apart from where.

    ``argv`` and the values of ``env`` may hold ``{port}`` and ``{host}``; the
    launcher fills them in, so that two starts of the same plan have the same
    ``digest``. ``env`` is added to slotd's own environment.

    ``nudge_after_s``: an engine that is still there so long after it was asked
    to stop is asked again (see :meth:`EngineHandle.request_stop`). For servers
    that take the first SIGTERM as "when convenient" and the second as "now".
    How an engine is stopped does not decide what runs: no part of the digest.

    ``inputs`` tells the files that the engine reads from those they replace (see
    :func:`slotd.engine.need.identities`), so that new weights under an old name
    are another launch.
    """

    slot: str
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: str | None = None
    nudge_after_s: float | None = None
    inputs: tuple[str, ...] = ()

    def digest(self) -> str:
        """A stable hash of the plan; equal digests mean the same launch."""
        doc = [self.argv, sorted(self.env.items()), self.cwd, self.inputs]
        return hashlib.sha256(json.dumps(doc).encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class ExitStatus:
    """How the engine's leading process ended: an exit ``code`` or a ``signal``."""

    code: int | None
    signal: int | None = None

    def __str__(self) -> str:
        if self.signal is not None:
            try:
                name = signal.Signals(self.signal).name
            except ValueError:
                name = str(self.signal)
            return f"killed by {name}"
        if self.code is None:
            return "end unknown"
        return f"exit code {self.code}"


@dataclass(frozen=True, slots=True)
class StopReport:
    """How an engine's end went.

    ``killed``: SIGKILL was needed. ``swept``: how many processes other than
    the leader had to be killed. ``survivors``: pids that could not be killed
    within the bound, a fault to publish.
    """

    exit: ExitStatus
    killed: bool = False
    swept: int = 0
    survivors: tuple[int, ...] = ()


class EngineHandle(Protocol):
    """A started engine, valid until its :meth:`Launcher.run` returns."""

    @property
    def address(self) -> Address: ...

    @property
    def pid(self) -> int | None: ...

    @property
    def logs(self) -> LogRing: ...

    def request_stop(self, grace_s: float) -> None:
        """Ask the engine to end: SIGTERM to the group now, SIGKILL after ``grace_s``.

        Where the plan says so, SIGTERM is sent again within the grace, a few
        times at most, to a leader that has not ended.

        Synchronous and idempotent. A later call with an earlier deadline
        shortens the wait; ``grace_s = 0`` kills at once.
        """

    def owns_listener(self) -> bool:
        """Whether the listener on :attr:`address` belongs to this engine.

        False while nobody listens, and when a stranger does.
        """

    def stranger_listens(self) -> bool:
        """Whether a process outside this engine's group holds the port."""

    async def vitals(self) -> Vitals | None:
        """What its processes do now; None once it has ended, or if slotd does not run it.

        Reads the process table in a thread, in milliseconds as a rule. The
        kernel can hold up a reading, however, so the caller sets a deadline;
        cancellation returns at once. One reading of an engine at a time: a
        second one waits for the first. An OSError means that nothing could be
        seen, no file descriptors left for example.
        """

    async def footprint(self) -> Footprint | None:
        """What memory its processes hold now; dearer, else as :meth:`vitals`."""


class Launcher(Protocol):
    async def run(
        self,
        plan: LaunchPlan,
        *,
        logs: LogRing,
        started: Callable[[EngineHandle], None],
        exited: Callable[[ExitStatus], None],
    ) -> StopReport:
        """Start the engine and live exactly as long as it; its output goes to ``logs``.

        Calls ``started`` once the process exists and ``exited`` as soon as its
        leader has ended (within 50 ms), then sweeps what is left of it, reaps,
        drains its log briefly, gives the port back and returns the report.
        ``exited`` is not called on cancellation, nor for a leader that SIGKILL
        does not end: the report names that one a survivor.

        Raises :class:`slotd.errors.SpawnFailed` if nothing could be started.
        Cancelled: kills and sweeps at once, within a bound, then lets the
        cancellation through; nothing survives.
        """
        ...
