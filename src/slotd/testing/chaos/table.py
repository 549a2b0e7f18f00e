"""What the operating system says of a slotd and what it has started. Linux; blocking, but only on ``/proc``.

Whatever a run starts carries its *mark* in its environment, so that nothing
that is left over can hide, however often it forked.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from slotd.process import hunt
from slotd.process.listener import Holder, holder_of

__all__ = ["MARK", "Marked", "alive", "descriptors", "listeners", "listens", "look", "memory_kb", "parent_of"]

MARK = "SLOTD_CHAOS"
"""The environment variable that names a run; slotd inherits it, and whatever slotd starts."""


@dataclass(frozen=True, slots=True)
class Marked:
    """A living process of a run. ``slot`` and ``start``: of what engine, and of which start of it."""

    pid: int
    ppid: int
    pgrp: int
    run: str = ""
    slot: str = ""
    start: str = ""


def look(mark: str) -> dict[int, Marked]:
    """Every living process that carries ``mark``."""
    needle = f"{MARK}={mark}".encode()
    found: dict[int, Marked] = {}
    for proc in hunt.snapshot().values():
        if not proc.alive:
            continue
        try:
            with open(f"/proc/{proc.pid}/environ", "rb") as file:
                entries = file.read().split(b"\0")
        except OSError:
            continue  # gone, or another user's
        if needle in entries:
            env = dict(entry.decode("utf-8", "replace").partition("=")[::2] for entry in entries)
            found[proc.pid] = Marked(
                proc.pid,
                proc.ppid,
                proc.pgrp,
                env.get("SLOTD_RUN", ""),
                env.get("SLOTD_SLOT", ""),
                env.get("SLOTD_START", ""),
            )
    return found


def alive(pid: int) -> bool:
    """Whether there is such a process, and it is not just waiting to be reaped."""
    proc = hunt.read_proc(pid)
    return proc is not None and proc.alive


def parent_of(pid: int) -> int | None:
    """Its parent's pid; None if there is no such process."""
    proc = hunt.read_proc(pid)
    return None if proc is None else proc.ppid


def listens(port: int, leader: int, table: Mapping[int, Marked]) -> bool:
    """Whether the group of ``leader``, and nobody else, accepts connections on ``port``."""
    members = [m.pid for m in table.values() if m.pgrp == leader]
    return holder_of(port, leader, lambda: members) is Holder.OURS


def descriptors(pid: int) -> dict[str, int]:
    """Open files by kind (``socket``, ``pipe``, ``anon_inode:...``, or a path)."""
    counts: dict[str, int] = {}
    for name in os.listdir(f"/proc/{pid}/fd"):
        try:
            target = os.readlink(f"/proc/{pid}/fd/{name}")
        except OSError:
            continue  # closed since
        kind = target.partition(":[")[0]
        counts[kind] = counts.get(kind, 0) + 1
    return counts


def memory_kb(pid: int) -> int:
    """Resident memory. Raises OSError if there is no such process."""
    with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as file:
        found = re.search(r"^VmRSS:\s+(\d+)", file.read(), re.MULTILINE)
    return int(found.group(1)) if found else 0


def listeners(ports: Iterable[int]) -> frozenset[int]:
    """Those of ``ports`` on which somebody listens, on any address of the machine."""
    wanted = frozenset(ports)
    found: set[int] = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            with open(table, encoding="ascii") as file:
                lines = file.readlines()[1:]
        except FileNotFoundError:
            continue  # a kernel without IPv6
        for line in lines:
            _, local, _, state, *_ = line.split()
            if state == "0A":
                found.add(int(local.rpartition(":")[2], 16))
    return frozenset(found & wanted)
