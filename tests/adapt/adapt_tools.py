"""What the adapters' tests share: calls, the client's side, and an engine that answers as told."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import trio

from slotd.adapt import Adapter, Call
from slotd.wire.http1 import Http1Pool

GUARD_S = 20


def call(
    path: str, body: Mapping[str, Any] | bytes, *, content_type: str = "application/json", model: str = ""
) -> Call:
    """A client's request; a mapping becomes JSON."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Call("req-1", path, content_type, data, model)


@dataclass
class Told:
    """Implements :class:`slotd.adapt.Reply`: remembers everything."""

    status: int = 0
    headers: dict[bytes, bytes] = field(default_factory=dict)
    pieces: list[bytes] = field(default_factory=list)
    signs: int = 0
    sent: trio.Event = field(default_factory=trio.Event)

    @property
    def body(self) -> bytes:
        return b"".join(self.pieces)

    def progressed(self) -> None:
        self.signs += 1

    def says(self, words: str) -> None:
        raise AssertionError(f"nothing to say: {words}")

    def keep(self, data: bytes, content_type: str) -> str:
        raise AssertionError(f"nothing to keep: {content_type}")

    async def comment(self, text: str) -> None:
        raise AssertionError(f"no comment: {text}")

    async def begin(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        assert not self.status, "one head"
        await trio.lowlevel.checkpoint()
        self.status, self.headers = status, dict(headers)

    async def send(self, data: bytes) -> None:
        assert self.status, "a head first"
        await trio.lowlevel.checkpoint()
        self.pieces.append(data)
        self.sent.set()

    async def document(self, body: bytes, *, content_type: str = "application/json") -> None:
        await self.begin(200, [(b"content-type", content_type.encode())])
        await self.send(body)


@dataclass
class Engine:
    """Answers each request with ``pieces``, one write each, and waits for ``go`` before the last."""

    pieces: list[bytes]
    go: trio.Event = field(default_factory=trio.Event)
    port: int = 0
    requests: list[bytes] = field(default_factory=list)
    left: trio.Event = field(default_factory=trio.Event)

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.port = listeners[0].socket.getsockname()[1]
        task_status.started()
        await trio.serve_listeners(self._serve, listeners)

    async def _serve(self, stream: trio.SocketStream) -> None:
        async with stream:
            request = b""
            while b"\r\n\r\n" not in request or len(request) < _length(request):
                more = await stream.receive_some()
                if not more:
                    return
                request += more
            self.requests.append(request)
            for piece in self.pieces[:-1]:
                await stream.send_all(piece)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._see_it_leave, stream)
                await self.go.wait()
                nursery.cancel_scope.cancel()
            if not self.left.is_set():
                await stream.send_all(self.pieces[-1])

    async def _see_it_leave(self, stream: trio.SocketStream) -> None:
        try:
            gone = not await stream.receive_some()
        except trio.BrokenResourceError:
            gone = True
        if gone:
            self.left.set()
            self.go.set()


def _length(request: bytes) -> int:
    head, _, _ = request.partition(b"\r\n\r\n")
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return len(head) + 4 + int(line.partition(b":")[2])
    return len(head) + 4


def response(body: bytes, content_type: str = "application/json", status: int = 200) -> bytes:
    """A whole response of an engine's."""
    head = f"HTTP/1.1 {status} X\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


@asynccontextmanager
async def engine(*pieces: bytes, held: bool = False) -> AsyncIterator[tuple[Engine, Http1Pool]]:
    """An engine for the length of a block, and the way to it. ``held``: its last piece waits for ``go``."""
    server = Engine(list(pieces))
    if not held:
        server.go.set()
    async with trio.open_nursery() as nursery:
        await nursery.start(server.run)
        pool = Http1Pool("127.0.0.1", server.port)
        try:
            yield server, pool
        finally:
            pool.close()
            nursery.cancel_scope.cancel()


async def serve(adapter: Adapter, asked: Call, *pieces: bytes) -> tuple[Told, bytes]:
    """One request through an adapter: what the client was told, and what the engine was asked."""
    told = Told()
    async with engine(*pieces) as (server, pool):
        await adapter.serve(asked, pool, told)
    [request] = server.requests
    return told, request
