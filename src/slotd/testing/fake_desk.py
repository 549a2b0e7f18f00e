"""What the fake engine keeps: its knobs, its seats, and what became of each request."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Literal

import trio

from slotd.testing.fake_http import Request
from slotd.testing.fake_knobs import Knobs, turned

__all__ = ["Desk", "Job", "Outcome", "Panel"]

KEPT = 100
"""How many of the latest requests ``/fake/stats`` tells of."""

Outcome = Literal["active", "finished", "cancelled", "failed"]


class Panel:
    """The knobs as they are now, and a way to wait until they are turned."""

    def __init__(self, knobs: Knobs) -> None:
        self.knobs = knobs
        self._changed = trio.Event()

    def turn(self, changes: Mapping[str, Any]) -> None:
        """Raises :class:`~slotd.testing.fake_knobs.KnobError` and then changes nothing."""
        self.knobs = turned(self.knobs, changes, running=True)
        self._changed.set()
        self._changed = trio.Event()

    async def changed(self) -> None:
        """Wait for the next turn of any knob."""
        await self._changed.wait()

    async def until(self, holds: Callable[[Knobs], bool]) -> None:
        """Wait until the knobs say so; at once if they do already."""
        while not holds(self.knobs):
            await self.changed()


@dataclass(slots=True, eq=False)
class Job:
    """One inference request, from its arrival to its end, and what is told of it afterwards.

    ``finished``: answered to the end, though perhaps to a client that had
    left (``client_gone``). ``cancelled``: its client left and the work
    stopped. ``failed``: refused, or cut by a fault.
    """

    id: int
    path: str
    model: str
    stream: bool
    headers: dict[str, str]
    body_bytes: int
    body_sha256: str
    seat: int | None = None
    tokens: int = 0
    status: int = 0
    client_gone: bool = False
    outcome: Outcome = "active"


class Desk:
    """Admits jobs to seats, first come first served, and counts them."""

    def __init__(self, parallel: int) -> None:
        self._line = trio.CapacityLimiter(parallel)
        self._seated: dict[int, Job] = {}
        self._latest: deque[Job] = deque(maxlen=KEPT)
        self._active: set[Job] = set()
        self._idle = trio.Event()
        self._idle.set()
        self._ended: dict[str, int] = {"finished": 0, "cancelled": 0, "failed": 0}
        self._started = 0
        self.prompt_tokens = 0
        self.tokens_out = 0

    @property
    def processing(self) -> int:
        return len(self._seated)

    @property
    def queued(self) -> int:
        return len(self._active) - len(self._seated)

    @property
    def busy_seats(self) -> frozenset[int]:
        return frozenset(self._seated)

    def resize(self, parallel: int) -> None:
        self._line.total_tokens = parallel

    async def idle(self) -> None:
        """Wait until no job is active."""
        await self._idle.wait()

    def begin(self, request: Request, *, model: str, stream: bool) -> Job:
        """A new job, not seated yet. It is active until :meth:`end`."""
        self._started += 1
        job = Job(
            id=self._started,
            path=request.path,
            model=model,
            stream=stream,
            headers=dict(request.headers),
            body_bytes=len(request.body),
            body_sha256=sha256(request.body).hexdigest(),
        )
        if not self._active:
            self._idle = trio.Event()
        self._active.add(job)
        self._latest.append(job)
        return job

    async def sit(self, job: Job) -> None:
        """Wait for a seat. Cancelled: none is taken."""
        await self._line.acquire_on_behalf_of(job)
        job.seat = next(n for n in range(len(self._seated) + 1) if n not in self._seated)
        self._seated[job.seat] = job

    def end(self, job: Job, outcome: Outcome) -> None:
        """The job is over and its seat free."""
        if job.seat is not None:
            del self._seated[job.seat]
            self._line.release_on_behalf_of(job)
        job.outcome = outcome
        self._ended[outcome] += 1
        self._active.discard(job)
        if not self._active:
            self._idle.set()

    def stats(self) -> dict[str, Any]:
        return {
            "pid": os.getpid(),
            "active": len(self._active),
            "processing": self.processing,
            "queued": self.queued,
            "started": self._started,
            **self._ended,
            "tokens_out": self.tokens_out,
            "requests": list(self._latest),
        }
