"""A client's connection: bytes in, bytes out, and whether it is still there."""

from __future__ import annotations

import socket
from collections.abc import Awaitable
from contextlib import suppress

import trio

__all__ = ["RECV_BYTES", "ClientSocket"]

RECV_BYTES = 65536


class ClientSocket(trio.abc.AsyncResource):
    """A connected socket, without trio's layers around it.

    ``peer``: its address. ``received``: what has come and has not been read yet.
    ``patience_s``: so long its reader waits for more, and ``read_by``: until when
    (trio's clock; None: that is yet to be reckoned). ``served``: it has asked for
    something before; ``busy``: and is being answered. These are kept by the lane.
    ``gone``: it has left while it was watched. :meth:`close` is synchronous and may
    come from any task: whoever waits here then gets :class:`trio.ClosedResourceError`.
    """

    __slots__ = (
        "_closed",
        "_drained",
        "_scope",
        "_unsent",
        "busy",
        "gone",
        "overdue",
        "patience_s",
        "peer",
        "read_by",
        "received",
        "served",
        "sock",
    )

    def __init__(self, sock: socket.socket, peer: str = "") -> None:
        sock.setblocking(False)
        self.sock = sock
        self.peer = peer
        self.received = bytearray()
        self.patience_s = float("inf")
        self.read_by: float | None = None
        self.overdue = self.gone = self.served = self.busy = False
        self._scope: trio.CancelScope | None = None
        self._unsent = bytearray()
        self._drained: trio.Event | None = None  # there while a task sends what the kernel did not take
        self._closed = False

    def begin(self, scope: trio.CancelScope) -> None:
        """What ``scope`` carries is for this client: it ends when that leaves, until :meth:`end`."""
        self._scope = scope
        if self.gone:
            scope.cancel()

    def end(self) -> None:
        """Nothing is carried for it now."""
        self._scope = None

    def leave(self) -> None:
        """It has left."""
        self.gone = True
        if self._scope is not None:
            self._scope.cancel()

    async def receive(self) -> bool:
        """Wait for more; False if no more will come. Raises :class:`OSError`, or ClosedResourceError."""
        await trio.lowlevel.wait_readable(self.sock)
        return self.take_in()

    def take_in(self) -> bool:
        """Read what is there, without waiting; False if no more will come. Raises :class:`OSError`."""
        try:
            data = self.sock.recv(RECV_BYTES)
        except BlockingIOError:
            return True
        self.received += data
        return bool(data)

    async def send(self, data: bytes, patience_s: float) -> None:
        """Send ``data``, waiting while the client takes no more. Mostly it does not wait at all.

        Cancelled, it has sent nothing, or all of it: what is begun is sent
        before anything else. Two tasks may send; they are served in turn.
        Raises :class:`trio.TooSlowError` if the client takes nothing for
        ``patience_s``, :class:`OSError` and :class:`trio.ClosedResourceError`.
        """
        while self._drained is not None:
            await self._drained.wait()
        if (rest := self.put(data, patience_s)) is not None:
            await rest

    def put(self, data: bytes, patience_s: float) -> Awaitable[None] | None:
        """:meth:`send`, done when this returns None; else what is given back has to be awaited, at once."""
        if self._drained is not None:
            return self.send(data, patience_s)
        if not self._unsent:
            try:
                sent = self.sock.send(data)
            except BlockingIOError:
                sent = 0
            if sent == len(data):
                return None
            data = data[sent:]
        self._unsent += data
        return self._drain(patience_s)

    async def _drain(self, patience_s: float) -> None:
        drained = self._drained = trio.Event()
        try:
            while self._unsent:
                with trio.fail_after(patience_s):
                    await trio.lowlevel.wait_writable(self.sock)
                try:
                    sent = self.sock.send(self._unsent)
                except BlockingIOError:
                    continue
                del self._unsent[:sent]
        finally:
            self._drained = None
            drained.set()

    async def linger(self, seconds: float, most: int) -> None:
        """End this side, and read on for a moment: closing over what has not been read resets the
        connection, and takes what was sent away."""
        with suppress(OSError, trio.ClosedResourceError), trio.move_on_after(seconds):
            self.sock.shutdown(socket.SHUT_WR)
            seen = 0
            while seen < most and await self.receive():
                seen += len(self.received)
                self.received.clear()

    def give_up(self) -> None:
        """Let whoever waits here go, as :meth:`close` does, without closing: something is to be said yet."""
        self.overdue = True
        if not self._closed:
            trio.lowlevel.notify_closing(self.sock)

    def close(self) -> None:
        """Close it now. Idempotent."""
        if not self._closed:
            self._closed = True
            trio.lowlevel.notify_closing(self.sock)
            self.sock.close()

    async def aclose(self) -> None:
        """:meth:`close`, then a checkpoint."""
        self.close()
        await trio.lowlevel.checkpoint()

    def detach(self) -> socket.socket:
        """Give the socket away; this is of no use any more."""
        self._closed = True
        return self.sock
