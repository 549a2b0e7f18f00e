"""``/v1/messages`` (the Anthropic shape): events into one ``message``.

As llama.cpp builds the two (checked against the engine, field by field):

- The answer lists thinking, then text, then tool uses, whatever order the
  blocks started in, and only those that are not empty. Block indexes of the
  stream may collide (text that follows a tool use), and a block may be
  announced twice, so deltas go by their type, and tool uses by their id.
- ``thinking`` has an empty ``signature``. A tool's ``input`` is the parsed
  JSON, or ``{}`` where that is cut short.
- ``message_start`` has the id, the model and the input side of the usage. It
  is sent with the first token, **unless that token is part of a character**
  (many emoji are): then the stream never says these things, and
  :class:`~slotd.exchange.assemble.errors.NotAssemblable` is raised at the next
  event, while hardly anything has been generated.
- Text is held back while it may still become a tool call or a stop string. At
  a token limit the engine's own answer shows it, the stream never does. Events
  do not count tokens, so with stop sequences any token without a delta of its
  own counts as held back, and ``NotAssemblable`` is raised at the end.
"""

from __future__ import annotations

from typing import Any

import msgspec

from slotd.exchange.assemble.errors import NotAssemblable
from slotd.exchange.assemble.shape import ABSENT, Budget, Shape, decode, kept, tokens
from slotd.wire.sse import Event

__all__ = ["Messages"]


class _Block(msgspec.Struct):
    type: str
    id: str = ""
    name: str = ""


class _Message(msgspec.Struct):
    id: str
    model: str
    usage: dict[str, msgspec.Raw]


class _Delta(msgspec.Struct):
    type: str = ""
    text: str = ""
    thinking: str = ""
    partial_json: str = ""
    signature: str = ""
    stop_reason: str | None = None
    stop_sequence: str | None = None


class _Event(msgspec.Struct):
    type: str = ""
    index: int = 0
    message: _Message | None = None
    content_block: _Block | None = None
    delta: _Delta | None = None
    usage: dict[str, msgspec.Raw] | None = None
    error: msgspec.Raw = ABSENT


_decoder = msgspec.json.Decoder(_Event)


class _ToolUse:
    __slots__ = ("id", "json", "name")

    def __init__(self, id: str, name: str) -> None:
        self.id = id
        self.name = name
        self.json: list[str] = []

    def document(self) -> dict[str, Any]:
        try:
            value = msgspec.json.decode("".join(self.json))
        except msgspec.DecodeError:  # cut by a token limit: the engine answers the same
            value = {}
        return {"type": "tool_use", "id": self.id, "name": self.name, "input": value}


class Messages(Shape):
    def __init__(self, budget: Budget, *, stops: bool = False) -> None:
        super().__init__(budget, stops=stops)
        self._start: _Message | None = None
        self._usage: dict[str, msgspec.Raw] = {}
        self._end = _Delta()
        self._thinking: list[str] = []
        self._signature: list[str] = []
        self._text: list[str] = []
        self._deltas = 0
        self._tools: dict[str, _ToolUse] = {}  # by id, in order
        self._at: dict[int, _ToolUse] = {}  # by block index, as last announced

    def event(self, event: Event) -> None:
        if event.name == "error":
            self.failed_by_event(event)
            return
        found = decode(_decoder, event.data)
        kind = found.type or event.name
        if (error := kept(found.error)) is not None:
            self.failed(error)
        elif kind == "message_start" and found.message is not None:
            self._start = found.message
            self._add_usage(found.message.usage)
        elif kind == "ping":
            return
        elif self._start is None:
            raise NotAssemblable("the engine's stream has no message_start")
        elif kind == "content_block_start" and found.content_block is not None:
            self._announced(found.index, found.content_block)
        elif kind == "content_block_delta" and found.delta is not None:
            self._grown(found.index, found.delta)
        elif kind == "message_delta":
            self._end = found.delta or self._end
            self._add_usage(found.usage or {})
        elif kind == "message_stop":
            self.done = True

    def _announced(self, index: int, block: _Block) -> None:
        if block.type != "tool_use":
            return
        tool = self._tools.get(block.id)
        if tool is None:
            self.budget.keep(block.id + block.name)
            tool = self._tools[block.id] = _ToolUse(block.id, block.name)
        self._at[index] = tool

    def _grown(self, index: int, delta: _Delta) -> None:
        if delta.type != "signature_delta":
            self._deltas += 1
        if delta.type == "text_delta":
            self._add(self._text, delta.text)
        elif delta.type == "thinking_delta":
            self._add(self._thinking, delta.thinking)
        elif delta.type == "signature_delta":
            self._add(self._signature, delta.signature)
        elif delta.type == "input_json_delta" and index in self._at:
            self._add(self._at[index].json, delta.partial_json)

    def _add(self, pieces: list[str], piece: str) -> None:
        self.budget.keep(piece)
        pieces.append(piece)

    def _add_usage(self, usage: dict[str, msgspec.Raw]) -> None:
        self._usage.update((key, value.copy()) for key, value in usage.items())

    def _check(self) -> None:
        """Raise ``NotAssemblable`` where text was held back and never sent."""
        generated = tokens(msgspec.json.encode(self._usage))
        if self._end.stop_reason == "max_tokens":
            held = self._deltas < generated if self.stops else self._deltas == 0
        else:
            held = generated > 1 and self._deltas == 0
        if held:
            raise NotAssemblable("the engine's stream left out text that it held back at the end")

    def answer(self) -> dict[str, Any]:
        assert self._start is not None, "nothing is taken in before message_start"
        self._check()
        content: list[dict[str, Any]] = []
        if thinking := "".join(self._thinking):
            content.append({"type": "thinking", "thinking": thinking, "signature": "".join(self._signature)})
        if text := "".join(self._text):
            content.append({"type": "text", "text": text})
        content += [tool.document() for tool in self._tools.values()]
        return {
            "id": self._start.id,
            "type": "message",
            "role": "assistant",
            "content": content,
            "model": self._start.model,
            "stop_reason": self._end.stop_reason,
            "stop_sequence": self._end.stop_sequence,
            "usage": self._usage,
        }
