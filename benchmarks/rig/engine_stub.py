"""An engine that costs next to nothing: OpenAI-shaped answers from one epoll loop. A process of its own.

    python engine_stub.py --port 0 --models stub
    python engine_stub.py --catalog 50     /NAME/v1/models lists NAME-0 to NAME-49

Prints where it listens. ``POST /v1/chat/completions`` answers a small document,
or, with ``"stream": true``, ``max_tokens`` events. A message that begins with
``rate=N`` gets ``N`` a second, one that begins with ``for=S`` as many as are taken in
``S`` seconds (not every gateway hands on other fields as they are). Each event
carries the moment at which it was sent, ``t=SECONDS`` on the monotonic clock,
which all processes of a machine share: so whoever gets it knows how long it was
under way. Requests are only looked at as far as that needs.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import resource
import select
import socket
import time
from collections.abc import Sequence

ONE_READ = 1 << 18
KEPT = 4096
"""Of a body that comes in pieces: so much of its beginning and its end is looked at."""

PERIOD_TICKS = 50
"""Paced streams are spread over so many moments of their period."""

DEFAULT_TOKENS = 16
BURST = 64
"""Events that one stream at full speed sends before the others have their turn."""

_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d+)", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding:[ \t]*chunked", re.IGNORECASE)
_STREAM = re.compile(rb'"stream":\s*true')
_TOKENS = re.compile(rb'"max_(?:completion_)?tokens":\s*(\d+)')
_RATE = re.compile(rb'"content":\s*"rate=(\d+)')
_FOR = re.compile(rb'"content":\s*"for=([\d.]+)')

COMPLETION = (
    b'{"id":"chatcmpl-0","object":"chat.completion","created":1700000000,"model":"stub",'
    b'"choices":[{"index":0,"message":{"role":"assistant","content":"A short answer, as long as it takes '
    b'to have a body of three hundred bytes."},"finish_reason":"stop"}],'
    b'"usage":{"prompt_tokens":9,"completion_tokens":16,"total_tokens":25}}'
)
_EVENT = (
    b'data: {"id":"chatcmpl-0","object":"chat.completion.chunk","created":1700000000,"model":"stub",'
    b'"choices":[{"index":0,"delta":{"content":"t=%017.6f "},"finish_reason":null}]}\n\n'
)
_LAST = (
    b'data: {"id":"chatcmpl-0","object":"chat.completion.chunk","created":1700000000,"model":"stub",'
    b'"choices":[{"index":0,"delta":{},"finish_reason":"stop"}],'
    b'"usage":{"prompt_tokens":9,"completion_tokens":16,"total_tokens":25}}\n\ndata: [DONE]\n\n'
)


def answer(body: bytes, status: bytes = b"200 OK") -> bytes:
    """A whole response with a JSON body."""
    head = b"HTTP/1.1 %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    return head % (status, len(body)) + body


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def event(now: float) -> bytes:
    """One token, sent at ``now`` (monotonic seconds), as an HTTP chunk."""
    return chunk(_EVENT % now)


STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
STREAM_END = chunk(_LAST) + b"0\r\n\r\n"
ANSWER = answer(COMPLETION)
HEALTHY = answer(b'{"status":"ok"}')
NOT_FOUND = answer(b'{"error":{"message":"not found"}}', b"404 Not Found")


class Client:
    """One connection: what has come of its request, and what is still to go out."""

    __slots__ = ("body", "buffer", "end", "left", "missing", "pending", "rate", "sock", "target", "until")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.buffer = b""
        self.target = b""
        self.body = b""
        self.end = b""
        self.missing = 0
        """Bytes of the body that have not come yet; -1: until the last chunk."""
        self.left = 0
        """Tokens of a stream that are still to be sent; 0: no stream."""
        self.rate = 0
        self.until = math.inf
        """When a stream at full speed ends, whatever is left of it."""
        self.pending = b""

    def fed(self, data: bytes) -> bool:
        """Take what came; whether a request is complete (the next one waits in ``buffer``)."""
        if not self.target:
            data = self.buffer + data
            head, found, rest = data.partition(b"\r\n\r\n")
            if not found:
                self.buffer = data
                return False
            self.buffer = b""
            self.target = head[: head.find(b" HTTP/1.")]
            self.body = self.end = b""
            length = _LENGTH.search(head)
            self.missing = int(length[1]) if length else -1 if _CHUNKED.search(head) else 0
            data = rest
        return self._body(data)

    def _body(self, data: bytes) -> bool:
        if self.missing < 0:
            self.body += data[: max(0, KEPT - len(self.body))]
            self.end = (self.end + data)[-KEPT:]
            return self.end.endswith(b"\r\n0\r\n\r\n") or self.end == b"0\r\n\r\n"
        taken, self.buffer = data[: self.missing], data[self.missing :]
        self.missing -= len(taken)
        fits = taken[: KEPT - len(self.body)] if len(self.body) < KEPT else b""
        self.body += fits
        if len(taken) > len(fits):
            self.end = (self.end + taken[len(fits) :][-KEPT:])[-KEPT:]
        return not self.missing

    def asked(self) -> bytes:
        """What is known of the body: all of a small one."""
        return self.body + self.end


def listing(models: Sequence[str]) -> bytes:
    """What ``/v1/models`` answers."""
    items = [{"id": m, "object": "model", "created": 1700000000, "owned_by": "stub"} for m in models]
    return answer(json.dumps({"object": "list", "data": items}).encode())


class Stub:
    """The loop. ``models``: what ``/v1/models`` lists; ``catalog``: how many ``/NAME/v1/models`` does."""

    def __init__(self, listener: socket.socket, models: Sequence[str], catalog: int = 0) -> None:
        self._listener = listener
        self._epoll = select.epoll()
        self._clients: dict[int, Client] = {}
        self._fast: dict[int, Client] = {}
        self._wheels: dict[int, list[dict[int, Client]]] = {}
        """Rate → its ticks → the streams that are due at each."""
        self._ticks: dict[int, tuple[int, float]] = {}
        """Rate → the tick that comes next, and when."""
        self._turn = 0
        self._models = listing(models)
        self._catalog = catalog

    def run(self) -> None:
        self._listener.setblocking(False)
        self._epoll.register(self._listener.fileno(), select.EPOLLIN)
        accepting = self._listener.fileno()
        while True:
            for fd, mask in self._epoll.poll(self._patience()):
                if fd == accepting:
                    self._accept()
                    continue
                client = self._clients.get(fd)
                if client is None:
                    continue
                if mask & select.EPOLLOUT:
                    self._flush(fd, client)
                if mask & (select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR):
                    self._read(fd, client)
            for rate in [*self._wheels]:
                self._pace(rate)
            for fd, client in [*self._fast.items()]:
                self._hurry(fd, client)

    def _patience(self) -> float | None:
        if any(not c.pending for c in self._fast.values()):
            return 0.0
        if not self._ticks:
            return None
        return max(0.0, min(at for _, at in self._ticks.values()) - time.monotonic())

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except BlockingIOError:
                return
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._clients[sock.fileno()] = Client(sock)
            self._epoll.register(sock.fileno(), select.EPOLLIN)

    def _read(self, fd: int, client: Client) -> None:
        try:
            data = client.sock.recv(ONE_READ)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._close(fd, client)
            return
        while client.fed(data):
            self._answer(fd, client)
            client.target = b""
            data = b""
            if not client.buffer:
                return

    def _answer(self, fd: int, client: Client) -> None:
        target = client.target
        if target.startswith(b"POST "):
            asked = client.asked()
            if _STREAM.search(asked) is None:
                self._send(fd, client, ANSWER)
                return
            tokens, rate, seconds = _TOKENS.search(asked), _RATE.search(asked), _FOR.search(asked)
            client.left = max(1, int(tokens[1])) if tokens else DEFAULT_TOKENS
            client.rate = int(rate[1]) if rate else 0
            client.until = time.monotonic() + float(seconds[1]) if seconds else math.inf
            self._begin(fd, client)
        elif target.endswith(b"/v1/models"):
            name = target[len(b"GET /") : -len(b"/v1/models")].decode()
            own = listing([f"{name}-{i}" for i in range(self._catalog)]) if name else self._models
            self._send(fd, client, own)
        else:
            self._send(fd, client, HEALTHY if target.endswith(b"/health") else NOT_FOUND)

    def _begin(self, fd: int, client: Client) -> None:
        client.left -= 1
        self._send(fd, client, STREAM_HEAD + event(time.monotonic()))
        if not client.rate:
            self._fast[fd] = client
            return
        wheel = self._wheels.get(client.rate)
        if wheel is None:
            wheel = self._wheels[client.rate] = [{} for _ in range(PERIOD_TICKS)]
            self._ticks[client.rate] = (0, time.monotonic())
        # By turns, so that streams that begin together do not stay together.
        self._turn += 1
        wheel[self._turn * 7 % PERIOD_TICKS][fd] = client

    def _pace(self, rate: int) -> None:
        wheel = self._wheels[rate]
        tick, at = self._ticks[rate]
        now = time.monotonic()
        while at <= now:
            due = wheel[tick]
            if due:
                token = event(now)
                for fd, client in [*due.items()]:
                    if client.left:
                        client.left -= 1
                        self._send(fd, client, token)
                    else:
                        due.pop(fd, None)
                        self._send(fd, client, STREAM_END)
                now = time.monotonic()
            tick = (tick + 1) % PERIOD_TICKS
            at += 1 / rate / PERIOD_TICKS
        self._ticks[rate] = (tick, at)
        if not any(wheel):
            del self._wheels[rate], self._ticks[rate]

    def _hurry(self, fd: int, client: Client) -> None:
        for _ in range(BURST):
            if client.pending or fd not in self._fast:
                return
            if not client.left:
                del self._fast[fd]
                self._send(fd, client, STREAM_END)
                return
            now = time.monotonic()
            client.left = client.left - 1 if now < client.until else 0
            self._send(fd, client, event(now))

    def _send(self, fd: int, client: Client, data: bytes) -> None:
        if client.pending:
            client.pending += data
            return
        try:
            sent = client.sock.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._close(fd, client)
            return
        if sent < len(data):
            client.pending = data[sent:]
            self._epoll.modify(fd, select.EPOLLIN | select.EPOLLOUT)

    def _flush(self, fd: int, client: Client) -> None:
        data, client.pending = client.pending, b""
        self._epoll.modify(fd, select.EPOLLIN)
        if data:
            self._send(fd, client, data)

    def _close(self, fd: int, client: Client) -> None:
        if self._clients.pop(fd, None) is None:
            return
        self._fast.pop(fd, None)
        for due in self._wheels.get(client.rate, ()):
            due.pop(fd, None)
        self._epoll.unregister(fd)
        client.sock.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--models", default="stub", help="names, separated by commas")
    parser.add_argument("--catalog", type=int, default=0, help="models that each /NAME/v1/models lists")
    options = parser.parse_args()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with socket.create_server(("127.0.0.1", options.port), backlog=4096) as listener:
        print(f"listening on http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
        Stub(listener, options.models.split(","), options.catalog).run()


if __name__ == "__main__":
    main()
