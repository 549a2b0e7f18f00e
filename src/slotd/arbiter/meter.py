"""What is really free: the machine's memory, bounded by the cgroup's, and the GPU's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import trio

from slotd.arbiter.room import Reading
from slotd.process.gpu import free_gpu_mb

__all__ = ["Meter"]

MIB = 1 << 20


class Meter:
    """Reads free memory.

    Main memory: ``MemAvailable``, and no more than what is left of any cgroup
    (version 2) that slotd is in; files in a cgroup's cache that nobody has
    touched lately count as free, as they do in ``MemAvailable``. GPU memory:
    what ``gpu`` says, free and total in MiB. What cannot be read sets no limit.
    """

    def __init__(
        self,
        *,
        proc: Path = Path("/proc"),
        cgroups: Path = Path("/sys/fs/cgroup"),
        gpu: Callable[[], tuple[int, int] | None] = free_gpu_mb,
    ) -> None:
        self._proc = proc
        self._cgroups = cgroups
        self._gpu = gpu
        self._threads = trio.CapacityLimiter(1)

    async def read(self) -> Reading:
        """Measure in a worker thread, one at a time; a cancelled one is left behind."""
        return await trio.to_thread.run_sync(self.look, abandon_on_cancel=True, limiter=self._threads)

    def look(self) -> Reading:
        """Measure. Blocks, usually for much less than a millisecond; a GPU's driver may take longer."""
        memory = _numbers(self._proc / "meminfo")
        total, free = memory.get("MemTotal"), memory.get("MemAvailable")
        if total is None or free is None:
            ram_total = ram_free = None
        else:
            ram_total, ram_free = total * 1024, free * 1024
            for limit, used in self._limits():
                ram_total, ram_free = min(ram_total, limit), min(ram_free, max(0, limit - used))
            ram_total, ram_free = ram_total // MIB, ram_free // MIB
        gpu = self._gpu()
        gpu_free, gpu_total = (None, None) if gpu is None else gpu
        return Reading(ram_total, ram_free, gpu_total, gpu_free)

    def _limits(self) -> Iterator[tuple[int, int]]:
        """Of each limited cgroup from slotd's own upwards: its limit and what is used of it, bytes."""
        for line in _lines(self._proc / "self" / "cgroup"):
            if line.startswith("0::/"):
                parts = [p for p in line[4:].strip().split("/") if p and p != ".."]
                break
        else:
            return
        for depth in range(len(parts), -1, -1):
            group = self._cgroups.joinpath(*parts[:depth])
            bounds = [_number(group / name) for name in ("memory.max", "memory.high")]
            known = [b for b in bounds if b is not None]
            used = _number(group / "memory.current")
            if known and used is not None:
                stat = _numbers(group / "memory.stat")
                yield min(known), used - stat.get("inactive_file", 0) - stat.get("slab_reclaimable", 0)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return []


def _number(path: Path) -> int | None:
    """The number in a file; None for ``max``, or if there is none."""
    words = " ".join(_lines(path)).split()
    return int(words[0]) if words and words[0].isdecimal() else None


def _numbers(path: Path) -> dict[str, int]:
    """Lines such as ``MemTotal: 16 kB`` and ``inactive_file 16``."""
    found = {}
    for line in _lines(path):
        words = line.replace(":", " ").split()
        if len(words) >= 2 and words[1].isdecimal():
            found[words[0]] = int(words[1])
    return found
