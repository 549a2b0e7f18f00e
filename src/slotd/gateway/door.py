"""Where clients come in: as many at a time as there may be, and none while there is nothing to hold them."""

from __future__ import annotations

import errno
import math
from collections.abc import Awaitable, Callable
from typing import NoReturn, TypeVar

import structlog
import trio

__all__ = ["Door"]

log = structlog.get_logger("slotd")

WARN_EVERY_S = 60.0
"""The same warning comes no more often than this."""

RETRY_S = 1.0
"""With no descriptor left, accepting is tried again after so long, or when one of ours has ended."""

_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})
"""What accept(2) says when the process or the machine has nothing left to hold a connection with."""

StreamT = TypeVar("StreamT", bound=trio.abc.AsyncResource)


class Door:
    """Lets connections in while there are fewer than ``most``.

    Whoever comes beyond that, or while there is no file descriptor left, is not
    turned away: the kernel's backlog keeps them until there is room.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._inside = 0
        self._changed = trio.Event()
        self._warned: dict[str, float] = {}

    @property
    def inside(self) -> int:
        """How many connections there are."""
        return self._inside

    def allow(self, most: int) -> None:
        """From now on, ``most`` at a time. With more inside already, nobody is sent away."""
        self._most = most
        self._changed.set()

    async def serve(
        self,
        listener: trio.abc.Listener[StreamT],
        handler: Callable[[StreamT], Awaitable[object]],
        nursery: trio.Nursery,
        close: Callable[[StreamT], Awaitable[object]] = trio.aclose_forcefully,
    ) -> NoReturn:
        """Run ``handler`` in ``nursery`` for each that comes, until cancelled; then the handlers go on.

        Each stream is closed by ``close`` when its handler ends, cancelled or not. Raises
        what accepting raises, but for a lack of descriptors or memory, which is waited out.
        """
        while True:
            await self._room()
            try:
                stream = await listener.accept()
            except OSError as error:
                if error.errno not in _EXHAUSTED:
                    raise
                self._warn(
                    "no file descriptor is left for another connection; clients wait until one is free",
                    error=error.strerror,
                    connections=self._inside,
                )
                with trio.move_on_after(RETRY_S):
                    await self._change()
            else:
                self._inside += 1
                nursery.start_soon(self._handle, stream, handler, close)

    async def _handle(
        self,
        stream: StreamT,
        handler: Callable[[StreamT], Awaitable[object]],
        close: Callable[[StreamT], Awaitable[object]],
    ) -> None:
        try:
            await handler(stream)
        finally:
            self._inside -= 1
            self._changed.set()
            await close(stream)

    async def _room(self) -> None:
        while self._inside >= self._most:
            self._warn(
                "server.max_sockets clients are connected; further ones wait until one leaves",
                connections=self._inside,
            )
            await self._change()

    async def _change(self) -> None:
        self._changed = trio.Event()
        await self._changed.wait()

    def _warn(self, words: str, **facts: object) -> None:
        now = trio.current_time()
        if now - self._warned.get(words, -math.inf) >= WARN_EVERY_S:
            self._warned[words] = now
            log.warning(words, **facts)
