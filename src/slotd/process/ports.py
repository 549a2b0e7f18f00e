"""The ports that engines may listen on: one configured range, one owner."""

from __future__ import annotations

import errno
import socket
from collections import deque

from slotd.errors import SpawnStarved

__all__ = ["PortPool", "PortsExhausted", "can_bind"]


class PortsExhausted(SpawnStarved):
    """Every port of the range is in use, by engines or by strangers."""


class PortPool:
    """Hands out the ports ``first`` to ``last``, each to one holder at a time.

    The port that has rested longest comes first, so that a late client of the
    last engine does not meet the next one. A port that somebody else holds is
    passed over. That check cannot be a promise (the engine binds later): who
    takes a port must still look whose listener it is. ``begin`` is where the
    line begins, so that several slotds on one range need not all reach for
    the same port.
    """

    def __init__(self, first: int, last: int, *, host: str = "127.0.0.1", begin: int | None = None) -> None:
        if not 0 < first <= last < 65536:
            raise ValueError(f"not a port range: {first} to {last}")
        self._host = host
        self._range = (first, last)
        self._free = deque(range(first, last + 1))
        self._free.rotate(first - (first if begin is None else begin))
        self._taken: set[int] = set()

    @property
    def taken(self) -> frozenset[int]:
        """The ports that are held now."""
        return frozenset(self._taken)

    def take(self) -> int:
        """A port that can be bound now. Raises :class:`PortsExhausted`, or :class:`SpawnFailed`
        when no port can be tried at all.

        Prefers one that binds without ``SO_REUSEADDR``, since an engine may
        not set it; one that only rests in TIME_WAIT is the second choice.
        """
        for reuse in (False, True):
            for _ in range(len(self._free)):
                port = self._free.popleft()
                try:
                    free = can_bind(self._host, port, reuse=reuse)
                except OSError as error:
                    self._free.append(port)
                    raise SpawnStarved(f"cannot look for a free port ({error}); check ulimit -n") from error
                if free:
                    self._taken.add(port)
                    return port
                self._free.append(port)
        first, last = self._range
        raise PortsExhausted(
            f"no free port from {first} to {last}: {len(self._taken)} held by engines, "
            f"{len(self._free)} by other programs; widen the port range in the configuration",
            details={"first": first, "last": last, "held": len(self._taken)},
        )

    def give_back(self, port: int) -> None:
        """End the holding of ``port``; it goes to the end of the line. ValueError if it is not held."""
        if port not in self._taken:
            raise ValueError(f"port {port} is not held")
        self._taken.remove(port)
        self._free.append(port)


def can_bind(host: str, port: int, *, reuse: bool = False) -> bool:
    """Whether a TCP socket can be bound to the address now. It is never listened on."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        if reuse:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno in (errno.EADDRINUSE, errno.EACCES, errno.EPERM):
                return False
            raise
    return True
