"""One TCP connection to an engine: bytes out, bytes in, nothing of HTTP.

Built on plain non-blocking sockets and :func:`trio.lowlevel.wait_readable`,
not on :class:`trio.SocketStream`: the relay path pays for every layer.
"""

from __future__ import annotations

import errno
import os
import select
import socket
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

import trio

from slotd.wire.either import wait_either

__all__ = ["Connection", "SocketAddress"]

SocketAddress = tuple[socket.AddressFamily, Any]
"""An address family and an address of it, as :func:`socket.getaddrinfo` gives them."""


class Connection:
    """A connection from before it is opened until it is closed; owned by one task at a time.

    :meth:`close` is synchronous and may come from any task: whoever waits in
    :meth:`open` or for an :meth:`arrival` then gets :class:`trio.ClosedResourceError`
    at once. Cancelling those leaves the connection in an unknown state: close it.
    """

    __slots__ = ("_poll", "_send_error", "_sock", "_unsent", "closed", "idle_since")

    def __init__(self) -> None:
        self.closed = False
        self.idle_since = 0.0
        """When it was last put aside for reuse; kept by the pool, on its clock."""
        self._sock: socket.socket | None = None
        self._poll: Callable[[int], list[tuple[int, int]]] | None = None
        self._unsent: list[memoryview] = []
        self._send_error: OSError | None = None

    async def open(self, addresses: Iterable[SocketAddress], timeout_s: float) -> None:
        """Connect to the first address that accepts; to one on loopback without waiting.

        Raises the last address's :class:`OSError` if none does,
        :class:`TimeoutError` after ``timeout_s`` seconds of waiting in all, and
        :class:`trio.ClosedResourceError` if it was closed meanwhile.
        """
        failure: OSError = OSError(errno.EADDRNOTAVAIL, "no address to connect to")
        until = trio.current_time() + timeout_s
        for family, address in addresses:
            if self.closed:
                raise trio.ClosedResourceError
            sock = self._sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            try:
                if not _begin(sock, address):
                    await _end(sock, until)
                if is_self_connected(sock, address):
                    raise OSError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
            except OSError as exc:
                failure = exc
                sock.close()
            else:
                return
        raise failure

    def close(self) -> None:
        """Close the socket now and wake whoever waits on it. Idempotent."""
        if self.closed:
            return
        self.closed = True
        self._unsent.clear()
        sock = self._sock
        if sock is not None and sock.fileno() >= 0:
            trio.lowlevel.notify_closing(sock)
            sock.close()

    @property
    def send_error(self) -> OSError | None:
        """Why the rest of the request could not be sent, if it could not."""
        return self._send_error

    @property
    def all_sent(self) -> bool:
        """Whether everything given to :meth:`start_send` has gone out."""
        return not self._unsent and self._send_error is None

    def is_quiet(self) -> bool:
        """Whether the idle peer has neither closed nor sent anything. Cheap: one system call."""
        if self._poll is None:
            # Not by a look at what can be read: that there is nothing would be
            # an exception, which costs more than all the rest.
            poll = select.poll()
            poll.register(self._socket(), select.POLLIN)
            self._poll = poll.poll
        return not self._poll(0)

    def start_send(self, buffers: Sequence[bytes]) -> None:
        """Send what the kernel takes now; :meth:`arrival` sends the rest as it can.

        Never raises for a broken connection: the peer may have answered before
        it stopped listening, so the failure is kept in :attr:`send_error` and
        the answer, or its absence, is found by :meth:`read`.
        """
        if len(buffers) == 1:
            # Mostly it all goes out at once, and then no view of it is needed.
            try:
                sent = self._socket().send(buffers[0])
            except BlockingIOError:
                sent = 0
            except OSError as exc:
                self._send_error = exc
                return
            if sent < len(buffers[0]):
                self._unsent = [memoryview(buffers[0])[sent:]]
            return
        self._unsent = [memoryview(data) for data in buffers]
        self._push()

    def arrival(self) -> Awaitable[None]:
        """To be awaited before :meth:`read`: that something may be there. Waits for the event loop once.

        Goes on sending meanwhile, so that two sides with full buffers never
        wait for each other. Raises :class:`trio.ClosedResourceError` if the
        connection was closed on this side.
        """
        if self.closed or self._unsent:
            return self._send_or_arrival()
        return trio.lowlevel.wait_readable(self._socket())  # noqa: ASYNC105 - that is for the caller

    def read(self, max_bytes: int) -> bytes | None:
        """What has arrived; ``b""`` if the peer closed its side, None if nothing is there yet.

        Raises :class:`OSError` if the connection broke and
        :class:`trio.ClosedResourceError` if it was closed on this side.
        """
        if self.closed:
            raise trio.ClosedResourceError
        try:
            return self._socket().recv(max_bytes)
        except BlockingIOError:
            return None

    async def _send_or_arrival(self) -> None:
        if self.closed:
            raise trio.ClosedResourceError
        await wait_either(self._socket())
        if self.closed:
            raise trio.ClosedResourceError
        self._push()

    def _socket(self) -> socket.socket:
        if self._sock is None:
            raise RuntimeError("the connection has not been opened")
        return self._sock

    def _push(self) -> None:
        # One system call, then back to the event loop: a fast reader must not
        # keep everyone else waiting through 64 MB.
        unsent = self._unsent
        try:
            sent = self._socket().sendmsg(unsent)
        except BlockingIOError:
            return
        except OSError as exc:
            self._send_error = exc
            unsent.clear()
            return
        while unsent and sent >= len(unsent[0]):
            sent -= len(unsent.pop(0))
        if sent:
            unsent[0] = unsent[0][sent:]


def _begin(sock: socket.socket, address: Any) -> bool:
    """Begin to connect; whether that is done. On loopback the handshake is over when the call returns."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    code = sock.connect_ex(address)
    if code not in (0, errno.EINPROGRESS):
        raise OSError(code, os.strerror(code))
    try:
        sock.getpeername()
    except OSError:
        _check(sock)
        return False
    return True


async def _end(sock: socket.socket, until: float) -> None:
    with trio.move_on_at(until):
        await trio.lowlevel.wait_writable(sock)
        _check(sock)
        return
    raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))


def _check(sock: socket.socket) -> None:
    if code := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
        raise OSError(code, os.strerror(code))


def is_self_connected(sock: socket.socket, address: Any) -> bool:
    """Whether a TCP socket, connected to ``address``, has connected to itself. Raises :class:`OSError`.

    The kernel may pick as local port the very port that is asked for, if
    nobody listens there: a loopback connect to a dead engine then succeeds.
    """
    own = sock.getsockname()
    return bool(own[1] == address[1] and own == sock.getpeername())
