"""A ComfyUI that obeys: ``python -m slotd.testing.fake_comfyui [--listen HOST] [--port N] [--knobs JSON]``.

A real process that speaks ComfyUI's HTTP and websocket protocol and behaves as
well or as badly as its knobs say; see
:class:`~slotd.testing.comfy_knobs.ComfyKnobs`. It draws small PNGs in one colour that carry
the graph they were made from, as ComfyUI's do. Beside the API:

| path | |
|---|---|
| ``GET /fake/stats`` | pid, prompts active (running, pending) and ended, nodes worked on, bytes stored, ... |
| ``POST /fake/knobs`` | turn some (a JSON object); answers with all |
| ``POST /fake/forget`` | lose the queue, with what runs, and the history |
| ``POST /fake/crash`` | die at once |

It prints its address when the port is open.
"""

from __future__ import annotations

import os
import signal
import sys
import uuid
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import parse_qs

import msgspec
import trio
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, TextMessage
from wsproto.events import Request as Upgrade

from slotd.testing import fake_process as process
from slotd.testing.comfy_graph import Invalid, check
from slotd.testing.comfy_knobs import ComfyKnobs, parse_comfy_args, turned_comfy
from slotd.testing.comfy_queue import Item, Queue, Worker
from slotd.testing.fake_asks import Form, Refused, read_form
from slotd.testing.fake_http import MAX_HEAD_BYTES, RECV_BYTES, Reply, Request, serve_connection
from slotd.testing.fake_knobs import KnobError

__all__ = ["FakeComfyUI", "main"]

JSON = "application/json; charset=utf-8"
LAG_MAX = 10_000
"""Messages that a websocket may lag behind; further ones are lost."""

_encode = msgspec.json.encode


class _Replayed(trio.abc.Stream):
    """A stream of which some bytes have been read already, and are read again."""

    def __init__(self, stream: trio.SocketStream, head: bytes) -> None:
        self._stream = stream
        self._head = head

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        if not self._head:
            return await self._stream.receive_some(max_bytes)
        await trio.lowlevel.checkpoint()
        head, self._head = self._head, b""
        return head

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        await self._stream.aclose()


class FakeComfyUI:
    """Answers requests as the knobs say."""

    def __init__(self, knobs: ComfyKnobs) -> None:
        self.knobs = knobs
        self.queue = Queue()
        self.worker = Worker(self.queue, lambda: self.knobs, self.say)
        self._listeners: dict[str, trio.MemorySendChannel[str]] = {}
        self._number = 0.0
        self._uploads = self._interrupts = 0
        self._hoard: list[bytearray] = []

    # --- life -----------------------------------------------------------------------

    async def run(self) -> None:
        """Start, and serve until a signal asks for the end."""
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._live)
                await anext(signals)
                nursery.cancel_scope.cancel()

    async def _live(self) -> None:
        knobs = self.knobs
        await trio.sleep(knobs.start_delay_s)
        if knobs.refuse_start:
            process.log("RuntimeError: no start, as told", process.STDERR)
            process.die(1)
        self._hoard = await process.hoard(knobs.memory_mb)
        listeners = await trio.open_tcp_listeners(knobs.port, host=knobs.host)
        host, port = listeners[0].socket.getsockname()[:2]
        process.log(f"fake ComfyUI listening on http://{host}:{port}")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.worker.run)
            await trio.serve_listeners(self._connected, listeners)

    async def _connected(self, stream: trio.SocketStream) -> None:
        head = b""
        async with stream:
            try:
                while b"\r\n\r\n" not in head and len(head) < MAX_HEAD_BYTES:
                    if not (data := await stream.receive_some(RECV_BYTES)):
                        return
                    head += data
            except trio.BrokenResourceError:
                return  # the client has left
            if b"upgrade: websocket" in head.lower() and head.startswith(b"GET /ws"):
                if not self.knobs.refuse_websocket:
                    await self._websocket(stream, head)
                return
            await serve_connection(_Replayed(stream, head), self.answer)

    # --- websockets -------------------------------------------------------------------

    def say(self, client_id: str, kind: str, data: dict[str, Any]) -> None:
        """To one client, or with "" to all. To nobody if it is not there."""
        text = _encode({"type": kind, "data": data}).decode()
        for id, channel in list(self._listeners.items()):
            if client_id in ("", id):
                try:
                    channel.send_nowait(text)
                except (trio.WouldBlock, trio.BrokenResourceError):
                    continue

    async def _websocket(self, stream: trio.abc.Stream, head: bytes) -> None:
        socket = WSConnection(ConnectionType.SERVER)
        socket.receive_data(head)
        request = next(event for event in socket.events() if isinstance(event, Upgrade))
        query = parse_qs(request.target.partition("?")[2])
        sid = query.get("clientId", [uuid.uuid4().hex])[0]
        await stream.send_all(socket.send(AcceptConnection()))
        send, receive = trio.open_memory_channel[str](LAG_MAX)
        self._listeners[sid] = send
        hello = {"type": "status", "data": {**self.worker.status(), "sid": sid}}
        send.send_nowait(_encode(hello).decode())
        if sid == self.worker.client_id and self.worker.node is not None:
            self.say(sid, "executing", {"node": self.worker.node})
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._until_closed, stream, nursery.cancel_scope)
                await self._pump(socket, stream, receive)
                nursery.cancel_scope.cancel()
        finally:
            if self._listeners.get(sid) is send:
                del self._listeners[sid]

    async def _pump(
        self, socket: WSConnection, stream: trio.abc.Stream, receive: trio.MemoryReceiveChannel[str]
    ) -> None:
        sent = 0
        async for text in receive:
            most = self.knobs.drop_websocket_after
            if most is not None and sent >= most:
                return
            try:
                await stream.send_all(socket.send(TextMessage(text)))
            except trio.BrokenResourceError:
                return
            sent += 1

    async def _until_closed(self, stream: trio.abc.Stream, scope: trio.CancelScope) -> None:
        """What a client says is not listened to, but that it leaves."""
        try:
            while await stream.receive_some(RECV_BYTES):
                pass
        except trio.BrokenResourceError:
            pass  # a reset says the same as an end
        scope.cancel()

    # --- requests ---------------------------------------------------------------------

    async def answer(self, request: Request, reply: Reply) -> None:
        """Answer one request."""
        routes: dict[tuple[str, str], Callable[[Request, Reply], Awaitable[None]]] = {
            ("GET", "/system_stats"): self._system_stats,
            ("POST", "/prompt"): self._prompt,
            ("GET", "/queue"): self._queue,
            ("POST", "/queue"): self._delete,
            ("POST", "/interrupt"): self._interrupt,
            ("GET", "/view"): self._view,
            ("POST", "/upload/image"): self._upload,
            ("GET", "/fake/stats"): self._stats,
            ("POST", "/fake/knobs"): self._turn,
            ("POST", "/fake/forget"): self._forget,
            ("POST", "/fake/crash"): self._crash,
        }
        handler = routes.get((request.method, request.path))
        if handler is None and request.method == "GET" and request.path.startswith("/history/"):
            handler = self._history
        if handler is None:
            await reply.send(404, "text/plain; charset=utf-8", b"404: Not Found")
            return
        try:
            await handler(request, reply)
        except (msgspec.DecodeError, KnobError, Refused) as exc:
            await reply.send(500, "text/plain; charset=utf-8", f"500 Internal Server Error\n{exc}".encode())

    async def _system_stats(self, request: Request, reply: Reply) -> None:
        system = {"os": "posix", "comfyui_version": "fake", "python_version": sys.version}
        await _json(reply, {"system": system, "devices": []})

    async def _prompt(self, request: Request, reply: Reply) -> None:
        body = _object(request)
        if "prompt" not in body:
            text = "No prompt provided"
            error = {"type": "no_prompt", "message": text, "details": text, "extra_info": {}}
            await _json(reply, {"error": error, "node_errors": {}}, 400)
            return
        try:
            outputs, left_out = check(body["prompt"], self._exists, self.knobs.checkpoints)
        except Invalid as invalid:
            await _json(reply, {"error": invalid.error, "node_errors": invalid.node_errors}, 400)
            return
        self._number += 1
        number = -self._number if body.get("front") else self._number
        id = str(body.get("prompt_id") or uuid.uuid4())
        self.queue.put(Item(number, id, body["prompt"], str(body.get("client_id", "")), outputs))
        self.say("", "status", self.worker.status())
        await _json(reply, {"prompt_id": id, "number": number, "node_errors": left_out})

    def _exists(self, annotated: str) -> bool:
        try:
            self.worker.read(annotated)
        except KeyError:
            return False
        return True

    async def _queue(self, request: Request, reply: Reply) -> None:
        running = [self.queue.running.shown()] if self.queue.running else []
        pending = [item.shown() for item in self.queue.pending]
        await _json(reply, {"queue_running": running, "queue_pending": pending})

    async def _delete(self, request: Request, reply: Reply) -> None:
        self.queue.delete(_object(request).get("delete", []))
        self.say("", "status", self.worker.status())
        await reply.send(200, "application/octet-stream", b"")

    async def _interrupt(self, request: Request, reply: Reply) -> None:
        self._interrupts += 1
        if self._interrupts > self.knobs.lose_interrupts:
            self.queue.interrupt(_object(request).get("prompt_id") if request.body else None)
        await reply.send(200, "application/octet-stream", b"")

    async def _history(self, request: Request, reply: Reply) -> None:
        id = request.path.removeprefix("/history/")
        found = self.queue.history.get(id)
        await _json(reply, {} if found is None else {id: found})

    async def _view(self, request: Request, reply: Reply) -> None:
        query = {name: values[0] for name, values in parse_qs(request.query).items()}
        name, subfolder = query.get("filename", ""), query.get("subfolder", "")
        if not name or name.startswith("/") or ".." in name or ".." in subfolder:
            status = 403 if ".." in subfolder else 400
            await reply.send(status, "application/octet-stream", b"")
            return
        data = self.worker.files.get((query.get("type", "output"), subfolder, name))
        if data is None:
            await reply.send(404, "application/octet-stream", b"")
            return
        await reply.send(200, "image/png", data)

    async def _upload(self, request: Request, reply: Reply) -> None:
        form = read_form(request.header("content-type"), request.body)
        file = _image(form)
        if file is None or not file[0] or ".." in file[0]:
            await reply.send(400, "application/octet-stream", b"")
            return
        where = {"name": file[0], "subfolder": form.text("subfolder"), "type": form.text("type") or "input"}
        self.worker.files[where["type"], where["subfolder"], where["name"]] = file[1]
        self._uploads += bool(file[1])
        await _json(reply, where)

    # --- its own control surface ----------------------------------------------------------

    async def _stats(self, request: Request, reply: Reply) -> None:
        running, pending = int(self.queue.running is not None), len(self.queue.pending)
        document = {
            "pid": os.getpid(),
            "active": running + pending,
            "running": running,
            "pending": pending,
            **self.queue.counts,
            "websockets": len(self._listeners),
            "uploads": self._uploads,
            "stored": self.worker.stored(),
            "interrupts": self._interrupts,
        }
        await _json(reply, document)

    async def _turn(self, request: Request, reply: Reply) -> None:
        self.knobs = turned_comfy(self.knobs, _object(request))
        self.queue.stir()
        await _json(reply, self.knobs)

    async def _forget(self, request: Request, reply: Reply) -> None:
        self.queue.forget()
        await _json(reply, {})

    async def _crash(self, request: Request, reply: Reply) -> None:
        process.die(1)


async def _json(reply: Reply, document: Any, status: int = 200) -> None:
    await reply.send(status, JSON, _encode(document))


def _object(request: Request) -> dict[str, Any]:
    return msgspec.json.decode(request.body, type=dict[str, Any])


def _image(form: Form) -> tuple[str, bytes] | None:
    return next(((p.filename, p.data) for p in form.parts if p.name == "image"), None)


def main(argv: list[str] | None = None) -> int:
    """Run a fake ComfyUI in this process until it is told to end. Returns the exit code; 2 = bad knobs."""
    try:
        knobs = parse_comfy_args(sys.argv[1:] if argv is None else argv)
    except KnobError as exc:
        process.log(str(exc), process.STDERR)
        return 2
    trio.run(FakeComfyUI(knobs).run)
    return 0


if __name__ == "__main__":
    sys.exit(main())
