"""The last lines of an engine's output, bounded in bytes, and their followers."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from types import TracebackType

import trio

__all__ = ["LINE_MAX", "LogGap", "LogRing", "LogSubscription", "pump"]

LINE_MAX = 4096
"""The longest line kept, in bytes; what is over is cut and counted."""

LINE_COST = 48
"""What a stored line takes beside its bytes; keeps a flood of short lines within the bound."""

CHUNK = 8 * 1024


@dataclass(frozen=True, slots=True)
class LogGap:
    """A follower was too slow, or came too late: this many lines passed it by."""

    missed: int


class LogRing:
    """Keeps the newest lines of a byte stream, at most ``max_bytes`` of them.

    A line ends with a newline. Within a line a carriage return starts over,
    as on a terminal, so that a progress bar is one line and not a thousand.
    Bytes that are not UTF-8 become replacement characters.

    Lines are numbered from 0; followers hold a number, not a buffer, so any
    count of followers costs no memory. One owner, the event loop; nothing here
    blocks. ``clock`` is read at each :meth:`append`.
    """

    def __init__(self, max_bytes: int, *, clock: Callable[[], float] = trio.current_time) -> None:
        if max_bytes < LINE_MAX + LINE_COST:
            raise ValueError(f"a log ring needs at least {LINE_MAX + LINE_COST} bytes, not {max_bytes}")
        self._max_bytes = max_bytes
        self._clock = clock
        self._lines: deque[bytes] = deque()
        self._size = 0
        self._first = 0
        self._partial = bytearray()
        self._cut = 0
        self._returned = False
        self._closed = False
        self._changed = trio.Event()
        self._last_activity: float | None = None

    @property
    def last_activity(self) -> float | None:
        """When the last bytes came, by the clock; None before the first."""
        return self._last_activity

    @property
    def size(self) -> int:
        """Bytes held now, with ``LINE_COST`` for each line; never above ``max_bytes``."""
        return self._size

    @property
    def closed(self) -> bool:
        return self._closed

    def append(self, chunk: bytes) -> None:
        """Take the next bytes of the stream, cut anywhere. Ignored once closed."""
        if not chunk or self._closed:
            return
        self._last_activity = self._clock()
        *whole, rest = chunk.split(b"\n")
        for piece in whole:
            # The plain case, five times as fast: a flood of short lines must not hold the loop.
            if len(piece) <= LINE_MAX and b"\r" not in piece and not (self._partial or self._returned):
                self._store(piece)
            else:
                self._extend(piece)
                self._end_line()
        self._extend(rest)
        if whole:
            self._wake()

    def close(self) -> None:
        """The stream has ended: an unfinished line becomes a line, and followers end after it. Idempotent."""
        if self._closed:
            return
        if self._partial or self._cut:
            self._end_line()
        self._closed = True
        self._wake()

    @property
    def position(self) -> int:
        """The number that the next line will have; a mark to give to :meth:`tail`."""
        return self._end

    def tail(self, n_lines: int, since: int = 0) -> tuple[str, ...]:
        """The newest lines, oldest first, at most ``n_lines``; an unfinished one counts.

        None older than line number ``since``.
        """
        if n_lines <= 0:
            return ()
        lines = [*islice(reversed(self._lines), min(n_lines, max(0, self._end - since)))]
        lines.reverse()
        if self._partial or self._cut:
            lines.append(self._rendered_partial())
        return tuple(line.decode(errors="replace") for line in lines[-n_lines:])

    def subscribe(self, max_lines: int) -> LogSubscription:
        """Follow the log: up to ``max_lines`` of history, then each line as it comes.

        A follower that falls more than ``max_lines`` behind loses the oldest
        and is told so by a :class:`LogGap`.
        """
        if max_lines < 1:
            raise ValueError("a subscription needs room for a line")
        return LogSubscription(self, max(self._first, self._end - max_lines), max_lines)

    @property
    def _end(self) -> int:
        return self._first + len(self._lines)

    def _extend(self, piece: bytes) -> None:
        body = piece.rstrip(b"\r")
        if body:
            start = body.rfind(b"\r") + 1
            if start or self._returned:
                self._partial.clear()
                self._cut = 0
            room = LINE_MAX - len(self._partial)
            self._partial += body[start : start + room]
            self._cut += max(0, len(body) - start - room)
            self._returned = len(body) < len(piece)
        elif piece:
            self._returned = True  # perhaps the half of a CRLF: the next byte decides

    def _rendered_partial(self) -> bytes:
        return bytes(self._partial) + (b" ... [%d bytes cut]" % self._cut if self._cut else b"")

    def _end_line(self) -> None:
        line = self._rendered_partial()
        self._partial.clear()
        self._cut = 0
        self._returned = False
        self._store(line)

    def _store(self, line: bytes) -> None:
        self._lines.append(line)
        self._size += len(line) + LINE_COST
        while self._size > self._max_bytes:
            self._size -= len(self._lines.popleft()) + LINE_COST
            self._first += 1

    def end_line(self) -> None:
        """The writer is gone: what it left unfinished is a line, and the next writer's is another."""
        if self._partial:
            self.append(b"\n")

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()


class LogSubscription:
    """An async iterator of lines (``str``) and :class:`LogGap` records; see :meth:`LogRing.subscribe`.

    For one consumer. Ends after the last line once the ring is closed, and at
    once when :meth:`close` is called, by another task too. Cancelling the
    wait loses nothing. Also a plain context manager that closes.
    """

    def __init__(self, ring: LogRing, cursor: int, max_lines: int) -> None:
        self._ring = ring
        self._cursor = cursor
        self._max_lines = max_lines
        self._closed = False

    def close(self) -> None:
        """End the iteration. Synchronous, idempotent."""
        self._closed = True
        self._ring._wake()

    def __enter__(self) -> LogSubscription:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __aiter__(self) -> LogSubscription:
        return self

    async def __anext__(self) -> str | LogGap:
        ring = self._ring
        await trio.lowlevel.checkpoint()  # a long history must not hold the loop
        while not self._closed:
            oldest = max(ring._first, ring._end - self._max_lines)
            if self._cursor < oldest:
                missed, self._cursor = oldest - self._cursor, oldest
                return LogGap(missed)
            if self._cursor < ring._end:
                line = ring._lines[self._cursor - ring._first]
                self._cursor += 1
                return line.decode(errors="replace")
            if ring.closed:
                break
            await ring._changed.wait()
        raise StopAsyncIteration


async def pump(fd: int, ring: LogRing) -> None:
    """Move a pipe into the ring until its end or cancellation.

    Takes over ``fd`` and closes it; the ring stays open for the next engine of
    its slot. The memory in use is one chunk, whatever comes.
    """
    try:
        async with trio.lowlevel.FdStream(fd) as stream:
            while chunk := await stream.receive_some(CHUNK):
                ring.append(chunk)
    finally:
        ring.end_line()
