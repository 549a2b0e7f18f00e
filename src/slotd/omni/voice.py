"""What the client hears: one document at the end, or one stream that all turns share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec

from slotd.errors import EngineError
from slotd.exchange.answer import Answer
from slotd.exchange.inbound import Outbound
from slotd.omni.child import Collected
from slotd.omni.deltas import Call, Deltas
from slotd.omni.failure import TurnFailed
from slotd.omni.report import Note
from slotd.omni.turns import Turn

__all__ = ["Document", "End", "Head", "Reading", "Voice", "read_document"]

_PASSED = frozenset({b"content-type", b"content-length", b"retry-after"})


@dataclass(frozen=True, slots=True)
class Head:
    """What every answer and every chunk of one chat says of itself: as its first turn did."""

    id: str = ""
    created: int = 0
    model: str = ""


@dataclass(frozen=True, slots=True)
class End:
    """The end of a chat. ``calls``: those that the client is to run. ``text`` follows what the turn said.

    ``summary``: the answer's ``slotd`` field.
    """

    turn: Turn
    finish_reason: str
    usage: Mapping[str, Any]
    summary: Mapping[str, Any]
    calls: tuple[Call, ...] = ()
    text: str = ""


class Reading(Outbound, Protocol):
    """One turn of the model as it comes."""

    async def turn(self) -> Turn:
        """The turn, once it has come. Raises :class:`TurnFailed`."""
        ...


class Voice(Protocol):
    """Speaks to the client. Each of its methods raises :class:`slotd.exchange.inbound.ClientGone`."""

    @property
    def streams(self) -> bool: ...

    def reading(self, deltas: Deltas) -> Reading:
        """What the model's next turn is to be sent to."""

    async def note(self, note: Note) -> None:
        """Tell how a tool is doing."""

    async def comment(self, words: str) -> None:
        """Tell what else goes on."""

    async def finish(self, end: End) -> None:
        """Say the end."""

    async def fail(self, failed: TurnFailed) -> None:
        """The turn's own failure is the answer."""


class _Message(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[dict[str, Any]] | None = None


class _Choice(msgspec.Struct):
    message: _Message
    finish_reason: str | None = None


class _Completion(msgspec.Struct):
    choices: list[_Choice]
    usage: dict[str, Any] | None = None
    id: str = ""
    created: int = 0
    model: str = ""


_completion = msgspec.json.Decoder(_Completion)
_any = msgspec.json.Decoder(dict[str, Any])


def read_document(answer: Collected, deltas: Deltas) -> tuple[Turn, Head, dict[str, Any]]:
    """A turn that came as one document: what is in it, and the delta that a stream's client gets of it.

    Raises :class:`TurnFailed`.
    """
    if answer.status != 200:
        headers = [(key, value) for key, value in answer.headers if key in _PASSED]
        raise TurnFailed(answer.status, headers, answer.body)
    try:
        found = _completion.decode(answer.body)
        document = _any.decode(answer.body)
        choice = found.choices[0]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, IndexError) as error:
        raise TurnFailed.of(EngineError(f"the engine's answer is no chat completion: {error}")) from error
    message = document["choices"][0]["message"]
    calls = [{**call, "index": n} for n, call in enumerate(choice.message.tool_calls or ())]
    passed = deltas.feed({**message, "tool_calls": calls})
    for call in deltas.end().get("tool_calls", ()):
        passed.setdefault("tool_calls", []).append(call)
    turn = Turn(
        content=deltas.content,
        reasoning=deltas.reasoning,
        calls=deltas.calls(),
        finish_reason=choice.finish_reason or "stop",
        usage=found.usage or {},
        document=document,
    )
    return turn, Head(found.id, found.created, found.model), passed


class _Whole(Collected):
    """A :class:`Reading` of a document, for a client that gets one."""

    def __init__(self, deltas: Deltas, voice: Document) -> None:
        super().__init__()
        self._deltas = deltas
        self._voice = voice

    async def turn(self) -> Turn:
        turn, head, _ = read_document(self, self._deltas)
        self._voice.head = self._voice.head or head
        return turn


@dataclass(slots=True)
class Document:
    """A :class:`Voice` that is silent until the end."""

    answer: Answer
    head: Head | None = field(default=None)

    @property
    def streams(self) -> bool:
        return False

    def reading(self, deltas: Deltas) -> Reading:
        return _Whole(deltas, self)

    async def note(self, note: Note) -> None:
        return None

    async def comment(self, words: str) -> None:
        return None

    async def finish(self, end: End) -> None:
        document = completion(end, self.head or Head())
        body = msgspec.json.encode(document)
        length = str(len(body)).encode()
        self.answer.begin(200, [(b"content-type", b"application/json"), (b"content-length", length)])
        await self.answer.send(body)

    async def fail(self, failed: TurnFailed) -> None:
        self.answer.begin(failed.status, failed.headers)
        await self.answer.send(failed.body)


def completion(end: End, head: Head) -> dict[str, Any]:
    """The document: the engine's last one, of one chat and with everything counted. Pure."""
    document = dict(end.turn.document or {"object": "chat.completion"})
    choices = document.get("choices") or [{"index": 0, "message": {}}]
    message = {"role": "assistant", **choices[0]["message"]}
    message.pop("tool_calls", None)
    if end.calls:
        message["tool_calls"] = shown_calls(end.calls)
    if end.text:
        message["content"] = f"{end.turn.content}\n\n{end.text}" if end.turn.content else end.text
    document["choices"] = [{**choices[0], "finish_reason": end.finish_reason, "message": message}]
    document |= {"id": head.id, "created": head.created, "model": head.model}
    document["slotd"] = end.summary
    document.pop("usage", None)  # last, where it is looked for
    return {**document, "usage": end.usage}


def shown_calls(calls: Sequence[Call]) -> list[dict[str, Any]]:
    return [
        {"id": c.id, "type": "function", "function": {"name": c.name, "arguments": c.arguments}}
        for c in calls
    ]
