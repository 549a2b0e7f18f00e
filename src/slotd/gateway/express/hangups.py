"""Clients that leave while they are being answered: seen at once, at no cost per request.

The task of a request is busy elsewhere and does not read from its client. A
reader beside it would be a second task for each. The kernel can tell of all
connections in one place: it is asked once per connection, not to say what has
come, but when the other side has ended. So bytes that a client sends ahead of
their turn stay where they are, and hide nothing.
"""

from __future__ import annotations

import select
from contextlib import suppress
from typing import NoReturn

import trio

from slotd.gateway.express.client import ClientSocket

__all__ = ["Hangups"]

_LEFT = select.EPOLLRDHUP | select.EPOLLET
"""Of the end of a side one is told once; a reset is always told of."""


class Hangups:
    """Watches the connections of one server. :meth:`run` must run meanwhile, once."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._watched: dict[int, ClientSocket] = {}
        self._numbers: dict[ClientSocket, int] = {}

    def watch(self, client: ClientSocket) -> None:
        """Note it in ``client`` when it has left, until :meth:`forget`, which must follow."""
        fd = client.sock.fileno()
        try:
            self._epoll.register(fd, _LEFT)
        except (OSError, ValueError):
            client.leave()  # closed on this side
        else:
            self._watched[fd] = client
            self._numbers[client] = fd

    def forget(self, client: ClientSocket) -> None:
        """It is to be closed, or given away. Idempotent."""
        fd = self._numbers.pop(client, None)
        # One that has been closed already may have left its number to another.
        if fd is not None and self._watched.get(fd) is client:
            del self._watched[fd]
            with suppress(OSError, ValueError):  # or nobody watches any more
                self._epoll.unregister(fd)

    async def run(self) -> NoReturn:
        """Notice who leaves, until cancelled."""
        with self._epoll:
            while True:
                await trio.lowlevel.wait_readable(self._epoll.fileno())
                for fd, _ in self._epoll.poll(0):
                    if (client := self._watched.get(fd)) is not None:
                        client.leave()
        raise AssertionError("the loop does not end")
