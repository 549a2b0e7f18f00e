"""What the end-to-end tests share: clients that see every byte, an engine of a few lines, measuring.

A client library hides what these tests are about: when a connection closes,
whether a body ended as it should, which bytes came in which order. So
:class:`Wire` is a connection of a client and no more.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import httpx
import trio

from slotd.events import Gap, Subscription
from slotd.testing import FakeEngine, Harness

T = TypeVar("T")
Start = Callable[..., AbstractAsyncContextManager[Harness]]

CHAT = "/v1/chat/completions"
GUARD_S = 20
"""No test hangs for longer than this."""

IDLE_S = 0.3
"""So soon after its client has left, an engine has nothing to do."""

log = logging.getLogger("e2e")


def note(what: str, seconds: float) -> None:
    """Tell a measured time; shown with ``--log-cli-level=info``."""
    log.info("%s: %.1f ms", what, seconds * 1000)


# --- requests ---------------------------------------------------------------------


def ask(model: str | None = None, **more: Any) -> dict[str, Any]:
    """A chat request, by default for no model in particular."""
    named = {} if model is None else {"model": model}
    return {**named, "messages": [{"role": "user", "content": "hi"}], **more}


def client(slotd: Harness, **headers: str) -> httpx.AsyncClient:
    """A client without limits of its own that keeps no connection."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    return httpx.AsyncClient(
        base_url=slotd.url, trust_env=False, timeout=GUARD_S, limits=limits, headers=headers
    )


def code(answer: httpx.Response) -> str:
    """The code of a typed error."""
    return str(answer.json()["error"]["code"])


class Later(Generic[T]):
    """Something that runs beside the test; :meth:`result` waits for it."""

    def __init__(self, nursery: trio.Nursery, call: Callable[[], Awaitable[T]]) -> None:
        self._done = trio.Event()
        self._value: T
        nursery.start_soon(self._run, call)

    async def _run(self, call: Callable[[], Awaitable[T]]) -> None:
        self._value = await call()
        self._done.set()

    @property
    def done(self) -> bool:
        return self._done.is_set()

    async def result(self) -> T:
        await self._done.wait()
        return self._value


# --- a connection, byte by byte ---------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Head:
    """Status and headers (lower-case names) of a response."""

    status: int
    headers: dict[str, str]


@dataclass(frozen=True, slots=True)
class Frame:
    """One server-sent event. ``data`` as it came."""

    event: str
    data: str

    @property
    def error(self) -> dict[str, Any]:
        """The error object that it carries."""
        document: dict[str, Any] = json.loads(self.data)["error"]
        return document


def frames(body: bytes) -> list[Frame]:
    """The events of a stream, which must consist of whole events and nothing else."""
    assert body.endswith(b"\n\n"), f"the stream ends inside an event: {body[-200:]!r}"
    found = []
    for block in body.decode().removesuffix("\n\n").split("\n\n"):
        fields: dict[str, list[str]] = {}
        for line in block.split("\n"):
            name, colon, value = line.partition(":")
            assert colon, f"not a line of an event: {line!r}"
            if name:  # else a comment
                fields.setdefault(name, []).append(value.removeprefix(" "))
        assert set(fields) <= {"event", "data", "id"}, block
        if "data" in fields:
            found.append(Frame("".join(fields.get("event", [])), "\n".join(fields["data"])))
    return found


class CutShort(Exception):
    """The connection ended before the message did."""


class Wire:
    """One connection of a client. Leaving the ``async with`` block is hanging up."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self._buffer = b""
        self._left: int | None = None  # of the chunk or the body; None: at a chunk's head
        self._chunked = False
        self._ended = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.stream.aclose()

    async def hang_up(self) -> None:
        """Close, now. What has not been read is lost."""
        await self.stream.aclose()

    async def reset(self) -> None:
        """Close with a RST, as a crashed client's kernel does."""
        self.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await self.stream.aclose()

    async def post(self, path: str, body: Any, **headers: str) -> None:
        """Send a whole request."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        lines = [f"POST {path} HTTP/1.1", "host: slotd", f"content-length: {len(data)}"]
        given = {"content_type": "application/json", **headers}
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in given.items()]
        await self.stream.send_all("\r\n".join(lines).encode() + b"\r\n\r\n" + data)

    async def get(self, path: str, **headers: str) -> None:
        lines = [f"GET {path} HTTP/1.1", "host: slotd"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        await self.stream.send_all("\r\n".join(lines).encode() + b"\r\n\r\n")

    async def head(self) -> Head:
        """Read a response's head, and nothing of its body that has not come along."""
        while b"\r\n\r\n" not in self._buffer:
            await self._more()
        text, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        first, *rest = text.decode("latin-1").split("\r\n")
        headers = {}
        for line in rest:
            name, _, value = line.partition(":")
            headers[name.strip().lower()] = value.strip()
        self._chunked = headers.get("transfer-encoding") == "chunked"
        self._left = None if self._chunked else int(headers["content-length"])
        self._ended = self._left == 0
        return Head(int(first.split()[1]), headers)

    async def some(self) -> bytes:
        """Decoded bytes of the body as they come; empty at its proper end, else :class:`CutShort`."""
        while not self._ended:
            if self._left is None:
                await self._chunk_head()
                continue
            if not self._buffer:
                await self._more()
            data, self._buffer = self._buffer[: self._left], self._buffer[self._left :]
            self._left -= len(data)
            if self._left == 0:
                await self._chunk_end()
            return data
        return b""

    async def _chunk_head(self) -> None:
        while b"\r\n" not in self._buffer:
            await self._more()
        size, _, self._buffer = self._buffer.partition(b"\r\n")
        self._left = int(size, 16)
        if self._left == 0:
            await self._chunk_end()
            self._ended = True

    async def _chunk_end(self) -> None:
        if not self._chunked:
            self._ended = True
            return
        while len(self._buffer) < 2:
            await self._more()
        assert self._buffer[:2] == b"\r\n", self._buffer[:20]
        self._buffer = self._buffer[2:]
        self._left = None

    async def until(self, mark: bytes) -> bytes:
        """The body up to where ``mark`` has come."""
        body = b""
        while mark not in body:
            data = await self.some()
            assert data, f"{mark!r} did not come: {body[-500:]!r}"
            body += data
        return body

    async def rest(self) -> bytes:
        """The body to its proper end."""
        body = b""
        while data := await self.some():
            body += data
        return body

    async def _more(self) -> None:
        try:
            data = await self.stream.receive_some()
        except trio.BrokenResourceError as exc:
            raise CutShort(f"reset after {self._buffer[-200:]!r}") from exc
        if not data:
            raise CutShort(f"closed after {self._buffer[-200:]!r}")
        self._buffer += data


async def dial(slotd: Harness, *, receive_buffer: int = 0) -> Wire:
    """Connect to slotd; ``receive_buffer`` bytes, if given, are all that the kernel takes for us."""
    host, port = slotd.slotd.address
    sock = trio.socket.socket()
    if receive_buffer:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    await sock.connect((host, port))
    return Wire(trio.SocketStream(sock))


# --- what is left when a client has gone -----------------------------------------------------


async def eventually(holds: Callable[[], bool], what: str = "", within_s: float = 2.0) -> float:
    """Wait until something holds that nobody announces; returns how long that took."""
    began = trio.current_time()
    with trio.move_on_after(within_s):
        while not holds():  # noqa: ASYNC110 # no event: counts of tasks, sockets and processes
            await trio.sleep(0.002)
    assert holds(), f"still not so after {within_s} s: {what or holds}"
    return trio.current_time() - began


def alive(pid: int) -> bool:
    """Whether a process is there and not just waiting to be reaped."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] not in (b"Z", b"X")
    except (FileNotFoundError, ProcessLookupError):
        return False


def sockets() -> int:
    """Sockets that this process holds."""
    count = 0
    for fd in os.listdir("/proc/self/fd"):
        try:
            count += os.readlink(f"/proc/self/fd/{fd}").startswith("socket:")
        except FileNotFoundError:
            continue  # the one that listed them
    return count


def tasks() -> int:
    """Trio tasks alive."""
    return trio.lowlevel.current_statistics().tasks_living


@dataclass(frozen=True, slots=True)
class Baseline:
    """slotd as it is before a client comes, and the check that it is so again."""

    slotd: Harness
    slot: str = "chat"
    tasks: int = field(default_factory=tasks)
    sockets: int = field(default_factory=sockets)

    async def again(self) -> None:
        """Nothing is left of any client."""
        records = self.slotd.slotd.records

        def unused() -> bool:
            snapshot = self.slotd.snapshot(self.slot)
            return snapshot.leases == 0 and snapshot.queued == 0

        await eventually(unused, "leases, queue")
        await eventually(lambda: records.live_count == 0, "live records")
        await eventually(lambda: tasks() <= self.tasks, f"back to {self.tasks} tasks from {tasks()}")
        await eventually(lambda: sockets() <= self.sockets, f"back to {self.sockets} sockets")


async def idle_again(engine: FakeEngine, what: str) -> None:
    """The engine itself says that it has nothing to do, within :data:`IDLE_S`."""
    began = trio.current_time()
    with trio.fail_after(IDLE_S):
        await engine.wait_active(0)
    note(f"engine idle after {what}", trio.current_time() - began)


async def path_to(seen: Subscription, state: str) -> list[str]:
    """The states that a slot goes through until it is in ``state``, in order."""
    path = []
    async for item in seen:
        assert not isinstance(item, Gap)
        path.append(str(item.data["to"]))
        if path[-1] == state:
            break
    return path


# --- an engine of a few lines -------------------------------------------------------------


Script = Callable[[trio.SocketStream, bytes], Awaitable[None]]
"""Answers one request, given its bytes, in any way at all; the connection is closed afterwards."""


class Scripted:
    """The server of an ``external`` slot, inside the test: it sends what a script sends."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self.port = 0
        self.requests: list[bytes] = []

    def slot(self, **settings: Any) -> dict[str, Any]:
        """The slot's table."""
        return {
            "type": "llm",
            "engine": "external",
            "url": f"http://127.0.0.1:{self.port}",
            "ready_models": False,
            **settings,
        }

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.port = listeners[0].socket.getsockname()[1]
        task_status.started()
        await trio.serve_listeners(self._serve, listeners)

    async def _serve(self, stream: trio.SocketStream) -> None:
        async with stream:
            try:
                request = await self._read(stream)
                if request.startswith(b"GET "):
                    await stream.send_all(
                        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}"
                    )
                elif request:
                    self.requests.append(request)
                    await self._script(stream, request)
            except trio.BrokenResourceError:
                return  # the client has left

    async def _read(self, stream: trio.SocketStream) -> bytes:
        data = b""
        while b"\r\n\r\n" not in data:
            more = await stream.receive_some()
            if not more:
                return b""
            data += more
        head, _, body = data.partition(b"\r\n\r\n")
        length = 0
        for line in head.lower().split(b"\r\n"):
            if line.startswith(b"content-length:"):
                length = int(line.partition(b":")[2])
        while len(body) < length:
            body += await stream.receive_some()
        return head + b"\r\n\r\n" + body


@asynccontextmanager
async def scripted(script: Script) -> AsyncIterator[Scripted]:
    """A :class:`Scripted` server for the length of a block."""
    server = Scripted(script)
    async with trio.open_nursery() as nursery:
        await nursery.start(server.run)
        try:
            yield server
        finally:
            nursery.cancel_scope.cancel()


def chunk(data: bytes) -> bytes:
    """One chunk of a chunked body."""
    return b"%x\r\n%s\r\n" % (len(data), data)


EVENT_STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
