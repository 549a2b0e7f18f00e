"""``/v1/completions``: text chunks into one ``text_completion``.

As llama.cpp builds the two (checked against the engine, field by field):

- Every token is a chunk, also one without text, so log probabilities add up:
  ``{"content": [...]}`` joined, or null where none were asked for.
- A list of prompts, and ``n``, number the choices through; the answer lists
  them in order and carries the usage and timings of choice 0, which are in the
  last chunk of each choice.
- Text that may be the beginning of a stop string or of a character is held
  back. If the end comes first, the engine's own answer shows it, the stream
  never does; how many tokens were sent is in the timings of every chunk, so
  that this is seen and
  :class:`~slotd.exchange.assemble.errors.NotAssemblable` raised.
- What the engine ignores in both cases (``echo``, ``suffix``, ``best_of``)
  needs nothing here.
"""

from __future__ import annotations

from typing import Any

import msgspec

from slotd.exchange.assemble.errors import MalformedStream, NotAssemblable
from slotd.exchange.assemble.shape import ABSENT, DONE, Budget, Shape, decode, given, kept, tokens
from slotd.wire.sse import Event

__all__ = ["Completions"]


class _Logprobs(msgspec.Struct):
    content: list[msgspec.Raw] = []


class _Choice(msgspec.Struct):
    index: int = 0
    text: str | None = None
    logprobs: _Logprobs | None = None
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


class _Text:
    __slots__ = ("finish_reason", "logprobs", "progress", "silent", "text", "timings", "usage")

    def __init__(self) -> None:
        self.text: list[str] = []
        self.logprobs: list[msgspec.Raw] = []
        self.finish_reason: str | None = None
        self.progress: msgspec.Raw | None = None  # timings as of the last token that was sent
        self.silent = False  # that token added no text
        self.usage: msgspec.Raw | None = None
        self.timings: msgspec.Raw | None = None

    def check(self) -> None:
        """Raise ``NotAssemblable`` where text was held back and never sent."""
        part_of_character = tokens(self.progress) < tokens(self.usage)
        part_of_stop_string = self.silent and self.finish_reason == "length"
        if part_of_character or part_of_stop_string:
            raise NotAssemblable("the engine's stream left out text that it held back at the end")

    def document(self, index: int) -> dict[str, Any]:
        return {
            "text": "".join(self.text),
            "index": index,
            "logprobs": {"content": self.logprobs} if self.logprobs else None,
            "finish_reason": self.finish_reason,
        }


class Completions(Shape):
    def __init__(self, budget: Budget, *, stops: bool = False) -> None:
        super().__init__(budget, stops=stops)
        self._texts: dict[int, _Text] = {}
        self._head = _Chunk()

    def event(self, event: Event) -> None:
        if event.data == DONE:
            if not self._texts or any(text.finish_reason is None for text in self._texts.values()):
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
            text = self._choice(choice)
            if choice.finish_reason is not None:
                text.finish_reason = choice.finish_reason
                text.usage = kept(chunk.usage)
                text.timings = kept(chunk.timings)
            else:
                text.progress = kept(chunk.timings) or text.progress
                text.silent = not choice.text

    def _choice(self, choice: _Choice) -> _Text:
        text = self._texts.get(choice.index)
        if text is None:
            self.budget.keep(b"")
            text = self._texts[choice.index] = _Text()
        if choice.text:
            self.budget.keep(choice.text)
            text.text.append(choice.text)
        if choice.logprobs is not None:
            for entry in choice.logprobs.content:
                self.budget.keep(entry)
                text.logprobs.append(entry.copy())  # not a view that keeps the whole chunk alive
        return text

    def answer(self) -> dict[str, Any]:
        ordered = sorted(self._texts.items())
        for _, text in ordered:
            text.check()
        first = ordered[0][1]
        head = self._head
        return (
            {"choices": [text.document(index) for index, text in ordered]}
            | given(created=head.created, model=head.model, system_fingerprint=head.system_fingerprint)
            | {"object": "text_completion"}
            | given(usage=first.usage, id=head.id, timings=first.timings)
        )
