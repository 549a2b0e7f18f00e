"""The express lane by itself: real sockets, no web framework, and virtual time if the test wants it.

What is sent on loopback is there when ``send`` returns, so that the clock may
jump whenever all tasks wait.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import trio
from gateway_server import Behaviour, Behind
from trio.testing import wait_all_tasks_blocked

from slotd.actor import Snapshot
from slotd.config import parse_config
from slotd.exchange.inbound import Inbound, Outbound
from slotd.exchange.record import RecordBook
from slotd.gateway.express.client import ClientSocket
from slotd.gateway.express.lane import Lane
from slotd.gateway.intake import Intake
from slotd.gateway.uploads import Uploads
from slotd.settings import Settings

PATH = b"/v1/completions"


async def echo(inbound: Inbound, out: Outbound) -> None:
    """Answers with the body."""
    out.start(200, [(b"content-length", b"%d" % len(inbound.body))])
    await out.send(inbound.body)


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    """A connection on loopback: the client's end and the server's."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        client = socket.create_connection(listener.getsockname())
        return client, listener.accept()[0]


def post(body: bytes = b"", *lines: bytes, chunks: int = 0) -> bytes:
    """A request; ``chunks``: their size, if the body is to come in chunks."""
    if chunks:
        pieces = [body[n : n + chunks] for n in range(0, len(body), chunks)]
        framed = b"".join(b"%x\r\n%s\r\n" % (len(p), p) for p in pieces) + b"0\r\n\r\n"
        lines = (b"Transfer-Encoding: chunked", *lines)
    else:
        framed = body
        lines = (b"Content-Length: %d" % len(body), *lines)
    return b"\r\n".join([b"POST %s HTTP/1.1" % PATH, b"Host: x", *lines, b"", b""]) + framed


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def code(self) -> str:
        """Of a typed error."""
        return str(json.loads(self.body)["error"]["code"])

    @property
    def closes(self) -> bool:
        return self.headers.get("connection") == "close"


class Peer:
    """A client: :meth:`send` returns when slotd has made of it what it can."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.stream = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
        self._here = b""

    async def send(self, *pieces: bytes) -> None:
        for piece in pieces:
            await self.stream.send_all(piece)
            await wait_all_tasks_blocked()

    async def answer(self) -> Answer:
        """Read one whole answer with a length."""
        while b"\r\n\r\n" not in self._here:
            await self._more()
        head, _, self._here = self._here.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        headers = {k.lower(): v for k, _, v in (line.partition(": ") for line in lines)}
        length = int(headers.get("content-length", "0"))
        while len(self._here) < length:
            await self._more()
        body, self._here = self._here[:length], self._here[length:]
        return Answer(int(first.split()[1]), headers, body)

    async def ended(self) -> bool:
        """Whether the connection ends without another byte; waits for that."""
        try:
            return not self._here and not await self.stream.receive_some()
        except trio.BrokenResourceError:
            return False

    async def _more(self) -> None:
        data = await self.stream.receive_some()
        assert data, f"it hung up after {self._here!r}"
        self._here += data


@dataclass
class World:
    """A lane, what stands behind it and what it has handed over."""

    lane: Lane
    behind: Behind
    uploads: Uploads
    nursery: trio.Nursery
    peers: list[Peer] = field(default_factory=list)
    handed: list[bytearray] = field(default_factory=list)
    """What came on connections of the other lane, to their ends."""
    serving: int = 0
    """Connections that are being served."""

    @property
    def seen(self) -> list[Inbound]:
        return self.behind.seen

    def dial(self) -> Peer:
        ours, theirs = tcp_pair()
        theirs.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.nursery.start_soon(self.serve, ClientSocket(theirs, "127.0.0.1"))
        self.peers.append(Peer(ours))
        return self.peers[-1]

    async def serve(self, client: ClientSocket) -> None:
        self.serving += 1
        try:
            await self.lane.serve(client, self._hand_over)
        finally:
            self.serving -= 1
            client.close()

    async def _hand_over(self, client: ClientSocket) -> None:
        self.handed.append(client.received)
        with suppress(OSError):
            while await client.receive():
                pass


async def with_lane(
    test: Callable[[World], Awaitable[None]], behave: Behaviour = echo, *, server: str = ""
) -> None:
    """Run ``test`` against a lane; what it leaves running is cancelled."""
    loaded = parse_config(f"[server]\nport = 0\n{server}", "test", Path("."), env={})
    settings = Snapshot(Settings.of(loaded))
    behind, uploads = Behind(behave), Uploads()
    intake = Intake(settings, RecordBook(10, lambda record: None), uploads)
    with trio.fail_after(10_000):  # of virtual time, mostly
        async with trio.open_nursery() as nursery:
            lane = Lane(behind, intake, uploads, settings)
            nursery.start_soon(lane.notice_hangups)
            nursery.start_soon(lane.notice_late_heads)
            world = World(lane, behind, uploads, nursery)
            try:
                await test(world)
            finally:
                nursery.cancel_scope.cancel()
                for peer in world.peers:
                    peer.stream.socket.close()
