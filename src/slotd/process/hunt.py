"""Find the processes of an engine in ``/proc`` and kill them. Blocking, standard library only.

Three parties hunt, and share this module: the launcher after an engine's end,
the start of slotd for what an earlier run left, and the guardian, a process of
its own that must stay tiny. Hence no import of anything but small modules here.

A process belongs to a hunt by any of:

- its process group or session is a wanted *group* (named by its leader's pid);
- its environment, as of its ``exec``, holds a wanted *marker* (``NAME=value``);
- it descends from a process that belongs.

So a daemon that called ``setsid`` and was orphaned is found by its marker, and
a helper that wiped its environment by its parent. What does both (leaves the
session, is orphaned, and overwrites its environment) escapes.

Pids are recycled; a kill never relies on one alone. A process is pinned by a
pidfd, its start time is read again, and only then the signal goes out.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import time

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing itself would add a megabyte to the guardian
    from collections.abc import Iterable, Mapping

__all__ = [
    "BLIND",
    "Proc",
    "Swept",
    "boot_id",
    "find",
    "kill_exact",
    "read_proc",
    "signal_group",
    "snapshot",
    "sweep",
]

RESCAN_MS = 50
"""How long one pass waits for its kills to take effect before it looks again."""

BLIND = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
"""No file descriptors or no memory: nothing can be seen, which is not the same as nothing being there."""

PIDFDS_MAX = 64
"""How many ends one pass watches at once; the rest show in the next look."""


class Proc:
    """One line of the process table, as read. ``start_ticks``: clock ticks since boot."""

    __slots__ = ("alive", "pgrp", "pid", "ppid", "session", "start_ticks")

    def __init__(self, pid: int, ppid: int, pgrp: int, session: int, start_ticks: int, alive: bool) -> None:
        self.pid = pid
        self.ppid = ppid
        self.pgrp = pgrp
        self.session = session
        self.start_ticks = start_ticks
        self.alive = alive


class Swept:
    """What a sweep did: pids it had to kill, and pids that it could not."""

    __slots__ = ("killed", "survivors")

    def __init__(self, killed: frozenset[int], survivors: tuple[int, ...]) -> None:
        self.killed = killed
        self.survivors = survivors


def boot_id() -> str:
    """The kernel's id of this boot; start times compare only within one boot."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


def read_proc(pid: int) -> Proc | None:
    """The process table's line for ``pid``; None when there is no such process.

    Raises OSError when there is nothing left to look with (:data:`BLIND`): that
    a process is not seen then says nothing.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            raw = file.read()
    except OSError as error:
        if error.errno in BLIND:
            raise
        return None
    # The second field is the program's name in parentheses and may hold anything.
    field = raw[raw.rindex(b")") + 2 :].split()
    # A leading thread that ended alone shows Z while its process lives on.
    alive = field[0] not in (b"Z", b"X") or int(field[17]) > 1
    return Proc(pid, int(field[1]), int(field[2]), int(field[3]), int(field[19]), alive)


def snapshot() -> dict[int, Proc]:
    """Every process visible in ``/proc``, zombies included. Raises OSError as :func:`read_proc` does."""
    table: dict[int, Proc] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            proc = read_proc(int(name))
            if proc is not None:
                table[proc.pid] = proc
    return table


def find(
    table: Mapping[int, Proc], groups: Iterable[int], markers: Iterable[str], *, since_ticks: int = 0
) -> list[Proc]:
    """The living processes of ``table`` that belong to ``groups`` or carry one of ``markers``.

    ``since_ticks`` spares the reading of environments older than the marker.
    Never includes the calling process or pid 1.
    """
    wanted = frozenset(groups)
    needles = tuple(b"\0" + os.fsencode(marker) + b"\0" for marker in markers)
    spared = (1, os.getpid())
    belongs: set[int] = set()
    children: dict[int, list[int]] = {}
    for proc in table.values():
        children.setdefault(proc.ppid, []).append(proc.pid)
        if proc.pid in spared:
            continue
        ours = proc.pgrp in wanted or proc.session in wanted
        if ours or (proc.start_ticks >= since_ticks and needles and _carries(proc.pid, needles)):
            belongs.add(proc.pid)
    frontier = list(belongs)
    while frontier:
        for pid in children.get(frontier.pop(), ()):
            if pid not in belongs and pid not in spared:
                belongs.add(pid)
                frontier.append(pid)
    return [table[pid] for pid in sorted(belongs) if table[pid].alive]


def sweep(
    groups: Mapping[int, int],
    markers: Iterable[str],
    *,
    limit_s: float,
    since_ticks: int = 0,
    trusted: bool,
) -> Swept:
    """Kill all that belongs, again and again, until two looks in a row find nothing.

    ``groups`` maps a leader's pid to its start time. A group is hunted once its
    leader was seen with that start time, dead or alive; ``trusted`` also hunts
    groups whose leader is gone, which is right only if that is a moment ago,
    before its pid can have come round again.

    Gives up ``limit_s`` seconds after the start; what then still lives is
    named in ``survivors``, or all leaders if nothing could be seen. Blocks;
    raises nothing that a process can cause.
    """
    deadline = time.monotonic() + limit_s
    confirmed: set[int] = set()
    killed: set[int] = set()
    markers = tuple(markers)
    clean = 0

    def look() -> list[Proc]:
        table = snapshot()
        for leader, ticks in groups.items():
            seen = table.get(leader)
            if seen is None:
                if trusted:
                    confirmed.add(leader)
            elif seen.start_ticks == ticks:
                confirmed.add(leader)
            else:
                confirmed.discard(leader)  # the pid went to a stranger, so the group has ended
        return find(table, confirmed, markers, since_ticks=since_ticks)

    while True:
        try:
            found = look()
        except OSError:
            # Blind; others may give descriptors back in a moment.
            clean = 0
            if time.monotonic() >= deadline:
                return Swept(frozenset(killed), tuple(groups))
            select.poll().poll(RESCAN_MS)
            continue
        if not found:
            # A fork may hide from one look (between readdir and exec), not from two.
            clean += 1
            if clean == 2:
                return Swept(frozenset(killed), ())
            continue
        clean = 0
        pidfds: list[int] = []
        for proc in found:
            pidfd = kill_exact(proc, signal.SIGKILL)
            if pidfd is None:
                continue
            killed.add(proc.pid)
            if len(pidfds) < PIDFDS_MAX:
                pidfds.append(pidfd)
            else:
                os.close(pidfd)
        for leader in confirmed & {proc.pgrp for proc in found}:
            signal_group(leader, signal.SIGKILL)  # in one stroke: a forking group cannot outrun it
        _await_ends(pidfds, deadline)
        if time.monotonic() >= deadline:
            try:
                survivors = tuple(proc.pid for proc in look())
            except OSError:
                survivors = tuple(groups)
            return Swept(frozenset(killed) - set(survivors), survivors)


def kill_exact(proc: Proc, signum: int) -> int | None:
    """Signal exactly this process, never a later owner of its pid.

    Returns a pidfd that turns readable at its end (the caller closes it), or
    None when it has already ended or cannot be looked at now.
    """
    try:
        pidfd = os.pidfd_open(proc.pid)
    except OSError:
        return None
    try:
        now = read_proc(proc.pid)
    except OSError:
        now = None
    if now is None or now.start_ticks != proc.start_ticks:
        os.close(pidfd)
        return None
    try:
        signal.pidfd_send_signal(pidfd, signum)
    except ProcessLookupError:
        os.close(pidfd)
        return None
    except PermissionError:
        pass  # it changed its user: the caller sees that it lives on
    return pidfd


def signal_group(leader: int, signum: int) -> None:
    """Signal a process group. A group that has ended or may not be signalled is left as it is."""
    try:
        os.killpg(leader, signum)
    except (ProcessLookupError, PermissionError):
        return


def _carries(pid: int, needles: tuple[bytes, ...]) -> bool:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            environ = b"\0" + file.read() + b"\0"
    except OSError as error:
        if error.errno in BLIND:
            raise
        return False  # gone, or another user's
    return any(needle in environ for needle in needles)


def _await_ends(pidfds: list[int], deadline: float) -> None:
    """Wait until all have ended, a rescan is due, or the deadline; closes the pidfds."""
    poll = select.poll()
    waiting = set(pidfds)
    for fd in pidfds:
        poll.register(fd, select.POLLIN)
    until = min(deadline, time.monotonic() + RESCAN_MS / 1000)
    while waiting and (left := until - time.monotonic()) > 0:
        for fd, _ in poll.poll(left * 1000):
            poll.unregister(fd)
            waiting.discard(fd)
    for fd in pidfds:
        os.close(fd)
