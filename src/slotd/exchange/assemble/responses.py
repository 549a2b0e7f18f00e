"""``/v1/responses``: the last event holds the answer, all but complete.

As llama.cpp builds the two (checked against the engine, field by field),
``response.completed`` carries the whole response, which differs from the
engine's non-streaming answer only in that

- ``completed_at`` is missing: the engine sets it to ``created_at``;
- reasoning items lack ``"status": "completed"``.

Where a token limit cuts short what might have become a tool call, the engine's
own answer shows the text so far and the stream ends with no output at all. An
empty output is therefore not believed (NotAssemblable): asking again costs the
few tokens that it took.

The events before it are the same content in pieces and are not kept.
"""

from __future__ import annotations

from typing import Any

import msgspec

from slotd.exchange.assemble.errors import MalformedStream, NotAssemblable
from slotd.exchange.assemble.shape import ABSENT, Budget, Shape, decode, kept, tokens
from slotd.wire.sse import Event

__all__ = ["Responses"]


class _Event(msgspec.Struct):
    type: str = ""
    response: msgspec.Raw = ABSENT
    error: msgspec.Raw = ABSENT


_decoder = msgspec.json.Decoder(_Event)
_response_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])
_output_decoder = msgspec.json.Decoder(list[dict[str, Any]])


class Responses(Shape):
    def __init__(self, budget: Budget, *, stops: bool = False) -> None:
        super().__init__(budget, stops=stops)
        self._response: dict[str, msgspec.Raw] = {}
        self._output: list[dict[str, Any]] = []

    def event(self, event: Event) -> None:
        if event.name == "error":
            self.failed_by_event(event)
            return
        found = decode(_decoder, event.data)
        kind = found.type or event.name
        if (error := kept(found.error)) is not None:
            self.failed(error)
        elif kind == "response.completed":
            response = kept(found.response)
            if response is None:
                raise MalformedStream("the engine's response.completed carries no response")
            self.budget.keep(response)
            self._response = decode(_response_decoder, bytes(response))
            self._output = decode(_output_decoder, bytes(self._response.get("output", b"[]")))
            self.done = True

    def answer(self) -> dict[str, Any]:
        if not self._output and tokens(self._response.get("usage")) > 0:
            raise NotAssemblable("the engine's stream left out text that it held back at the end")
        for item in self._output:
            if item.get("type") == "reasoning":
                item.setdefault("status", "completed")
        answer: dict[str, Any] = {}
        if "created_at" in self._response:
            answer["completed_at"] = self._response["created_at"]
        return answer | self._response | {"output": self._output}
