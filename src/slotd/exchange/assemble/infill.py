"""``/infill``, llama.cpp's own shape: pieces of text into one document.

As llama.cpp builds the two (checked against the engine, field by field):

- Every token is an event ``{"content", "tokens_predicted", "stop": false, ...}``; the last event,
  ``"stop": true``, is the answer itself but for two fields: its ``content`` is empty, and its
  ``generation_settings`` say that it was streamed.
- There is no ``[DONE]``: that event is the end.
- Text that may be the beginning of a stop string or of a character is held back. If the end comes
  first, the engine's own answer shows it, the stream never does; how many tokens were sent tells, and
  :class:`~slotd.exchange.assemble.errors.NotAssemblable` is raised.
"""

from __future__ import annotations

from typing import Any

import msgspec

from slotd.exchange.assemble.errors import NotAssemblable
from slotd.exchange.assemble.shape import ABSENT, Budget, Shape, decode, kept
from slotd.wire.sse import Event

__all__ = ["Infill"]


class _Piece(msgspec.Struct):
    content: str = ""
    stop: bool = False
    stop_type: str = ""
    tokens_predicted: int = 0
    error: msgspec.Raw = ABSENT


_decoder = msgspec.json.Decoder(_Piece)
_document_decoder = msgspec.json.Decoder(dict[str, Any])


class Infill(Shape):
    def __init__(self, budget: Budget, *, stops: bool = False) -> None:
        super().__init__(budget, stops=stops)
        self._text: list[str] = []
        self._sent = 0  # tokens generated up to the last piece
        self._silent = False  # which added no text
        self._end = _Piece()
        self._document: dict[str, Any] = {}

    def event(self, event: Event) -> None:
        piece = decode(_decoder, event.data)
        if (error := kept(piece.error)) is not None:
            self.failed(error)
            return
        if piece.content:
            self.budget.keep(piece.content)
            self._text.append(piece.content)
        if piece.stop:
            self.budget.keep(event.data)
            self._end, self._document = piece, decode(_document_decoder, event.data)
            self.done = True
        else:
            self._sent, self._silent = piece.tokens_predicted, not piece.content

    def answer(self) -> dict[str, Any]:
        part_of_character = self._sent < self._end.tokens_predicted
        part_of_stop_string = self._silent and self._end.stop_type == "limit"
        if part_of_character or part_of_stop_string:
            raise NotAssemblable("the engine's stream left out text that it held back at the end")
        answer = self._document | {"content": "".join(self._text)}
        settings = answer.get("generation_settings")
        if isinstance(settings, dict) and "stream" in settings:
            answer["generation_settings"] = settings | {"stream": False}
        return answer
