"""Whose listener is it: the sockets in ``/proc/net`` against the open files of an engine.

Blocking, but only on ``/proc``: about two milliseconds when the engine's
leading process listens itself, some milliseconds when the whole process table
has to be searched. Good for some calls a second.
"""

from __future__ import annotations

import enum
import os
import re
from collections.abc import Callable, Iterable

from slotd.process.hunt import BLIND

__all__ = ["Holder", "holder_of", "listening_inodes"]

# Where a client of 127.0.0.1 may end up: that address itself, the wildcard,
# and for IPv6 sockets the wildcard and the mapped address. Hexadecimal, in
# network order as one (IPv6: four) little-endian words.
_LOCAL = b"0100007F|00000000|0{32}|0{16}FFFF00000100007F"
_LISTEN = b"0A"


class Holder(enum.Enum):
    """Who accepts connections on a local port."""

    NOBODY = enum.auto()
    OURS = enum.auto()
    STRANGER = enum.auto()
    """At least one listening socket is not ours, or cannot be seen to be."""


def holder_of(port: int, leader: int, members: Callable[[], Iterable[int]]) -> Holder:
    """Who listens on ``127.0.0.1:port``, from the view of one engine.

    ``leader`` is looked at first; ``members`` is called only if that does not
    settle it, and lists the pids of the engine's other processes. A process of
    another user cannot be looked into, so its listener counts as a stranger's.
    Raises OSError when there are no file descriptors left to look with.
    """
    inodes = listening_inodes(port)
    if not inodes:
        return Holder.NOBODY
    inodes -= _sockets_of(leader)
    if inodes:
        for pid in members():
            inodes -= _sockets_of(pid)
            if not inodes:
                break
    # Somebody may have closed its socket while we looked; then it was no stranger's.
    if inodes and not inodes & listening_inodes(port):
        return Holder.NOBODY
    return Holder.STRANGER if inodes else Holder.OURS


def listening_inodes(port: int) -> frozenset[int]:
    """The inodes of the TCP sockets that a client of ``127.0.0.1:port`` may reach."""
    line = re.compile(
        rb"^ *\d+: (?:%b):%04X [0-9A-F]+:0000 %b (?:\S+ +){5}(\d+) " % (_LOCAL, port, _LISTEN), re.MULTILINE
    )
    found: set[int] = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            with open(table, "rb") as file:
                found.update(int(inode) for inode in line.findall(file.read()))
        except FileNotFoundError:
            continue  # a kernel without IPv6
    return frozenset(found)


def _sockets_of(pid: int) -> frozenset[int]:
    found: set[int] = set()
    try:
        with os.scandir(f"/proc/{pid}/fd") as entries:
            for entry in entries:
                try:
                    target = os.readlink(entry.path)
                except OSError:
                    continue  # closed since
                if target.startswith("socket:["):
                    found.add(int(target[8:-1]))
    except OSError as error:
        if error.errno in BLIND:
            raise
        return frozenset()  # gone, or another user's
    return frozenset(found)
