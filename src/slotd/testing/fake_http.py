"""The HTTP/1.1 side of the fake engine: connections, requests, replies.

One task reads a connection for as long as it lives, one answers its requests
in order. So the engine sees a client that leaves (FIN, half-close and RST
alike) while it works, as llama.cpp does, and may stop.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import httptools
import trio

__all__ = ["Cut", "Handler", "Reply", "Request", "serve_connection"]

RECV_BYTES = 65536
MAX_HEAD_BYTES = 65536
MAX_BODY_BYTES = 256 << 20
PIPELINED = 16
"""Requests read ahead of the one that is being answered."""

_KEEP_ALIVE = b"Keep-Alive: timeout=5, max=100\r\n"


@dataclass(frozen=True, slots=True)
class Request:
    """One request, read to its end. Header names are lower case, values as sent."""

    method: str
    path: str
    headers: tuple[tuple[str, str], ...]
    body: bytes
    keep_alive: bool
    query: str = ""

    def header(self, name: str) -> str:
        """The first header of this (lower-case) name, or ""."""
        return next((value for key, value in self.headers if key == name), "")


class Cut(Exception):
    """The connection is to be closed as it is. Raised through the handler, by a fault or by its client."""


class Reply:
    """Answers one request, with one :meth:`send` or as :meth:`chunk` after chunk and :meth:`finish`.

    Every method that writes raises :class:`Cut` when the client is gone.
    """

    __slots__ = ("_chunked", "_keep", "_scope", "_stream", "client_gone", "stops_with_client")

    def __init__(self, stream: trio.abc.Stream, scope: trio.CancelScope, keep_alive: bool) -> None:
        self._stream = stream
        self._scope = scope
        self._keep = keep_alive
        self._chunked = False
        self.client_gone = False
        self.stops_with_client = False

    @property
    def reusable(self) -> bool:
        """Whether the connection serves another request after this reply."""
        return self._keep and not self.client_gone

    def follow_client(self) -> None:
        """From now on the handler is cancelled when the client leaves, or at once if it has left."""
        self.stops_with_client = True
        if self.client_gone:
            self._scope.cancel()

    def lose_client(self) -> None:
        """The client has left (called by the connection)."""
        self.client_gone = True
        if self.stops_with_client:
            self._scope.cancel()

    async def send(self, status: int, content_type: str, body: bytes) -> None:
        """A whole answer with ``Content-Length``; an error closes the connection, as in llama.cpp."""
        self._keep = self._keep and status < 400
        await self.raw(_head(status, content_type, b"Content-Length: %d\r\n" % len(body), self._keep) + body)

    async def chunk(self, data: bytes, content_type: str = "text/event-stream") -> None:
        """A piece (not empty) of a chunked answer; the first brings the head along."""
        head = b""
        if not self._chunked:
            self._chunked = True
            head = _head(200, content_type, b"Transfer-Encoding: chunked\r\n", keep_alive=True)
        await self.raw(b"%s%x\r\n%s\r\n" % (head, len(data), data))

    async def finish(self, *, close: bool) -> None:
        """The end of a chunked answer. ``close`` ends the connection, whatever the head has said."""
        self._keep = self._keep and not close
        await self.raw(b"0\r\n\r\n")

    async def raw(self, data: bytes) -> None:
        """Any bytes at all."""
        try:
            await self._stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            # A write may learn of a reset before the reading half does.
            self.client_gone = True
            raise Cut("the client is gone") from exc


Handler = Callable[[Request, Reply], Awaitable[None]]


async def serve_connection(stream: trio.abc.Stream, handler: Handler) -> None:
    """Serve one connection until it ends; ``handler`` answers its requests one by one.

    A cancelled ``handler`` (see :meth:`Reply.follow_client`) ends the connection.
    """
    requests, incoming = trio.open_memory_channel[Request](PIPELINED)
    link = _Link(stream, requests)
    async with stream, trio.open_nursery() as nursery:
        nursery.start_soon(link.read)
        with suppress(Cut):  # closing is all there is to do
            await _answer_all(link, incoming, handler)
        nursery.cancel_scope.cancel()


async def _answer_all(link: _Link, incoming: trio.MemoryReceiveChannel[Request], handler: Handler) -> None:
    async for request in incoming:
        with trio.CancelScope() as scope:
            reply = link.reply = Reply(link.stream, scope, request.keep_alive)
            if link.gone:
                reply.lose_client()
            await handler(request, reply)
        if not reply.reusable:
            return
    if link.refusal:
        await Reply(link.stream, trio.CancelScope(), False).send(400, "text/plain", link.refusal)


class _Link:
    """The reading half of a connection, and what both halves know of it."""

    def __init__(self, stream: trio.abc.Stream, requests: trio.MemorySendChannel[Request]) -> None:
        self.stream = stream
        self.gone = False
        self.refusal = b""
        self.reply: Reply | None = None
        self._requests = requests

    async def read(self) -> None:
        """Read requests until the client leaves or says something that is not HTTP."""
        reader = _RequestReader()
        async with self._requests:
            try:
                while data := await self.stream.receive_some(RECV_BYTES):
                    for request in reader.feed(bytes(data)):
                        await self._requests.send(request)
            except (httptools.HttpParserError, httptools.HttpParserUpgrade) as exc:
                self.refusal = f"bad request: {exc}".encode()
                return
            except trio.BrokenResourceError:
                pass  # a reset says the same as an end
        self.gone = True
        if self.reply is not None:
            self.reply.lose_client()


class _RequestReader:
    """Puts requests together from the bytes of a connection. Bounded by the limits above."""

    def __init__(self) -> None:
        self._parser = httptools.HttpRequestParser(self)
        self._complete: list[Request] = []
        self._in_head = True
        self._quiet = 0
        self._begin()

    def feed(self, data: bytes) -> Sequence[Request]:
        """The requests that ``data`` completes. Raises :class:`httptools.HttpParserError`."""
        self._parser.feed_data(data)
        self._quiet = self._quiet + len(data) if self._in_head else 0
        if self._quiet > MAX_HEAD_BYTES:
            raise httptools.HttpParserError("request head too large")
        complete, self._complete = self._complete, []
        return complete

    def _begin(self) -> None:
        self._url: list[bytes] = []
        self._headers: list[tuple[str, str]] = []
        self._body = bytearray()

    # --- callbacks of the parser ---------------------------------------------

    def on_message_begin(self) -> None:
        self._in_head = True
        self._begin()

    def on_url(self, url: bytes) -> None:
        self._url.append(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name.decode("latin-1").lower(), value.decode("latin-1")))

    def on_headers_complete(self) -> None:
        self._in_head = False

    def on_body(self, data: bytes) -> None:
        if len(self._body) + len(data) > MAX_BODY_BYTES:
            raise httptools.HttpParserError("request body too large")
        self._body += data

    def on_message_complete(self) -> None:
        self._in_head = True
        self._quiet = 0
        path, _, query = b"".join(self._url).decode("latin-1").partition("?")
        self._complete.append(
            Request(
                method=self._parser.get_method().decode("latin-1"),
                path=path,
                headers=tuple(self._headers),
                body=bytes(self._body),
                keep_alive=self._parser.should_keep_alive(),
                query=query,
            )
        )


def _head(status: int, content_type: str, framing: bytes, keep_alive: bool) -> bytes:
    return b"HTTP/1.1 %d %s\r\nServer: fake-engine\r\nContent-Type: %s\r\n%s%s\r\n" % (
        status,
        b"OK" if status < 300 else b"Error",
        content_type.encode(),
        framing,
        _KEEP_ALIVE if keep_alive else b"Connection: close\r\n",
    )
