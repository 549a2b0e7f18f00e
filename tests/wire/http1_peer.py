"""Shared by the tests of the HTTP/1.1 client: engines scripted byte by byte on loopback."""

from __future__ import annotations

import socket
import struct
from collections.abc import Awaitable, Callable, Sequence

import trio

from slotd.wire.http1 import Http1Pool, Http1Response

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
BIG = 16 * 1024 * 1024


class Peer:
    """The engine's side of one connection."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self._buffer = b""

    async def read_request(self) -> tuple[bytes, bytes]:
        """Head and body of the next request."""
        head = await self.read_head()
        length = 0
        for line in head.lower().split(b"\r\n"):
            if line.startswith(b"content-length: "):
                length = int(line.partition(b": ")[2])
        while len(self._buffer) < length:
            await self._more()
        body, self._buffer = self._buffer[:length], self._buffer[length:]
        return head, body

    async def read_head(self) -> bytes:
        while b"\r\n\r\n" not in self._buffer:
            await self._more()
        head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        return head

    async def _more(self) -> None:
        data = await self.stream.receive_some(65536)
        assert data, "the client closed in the middle of a request"
        self._buffer += data

    async def read_big(self) -> bytes:
        """The next request's body, which is ``BIG`` bytes, joined once."""
        await self.read_head()
        parts, self._buffer = [self._buffer], b""
        missing = BIG - len(parts[0])
        while missing:
            parts.append(await self.stream.receive_some(missing))
            missing -= len(parts[-1])
        return b"".join(parts)

    async def answer(self, data: bytes) -> None:
        await self.read_request()
        await self.stream.send_all(data)

    async def see_close(self) -> None:
        """Until the client's side is closed: EOF or reset."""
        try:
            while await self.stream.receive_some(65536):
                pass
        except trio.BrokenResourceError:
            return

    def reset(self) -> None:
        """Close so that the client gets RST."""
        self.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.stream.socket.close()


Script = Callable[[Peer], Awaitable[None]]


class Engine:
    """A listener whose n-th connection is served by the n-th script; more than that is a failure."""

    def __init__(self, listener: trio.SocketListener, scripts: Sequence[Script]) -> None:
        self.port: int = listener.socket.getsockname()[1]
        self._listener = listener
        self._scripts = scripts

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            for script in self._scripts:
                stream = await self._listener.accept()
                nursery.start_soon(self._serve, stream, script)

    async def _serve(self, stream: trio.SocketStream, script: Script) -> None:
        async with stream:
            await script(Peer(stream))


async def against(
    client: Callable[[Http1Pool], Awaitable[None]],
    *scripts: Script,
    max_idle: int = 32,
    idle_s: float = 30.0,
    max_head_bytes: int = 65536,
) -> None:
    """Run a client and its peers; every script must be used and come to its end."""
    with trio.fail_after(10):
        [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        async with listener:
            engine = Engine(listener, scripts)
            pool = Http1Pool(
                "127.0.0.1",
                engine.port,
                max_idle=max_idle,
                idle_s=idle_s,
                max_head_bytes=max_head_bytes,
                clock=trio.current_time,
            )
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(engine.run)
                    await client(pool)
                    assert pool.in_use == 0
                    pool.close()  # so that scripts in see_close() end
            finally:
                pool.close()


async def get(pool: Http1Pool, target: bytes = b"/", method: bytes = b"GET") -> Http1Response:
    return await pool.request(method, target, [], b"")


async def post(pool: Http1Pool, body: bytes = b"{}") -> Http1Response:
    return await pool.request(b"POST", b"/v1/x", [(b"Content-Type", b"application/json")], body)


async def body_of(response: Http1Response) -> bytes:
    parts = []
    while part := await response.receive_some():
        parts.append(part)
    assert response.complete
    assert await response.receive_some() == b""
    return b"".join(parts)


async def fetch(pool: Http1Pool) -> bytes:
    async with await post(pool) as response:
        return await body_of(response)


def says(*pieces: bytes, then_close: bool = False) -> Script:
    """A script: answer request after request with one piece each; then wait for the client, or close."""

    async def script(peer: Peer) -> None:
        for piece in pieces:
            await peer.answer(piece)
        if not then_close:
            await peer.see_close()

    return script
