"""The guardian's own program: wait for slotd to die, then kill what it left.

Started by :mod:`slotd.process.guardian` as a process of its own; standard
library only. Standard input is a pipe whose one writer is slotd:

    ``+PID TICKS``  a process group started; its leader's pid and start time
    ``-PID``        that group has ended, nothing of it is left

Two things say that slotd is gone. The end of the parent process comes first and
cannot be hidden by anyone who inherited the pipe. End of file comes even if the
parent died before we looked, and not before a child that slotd was just forking
has run its ``exec`` and carries the marker. So each is followed by a sweep.
"""

from __future__ import annotations

import os
import select
import signal

from slotd.process import hunt

__all__ = ["LIMIT_S", "main", "read_orders"]

LIMIT_S = 15.0
"""How long the guardian hunts before it leaves the unkillable alone."""


def main(argv: list[str]) -> int:
    """``argv``: the run's marker, and slotd's start time in ticks."""
    marker, since_ticks = argv[0], int(argv[1])
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)  # what stops slotd must not stop its guardian first
    groups: dict[int, int] = {}
    at_end = follow(0, groups)
    swept = hunt.sweep(groups, [marker], limit_s=LIMIT_S, since_ticks=since_ticks, trusted=True)
    if not at_end:
        poll = select.poll()
        poll.register(0, select.POLLIN)
        poll.poll(LIMIT_S * 1000)
        swept = hunt.sweep(groups, [marker], limit_s=LIMIT_S, since_ticks=since_ticks, trusted=True)
    return 1 if swept.survivors else 0


def follow(orders: int, groups: dict[int, int]) -> bool:
    """Keep ``groups`` (leader to start time) by the orders until slotd is gone.

    True at the end of file, False if only the parent's end was seen.
    """
    poll = select.poll()
    poll.register(orders, select.POLLIN)
    parent: int | None = None
    try:
        parent = os.pidfd_open(os.getppid())
        poll.register(parent, select.POLLIN)
    except OSError:
        parent = None  # already gone: the pipe will say so
    rest = b""
    while True:
        ready = [fd for fd, _ in poll.poll()]
        if orders in ready:
            chunk = os.read(orders, 65536)
            if not chunk:
                return True
            rest = read_orders(rest + chunk, groups)
        elif parent in ready:  # only once all its orders are read
            return False


def read_orders(data: bytes, groups: dict[int, int]) -> bytes:
    """Apply the whole lines of ``data`` to ``groups``; returns the unfinished rest."""
    *lines, rest = data.split(b"\n")
    for line in lines:
        if line[:1] == b"+":
            leader, ticks = line[1:].split()
            groups[int(leader)] = int(ticks)
        elif line[:1] == b"-":
            groups.pop(int(line[1:]), None)
    return rest
