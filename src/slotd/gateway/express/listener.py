"""Accepting connections as plain sockets: the express lane pays for no layer that it does not need."""

from __future__ import annotations

import socket

import trio

from slotd.gateway.express.client import ClientSocket

__all__ = ["RawListener"]


class RawListener(trio.abc.Listener[ClientSocket]):
    """A listening socket, not owned: whoever made it closes it."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    async def accept(self) -> ClientSocket:
        """The next connection. Raises what accept(2) raises, but for a client that left meanwhile."""
        while True:
            await trio.lowlevel.wait_readable(self._sock)
            try:
                sock, _ = self._sock.accept()
            except (BlockingIOError, ConnectionAbortedError):
                continue
            return ClientSocket(sock)

    async def aclose(self) -> None:
        """Nothing to close."""
        await trio.lowlevel.checkpoint()
