"""The remotes, all in one process of their own, so that their work does not delay the client's loop.

Run as a script by :mod:`cold_start.remotes`, which talks to it in lines of
JSON on its stdin and stdout. It ends when its stdin does, so it cannot
outlive a benchmark that was killed.
"""

from __future__ import annotations

import os
import socket
import sys
from functools import partial

import msgspec
import trio
import trio.testing

__all__ = ["Behaviour", "Counts", "Hello", "Script"]

MAX_HEAD_BYTES = 16 << 10
MAX_LINE_BYTES = 1 << 20


class Behaviour(msgspec.Struct, frozen=True):
    """What one port does. ``delay_s`` None: it takes requests and never answers."""

    delay_s: float | None
    models: tuple[str, ...]


class Script(msgspec.Struct, frozen=True, tag="script"):
    """Behave like this from now on, one per listening port, and count from zero."""

    behaviours: tuple[Behaviour, ...]


class Count(msgspec.Struct, frozen=True, tag="count"):
    """Say how many requests have come since the last script."""


class Hello(msgspec.Struct, frozen=True):
    """``live`` ports listen; ``dead`` ones are kept from others, and refuse connections."""

    live: tuple[int, ...]
    dead: tuple[int, ...]


class Counts(msgspec.Struct, frozen=True):
    """Requests since the last script, one number per listening port."""

    calls: tuple[int, ...]


_orders = msgspec.json.Decoder(Script | Count)


class Ports:
    """Behaviours and counts of the listening ports."""

    def __init__(self, number: int) -> None:
        self._behaviours = (Behaviour(None, ()),) * number
        self._calls = [0] * number

    async def serve(self, port: int, stream: trio.SocketStream) -> None:
        """One connection, which is good for one request."""
        try:
            async with stream:
                if not await _read_head(stream):
                    return
                self._calls[port] += 1
                behaviour = self._behaviours[port]
                if behaviour.delay_s is None:
                    await stream.receive_some(1)  # until the client has enough
                    return
                await trio.sleep(behaviour.delay_s)
                await stream.send_all(_answer(behaviour.models))
        except trio.BrokenResourceError:
            return  # the client no longer wants the answer

    async def obey(self, order: Script | Count) -> bytes:
        if isinstance(order, Script):
            self._behaviours = order.behaviours
        # What the client has sent by now is in the kernel already; it is read
        # when no task here can run any more.
        await trio.testing.wait_all_tasks_blocked(0.002)
        counts = Counts(tuple(self._calls))
        if isinstance(order, Script):
            self._calls = [0] * len(self._calls)
        return msgspec.json.encode(counts) + b"\n"


async def _read_head(stream: trio.SocketStream) -> bool:
    """Read a request's head. False if the client left before it was complete."""
    head = bytearray()
    while b"\r\n\r\n" not in head:
        data = await stream.receive_some(4096)
        head += data
        if not data or len(head) > MAX_HEAD_BYTES:
            return False
    return True


def _answer(models: tuple[str, ...]) -> bytes:
    body = msgspec.json.encode({"object": "list", "data": [{"id": m, "object": "model"} for m in models]})
    # Closed after one answer: each fetch of a cold start begins with a connect.
    head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
    return f"{head}connection: close\r\n\r\n".encode() + body


def _refusing(number: int) -> list[socket.socket]:
    """Sockets that are bound and do not listen: connecting to them is refused."""
    sockets = [socket.socket() for _ in range(number)]
    for s in sockets:
        s.bind(("127.0.0.1", 0))
    return sockets


async def main(live: int, dead: int) -> None:
    ports = Ports(live)
    refusing = _refusing(dead)
    orders, answers = trio.lowlevel.FdStream(os.dup(0)), trio.lowlevel.FdStream(os.dup(1))
    async with orders, answers, trio.open_nursery() as nursery:
        numbers = []
        for i in range(live):
            (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
            numbers.append(listener.socket.getsockname()[1])
            nursery.start_soon(trio.serve_listeners, partial(ports.serve, i), [listener])
        hello = Hello(tuple(numbers), tuple(s.getsockname()[1] for s in refusing))
        await answers.send_all(msgspec.json.encode(hello) + b"\n")
        buffer = bytearray()
        while data := await orders.receive_some(65536):
            buffer += data
            if len(buffer) > MAX_LINE_BYTES:
                raise SystemExit("an order is too long")
            while (end := buffer.find(b"\n")) >= 0:
                line = bytes(buffer[:end])
                del buffer[: end + 1]
                await answers.send_all(await ports.obey(_orders.decode(line)))
        nursery.cancel_scope.cancel()
    for s in refusing:
        s.close()


if __name__ == "__main__":
    trio.run(main, int(sys.argv[1]), int(sys.argv[2]))
