"""Who comes while slotd stops is told so at once, instead of waiting at a door that will not open."""

from __future__ import annotations

from contextlib import suppress

import trio

from slotd.capability.endpoints import ENDPOINTS
from slotd.errors import ServerStopping
from slotd.exchange.render import error_response
from slotd.gateway.door import Door

__all__ = ["farewell"]

HEAD_S, HEAD_BYTES = 1.0, 64 * 1024
"""How long the head of a request may take to come, and how much of it is looked at."""

LINGER_S = 1.0
"""How long what a client still sends is read, since closing over it would take the answer away."""

LAST_S = 0.3
"""How long those who came last may take, once there is nothing else to wait for."""

RETRY_S = 5.0


async def farewell(listener: trio.SocketListener, most: int, over: trio.Event) -> None:
    """Answer everyone who comes with a 503, at most ``most`` at a time, until ``over``; then a moment more.

    Whoever comes after that finds no listener, and so is refused by the kernel.
    """
    async with trio.open_nursery() as guests:
        async with trio.open_nursery() as accepting:
            accepting.start_soon(Door(most).serve, listener, _turn_away, guests)
            await over.wait()
            accepting.cancel_scope.cancel()
        guests.cancel_scope.deadline = trio.current_time() + LAST_S


async def _turn_away(stream: trio.SocketStream) -> None:
    """One answer, whatever is asked; then the connection ends."""
    with suppress(trio.BrokenResourceError, trio.ClosedResourceError):  # it has left: as good
        with trio.move_on_after(HEAD_S):
            head = await _head(stream)
            if head:
                await stream.send_all(_answer(head))
                await stream.send_eof()
        with trio.move_on_after(LINGER_S):
            while await stream.receive_some(65536):
                pass


async def _head(stream: trio.SocketStream) -> bytes:
    """What came up to the end of a head, or of the connection."""
    head = b""
    while b"\r\n\r\n" not in head and len(head) < HEAD_BYTES and (data := await stream.receive_some(8192)):
        head += data
    return head


def _answer(head: bytes) -> bytes:
    path = (head.split(b" ", 2)[1:2] or [b""])[0].partition(b"?")[0].decode("latin-1")
    endpoint = ENDPOINTS.get(path)
    error = ServerStopping("slotd is shutting down and takes no more requests", retry_after_s=RETRY_S)
    status, headers, body = error_response(error, endpoint.dialect if endpoint else "openai")
    headers.append((b"connection", b"close"))
    lines = b"".join(b"%s: %s\r\n" % header for header in headers)
    return b"HTTP/1.1 %d Service Unavailable\r\n%s\r\n%s" % (
        status,
        lines,
        b"" if head.startswith(b"HEAD ") else body,
    )
