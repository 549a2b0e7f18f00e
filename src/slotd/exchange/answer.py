"""What the client gets: one head, then whole frames or one document, then perhaps an error."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import lru_cache

from slotd.errors import SlotdError
from slotd.exchange.frames import FrameGate
from slotd.exchange.headers import is_events
from slotd.exchange.inbound import Headers, Outbound, header
from slotd.exchange.record import RequestRecord, UsageTail
from slotd.exchange.render import Dialect, error_response, sse_comment, sse_error
from slotd.wire.fields import Fields

__all__ = ["EVENTS", "Answer", "trace_lines"]

EVENTS = (b"content-type", b"text/event-stream")

_COMMENTED = Fields([EVENTS, (b"cache-control", b"no-cache")])
_LENGTH = b"content-length"


class Answer:
    """The client's side of one request, and how far it has come.

    ``started``: a head has gone out. ``begun``: so has something of the answer
    itself, and from then on it can only go on or end; comments are no part of
    it. ``gate`` (of a stream that is being relayed) and ``usage`` belong to the
    upstream's answer; :meth:`renew` makes way for another one.

    Whatever is sent to a stream is whole frames, so comments may come from
    another task than the answer: each is sent wholly or not at all.
    """

    __slots__ = (
        "_length",
        "_out",
        "_put",
        "begun",
        "dialect",
        "events",
        "gate",
        "record",
        "started",
        "usage",
    )

    def __init__(self, out: Outbound, record: RequestRecord, dialect: Dialect) -> None:
        self._out = out
        self._put: Callable[[bytes], Awaitable[None] | None] = getattr(out, "put", out.send)
        self.dialect = dialect
        self._length: int | None = None
        self.record = record
        self.started = False
        self.begun = False
        self.events = False
        self.gate: FrameGate | None = None
        self.usage = UsageTail()

    @property
    def complete(self) -> bool:
        """Whether the client has got the whole answer."""
        if not self.begun:
            return False
        return self.usage.ended() if self.events else self.record.bytes_out == self._length

    def renew(self) -> None:
        """Nothing of an upstream's answer has been sent, and what was held back of it is void."""
        assert not self.begun
        self.gate, self.usage = None, UsageTail()
        self.record.first_byte_s = None

    def begin(self, status: int, headers: Headers, length: int | None = None) -> None:
        """The head of the upstream's answer. After comments only an event stream may begin, without it.

        ``length``: that of the body, where it is known and not among the ``headers``.
        """
        self.begun = True
        self.record.phase = "answering"
        if self.started:
            assert is_events(headers)
            return
        self._start(status, headers, length)

    async def comment(self, text: str) -> None:
        """Tell a waiting client of a stream something. Nothing happens once the answer has begun."""
        if self.begun:
            return
        if not self.started:
            self._start(200, _COMMENTED)
        await self._out.send(sse_comment(text))

    async def send(self, data: bytes) -> None:
        """Bytes of the answer; of a stream, whole frames."""
        if (rest := self.put(data)) is not None:
            await rest

    def put(self, data: bytes) -> Awaitable[None] | None:
        """:meth:`send`, done already where the client takes all of it at once (None); else to be awaited."""
        rest = self._put(data)
        if rest is not None:
            return self._sent(rest, data)
        self.usage.feed(data)
        self.record.bytes_out += len(data)
        return None

    async def _sent(self, rest: Awaitable[None], data: bytes) -> None:
        await rest
        self.usage.feed(data)
        self.record.bytes_out += len(data)

    async def refuse(self, frame: bytes) -> None:
        """In the place of an answer to a stream that has only had comments: one event that is an error."""
        self.begun = True
        await self._out.send(frame)

    async def fail(self, error: SlotdError) -> bool:
        """End with ``error``: a response of its own, or the last event of a stream.

        False where nothing well-formed can follow: it is to be raised then, for the
        adapter to break the connection off.
        """
        self.record.outcome, self.record.error = "error", error.code
        if not self.started:
            status, headers, body = error_response(error, self.dialect)
            self._start(status, headers)
            await self._out.send(body)
        elif self.events and (self.gate is None or self.gate.clean):
            await self._out.send(sse_error(error, self.dialect))
        else:
            return False
        return True

    def _start(self, status: int, headers: Headers, length: int | None = None) -> None:
        if not isinstance(headers, Fields):
            told = header(headers, _LENGTH) or b""
            length = int(told) if told.isdigit() else length
            headers = Fields(field for field in headers if field[0] != _LENGTH)
        self.record.status = status
        self.events = headers.derive(is_events)
        self._length = length
        self.started = True
        self._out.start(status, headers, length, trace_lines(self.record))


def trace_lines(record: RequestRecord) -> bytes:
    """Who answered, and where the time before the first byte went: header lines, each with its end."""
    id, resolve_s, wait_s, total_s = record.id.encode(), record.resolve_s, record.wait_s, record.elapsed()
    if resolve_s is not None and wait_s is not None:
        return b"x-request-id: %b\r\n%bserver-timing: resolve;dur=%.1f, wait;dur=%.1f, total;dur=%.1f\r\n" % (
            id,
            _route_line(record.target, record.tier, record.rule, record.fallback_from),
            resolve_s * 1000,
            wait_s * 1000,
            total_s * 1000,
        )
    route = times = b""
    if record.target:
        route = _route_line(record.target, record.tier, record.rule, record.fallback_from)
    if resolve_s is not None:
        times = b"resolve;dur=%.1f, " % (resolve_s * 1000)
    return b"x-request-id: %b\r\n%bserver-timing: %btotal;dur=%.1f\r\n" % (id, route, times, total_s * 1000)


@lru_cache(1024)
def _route_line(target: str, tier: int | None, rule: str, fallback_from: str) -> bytes:
    route = f"{target}; tier={tier}; rule={rule}"
    if fallback_from:
        route += f"; fallback-for={fallback_from}"
    # Names come from the configuration: none may bring a line of its own.
    printable = "".join(char if char.isprintable() else "?" for char in route)
    return b"x-slotd-route: %b\r\n" % printable.encode("ascii", "replace")
