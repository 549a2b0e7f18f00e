"""What the assemblers of the four API shapes have in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from slotd.exchange.assemble.errors import AssemblyTooLarge, IncompleteStream, MalformedStream
from slotd.wire.sse import Event

__all__ = [
    "ABSENT",
    "DONE",
    "Assembled",
    "Budget",
    "Shape",
    "decode",
    "error_status",
    "given",
    "kept",
    "tokens",
]

PIECE_OVERHEAD = 64  # bytes that a kept piece costs beside its text, about
DONE = b"[DONE]"
ABSENT = msgspec.Raw(b"")  # msgspec does not take ``Raw | None``

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Assembled:
    """The answer to the non-streaming request; ``body`` is ``application/json``."""

    status: int
    body: bytes


class Budget:
    """Bounds what one assembly keeps."""

    __slots__ = ("_left", "limit")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._left = limit

    def keep(self, piece: str | bytes | msgspec.Raw) -> None:
        """Account for a piece about to be kept; raises :class:`AssemblyTooLarge`.

        A character counts as one byte: text of a wider script takes up to
        four, so the bound is one of magnitude.
        """
        self._left -= len(memoryview(piece) if isinstance(piece, msgspec.Raw) else piece) + PIECE_OVERHEAD
        if self._left < 0:
            raise AssemblyTooLarge(self.limit)


class Shape:
    """Collects the events of one stream. Subclasses know one API's events.

    ``done`` turns true at the stream's natural end, or with the error event
    that ends it instead; nothing after it counts.
    """

    def __init__(self, budget: Budget, *, stops: bool = False) -> None:
        self.budget = budget
        self.stops = stops  # whether the request gave stop strings
        self.done = False
        self._error: Assembled | None = None

    def event(self, event: Event) -> None:
        """Take one event in. Raises :class:`MalformedStream`, :class:`AssemblyTooLarge`
        or :class:`~slotd.exchange.assemble.errors.NotAssemblable`."""
        raise NotImplementedError

    def answer(self) -> dict[str, Any]:
        """The answer's document, once ``done``.

        Raises ``NotAssemblable`` where the engine's own answer would hold text
        that never was in the stream.
        """
        raise NotImplementedError

    def failed(self, error: msgspec.Raw) -> None:
        """The engine reports an error instead of going on: that is its answer.

        llama.cpp sends the very object that it would have answered with, whose
        ``code`` is the HTTP status it would have used.
        """
        self._error = Assembled(error_status(error), b'{"error":' + bytes(error) + b"}")
        self.done = True

    def failed_by_event(self, event: Event) -> None:
        """An ``error`` event: its data is the error object, in an envelope or bare."""
        error = kept(decode(_envelope_decoder, event.data).error)
        self.failed(error or msgspec.Raw(event.data))

    def result(self) -> Assembled:
        if self._error is not None:
            return self._error
        if not self.done:
            raise IncompleteStream("the engine's stream ended before its answer was complete")
        return Assembled(200, msgspec.json.encode(self.answer()))


class _Envelope(msgspec.Struct):
    error: msgspec.Raw = ABSENT


_envelope_decoder = msgspec.json.Decoder(_Envelope)


class _Error(msgspec.Struct):
    code: int = 500


_error_decoder = msgspec.json.Decoder(_Error)


def error_status(error: msgspec.Raw) -> int:
    """The HTTP status that an engine's error object stands for."""
    try:
        code = _error_decoder.decode(error).code
    except msgspec.DecodeError:
        return 500
    return code if 400 <= code <= 599 else 500


def decode(decoder: msgspec.json.Decoder[T], data: bytes) -> T:
    """Decode an event's data; raises :class:`MalformedStream`."""
    try:
        return decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise MalformedStream(f"an event of the engine's stream cannot be read: {error}") from error


def kept(raw: msgspec.Raw) -> msgspec.Raw | None:
    """``raw`` as a value of its own, not a view of its event; None if absent or null."""
    return None if bytes(raw) in (b"", b"null") else raw.copy()


class _Counts(msgspec.Struct):
    completion_tokens: int = 0
    output_tokens: int = 0
    predicted_n: int = 0


_counts_decoder = msgspec.json.Decoder(_Counts)


def tokens(counts: msgspec.Raw | bytes | None) -> int:
    """How many tokens a usage object, or a timings object, says were generated."""
    if counts is None:
        return 0
    found = decode(_counts_decoder, bytes(counts))
    return max(found.completion_tokens, found.output_tokens, found.predicted_n)


def given(**fields: Any) -> dict[str, Any]:
    """The fields that have a value, for keys that are absent rather than null."""
    return {key: value for key, value in fields.items() if value is not None}
