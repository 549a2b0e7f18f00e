"""The heads of messages that have been seen before. Pure."""

from __future__ import annotations

import re
from typing import ClassVar, Generic, TypeVar

__all__ = ["HeadMemo"]

T = TypeVar("T")

_LENGTH = re.compile(rb"\r\ncontent-length: ?(\d{1,15})\r\n", re.IGNORECASE)


class HeadMemo(Generic[T]):
    """What the heads say that have been read before, should they come again.

    Two that differ in nothing but the digits of their one ``Content-Length`` say
    the same, but for that. Holds at most :data:`ROOM` heads of at most :data:`LONGEST` bytes.
    """

    ROOM: ClassVar = 64
    LONGEST: ClassVar = 4096

    def __init__(self) -> None:
        self._known: dict[bytes | tuple[bytes, bytes], T] = {}

    def __len__(self) -> int:
        return len(self._known)

    def find(self, data: bytes, end: int) -> tuple[T, int | None] | None:
        """What the head in ``data[:end]`` says, and its length; None for one that is not known.

        ``end`` is where its empty line begins, with the line end before that.
        """
        if end > self.LONGEST:
            return None
        if (found := _LENGTH.search(data, 0, end + 2)) is None:
            known = self._known.get(data[:end])
            return None if known is None else (known, None)
        first, last = found.span(1)
        known = self._known.get((data[:first], data[last:end]))
        return None if known is None else (known, int(found[1]))

    def learn(self, data: bytes, end: int, fields: int, length: int | None, said: T) -> None:
        """The head in ``data[:end]`` has been read: it says ``said``.

        ``fields``: of so many headers; ``length``: that of its ``Content-Length``, None
        without one. Kept only where nothing but the bytes decides: each header is a
        line, and :meth:`find` finds the length where the reader has found it.
        """
        if end > self.LONGEST or not data.count(b"\n", 0, end) == data.count(b"\r\n", 0, end) == fields:
            return
        found = _LENGTH.search(data, 0, end + 2)
        if (None if found is None else int(found[1])) != length:
            return
        if len(self._known) >= self.ROOM:
            self._known.clear()  # there are more of them than are worth keeping
        if found is None:
            self._known[data[:end]] = said
        else:
            self._known[data[: found.start(1)], data[found.end(1) : end]] = said
