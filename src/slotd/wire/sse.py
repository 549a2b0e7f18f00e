"""Server-sent events, read incrementally: bytes in, events out.

The grammar is the one browsers use (WHATWG HTML, "parsing an event stream"):
lines end in LF, CRLF or CR, a blank line dispatches the event, ``data`` lines
join with LF, one space after the colon is dropped, lines that start with a
colon are comments. Events without data are not dispatched, and what an
unfinished event had when the stream ends is dropped, as the grammar says.

``id`` and ``retry`` serve reconnecting clients and are ignored here.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Event", "EventParser", "EventTooLarge"]

_BOM = b"\xef\xbb\xbf"


class EventTooLarge(Exception):
    """One event outgrew the parser's bound. The parser must not be fed again."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"an event of the stream is larger than {limit} bytes")
        self.limit = limit


@dataclass(frozen=True, slots=True)
class Event:
    """One dispatched event. ``name`` is empty where the stream gave none."""

    name: str
    data: bytes


class EventParser:
    """Parses one stream; chunks may be cut at any byte.

    At most ``max_event_bytes`` of an unfinished event are held (its data and
    the line being read); more raises :class:`EventTooLarge`. Work is linear in
    the bytes fed, however small the chunks are.
    """

    __slots__ = ("_data", "_limit", "_name", "_partial", "_skip_lf", "_started")

    def __init__(self, *, max_event_bytes: int) -> None:
        self._limit = max_event_bytes
        self._partial = bytearray()  # the line being read
        self._data: bytearray | None = None  # of the event being read, lines joined
        self._name = ""
        self._skip_lf = False  # the last chunk ended in CR: an LF next belongs to it
        self._started = False  # past the place where a byte order mark may stand

    @property
    def idle(self) -> bool:
        """True between events: nothing would be lost if the stream ended here."""
        return not self._partial and self._data is None and not self._name

    def feed(self, chunk: bytes) -> list[Event]:
        """The events that ``chunk`` completes, in order."""
        if self._skip_lf and chunk:
            self._skip_lf = False
            if chunk.startswith(b"\n"):
                chunk = chunk[1:]
        if not chunk:
            return []
        events: list[Event] = []
        for piece in chunk.splitlines(keepends=True):  # on bytes: LF, CRLF and CR only
            line = piece.rstrip(b"\r\n")
            if len(line) == len(piece):
                self._fits(len(self._partial) + len(piece) + len(self._data or b""))
                self._partial += piece
                break
            if self._partial:
                line = bytes(self._partial + line)
                self._partial.clear()
            if not self._started:
                self._started = True
                line = line.removeprefix(_BOM)
            if line:
                self._field(line)
            elif (event := self._dispatch()) is not None:
                events.append(event)
        self._skip_lf = chunk.endswith(b"\r")
        return events

    def _field(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            self._fits(len(self._data or b"") + len(value) + 1)
            if self._data is None:
                self._data = bytearray(value)
            else:
                self._data += b"\n" + value
        elif name == b"event":
            self._fits(len(value))
            self._name = value.decode("utf-8", "replace")

    def _dispatch(self) -> Event | None:
        name, data = self._name, self._data
        self._name, self._data = "", None
        return None if data is None else Event(name, bytes(data))

    def _fits(self, size: int) -> None:
        if size > self._limit:
            raise EventTooLarge(self._limit)
