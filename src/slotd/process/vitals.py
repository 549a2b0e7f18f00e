"""How an engine's processes fare: the CPU they have used, whether they are stopped, what memory they hold.

Everything here reads ``/proc`` and blocks for milliseconds; on the loop's side
:meth:`slotd.process.plan.EngineHandle.vitals` runs it in a thread. Who belongs
to an engine is decided as a sweep decides it, by :func:`slotd.process.hunt.find`,
so that what will be killed with an engine is also what is counted to it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from slotd.process import hunt
from slotd.process.gpu import gpu_mb_of

__all__ = ["Footprint", "Vitals", "oom_kills", "read_footprint", "read_vitals"]

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
PAGE_KB = os.sysconf("SC_PAGE_SIZE") // 1024
STOPPED = (b"T", b"t")
"""Process states of ``/proc/PID/stat``: stopped by a signal, or by a debugger."""


@dataclass(frozen=True, slots=True)
class Vitals:
    """What an engine's processes do. Two readings tell whether it works.

    ``cpu_s``: CPU seconds used so far by all of them, and by those of their
    children that they have waited for. It can fall when a process ends, by
    what that one had used, until its parent has waited for it.
    ``stopped``: the leader does not run because of a signal or a debugger (a
    crashing engine that has its own stack printed is that for a moment).
    ``processes``: how many live.
    """

    cpu_s: float
    stopped: bool
    processes: int


@dataclass(frozen=True, slots=True)
class Footprint:
    """What memory an engine's processes hold, in MiB.

    ``ram_mb`` is their proportional share of resident pages (PSS): memory that
    processes share, a mapped model file too, is counted once among them. Where
    the kernel does not tell the share it is all that is resident (RSS).
    ``gpu_mb``: on all GPUs together; 0 where that cannot be read.
    """

    ram_mb: int
    gpu_mb: int


@dataclass(frozen=True, slots=True)
class _Stat:
    state: bytes
    cpu_ticks: int
    waited_ticks: int
    start_ticks: int


def read_vitals(leader: int, start_ticks: int, marker: str) -> Vitals | None:
    """The vitals of the engine that ``leader`` leads; None once its leader has ended.

    ``start_ticks`` is the leader's start time and ``marker`` the environment
    entry (``NAME=value``) that its processes carry. Raises OSError when there
    are no file descriptors or no memory left to look with.
    """
    members = _members(leader, start_ticks, marker)
    if members is None:
        return None
    ticks = 0
    stopped = False
    processes = 0
    for proc in members:
        stat = _read_stat(proc.pid)
        if stat is None or stat.start_ticks != proc.start_ticks:
            continue  # ended since the table was read
        processes += 1
        ticks += stat.cpu_ticks + stat.waited_ticks
        if proc.pid == leader:
            stopped = stat.state in STOPPED
    return Vitals(ticks / TICKS_PER_S, stopped, processes)


def read_footprint(leader: int, start_ticks: int, marker: str) -> Footprint | None:
    """What the engine that ``leader`` leads holds; None once its leader has ended. As :func:`read_vitals`."""
    members = _members(leader, start_ticks, marker)
    if members is None:
        return None
    pids = [proc.pid for proc in members]
    ram_kb = sum(_resident_kb(pid) for pid in pids)
    return Footprint(ram_mb=round(ram_kb / 1024), gpu_mb=gpu_mb_of(pids))


def oom_kills() -> int:
    """How often the kernel has killed for want of memory: since boot, and in slotd's own control group.

    Only a difference means something: if it grew while an engine ran that then
    died by SIGKILL, the out-of-memory killer was it. The counter is the
    machine's, so a victim elsewhere at that very time misleads. A kill in the
    group may count twice. What cannot be read counts as 0. Reads two small
    files; fast enough for the loop.
    """
    return _counter(Path("/proc/vmstat"), b"oom_kill") + _own_group_oom_kills()


def _members(leader: int, start_ticks: int, marker: str) -> list[hunt.Proc] | None:
    table = hunt.snapshot()
    seen = table.get(leader)
    if seen is None or not seen.alive or seen.start_ticks != start_ticks:
        return None
    return hunt.find(table, [leader], [marker], since_ticks=start_ticks)


def _read_stat(pid: int) -> _Stat | None:
    raw = _read(f"/proc/{pid}/stat")
    if not raw:
        return None
    field: Sequence[bytes] = raw[raw.rindex(b")") + 2 :].split()
    return _Stat(
        state=field[0],
        cpu_ticks=int(field[11]) + int(field[12]),
        waited_ticks=int(field[13]) + int(field[14]),
        start_ticks=int(field[19]),
    )


def _resident_kb(pid: int) -> int:
    """The process's share of memory in KiB; 0 if it has ended."""
    for line in _read(f"/proc/{pid}/smaps_rollup").splitlines():
        if line.startswith(b"Pss:"):
            return int(line.split()[1])
    statm = _read(f"/proc/{pid}/statm").split()
    return int(statm[1]) * PAGE_KB if statm else 0


def _own_group_oom_kills() -> int:
    for line in _read("/proc/self/cgroup").splitlines():
        if line.startswith(b"0::"):
            group = os.fsdecode(line[3:]).lstrip("/")
            return _counter(Path("/sys/fs/cgroup", group, "memory.events"), b"oom_kill")
    return 0


def _counter(path: Path, name: bytes) -> int:
    for line in _read(path).splitlines():
        key, _, value = line.partition(b" ")
        if key == name:
            return int(value)
    return 0


def _read(path: str | Path) -> bytes:
    """A file's content; empty if it is gone or not ours to read. Raises OSError with nothing to read with."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        if error.errno in hunt.BLIND:
            raise
        return b""
