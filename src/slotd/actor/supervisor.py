"""One-for-one supervision: a crashed actor is replaced, its siblings never notice."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Literal

import trio

__all__ = ["ChildCrashed", "ChildSpec", "Intensity", "RestartIntensityExceeded", "Supervisor", "next_restart"]


@dataclass(frozen=True, slots=True)
class Intensity:
    """How often a child may crash before it counts as broken.

    More than ``max_restarts`` crashes within ``within_s`` seconds exceed it.
    The first restart is immediate; the n-th crash of a burst is followed by a
    pause of ``backoff_s * 2**(n-2)`` seconds, at most ``backoff_max_s``.
    """

    max_restarts: int = 5
    within_s: float = 60.0
    backoff_s: float = 0.1
    backoff_max_s: float = 10.0


@dataclass(frozen=True, slots=True)
class Exhausted:
    """The intensity is exceeded."""


def next_restart(intensity: Intensity, crashes: tuple[float, ...], now: float) -> float | Exhausted:
    """Decide after a crash: seconds to wait before the restart, or exhausted.

    ``crashes`` are the times of all crashes so far, the present one included.
    Pure.
    """
    recent = [t for t in crashes if now - t <= intensity.within_s]
    n = len(recent)
    if n > intensity.max_restarts:
        return Exhausted()
    if n <= 1:
        return 0.0
    doublings = min(n - 2, 1000)  # a float holds no more than 1023
    return min(intensity.backoff_s * 2.0**doublings, intensity.backoff_max_s)


class RestartIntensityExceeded(Exception):
    """A child that the system cannot do without keeps crashing."""


@dataclass(frozen=True, slots=True)
class ChildCrashed:
    """What a supervisor reports of a crash.

    ``restart_in_s`` None: there is no restart, because it escalated or because
    the child was being stopped and failed in its clean-up.
    """

    name: str
    error: Exception
    restart_in_s: float | None


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """How to run a child: ``run`` is called afresh for each incarnation.

    ``exhausted`` says what happens past the intensity: ``escalate`` raises
    :class:`RestartIntensityExceeded` from the supervisor (the whole program
    cannot do its work); ``park`` waits ``parked_s`` and starts over with a
    clean record (one slot's trouble stays its own).
    """

    name: str
    run: Callable[[], Awaitable[None]]
    intensity: Intensity = Intensity()
    exhausted: Literal["escalate", "park"] = "escalate"
    parked_s: float = 60.0


class Supervisor:
    """Runs children side by side and replaces those that crash.

    A child that returns is done and is not restarted: an expected end is
    data. A child that raises an ``Exception`` (groups included) is restarted
    under its intensity, or only reported if it was being stopped anyway.
    Cancellation and other ``BaseException`` pass through. ``on_crash`` must not
    raise.
    """

    def __init__(self, on_crash: Callable[[ChildCrashed], None]) -> None:
        self._on_crash = on_crash
        self._nursery: trio.Nursery | None = None
        self._scopes: dict[str, trio.CancelScope] = {}
        self._ended: dict[str, trio.Event] = {}

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Supervise until cancelled. Children are started with :meth:`start`."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            try:
                await trio.sleep_forever()
            finally:
                self._nursery = None

    def start(self, spec: ChildSpec) -> None:
        if self._nursery is None:
            raise RuntimeError("the supervisor is not running")
        if spec.name in self._scopes:
            raise RuntimeError(f"child {spec.name!r} is running already")
        self._scopes[spec.name] = trio.CancelScope()
        self._ended[spec.name] = trio.Event()
        self._nursery.start_soon(self._supervise, spec, name=f"supervise {spec.name}")

    def running(self) -> tuple[str, ...]:
        return tuple(self._scopes)

    async def stop(self, name: str) -> None:
        """Cancel a child and wait until it has ended. Unknown names are done already."""
        scope, ended = self._scopes.get(name), self._ended.get(name)
        if scope is None or ended is None:
            return
        scope.cancel()
        await ended.wait()

    async def _supervise(self, spec: ChildSpec) -> None:
        crashes: tuple[float, ...] = ()
        try:
            with self._scopes[spec.name]:
                while True:
                    try:
                        await spec.run()
                    except Exception as exc:
                        # `except Exception` takes ExceptionGroup too, but not a
                        # BaseExceptionGroup, which holds a Cancelled or worse.
                        if trio.current_effective_deadline() == -math.inf:
                            self._on_crash(ChildCrashed(spec.name, exc, None))
                            return
                        now = trio.current_time()
                        crashes = (*(t for t in crashes if now - t <= spec.intensity.within_s), now)
                        pause = next_restart(spec.intensity, crashes, now)
                        if isinstance(pause, Exhausted):
                            if spec.exhausted == "escalate":
                                self._on_crash(ChildCrashed(spec.name, exc, None))
                                raise RestartIntensityExceeded(
                                    f"{spec.name!r} crashed {len(crashes)} times within "
                                    f"{spec.intensity.within_s:g} s"
                                ) from exc
                            pause, crashes = spec.parked_s, ()
                        self._on_crash(ChildCrashed(spec.name, exc, pause))
                        await trio.sleep(pause)
                    except BaseExceptionGroup as group:
                        # A clean-up that failed beside the Cancelled: our scope
                        # takes only the latter, the rest would hit the siblings.
                        failed, passing = group.split(Exception)
                        if failed is not None:
                            self._on_crash(ChildCrashed(spec.name, failed, None))
                        assert passing is not None  # or it were an ExceptionGroup
                        raise passing from None
                    else:
                        return
        finally:
            del self._scopes[spec.name]
            self._ended.pop(spec.name).set()
