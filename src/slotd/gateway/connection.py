"""The adapter between quart-trio's request and the exchange.

Shape: the handler starts :func:`pump` in the request's own nursery and gets
the response head from ``task_status.started``; the pump sends body chunks
into a zero-buffer channel and the body generator does nothing but receive.
So the exchange runs in a task that is cancelled the moment the client leaves,
also in the window between the handler's return and the first chunk, where a
generator's ``finally`` would never run.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import trio
from hypercorn.typing import ASGIReceiveCallable, ASGIReceiveEvent, ASGISendCallable, ASGISendEvent
from quart import Response
from quart_trio.asgi import TrioASGIHTTPConnection

from slotd.errors import SlotdError
from slotd.exchange.inbound import Carrier, ClientGone, Headers, Inbound, all_headers

__all__ = ["AnswerCutShort", "RequestConnection", "relay_response", "request_nursery"]

_NURSERY = "slotd.request_nursery"


class AnswerCutShort(Exception):
    """A body that is no event stream broke off half-way; the connection must too."""


class RequestConnection(TrioASGIHTTPConnection):
    """A connection that lets its handler start tasks in the request's nursery.

    hypercorn reports "the client left" also when the answer is complete, in the
    middle of the last ``send``, before it has made the connection ready for the
    next request. Cancelling the request then would leave the connection without
    its idle timer: nothing would ever close it, and a graceful stop would wait
    for it. So once the last ``send`` has begun, its end is the request's end.
    """

    async def __call__(self, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        finishing = False

        async def sending(message: ASGISendEvent) -> None:
            nonlocal finishing
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                finishing = True
            await send(message)

        async def receiving() -> ASGIReceiveEvent:
            message = await receive()
            if finishing and message["type"] == "http.disconnect":
                await trio.sleep_forever()  # until the request's own end cancels it
            return message

        request = self._create_request_from_scope(sending)
        async with trio.open_nursery() as nursery:
            self.scope["extensions"] = {**(self.scope.get("extensions") or {}), _NURSERY: {_NURSERY: nursery}}
            nursery.start_soon(self.handle_messages, nursery, request, receiving)
            nursery.start_soon(self.handle_request, nursery, request, sending)


def request_nursery(scope: Any) -> trio.Nursery:
    """The nursery of the request with this ASGI scope; cancelled when the client leaves or has its answer."""
    nursery: trio.Nursery = scope["extensions"][_NURSERY][_NURSERY]
    return nursery


@dataclass(frozen=True, slots=True)
class _Head:
    status: int
    headers: list[tuple[bytes, bytes]]


class _ChannelOut:
    """An :class:`slotd.exchange.inbound.Outbound` over a zero-buffer channel."""

    def __init__(
        self,
        chunks: trio.MemorySendChannel[bytes],
        status: trio.TaskStatus[_Head],
        write_timeout_s: float,
    ) -> None:
        self._chunks = chunks
        self._status = status
        self._write_timeout_s = write_timeout_s

    def start(self, status: int, headers: Headers, length: int | None = None, own: bytes = b"") -> None:
        self._status.started(_Head(status, all_headers(headers, length, own)))

    async def send(self, data: bytes) -> None:
        # The generator takes the next chunk once the last is with the kernel;
        # a client that reads nothing for so long has gone, whatever TCP says.
        try:
            with trio.fail_after(self._write_timeout_s):
                await self._chunks.send(data)
        except trio.TooSlowError as exc:
            raise ClientGone(f"nothing was read for {self._write_timeout_s:g} s") from exc
        except trio.BrokenResourceError as exc:
            raise ClientGone("the response has been dropped") from exc


async def _pump(
    exchange: Carrier,
    inbound: Inbound,
    chunks: trio.MemorySendChannel[bytes],
    outcome: dict[str, BaseException],
    write_timeout_s: float,
    *,
    task_status: trio.TaskStatus[_Head],
) -> None:
    with chunks:
        try:
            await exchange.run(inbound, _ChannelOut(chunks, task_status, write_timeout_s))
        except (SlotdError, ClientGone) as exc:
            outcome["error"] = exc.with_traceback(None)  # which would lead back here, and to the request


async def relay_response(scope: Any, exchange: Carrier, inbound: Inbound, write_timeout_s: float) -> Response:
    """Run the exchange for this request and return a response that streams its answer."""
    nursery = request_nursery(scope)
    sender, receiver = trio.open_memory_channel[bytes](0)
    outcome: dict[str, BaseException] = {}
    head: _Head = await nursery.start(_pump, exchange, inbound, sender, outcome, write_timeout_s)

    async def body() -> AsyncIterator[bytes]:
        async for chunk in receiver:
            yield chunk
        if "error" in outcome:
            raise AnswerCutShort(str(outcome["error"])) from outcome["error"]

    response = Response(body(), status=head.status)
    response.headers.clear()
    for key, value in head.headers:
        response.headers.add(key.decode("latin-1"), value.decode("latin-1"))
    response.timeout = None
    return response
