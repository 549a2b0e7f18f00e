"""A load generator that costs next to nothing: prebuilt requests, one epoll loop. A process of its own.

    python load_gen.py < job.json > result.json

A job is a :class:`Job` as JSON; the result says what was counted and, as sorted
lists cut to percentiles by :func:`spread`, how long things took. Responses are
looked at no further than their status and their end.
"""

from __future__ import annotations

import gc
import json
import math
import re
import resource
import select
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

ONE_READ = 1 << 18
LATE_S = 10.0
"""What a proxy still has of a stream at full speed, when the engine has ended it, may take so long."""
SETTLE_S = 1.5
"""So long after the first was asked, paced streams that were all asked at once are all running."""
LAST_TOKENS = 10
"""Of each paced stream, left out of what is held: that all end at once is a load of its own."""
TAIL = 32
"""Bytes of what was read that are looked at once more with what comes next."""

_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d+)", re.IGNORECASE)
_CLOSE = re.compile(rb"\r\nconnection:[ \t]*close", re.IGNORECASE)
_TOKEN = re.compile(rb"t=(\d{10}\.\d{6})")
LAST_CHUNK = b"\r\n0\r\n\r\n"
"""With the line break before it: a head may end in a nought, too (``Keep-Alive: max=100``)."""
OK = b"200"


@dataclass(frozen=True, slots=True)
class Job:
    """What to do. ``kind``: ``closed`` (each connection asks again when it is answered) or ``streams``
    (each asks once, all at the same moment).

    ``seconds``: how long ``closed`` is measured, after ``warm_s`` that are not, and
    how long the engine writes ``streams`` at full speed; the longest that paced ones
    may take. ``requests``: instead of ``seconds``, so many in all.
    ``body_bytes``: of a request's body, with padding. ``rate`` 0: at full speed.
    ``key``: a bearer token, "" for none.
    """

    kind: str
    host: str
    port: int
    model: str
    connections: int
    seconds: float = 3.0
    warm_s: float = 0.3
    requests: int = 0
    body_bytes: int = 0
    tokens: int = 16
    rate: int = 0
    key: str = ""
    path: str = "/v1/chat/completions"

    @classmethod
    def read(cls, text: str) -> Job:
        doc = json.loads(text)
        known = {f.name for f in fields(cls)}
        if unknown := doc.keys() - known:
            raise ValueError(f"unknown in a job: {sorted(unknown)}")
        return cls(**doc)


def request(job: Job) -> bytes:
    """The request, head and body, as each connection sends it."""
    what = {"model": job.model, "max_tokens": job.tokens}
    if job.kind == "streams":
        what = {**what, "stream": True}
        content = f"rate={job.rate}. Say hello." if job.rate else f"for={job.seconds:g} s, say hello."
    else:
        content = "Say hello."
    body = json.dumps({**what, "messages": [{"role": "user", "content": content}]}, separators=(",", ":"))
    if job.body_bytes > len(body):
        content += "x" * (job.body_bytes - len(body))
        body = json.dumps({**what, "messages": [{"role": "user", "content": content}]}, separators=(",", ":"))
    key = f"authorization: Bearer {job.key}\r\n" if job.key else ""
    head = (
        f"POST {job.path} HTTP/1.1\r\nhost: {job.host}:{job.port}\r\n{key}"
        f"content-type: application/json\r\naccept: */*\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body.encode()


def spread(values: Sequence[float], scale: float = 1000.0) -> dict[str, float]:
    """Percentiles, by default of seconds in milliseconds. Empty for no values."""
    if not values:
        return {}
    found = sorted(values)
    at = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
    shown = {name: found[max(0, math.ceil(q * len(found)) - 1)] for name, q in at.items()}
    shown["mean"] = sum(found) / len(found)
    shown["max"] = found[-1]
    return {name: round(value * scale, 4) for name, value in shown.items()}


class Closed:
    """One connection that asks again and again."""

    __slots__ = ("began", "buffer", "closing", "need", "sent", "sock", "status", "watched")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.began = 0.0
        self.sent = 0
        self.watched = select.EPOLLIN
        self.reset()

    def reset(self) -> None:
        self.buffer = b""
        self.need = 0
        """Bytes of the whole response; 0: not known yet; -1: until the last chunk."""
        self.status = b""
        self.closing = False
        """The server says that it closes after this answer."""

    def fed(self, data: bytes) -> bool:
        """Take what came; whether the answer is a whole one."""
        if self.buffer:
            data = self.buffer + data
        if not self.need:
            end = data.find(b"\r\n\r\n")
            if end < 0:
                self.buffer = data
                return False
            head = data[: end + 2]
            self.status = head[9:12]
            self.closing = _CLOSE.search(head) is not None
            length = _LENGTH.search(head)
            self.need = end + 4 + int(length[1]) if length else -1
        if self.need < 0:
            self.buffer = data
            return data.endswith(LAST_CHUNK)
        self.buffer = data
        return len(data) >= self.need


def connect_one(job: Job) -> socket.socket:
    sock = socket.create_connection((job.host, job.port), timeout=30)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setblocking(False)
    return sock


def connect(job: Job, at_once: int = 64) -> list[socket.socket]:
    """All connections, made before anything is measured, a few at a time."""
    made: list[socket.socket] = []
    for i in range(job.connections):
        made.append(connect_one(job))
        if i % at_once == at_once - 1:
            time.sleep(0.005)
    return made


class ClosedLoop:
    """Connections that ask again when they are answered. What is measured begins after ``warm_s``.

    A server may close a connection (some do after a number of requests): it is
    made again and the request sent again, within that request's time.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._data = request(job)
        self._poll = select.epoll()
        self._made: dict[int, Closed] = {}
        self._times: list[float] = []
        self._all = self._refused = self._broken = self._reconnects = 0

    def run(self) -> dict[str, Any]:
        job, clock = self._job, time.monotonic
        for sock in connect(job):
            self._add(Closed(sock))
        first = clock()
        mark = _cpu()
        warm = job.warm_s > 0
        counted_from = first + job.warm_s
        until = math.inf if job.requests else counted_from + job.seconds
        for c in [*self._made.values()]:
            self._send(c)
        now = first
        while self._made and now < until and not 0 < job.requests <= self._all:
            for fd, mask in self._poll.poll(1.0):
                c = self._made[fd]
                if mask & select.EPOLLOUT:
                    self._send(c)
                if mask & ~select.EPOLLOUT:
                    self._receive(fd, c)
            now = clock()
            if warm and now >= counted_from:
                warm = False
                self._times.clear()
                self._refused = 0
                first, mark = now, _cpu()
        took = now - first
        for c in self._made.values():
            c.sock.close()
        return {
            "requests": len(self._times),
            "answered_in_all": self._all,
            "took_s": round(took, 4),
            "per_s": round(len(self._times) / took, 1) if took else 0.0,
            "latency_ms": spread(self._times),
            "refused": self._refused,
            "broken": self._broken,
            "reconnects": self._reconnects,
            "generator_busy": round((_cpu() - mark) / took, 3) if took else 0.0,
        }

    def _add(self, c: Closed) -> None:
        self._made[c.sock.fileno()] = c
        c.watched = select.EPOLLIN
        self._poll.register(c.sock.fileno(), c.watched)

    def _send(self, c: Closed) -> None:
        data = self._data
        if not c.sent:
            c.began = c.began or time.monotonic()
        try:
            # The usual case sends the prebuilt bytes without a view of them.
            c.sent += c.sock.send(data if not c.sent else memoryview(data)[c.sent :])
        except BlockingIOError:
            pass
        except OSError:
            return  # reading says so too
        wanted = select.EPOLLIN if c.sent == len(data) else select.EPOLLIN | select.EPOLLOUT
        if wanted != c.watched:
            c.watched = wanted
            self._poll.modify(c.sock.fileno(), wanted)

    def _receive(self, fd: int, c: Closed) -> None:
        try:
            got = c.sock.recv(ONE_READ)
        except BlockingIOError:
            return
        except OSError:
            got = b""
        if not got:
            self._broken += bool(c.buffer)
            self._reconnect(fd, c)
            return
        if not c.fed(got):
            return
        if c.status == OK:
            self._times.append(time.monotonic() - c.began)
        else:
            self._refused += 1
        self._all += 1
        closing = c.closing
        c.began = 0.0
        if closing:
            self._reconnect(fd, c)
            return
        c.sent = 0
        c.reset()
        self._send(c)

    def _reconnect(self, fd: int, c: Closed) -> None:
        """Make the connection again and ask; one that is refused is left out from now on."""
        self._poll.unregister(fd)
        del self._made[fd]
        c.sock.close()
        began = c.began or time.monotonic()
        try:
            c.sock = connect_one(self._job)
        except OSError:
            self._broken += 1
            return
        self._reconnects += 1
        c.sent = 0
        c.reset()
        c.began = began
        self._add(c)
        self._send(c)


class Stream:
    """One connection that asks for one stream. Times on the monotonic clock."""

    __slots__ = (
        "delays",
        "done",
        "first",
        "gaps",
        "held",
        "last",
        "settled",
        "sock",
        "status",
        "steady",
        "tail",
        "tokens",
    )

    def __init__(self, sock: socket.socket, settled: float, tokens: int) -> None:
        self.sock = sock
        self.settled = settled
        self.steady = tokens - LAST_TOKENS
        self.tail = b""
        self.status = b""
        self.first = 0.0
        self.last = 0.0
        self.tokens = 0
        self.gaps: list[float] = []
        self.delays: list[float] = []
        self.held: list[float] = []
        """Delays of what the engine sent while all were running: not from the beginning, nor near the end."""
        self.done = False

    def fed(self, data: bytes, now: float, paced: bool) -> None:
        """Count the tokens in what came; with ``paced`` also when each was sent."""
        if not self.status:
            self.status = data[9:12]
        data = self.tail + data
        if paced:
            kept = 0
            for found in _TOKEN.finditer(data):
                kept = found.end()
                self.tokens += 1
                sent = float(found[1])
                self.delays.append(now - sent)
                if sent >= self.settled and self.tokens <= self.steady:
                    self.held.append(now - sent)
                if self.last:
                    self.gaps.append(now - self.last)
                else:
                    self.first = now
                self.last = now
            self.tail = data[max(kept, len(data) - TAIL) :]
        else:
            count = data.count(b"t=") - self.tail.count(b"t=")
            if count:
                self.tokens += count
                self.first = self.first or now
                self.last = now
            self.tail = data[-len(LAST_CHUNK) :]
        self.done = data.endswith(LAST_CHUNK)


def run_streams(job: Job) -> dict[str, Any]:
    data = request(job)
    poll = select.epoll()
    clock = time.monotonic
    settled = clock() + SETTLE_S
    made = {s.fileno(): Stream(s, settled, job.tokens) for s in connect(job)}
    streams = [*made.values()]
    for fd in made:
        poll.register(fd, select.EPOLLIN)
    paced = job.rate > 0
    broken = 0
    mark, began = _cpu(), clock()
    for s in streams:
        s.sock.send(data)
    until = began + job.seconds + (0 if paced else LATE_S)
    now = began
    while made and now < until:
        for fd, _ in poll.poll(1.0):
            s = made[fd]
            try:
                got = s.sock.recv(ONE_READ)
            except BlockingIOError:
                continue
            except OSError:
                got = b""
            if got:
                s.fed(got, clock(), paced)
            if not got or s.done:
                broken += not s.done
                poll.unregister(fd)
                made.pop(fd).sock.close()
        now = clock()
    took = now - began
    ok = [s for s in streams if s.status == OK and s.tokens]
    return {
        "streams": len(streams),
        "whole": sum(1 for s in ok if s.done and s.tokens == job.tokens),
        "refused": sum(1 for s in streams if s.status not in (b"", OK)),
        "broken": broken,
        "unfinished": len(made),
        "tokens": sum(s.tokens for s in ok),
        "took_s": round(took, 4),
        "tokens_per_s": round(sum(s.tokens for s in ok) / took, 1),
        "first_token_ms": spread([s.first - began for s in ok]),
        "gap_ms": spread([g for s in ok for g in s.gaps]),
        "delay_ms": spread([d for s in ok for d in s.delays[1:]]),
        "held_delay_ms": spread([d for s in ok for d in s.held]),
        "generator_busy": round((_cpu() - mark) / took, 3),
    }


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def run(job: Job) -> dict[str, Any]:
    if job.kind == "closed":
        return ClosedLoop(job).run()
    if job.kind == "streams":
        return run_streams(job)
    raise ValueError(f"no such kind of job: {job.kind!r}")


def main() -> None:
    job = Job.read(sys.stdin.read())
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    gc.disable()
    json.dump(run(job), sys.stdout)


if __name__ == "__main__":
    main()
