"""Processes of a benchmark: started on a core of their own, looked at, and stopped.

Linux only: what a process has used is read from ``/proc``.
"""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

__all__ = [
    "Cores",
    "Running",
    "core_busy_s",
    "cpu_s",
    "lift_file_limit",
    "pss_mib",
    "rss_mib",
    "with_descendants",
]

TICK_S = 1 / os.sysconf("SC_CLK_TCK")
LOOK_EVERY_S = 0.001
START_S = 60.0
STOP_S = 15.0


@dataclass(frozen=True, slots=True)
class Cores:
    """Who runs where: what is measured on one core, everything else on another. None: not pinned."""

    measured: int | None
    others: int | None

    @classmethod
    def found(cls) -> Cores:
        """The first two of this process; not pinned where it has but one."""
        allowed = sorted(os.sched_getaffinity(0))
        return cls(allowed[0], allowed[1]) if len(allowed) > 1 else cls(None, None)


class Running:
    """A child process, its output in a file. A context manager that leaves nothing behind.

    ``core``: it and all that it starts run there, from their first instruction.
    """

    def __init__(
        self,
        argv: Sequence[str],
        log: Path,
        *,
        core: int | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self._argv = argv
        self._log = log
        self._core = core
        self._env = {**os.environ, **(env or {})}
        self._process: subprocess.Popen[bytes] | None = None
        self.began = 0.0
        """When it was started, on the monotonic clock."""

    def __enter__(self) -> Running:
        mine = os.sched_getaffinity(0)
        with self._log.open("wb") as log:
            if self._core is not None:
                os.sched_setaffinity(0, {self._core})  # a child inherits it
            try:
                self.began = time.monotonic()
                self._process = subprocess.Popen(
                    self._argv, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=self._env
                )
            finally:
                os.sched_setaffinity(0, mine)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def word(self, before: str) -> str:
        """Wait until it has written a line with ``before``; the word that follows it there.

        Raises ``RuntimeError`` with its output if it ends instead, ``TimeoutError`` after a minute.
        """
        assert self._process is not None
        until = time.monotonic() + START_S
        while time.monotonic() < until:
            ended = self._process.poll() is not None
            text = self._log.read_text(errors="replace")
            _, found, rest = text.partition(before)
            if found and "\n" in rest:
                return rest.split()[0]
            if ended:
                raise RuntimeError(f"{self._argv[0]} ended with {self._process.returncode}:\n{text[-2000:]}")
            time.sleep(LOOK_EVERY_S)
        raise TimeoutError(f"{self._argv}: {before!r} did not appear in its output")

    def stop(self) -> float:
        """SIGTERM, and SIGKILL if that does not do; returns how long it took, in seconds."""
        assert self._process is not None
        began = time.monotonic()
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        return time.monotonic() - began

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()


def lift_file_limit() -> None:
    """As many open files as the system lets this process, and so what it starts, have."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def cpu_s(pids: Sequence[int]) -> float:
    """CPU time that these have used so far, all their threads, user and system."""
    return sum(_ticks(pid) for pid in pids) * TICK_S


def _ticks(pid: int) -> int:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return int(fields[11]) + int(fields[12])


def _rollup(pid: int, key: str) -> float:
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return 0.0
    line = next(x for x in text.splitlines() if x.startswith(key))
    return int(line.split()[1]) / 1024


def pss_mib(pids: Sequence[int]) -> float:
    """Their memory; what they share with others counts by its share."""
    return sum(_rollup(pid, "Pss:") for pid in pids)


def rss_mib(pid: int) -> float:
    return _rollup(pid, "Rss:")


def with_descendants(pid: int) -> list[int]:
    """The process and everything below it."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except (FileNotFoundError, ProcessLookupError):
        return [pid]
    return [pid, *(p for child in children for p in with_descendants(int(child)))]


def core_busy_s(core: int | None) -> float:
    """What a core has worked so far for whomever, in seconds; of all cores for None."""
    name = "cpu" if core is None else f"cpu{core}"
    for line in Path("/proc/stat").read_text().splitlines():
        what, *fields = line.split()
        if what == name:
            user, nice, system, _idle, _iowait, irq, softirq, *_ = map(int, fields)
            return (user + nice + system + irq + softirq) * TICK_S
    return 0.0
