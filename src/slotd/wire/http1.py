"""A lean HTTP/1.1 client for the engines of one slot generation.

This is the relay's path, so it does little: one request, one response, body
bytes as they come. No redirects, no proxies, no TLS, no decompression, no
time-outs but the one on connecting: the caller puts its own around it.

Reuse is conservative. A connection is kept only after a response that ended by
itself, was not an event stream, allows keep-alive and left nothing behind; it
is looked at once more before it is used again.
"""

from __future__ import annotations

import errno
import os
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

import trio

from slotd.wire.broken import BadResponse, Broken, ConnectFailed, UpstreamBroken
from slotd.wire.fields import Field, Fields
from slotd.wire.http1_conn import Connection, SocketAddress
from slotd.wire.http1_wire import ResponseHead, ResponseReader, encode_request
from slotd.wire.memo import HeadMemo

__all__ = ["BadResponse", "Broken", "ConnectFailed", "Http1Pool", "Http1Response", "UpstreamBroken"]


class Http1Pool:
    """Connections to one engine (one slot generation).

    Makes as many as there are requests at once (leases bound that) and keeps at
    most ``max_idle``, each for at most ``idle_s`` seconds by ``clock``, checked when
    the pool is used. (That is the machine's, as is the engine's, whose own patience with
    idle connections this is about.) Owned by whoever runs the slot's exchanges, in one trio run.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        connect_timeout_s: float = 5.0,
        max_idle: int = 32,
        idle_s: float = 30.0,
        max_head_bytes: int = 65536,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._host = host
        self._port = port
        self._host_header = (f"[{host}]:{port}" if ":" in host else f"{host}:{port}").encode("ascii")
        self._addresses = _literal(host, port)
        self._connect_timeout_s = connect_timeout_s
        self._max_idle = max_idle
        self._idle_s = idle_s
        self._clock = clock
        self._max_head_bytes = max_head_bytes
        self._heads: HeadMemo[ResponseHead] = HeadMemo()
        self._closed = False
        self._in_use: set[Connection] = set()
        self._idle: deque[Connection] = deque()  # the longest idle first
        self._opened = 0
        self._reused = 0
        self._received = 0

    @property
    def address(self) -> tuple[str, int]:
        """Host and port of the engine, for what is not said over HTTP/1.1."""
        return self._host, self._port

    @property
    def in_use(self) -> int:
        """Connections that are being opened or carry a request whose response has not ended."""
        return len(self._in_use)

    @property
    def idle(self) -> int:
        """Connections kept for reuse."""
        return len(self._idle)

    @property
    def opened(self) -> int:
        """Connections made so far."""
        return self._opened

    @property
    def reused(self) -> int:
        """How often an idle connection was taken for a request so far."""
        return self._reused

    @property
    def bytes_received(self) -> int:
        """What has come so far on all connections, heads too: it grows while the engine answers."""
        return self._received

    async def request(
        self, method: bytes, target: bytes, headers: Sequence[Field], body: bytes
    ) -> Http1Response:
        """Send a request; return once the response's head is there. Interim responses are skipped.

        The caller must end the response: ``async with``, or :meth:`Http1Response.abort`
        in a ``finally``. ``Host`` and ``Content-Length`` are set here, other
        headers go out as given. A body too big for the kernel's buffers is sent
        while the response is awaited and read, so an early answer is seen.

        Raises :class:`ConnectFailed`, :class:`UpstreamBroken`,
        :class:`BadResponse`, or :class:`ValueError` for a request that cannot
        be written. Cancelled or failed: the connection is closed.
        """
        fields = headers if isinstance(headers, Fields) else Fields(headers)
        buffers = encode_request(method, target, self._host_header, fields, body)
        # Nothing is sent for a caller that is already gone: engines run a
        # request to its end even when nobody reads the answer.
        await trio.lowlevel.checkpoint_if_cancelled()
        conn = self._take_idle()
        if conn is not None:
            response = Http1Response(self, conn, method, buffers)
            try:
                await response._advance(to_head=True)
            except UpstreamBroken as exc:
                if exc.bytes_received or self._closed:
                    raise
            else:
                return response
            # The peer closed a kept connection as the request went out: its
            # right at any time, and all but always the request was not read.
            # If it was, the engine ended without a word in the middle of it;
            # sending it once more then costs a repeated computation at most
            # (engines keep no state between requests), or finds the engine
            # dead. On a fresh connection neither holds: that break is told.
        conn = await self._connect()
        response = Http1Response(self, conn, method, buffers)
        await response._advance(to_head=True)
        return response

    def close(self) -> None:
        """Close every connection, synchronously; requests under way get :class:`UpstreamBroken` at once.

        Those still connecting, and every later request, get
        :class:`ConnectFailed`. Idempotent. Call it inside the trio run.
        """
        self._closed = True
        for conn in (*self._idle, *self._in_use):
            conn.close()
        self._idle.clear()
        self._in_use.clear()

    # --- inside --------------------------------------------------------------

    async def _connect(self) -> Connection:
        where = f"{self._host}:{self._port}"
        if self._closed:
            raise ConnectFailed(f"{where}: this engine's connections have been closed")
        conn = Connection()
        self._in_use.add(conn)
        opened = False
        try:
            addresses = self._addresses or await _resolve(self._host, self._port, self._connect_timeout_s)
            await conn.open(addresses, self._connect_timeout_s)
            opened = True
        except OSError as exc:
            raise ConnectFailed(f"{where} cannot be reached: {exc.strerror or exc}") from exc
        except trio.ClosedResourceError as exc:
            raise ConnectFailed(f"{where}: closed while connecting") from exc
        finally:
            if not opened:
                self._retire(conn, keep=False)
        self._opened += 1
        return conn

    def _take_idle(self) -> Connection | None:
        """The most recently used idle connection that is still good, now in use."""
        idle = self._idle
        if not idle:
            return None
        oldest = self._clock() - self._idle_s
        while idle:
            conn = idle.pop()
            if conn.idle_since >= oldest and conn.is_quiet():
                self._reused += 1
                self._in_use.add(conn)
                return conn
            conn.close()
        return None

    def _retire(self, conn: Connection, *, keep: bool) -> None:
        """The connection's request is over: keep it for reuse, or close it."""
        self._in_use.discard(conn)
        if not keep:
            conn.close()
            return
        idle, now = self._idle, self._clock()
        conn.idle_since = now
        idle.append(conn)
        while idle and (len(idle) > self._max_idle or idle[0].idle_since < now - self._idle_s):
            idle.popleft().close()


class Http1Response(ResponseReader):
    """A response whose head has arrived. Made by :meth:`Http1Pool.request`; read by one task at a time.

    ``buffers``: the request, which is sent at once as far as the kernel takes it.
    ``headers`` and ``length`` are as received, hop-by-hop ones included.
    Leaving the ``async with`` block, :meth:`aclose` and :meth:`abort` all do the same.
    """

    __slots__ = ("_conn", "_pool")

    def __init__(self, pool: Http1Pool, conn: Connection, method: bytes, buffers: Sequence[bytes]) -> None:
        super().__init__(method, pool._max_head_bytes, pool._heads)
        self._pool = pool
        self._conn: Connection | None = conn  # None once it is someone else's or closed
        conn.start_send(buffers)

    @property
    def complete(self) -> bool:
        """Whether the natural end was seen and every body byte has been handed out."""
        return self.ended and not self._pieces

    async def receive_some(self) -> bytes:
        """Decoded body bytes: whatever has arrived, in one piece; ``b""`` at the natural end.

        Raises :class:`UpstreamBroken` if the connection ends first, also after
        :meth:`abort` or :meth:`Http1Pool.close`, and :class:`BadResponse`; after
        either, nothing is left to clean up. Always a point of cancellation; a
        schedule point only when nothing was there yet. Cancelled: no byte is
        lost, but the response must still be ended.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        while True:
            if not self.ended and (self._conn is None or self._conn.closed):
                raise self._broken("the connection was closed on this side")
            if self._pieces:
                return self.take()
            if self.ended:
                return b""
            await self._advance()

    def abort(self) -> None:
        """End the exchange now: close the connection, unless the response has ended. Idempotent."""
        if self._conn is not None:
            self._finish(keep=False)

    async def aclose(self) -> None:
        """:meth:`abort`. No checkpoint: an answer that has been given is not to be lost at its end."""
        self.abort()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.abort()

    # --- inside --------------------------------------------------------------

    async def _advance(self, *, to_head: bool = False) -> None:
        """Read once from the connection; at the natural end, give it back.

        ``to_head``: read until the head is there. Unless it comes, the connection is closed.
        """
        conn = self._conn
        assert conn is not None
        try:
            while True:
                await conn.arrival()
                data = conn.read(self.wanted())
                if data is None:
                    continue
                if data:
                    self._pool._received += len(data)
                    self.feed(data)
                elif not self.feed_eof():
                    raise self._broken("the engine closed the connection") from conn.send_error
                if self.head_done or not to_head:
                    break
        except OSError as exc:
            self.abort()
            raise self._broken(f"the connection broke: {exc.strerror or exc}") from exc
        except trio.ClosedResourceError as exc:
            self.abort()
            raise self._broken("the connection was closed on this side") from exc
        except (BadResponse, UpstreamBroken):
            self.abort()
            raise
        except BaseException:
            if to_head:
                self.abort()  # nobody else has it yet
            raise
        if self.ended:
            self._finish(keep=self.reusable and conn.all_sent)

    def _broken(self, what: str) -> UpstreamBroken:
        when = "in the middle of its response" if self.any_bytes else "before any response"
        return UpstreamBroken(f"{what} {when}", bytes_received=self.any_bytes)

    def _finish(self, *, keep: bool) -> None:
        conn, self._conn = self._conn, None
        if conn is not None:
            self.stop()
            self._pool._retire(conn, keep=keep)


def _literal(host: str, port: int) -> list[SocketAddress]:
    """The addresses of a literal host; none for a name, which takes a look-up."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except socket.gaierror:
        return []
    return [(family, address) for family, _, _, _, address in found]


async def _resolve(host: str, port: int, timeout_s: float) -> list[SocketAddress]:
    with trio.move_on_after(timeout_s):
        found = await trio.socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        return [(family, address) for family, _, _, _, address in found]
    raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
