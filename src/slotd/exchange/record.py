"""One decision record per request: what was asked, decided, done, and how long it took."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable
from typing import Any, ClassVar

import msgspec
import trio

from slotd.errors import RequestCancelled, SlotdError

__all__ = ["RecordBook", "RequestRecord", "UsageTail"]


class RequestRecord(msgspec.Struct):
    """A request's record, filled as it goes along; only its exchange writes to it.

    Times ending in ``_s`` are seconds; ``began`` is on trio's clock,
    ``began_unix`` on the wall; ``wait_s`` is all the waiting for slots.
    ``outcome`` is ``live`` until the end, then ``ok``, ``error`` or ``client_gone``.
    ``replays``: how often it was sent again after its engine was lost.
    ``fallback_from``: the slot in whose place another answered;
    ``fallback_error``: why, if that slot refused (an error's code).

    ``progress``: how far its engine is, in words, where it tells. ``parent``: the
    request on whose behalf slotd made this one.

    ``cause``: what a request that is ended from outside is answered with.
    """

    id: str
    path: str
    client: str
    began: float
    began_unix: float
    model: str | None = None
    stream: bool = False
    tier: int | None = None
    rule: str = ""
    target: str = ""
    target_model: str = ""
    cache: str = ""
    phase: str = "resolving"
    progress: str = ""
    generation: int | None = None
    resolve_s: float | None = None
    wait_s: float | None = None
    first_byte_s: float | None = None
    total_s: float | None = None
    status: int | None = None
    outcome: str = "live"
    error: str | None = None
    tokens_in: int | None = None
    tokens_out: int | None = None
    bytes_in: int = 0
    bytes_out: int = 0
    replays: int = 0
    parent: str = ""
    priority: int = 0
    fallback_from: str = ""
    fallback_error: str | None = None
    cause: SlotdError | None = None
    scope: trio.CancelScope = msgspec.field(default_factory=trio.CancelScope)

    @property
    def slot(self) -> str:
        """The slot that it was carried to; "" for none."""
        kind, _, name = self.target.partition(":")
        return name if kind == "slot" else ""

    def elapsed(self) -> float:
        """Seconds since it began."""
        return trio.current_time() - self.began

    def as_dict(self) -> dict[str, Any]:
        """For the management surface; a live one shows the time so far."""
        return {
            "id": self.id,
            "began_unix": self.began_unix,
            "path": self.path,
            "client": self.client,
            "model": self.model,
            "stream": self.stream,
            "tier": self.tier,
            "rule": self.rule,
            "target": self.target,
            "target_model": self.target_model,
            "cache": self.cache,
            "generation": self.generation,
            "phase": self.phase,
            "progress": self.progress or None,
            "parent": self.parent or None,
            "resolve_s": self.resolve_s,
            "wait_s": self.wait_s,
            "first_byte_s": self.first_byte_s,
            "total_s": self.total_s if self.total_s is not None else self.elapsed(),
            "status": self.status,
            "outcome": self.outcome,
            "error": self.error,
            "tokens_in": self.tokens_in,
            "tokens_out": self.tokens_out,
            "bytes_in": self.bytes_in,
            "bytes_out": self.bytes_out,
            "replays": self.replays,
            "priority": self.priority,
            "fallback_from": self.fallback_from or None,
            "fallback_error": self.fallback_error,
        }


class RecordBook:
    """Live requests and the last ``keep`` finished ones.

    ``on_finish`` is called with each record as it ends, and ``on_start`` as it
    begins, in the exchange's task; they must not block.
    """

    def __init__(
        self,
        keep: int,
        on_finish: Callable[[RequestRecord], None],
        on_start: Callable[[RequestRecord], None] = lambda record: None,
    ) -> None:
        self._live: dict[str, RequestRecord] = {}
        self._recent: deque[RequestRecord] = deque(maxlen=keep)
        self._on_finish = on_finish
        self._on_start = on_start
        self._ended: SlotdError | None = None

    def open(self, record: RequestRecord) -> None:
        self._live[record.id] = record
        self._on_start(record)
        if self._ended is not None:
            self.end(record, self._ended)

    def close(self, record: RequestRecord) -> None:
        """The request has ended. Idempotent.

        One that ends with the request on whose behalf it was made has been
        left by nobody, where that one was ended from outside: it has its cause.
        """
        if self._live.pop(record.id, None) is not None:
            if record.outcome == "client_gone" and (cause := self._cause(record)) is not None:
                record.outcome, record.error = "error", cause.code
            record.total_s = record.elapsed()
            record.phase = "done"
            record.cause = None  # has been told; if it was raised, its traceback leads to the whole request
            self._recent.append(record)
            self._on_finish(record)

    @property
    def live_count(self) -> int:
        return len(self._live)

    def live(self) -> tuple[RequestRecord, ...]:
        return tuple(self._live.values())

    def recent(self) -> tuple[RequestRecord, ...]:
        """Newest first."""
        return tuple(reversed(self._recent))

    def find(self, id: str) -> RequestRecord | None:
        return self._live.get(id) or next((r for r in self._recent if r.id == id), None)

    def cancel(self, id: str) -> bool:
        """End a live request as an operator's wish. False if it is not live."""
        record = self._live.get(id)
        if record is None:
            return False
        self.end(record, RequestCancelled("an operator cancelled this request"))
        return True

    def end_all(self, cause: SlotdError) -> int:
        """End every request, also those to come, with ``cause`` for its answer; returns how many live."""
        self._ended = cause
        for record in self._live.values():
            self.end(record, cause)
        return len(self._live)

    def _cause(self, record: RequestRecord) -> SlotdError | None:
        """Why it was ended from outside, alone or with the one that it was made for."""
        parent = self._live.get(record.parent)
        return record.cause or (None if parent is None else self._cause(parent))

    def end(self, record: RequestRecord, cause: SlotdError) -> None:
        """End a request from outside: ``cause`` is what it is answered with, unless it has one already."""
        if record.cause is None:
            record.cause = cause
        record.scope.cancel()


class UsageTail:
    """Finds token counts at the end of an answer without parsing it.

    Engines put usage into the last event of a stream, or near the end of a
    document; only that much is kept.
    """

    _KEEP: ClassVar = 4096
    _USED: ClassVar = re.compile(rb'"(prompt|input|completion|output)_tokens"\s*:\s*(\d+)')
    # What a model says cannot look like it: JSON escapes line ends and quotes.
    _END: ClassVar = re.compile(
        rb"(?:^|[\r\n])(?:data: ?\[DONE\]|event: ?(?:message_stop|response\.completed)[\r\n])"
        rb'|"type"\s*:\s*"(?:message_stop|response\.completed)"'
    )

    __slots__ = ("_pieces", "_size")

    def __init__(self) -> None:
        self._pieces: list[bytes] = []  # joined when somebody looks, or when they are twice what is kept
        self._size = 0

    def feed(self, data: bytes) -> None:
        self._pieces.append(data)
        self._size += len(data)
        if self._size > 2 * self._KEEP:
            self._join()

    def _join(self) -> bytes:
        """What is kept, in one piece."""
        if len(self._pieces) == 1 and self._size <= self._KEEP:
            return self._pieces[0]
        tail = b"".join(self._pieces)[-self._KEEP :]
        self._pieces[:] = [tail]
        self._size = len(tail)
        return tail

    def ended(self) -> bool:
        """Whether the last event of a stream has been seen, in any dialect."""
        return self._END.search(self._join()) is not None

    def closed(self) -> bool:
        """Whether the very last thing seen is the closing event of a stream.

        Stricter than :meth:`ended`: nothing has followed it.
        """
        return self._join().endswith((b"\n\ndata: [DONE]\n\n", b'\ndata: {"type":"message_stop"}\n\n'))

    def read(self) -> tuple[int | None, int | None]:
        """Input and output tokens, as far as the answer tells."""
        into: int | None = None
        out: int | None = None
        tail = self._join()
        # No count begins earlier than the longest of their names allows, so what is before is not searched.
        if (found := tail.find(b'_tokens"')) < 0:
            return into, out
        for kind, number in self._USED.findall(tail, max(found - len(b'"completion'), 0)):
            if kind in (b"prompt", b"input"):
                into = int(number)
            else:
                out = int(number)
        return into, out
