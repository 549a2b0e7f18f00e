"""Whether an engine that is up still lives: judged by progress, not by patience.

A busy engine and a hung one look alike to a health check with a time-out: a
long prompt keeps an engine from answering for minutes. So nothing is concluded
from silence on one line. Progress of any kind keeps an engine alive: CPU used by
its processes, output, bytes of answers, an answer to its health check. Only
when all of it has been missing for the whole time-out is it hung.

The health check is asked only once the rest has been silent for a fifth of the
time-out, on a connection of its own. Nothing here ever asks for inference.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

import trio

from slotd.process.plan import EngineHandle
from slotd.process.vitals import Vitals
from slotd.slot.backend import Readiness
from slotd.slot.state import Fault
from slotd.wire.get import get
from slotd.wire.http1 import Http1Pool

__all__ = ["Pace", "Pulse", "Sample", "Verdict", "assess", "observe", "watch"]

NOISE_CORE = 0.02
"""Less than this of one core is no work: servers that wait still look at timers and queues."""

NOISE_S = 0.02
"""Two ticks of the kernel's clock: what a short look may see of that by chance."""

PROBES = 2
"""So many health checks in a row must have failed; one may be lost to chance."""


# --- judging: pure ------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Sample:
    """What one look saw.

    ``at``: the time, in seconds by trio's clock. ``cpu_s``: CPU seconds used so
    far by all its processes, and ``stopped``: whether its leader is stopped by a
    signal or a debugger; None where slotd cannot see processes. ``output_at``:
    when its last output came. ``bytes_received``: of all its answers so far.
    ``healthy``: the end of a health check since the last look, None without.
    """

    at: float
    cpu_s: float | None = None
    stopped: bool | None = None
    output_at: float | None = None
    bytes_received: int = 0
    healthy: bool | None = None


@dataclass(frozen=True, slots=True)
class Pulse:
    """What is remembered from look to look.

    ``last``: the newest sample. ``alive_at``: when progress was last seen.
    ``cpu_from``: time and CPU seconds from which use is counted: those of the
    first reading since then. ``failed``: health checks that have failed since.
    """

    last: Sample
    alive_at: float
    cpu_from: tuple[float, float] | None
    failed: int = 0

    @classmethod
    def starting(cls, sample: Sample) -> Pulse:
        return cls(sample, sample.at, None if sample.cpu_s is None else (sample.at, sample.cpu_s))


@dataclass(frozen=True, slots=True)
class Verdict:
    """It is hung: nothing came for ``silent_s`` seconds."""

    silent_s: float
    timeout_s: float
    sees_processes: bool
    stopped: bool

    def __str__(self) -> str:
        said = (
            "no CPU used, no output and no health answer"
            if self.sees_processes
            else "no bytes and no health answer"
        )
        why = " (the process is stopped)" if self.stopped else ""
        return f"{said} for {self.timeout_s:g} s{why}"


@dataclass(frozen=True, slots=True)
class Pace:
    """How often to look, and for how long, given the time-out.

    A freeze is seen at the next look at the latest, and the time-out counts from
    there: so long beyond the time-out, a second at most, it takes to be found.
    """

    every_s: float
    vitals_s: float
    quiet_s: float
    health_s: float
    late_s: float

    @classmethod
    def of(cls, timeout_s: float) -> Pace:
        every_s = min(0.75, timeout_s / 5)
        return cls(
            every_s=every_s,
            vitals_s=every_s,
            quiet_s=timeout_s / 5,
            health_s=min(timeout_s / 3, 5.0),
            late_s=timeout_s / 2,
        )


def assess(pulse: Pulse | None, sample: Sample, timeout_s: float) -> tuple[Pulse, Verdict | None]:
    """Take one look into account. Samples must come in the order of their times.

    A look that came too late says that slotd itself was held up (suspended,
    starved): what it did not see is not held against the engine.
    """
    pace = Pace.of(timeout_s)
    if pulse is None or sample.at - pulse.last.at > pace.every_s + pace.vitals_s + pace.late_s:
        return Pulse.starting(sample), None
    if _progress(pulse, sample):
        return Pulse.starting(sample), None
    counted = pulse.cpu_from
    if counted is None and sample.cpu_s is not None:
        counted = (sample.at, sample.cpu_s)
    pulse = replace(pulse, last=sample, cpu_from=counted, failed=pulse.failed + (sample.healthy is False))
    silent_s = sample.at - pulse.alive_at
    if silent_s < timeout_s or pulse.failed < PROBES:
        return pulse, None
    return pulse, Verdict(silent_s, timeout_s, sample.cpu_s is not None, sample.stopped is True)


def _progress(pulse: Pulse, sample: Sample) -> bool:
    last = pulse.last
    return (
        sample.healthy is True
        or sample.bytes_received != last.bytes_received
        or sample.output_at != last.output_at
        or _worked(pulse.cpu_from, sample)
    )


def _worked(counted: tuple[float, float] | None, sample: Sample) -> bool:
    """CPU beyond noise since the last progress.

    The sum falls when a process ends (see :class:`Vitals`): that is an event, too.
    """
    if counted is None or sample.cpu_s is None:
        return False
    at, cpu_s = counted
    used = sample.cpu_s - cpu_s
    return used < 0 or used > max(NOISE_S, NOISE_CORE * (sample.at - at))


# --- watching -------------------------------------------------------------------------


async def watch(
    handle: EngineHandle,
    http: Http1Pool,
    readiness: Readiness,
    timeout_s: float,
    *,
    hung: Callable[[Fault], None],
) -> None:
    """Watch a ready engine until it hangs; then say so once, and return.

    ``http`` is the users' pool, of which only the count of bytes is read.
    Cancel it when the engine ends: what is gone is not looked for here.
    """
    own = Http1Pool(handle.address.host, handle.address.port, max_idle=0)
    health_s = Pace.of(timeout_s).health_s

    async def healthy() -> bool | None:
        began = trio.current_time()
        try:
            answered = await get(own, readiness.health_path, health_s) is not None
        except OSError:
            return None
        # A check that ended long after its deadline was held up on this side.
        overdue = trio.current_time() - began > 1.5 * health_s
        return True if answered else None if overdue else False

    try:
        verdict = await observe(handle, lambda: http.bytes_received, healthy, timeout_s)
    finally:
        own.close()
    hung(Fault("hung", str(verdict)))


async def observe(
    handle: EngineHandle,
    received: Callable[[], int],
    healthy: Callable[[], Awaitable[bool | None]],
    timeout_s: float,
) -> Verdict:
    """Look at the engine until it hangs.

    ``healthy`` asks its health check, once, within a bound of its own: whether
    it answered, or None if that cannot be told. It is asked by one task at a
    time, beside the looks, so that waiting for it delays none.
    """
    pace = Pace.of(timeout_s)
    pulse: Pulse | None = None
    answers: list[bool | None] = []  # of health checks that ended since the last look; one at most
    asking = False

    async def ask(since: float) -> None:
        nonlocal asking
        answer = await healthy()
        asking = False
        # A check that began before the last progress says nothing about the silence since.
        if answer or (pulse is not None and pulse.alive_at == since):
            answers.append(answer)

    async with trio.open_nursery() as nursery:
        while True:
            try:
                vitals = await _vitals(handle, pace.vitals_s)
            except OSError:
                # Out of descriptors or memory: slotd is blind, and judges nobody.
                pulse = None
            else:
                pulse, verdict = assess(pulse, _sample(handle, vitals, received(), answers), timeout_s)
                if verdict is not None:
                    nursery.cancel_scope.cancel()
                    return verdict
            answers.clear()
            now = trio.current_time()
            wake_at = now + pace.every_s
            if pulse is not None:
                if now - pulse.alive_at >= pace.quiet_s and not asking:
                    asking = True
                    nursery.start_soon(ask, pulse.alive_at)
                if (due := pulse.alive_at + timeout_s) > now:
                    wake_at = min(wake_at, due)
            await trio.sleep_until(wake_at)


async def _vitals(handle: EngineHandle, timeout_s: float) -> Vitals | None:
    """None also where the kernel holds up the reading: a hung driver does that."""
    with trio.move_on_after(timeout_s):
        return await handle.vitals()
    return None


def _sample(handle: EngineHandle, vitals: Vitals | None, received: int, answers: list[bool | None]) -> Sample:
    return Sample(
        at=trio.current_time(),
        cpu_s=None if vitals is None else vitals.cpu_s,
        stopped=None if vitals is None else vitals.stopped,
        output_at=handle.logs.last_activity,
        bytes_received=received,
        healthy=answers[-1] if answers else None,
    )
