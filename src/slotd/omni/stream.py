"""The stream that all turns of a chat share: one id, one end, and between them what the tools do."""

from __future__ import annotations

from typing import Any

import msgspec

from slotd.errors import EngineError
from slotd.exchange.answer import EVENTS, Answer
from slotd.exchange.assemble.shape import error_status
from slotd.exchange.engine_errors import as_event
from slotd.exchange.headers import is_events
from slotd.exchange.inbound import Headers
from slotd.omni.child import Collected
from slotd.omni.deltas import Deltas
from slotd.omni.failure import TurnFailed, said
from slotd.omni.report import Note
from slotd.omni.turns import Turn
from slotd.omni.voice import End, Head, Reading, read_document
from slotd.wire.sse import Event, EventParser, EventTooLarge

__all__ = ["Stream"]

DONE = b"[DONE]"
EVENT_MAX = 4 << 20
ABSENT = msgspec.Raw(b"")


class _Choice(msgspec.Struct):
    index: int = 0
    delta: dict[str, Any] | None = None
    finish_reason: str | None = None
    logprobs: msgspec.Raw = ABSENT


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    id: str = ""
    created: int = 0
    model: str = ""
    usage: dict[str, Any] | None = None
    error: msgspec.Raw = ABSENT


_chunk = msgspec.json.Decoder(_Chunk | None)


class Stream:
    """A :class:`slotd.omni.voice.Voice` that says everything as it comes.

    ``events``: the client wants to know of tools in events of their own instead
    of comments. ``usage``: it wants to know what all turns together have used.
    """

    def __init__(self, answer: Answer, *, events: bool, usage: bool) -> None:
        self._answer = answer
        self._events = events
        self._usage = usage
        self._head: Head | None = None
        self._introduced = False
        self._spoke = False  # some turn's text has gone out
        self._fresh = True  # none of the present turn's has

    @property
    def streams(self) -> bool:
        return True

    def reading(self, deltas: Deltas) -> Reading:
        self._fresh = True
        return _Reading(self, deltas)

    async def note(self, note: Note) -> None:
        await self.frame(note.event() if self._events else note.comment())

    async def comment(self, words: str) -> None:
        await self.frame(f": omni {' '.join(words.split())}\n\n".encode("utf-8", "replace"))

    async def frame(self, frame: bytes) -> None:
        """Whole frames, as they are."""
        if not self._answer.begun:
            record = self._answer.record
            record.first_byte_s = record.elapsed()
            self._answer.begin(200, [EVENTS, (b"cache-control", b"no-cache")])
        await self._answer.send(frame)

    async def delta(self, head: Head, delta: dict[str, Any], logprobs: msgspec.Raw = ABSENT) -> None:
        """Pass a delta on, unless nothing is in it. Texts of two turns are kept apart by an empty line."""
        self._head = self._head or head
        if not delta:
            return
        if isinstance(text := delta.get("content"), str):
            if self._fresh and self._spoke:
                delta = {**delta, "content": f"\n\n{text}"}
            self._fresh, self._spoke = False, True
        if not self._introduced:
            self._introduced = True
            delta = {"role": "assistant", **delta}
        choice: dict[str, Any] = {"index": 0, "delta": delta, "finish_reason": None}
        if bytes(logprobs) not in (b"", b"null"):
            choice["logprobs"] = logprobs
        await self.frame(self._chunk(choice))

    async def finish(self, end: End) -> None:
        head = self._head or Head()
        if end.text:
            self._fresh = True
            await self.delta(head, {"content": end.text})
        if not self._introduced:
            await self.delta(head, {"content": ""})
        last = {"index": 0, "delta": {}, "finish_reason": end.finish_reason}
        frames = self._chunk(last, slotd=end.summary)
        if self._usage:
            frames += self._chunk(None, usage=end.usage)
        await self.frame(frames + b"data: [DONE]\n\n")

    async def fail(self, failed: TurnFailed) -> None:
        answer = self._answer
        if answer.started:
            await answer.refuse(as_event(failed.status, failed.body, answer.dialect))
            return
        answer.begin(failed.status, failed.headers)
        await answer.send(failed.body)

    def _chunk(self, choice: dict[str, Any] | None, **more: Any) -> bytes:
        head = self._head or Head()
        document = {
            "choices": [] if choice is None else [choice],
            "created": head.created,
            "id": head.id,
            "model": head.model,
            "object": "chat.completion.chunk",
            **more,
        }
        return b"data: " + msgspec.json.encode(document) + b"\n\n"


class _Reading:
    """A turn that streams: its text goes on at once, so that the client's pace is the engine's."""

    def __init__(self, stream: Stream, deltas: Deltas) -> None:
        self._stream = stream
        self._deltas = deltas
        self._parser = EventParser(max_event_bytes=EVENT_MAX)
        self._whole = Collected()
        self._events = False
        self._done = False
        self._failed: TurnFailed | None = None
        self._head = Head()
        self._finish_reason: str | None = None
        self._usage: dict[str, Any] = {}

    def start(self, status: int, headers: Headers, length: int | None = None, own: bytes = b"") -> None:
        self._events = status == 200 and is_events(headers)
        self._whole.start(status, headers, length, own)

    async def send(self, data: bytes) -> None:
        """Raises :class:`slotd.errors.SlotdError` for what is no stream of chat chunks."""
        if not self._events:
            await self._whole.send(data)
            return
        if data.startswith(b":") and b"\ndata:" not in data and self._parser.idle:
            await self._stream.frame(data)  # what the model's slot is being waited for
            return
        try:
            events = self._parser.feed(data)
        except EventTooLarge as error:
            raise EngineError(f"the engine's stream cannot be read: {error}") from error
        for event in events:
            await self._event(event)

    async def _event(self, event: Event) -> None:
        if self._done or self._failed is not None:
            return
        if event.data == DONE:
            self._done = True
            return
        try:
            chunk = _chunk.decode(event.data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise EngineError(f"an event of the engine's stream cannot be read: {error}") from error
        if chunk is None:
            return
        if event.name == "error" or bytes(chunk.error) not in (b"", b"null"):
            self._fail(event, chunk)
            return
        if chunk.id:
            self._head = Head(chunk.id, chunk.created, chunk.model)
        self._usage = chunk.usage or self._usage
        for choice in chunk.choices[:1]:
            self._finish_reason = choice.finish_reason or self._finish_reason
            if choice.delta is not None:
                await self._stream.delta(self._head, self._deltas.feed(choice.delta), choice.logprobs)

    def _fail(self, event: Event, chunk: _Chunk) -> None:
        told = bytes(chunk.error) not in (b"", b"null")
        body = b'{"error":' + bytes(chunk.error) + b"}" if told else b'{"error":' + event.data + b"}"
        # An error of slotd's own has a word for a code: the engine was lost at its first words.
        words = said(0, body)[1]
        status = 502 if words else error_status(msgspec.Raw(bytes(chunk.error) if told else event.data))
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        self._failed = TurnFailed(status, headers, body)

    async def turn(self) -> Turn:
        if self._failed is not None:
            raise self._failed
        if not self._events:
            turn, head, passed = read_document(self._whole, self._deltas)
            await self._stream.delta(head, passed)
            return Turn(turn.content, turn.reasoning, turn.calls, turn.finish_reason, turn.usage)
        if self._finish_reason is None:
            raise TurnFailed.of(EngineError("the engine's stream ended before its answer was complete"))
        await self._stream.delta(self._head, self._deltas.end())
        return Turn(
            content=self._deltas.content,
            reasoning=self._deltas.reasoning,
            calls=self._deltas.calls(),
            finish_reason=self._finish_reason,
            usage=self._usage,
        )
