"""An answer as bytes on a client's socket: head and first bytes in one write, then what comes."""

from __future__ import annotations

import time
from collections.abc import Awaitable
from email.utils import formatdate
from http import HTTPStatus

import trio

from slotd.exchange.inbound import ClientGone, Headers
from slotd.gateway.express.client import ClientSocket
from slotd.wire.fields import Fields, lines

__all__ = ["SocketOut"]

_STATUS = {s.value: b"HTTP/1.1 %d %s" % (s.value, s.phrase.encode()) for s in HTTPStatus}
_BODILESS = frozenset({204, 304})


class SocketOut:
    """Implements :class:`slotd.exchange.inbound.Outbound`.

    ``close``: the connection is to end with this answer. A body without a
    length of its own goes out in chunks.
    """

    __slots__ = ("_begun", "_chunked", "_client", "_close", "_head", "_write_timeout_s")

    def __init__(self, client: ClientSocket, write_timeout_s: float, *, close: bool) -> None:
        self._client = client
        self._write_timeout_s = write_timeout_s
        self._close = close
        self._head = b""
        self._chunked = False
        self._begun = False

    @property
    def begun(self) -> bool:
        """Whether the answer has been given a status, sent or not."""
        return self._begun

    @property
    def closes(self) -> bool:
        """Whether the connection ends with this answer."""
        return self._close

    def start(self, status: int, headers: Headers, length: int | None = None, own: bytes = b"") -> None:
        """See :class:`~slotd.exchange.inbound.Outbound`. It goes out with what comes next."""
        self._begun = True
        if not isinstance(headers, Fields):
            headers = Fields(headers)
        first = _STATUS.get(status) or b"HTTP/1.1 %d Status" % status
        # Values come from engines and configurations: none may bring a line of its own.
        end = b"connection: close\r\n\r\n" if self._close else b"\r\n"
        if length is not None:
            end = b"content-length: %d\r\n%b" % (length, end)
        elif not (headers.derive(_is_measured) or status in _BODILESS):
            self._chunked = True
            end = b"transfer-encoding: chunked\r\n" + end
        self._head = b"%b\r\n%b%b%b%b" % (first, headers.derive(lines), own, _date(), end)

    async def send(self, data: bytes) -> None:
        """See :class:`~slotd.exchange.inbound.Outbound`."""
        if (rest := self.put(data)) is not None:
            await rest

    def put(self, data: bytes) -> Awaitable[None] | None:
        """See :class:`~slotd.exchange.inbound.Outbound`: mostly the kernel takes all of it at once."""
        if not data:
            return None
        head, self._head = self._head, b""
        if self._chunked:
            data = b"%s%x\r\n%s\r\n" % (head, len(data), data)
        elif head:
            data = head + data
        try:
            rest = self._client.put(data, self._write_timeout_s)
        except (OSError, trio.ClosedResourceError) as exc:
            raise ClientGone("the connection has ended") from exc
        return None if rest is None else self._rest(rest)

    async def finish(self) -> None:
        """The answer is complete."""
        last, self._head = self._head, b""
        if self._chunked:
            last += b"0\r\n\r\n"
        self._chunked = False
        if (rest := self.put(last)) is not None:
            await rest

    async def _rest(self, rest: Awaitable[None]) -> None:
        try:
            await rest
        except trio.TooSlowError as exc:
            raise ClientGone(f"nothing was read for {self._write_timeout_s:g} s") from exc
        except (OSError, trio.ClosedResourceError) as exc:
            raise ClientGone("the connection has ended") from exc


def _is_measured(headers: Headers) -> bool:
    """Whether the length of the body is among them."""
    return any(name == b"content-length" for name, _ in headers)


_dated = (0, b"")


def _date() -> bytes:
    """The line that tells the time; made anew once a second."""
    global _dated
    now = int(time.time())
    if _dated[0] != now:
        _dated = (now, b"date: %s\r\n" % formatdate(now, usegmt=True).encode())
    return _dated[1]
