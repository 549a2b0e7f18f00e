"""The two shapes in which a client gets its pictures: one document, or events."""

from __future__ import annotations

import base64
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, NoReturn, Protocol

import msgspec
import trio

from slotd.adapt import Reply
from slotd.comfy.asked import Asked
from slotd.comfy.beside import beside
from slotd.errors import AnswerTooLarge

__all__ = ["PICTURES", "Answer", "Document", "Events", "answer_for"]

PICTURES = {"image/png": "png", "image/jpeg": "jpg", "image/webp": "webp", "image/gif": "gif"}
"""What a client's browser is told that a picture is, and its usual ending; anything else is just bytes."""

EVENT_STREAM = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-cache")]

COMMENT_EVERY_S = 0.5
"""At most so often is a client told how far its picture is ..."""

COMMENT_AGAIN_S = 5.0
"""... and at least so often, changed or not."""


class Answer(Protocol):
    """Takes pictures as they come."""

    async def run(self, work: Callable[[], Awaitable[None]]) -> None:
        """Do ``work``, which calls the others, and complete the answer."""

    def says(self, words: str) -> None:
        """How far the next one is."""

    async def add(self, data: bytes, kind: str) -> None:
        """A picture; ``kind`` is its content type, as ComfyUI gave it."""


def answer_for(asked: Asked, path: str, reply: Reply) -> Answer:
    """What the request asks for."""
    return Events(asked, path, reply) if asked.stream else Document(asked, reply)


class Document:
    """OpenAI's list of pictures, when all are there."""

    def __init__(self, asked: Asked, reply: Reply) -> None:
        self._asked = asked
        self._reply = reply
        self._data: list[dict[str, str]] = []

    async def run(self, work: Callable[[], Awaitable[None]]) -> None:
        await work()
        document = {"created": int(time.time()), "data": self._data}
        await self._reply.document(msgspec.json.encode(document))

    def says(self, words: str) -> None:
        self._reply.says(words)

    async def add(self, data: bytes, kind: str) -> None:
        self._reply.progressed()
        self._data.append(_item(data, kind, self._asked, self._reply))


class Events:
    """An event for each picture when it is there; comments on its progress before the first.

    Comments are no part of an answer: until the first picture is on its way a
    lost engine costs nothing but time.
    """

    def __init__(self, asked: Asked, path: str, reply: Reply) -> None:
        self._asked = asked
        self._type = "image_edit.completed" if path.endswith("/edits") else "image_generation.completed"
        self._reply = reply
        self._words = ""
        self._changed = trio.Event()
        self._begun = False

    async def run(self, work: Callable[[], Awaitable[None]]) -> None:
        await beside(self._comment, work)
        await self._reply.send(b"data: [DONE]\n\n")

    def says(self, words: str) -> None:
        self._reply.says(words)
        if words != self._words:
            self._words = words
            self._changed.set()

    async def add(self, data: bytes, kind: str) -> None:
        event: dict[str, Any] = {"type": self._type, "created_at": int(time.time())}
        event |= _item(data, kind, self._asked, self._reply)
        if ending := PICTURES.get(_known(kind)):
            event["output_format"] = "jpeg" if ending == "jpg" else ending
        if self._asked.size is not None:
            event["size"] = "{}x{}".format(*self._asked.size)
        if not self._begun:
            self._begun = True
            await self._reply.begin(200, EVENT_STREAM)
        await self._reply.send(b"event: %s\ndata: %s\n\n" % (self._type.encode(), msgspec.json.encode(event)))

    async def _comment(self) -> NoReturn:
        while True:
            with trio.move_on_after(COMMENT_AGAIN_S):
                await self._changed.wait()
            self._changed = trio.Event()
            if self._words:
                await self._reply.comment(self._words)
            await trio.sleep(COMMENT_EVERY_S)


def _item(data: bytes, kind: str, asked: Asked, reply: Reply) -> dict[str, str]:
    """One that cannot be kept beside the answer's others comes itself: it has cost too much to be lost."""
    if asked.response_format == "url":
        known = _known(kind)
        with suppress(AnswerTooLarge):
            return {"url": reply.keep(data, known if known in PICTURES else "application/octet-stream")}
    return {"b64_json": base64.b64encode(data).decode()}


def _known(kind: str) -> str:
    return kind.partition(";")[0].strip().lower()
