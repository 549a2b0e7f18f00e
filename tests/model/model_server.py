"""A loopback HTTP server that serves one file and misbehaves on request."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

import trio


@dataclass
class FileServer:
    """Serves ``body`` at any path. The knobs apply to the requests that follow.

    ``cut_after``: for each coming request, after how many body bytes to cut
    the connection (None: not at all). ``hold_after``: send so many bytes of
    the body, set ``held``, and wait for ``go_on``. ``pages`` are other paths, served plainly.
    """

    body: bytes
    etag: str = '"v1"'
    last_modified: str = ""
    status: list[int] = field(default_factory=list)
    extra: list[str] = field(default_factory=list)
    cut_after: list[int | None] = field(default_factory=list)
    hold_after: int | None = None
    pages: dict[str, bytes] = field(default_factory=dict)
    with_length: bool = True
    ignore_range: bool = False
    held: trio.Event = field(default_factory=trio.Event)
    go_on: trio.Event = field(default_factory=trio.Event)
    gone: trio.Event = field(default_factory=trio.Event)
    requests: list[dict[str, str]] = field(default_factory=list)
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/models/tiny.bin"

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        async with trio.open_nursery() as nursery:
            listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
            self.port = listeners[0].socket.getsockname()[1]
            nursery.start_soon(trio.serve_listeners, self._connection, listeners)
            task_status.started()

    async def _connection(self, stream: trio.SocketStream) -> None:
        try:
            while await self._one(stream):
                pass
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self.gone.set()
        finally:
            await trio.aclose_forcefully(stream)

    async def _one(self, stream: trio.SocketStream) -> bool:
        head = b""
        while b"\r\n\r\n" not in head:
            more = await stream.receive_some(65536)
            if not more:
                return False
            head += more
        lines = head.decode().split("\r\n")
        asked = {
            name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])
        }
        self.requests.append({"path": lines[0].split()[1], **asked})
        page = self.pages.get(lines[0].split()[1])
        if page is not None:
            head_lines = f"Content-Type: text/html\r\nContent-Length: {len(page)}"
            await stream.send_all(f"HTTP/1.1 200 OK\r\n{head_lines}\r\n\r\n".encode() + page)
            return True
        if self.status:
            code = self.status.pop(0)
            extra = "".join(f"{line}\r\n" for line in self.extra)
            await stream.send_all(f"HTTP/1.1 {code} Odd\r\n{extra}Content-Length: 0\r\n\r\n".encode())
            return True
        start, code, more_head = 0, 200, ""
        match = re.fullmatch(r"bytes=(\d+)-", asked.get("range", ""))
        fresh = asked.get("if-range") in (self.etag, self.last_modified)
        if match and fresh and not self.ignore_range:
            start = int(match[1])
            size = len(self.body)
            if start >= size:
                await stream.send_all(
                    f"HTTP/1.1 416 No\r\nContent-Range: bytes */{size}\r\nContent-Length: 0\r\n\r\n".encode()
                )
                return True
            code, more_head = 206, f"Content-Range: bytes {start}-{size - 1}/{size}\r\n"
        body = self.body[start:]
        if self.with_length:
            more_head += f"Content-Length: {len(body)}\r\n"
        else:
            more_head += "Connection: close\r\n"
        if self.etag:
            more_head += f"ETag: {self.etag}\r\n"
        if self.last_modified:
            more_head += f"Last-Modified: {self.last_modified}\r\n"
        await stream.send_all(f"HTTP/1.1 {code} OK\r\n{more_head}\r\n".encode())
        cut = self.cut_after.pop(0) if self.cut_after else None
        if cut is not None:
            await stream.send_all(body[:cut])
            return False
        if self.hold_after is not None:
            await stream.send_all(body[: self.hold_after])
            body = body[self.hold_after :]
            self.held.set()
            await self._until_go_on(stream)
        await stream.send_all(body)
        return self.with_length

    async def _until_go_on(self, stream: trio.SocketStream) -> None:
        async def watch() -> None:
            try:
                left = not await stream.receive_some(1)
            except trio.BrokenResourceError:
                left = True
            if left:
                self.gone.set()
                nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            await self.go_on.wait()
            nursery.cancel_scope.cancel()


def find(root: Path, pattern: str) -> list[Path]:
    return sorted(root.glob(pattern))
