"""Accepting connections as plain sockets: the express lane pays for no layer that it does not need."""

from __future__ import annotations

import select
import socket
from contextlib import suppress

import trio

from slotd.gateway.express.client import ClientSocket

__all__ = ["RawListener"]

BURST = 16
"""So many that have come together are accepted without looking at anything else between them."""


class RawListener(trio.abc.Listener[ClientSocket]):
    """A listening socket, not owned: whoever made it closes it, and has set what connections inherit."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._waiting = select.poll()  # tells of others more cheaply than waiting for them does
        self._waiting.register(sock, select.POLLIN)
        self._burst = 0

    async def accept(self) -> ClientSocket:
        """The next connection. Raises what accept(2) raises, but for a client that left meanwhile.

        A point of cancellation always, a schedule point where it must wait, and after :data:`BURST`.
        """
        while True:
            if 0 < self._burst < BURST and self._waiting.poll(0):
                await trio.lowlevel.checkpoint_if_cancelled()
            else:
                self._burst = 0
                await trio.lowlevel.wait_readable(self._sock)
            self._burst += 1
            try:
                sock, (address, *_) = self._sock.accept()
            except (BlockingIOError, ConnectionAbortedError):
                continue
            client = ClientSocket(sock, address)
            if self._burst > 1:
                with suppress(OSError):  # its reader will see that too
                    client.take_in()  # who has waited for its turn has mostly asked for something
            return client

    async def aclose(self) -> None:
        """Nothing to close."""
        await trio.lowlevel.checkpoint()
