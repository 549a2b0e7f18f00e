"""``/v1/chat/completions``: chunks into one ``chat.completion``.

As llama.cpp builds the two (checked against the engine, field by field):

- ``message.content`` is always a string, also beside tool calls; the ``null``
  of the stream's opening chunk is only that chunk's.
- ``reasoning_content`` and ``tool_calls`` are present only where they are not
  empty; a tool call has ``type``, ``function`` and ``id`` and no ``index``.
- With several choices, chunks come interleaved and every choice ends with its
  own usage and timings; the answer carries those of choice 0.
- Text is held back while it may still become a tool call or a stop string. At
  a token limit the engine's own answer shows it, the stream never does; how
  many tokens were sent is in the timings of every chunk, so that this is seen
  and :class:`~slotd.exchange.assemble.errors.NotAssemblable` raised.
- Log probabilities are not here: the stream leaves out those of tokens that
  add no text, the end-of-text token for one (see ``plan.py``).
"""

from __future__ import annotations

from typing import Any

import msgspec

from slotd.exchange.assemble.errors import MalformedStream, NotAssemblable
from slotd.exchange.assemble.shape import ABSENT, DONE, Budget, Shape, decode, given, kept, tokens
from slotd.wire.sse import Event

__all__ = ["Chat"]


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class _ToolCall(msgspec.Struct):
    index: int = 0
    id: str | None = None
    type: str | None = None
    function: _Function | None = None


class _Delta(msgspec.Struct):
    role: str | None = None
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[_ToolCall] | None = None


class _Choice(msgspec.Struct):
    index: int = 0
    delta: _Delta | None = None
    finish_reason: str | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    created: int | None = None
    id: str | None = None
    model: str | None = None
    system_fingerprint: str | None = None
    usage: msgspec.Raw = ABSENT
    timings: msgspec.Raw = ABSENT
    error: msgspec.Raw = ABSENT


_decoder = msgspec.json.Decoder(_Chunk | None)


class _Call:
    __slots__ = ("arguments", "id", "name", "type")

    def __init__(self) -> None:
        self.id: str | None = None
        self.type = "function"
        self.name: list[str] = []
        self.arguments: list[str] = []

    def document(self) -> dict[str, Any]:
        function = {"name": "".join(self.name), "arguments": "".join(self.arguments)}
        return {"type": self.type, "function": function} | given(id=self.id or None)


class _Message:
    __slots__ = ("calls", "content", "finish_reason", "progress", "reasoning", "role", "timings", "usage")

    def __init__(self) -> None:
        self.role = "assistant"
        self.content: list[str] = []
        self.reasoning: list[str] = []
        self.calls: dict[int, _Call] = {}
        self.finish_reason: str | None = None
        self.progress: msgspec.Raw | None = None  # timings as of the last token that was sent
        self.usage: msgspec.Raw | None = None
        self.timings: msgspec.Raw | None = None

    def check(self) -> None:
        """Raise ``NotAssemblable`` where text was held back and never sent."""
        generated = tokens(self.usage)
        if self.finish_reason == "length":
            held = tokens(self.progress) < generated
        else:
            held = generated > 1 and not (self.content or self.reasoning or self.calls)
        if held:
            raise NotAssemblable("the engine's stream left out text that it held back at the end")

    def document(self) -> dict[str, Any]:
        return {"role": self.role, "content": "".join(self.content)} | given(
            reasoning_content="".join(self.reasoning) or None,
            tool_calls=[call.document() for _, call in sorted(self.calls.items())] or None,
        )


class Chat(Shape):
    def __init__(self, budget: Budget, *, stops: bool = False) -> None:
        super().__init__(budget, stops=stops)
        self._messages: dict[int, _Message] = {}
        self._ended: _Message | None = None  # the choice that ended last: usage follows it
        self._head = _Chunk()

    def event(self, event: Event) -> None:
        if event.data == DONE:
            if not self._messages or any(m.finish_reason is None for m in self._messages.values()):
                raise MalformedStream("the engine's stream ended with an unfinished choice")
            self.done = True
            return
        chunk = decode(_decoder, event.data)
        if chunk is None:  # llama.cpp opens the stream of several choices with a null
            return
        if (error := kept(chunk.error)) is not None:
            self.failed(error)
            return
        self._head = chunk
        for choice in chunk.choices:
            message, grown = self._choice(choice)
            if grown:
                message.progress = kept(chunk.timings) or message.progress
        if self._ended is not None and not chunk.choices:
            self._ended.usage = kept(chunk.usage) or self._ended.usage
            self._ended.timings = kept(chunk.timings) or self._ended.timings

    def _choice(self, choice: _Choice) -> tuple[_Message, bool]:
        """The message of this choice, and whether something was added to it."""
        message = self._messages.get(choice.index)
        if message is None:
            self.budget.keep(b"")
            message = self._messages[choice.index] = _Message()
        grown = choice.delta is not None and self._delta(message, choice.delta)
        if choice.finish_reason is not None:
            message.finish_reason = choice.finish_reason
            self._ended = message
        return message, grown

    def _delta(self, message: _Message, delta: _Delta) -> bool:
        if delta.role is not None:
            message.role = delta.role
        if delta.content:
            self._add(message.content, delta.content)
        if delta.reasoning_content:
            self._add(message.reasoning, delta.reasoning_content)
        for part in delta.tool_calls or ():
            call = message.calls.get(part.index)
            if call is None:
                self.budget.keep(b"")
                call = message.calls[part.index] = _Call()
            call.id = part.id or call.id
            call.type = part.type or call.type
            if part.function is not None:
                if part.function.name:
                    self._add(call.name, part.function.name)
                if part.function.arguments:
                    self._add(call.arguments, part.function.arguments)
        return bool(delta.content or delta.reasoning_content or delta.tool_calls)

    def _add(self, pieces: list[str], piece: str) -> None:
        self.budget.keep(piece)
        pieces.append(piece)

    def answer(self) -> dict[str, Any]:
        ordered = sorted(self._messages.items())
        for _, message in ordered:
            message.check()
        choices = [
            {"finish_reason": message.finish_reason, "index": index, "message": message.document()}
            for index, message in ordered
        ]
        first = ordered[0][1]
        head = self._head
        return (
            {"choices": choices}
            | given(created=head.created, model=head.model, system_fingerprint=head.system_fingerprint)
            | {"object": "chat.completion"}
            | given(usage=first.usage, id=head.id, timings=first.timings)
        )
