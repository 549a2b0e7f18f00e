"""Putting a chunked request body together. Pure, strict: what could be read in two ways is no body."""

from __future__ import annotations

import re

__all__ = ["BadChunk", "ChunkedBody"]

_SIZE = re.compile(rb"([0-9A-Fa-f]{1,8})(?:;[^\r\n\0]*)?")
_TRAILER = re.compile(rb"(?:[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[^\r\n\0]*)?")
LINE_MAX = 1024
"""The longest line that tells a chunk's size; bytes."""
TRAILERS_MAX = 8192


class BadChunk(Exception):
    """What comes is no chunked body."""


class ChunkedBody:
    """Takes in bytes as they come, until :attr:`done`; then :attr:`rest` belongs to the next request."""

    def __init__(self) -> None:
        self.done = False
        self._body = bytearray()  # not a list: an object for each tiny chunk would take many times its size
        self._unread = bytearray()
        self._left = 0  # of the present chunk, its line end included
        self._trailers = -1  # bytes of them so far, once they have begun

    @property
    def size(self) -> int:
        """How much of the body has come; bytes."""
        return len(self._body)

    @property
    def body(self) -> bytes:
        """What has come of the body; all of it when :attr:`done`."""
        return bytes(self._body)

    @property
    def rest(self) -> bytes:
        """What came behind the end."""
        return bytes(self._unread)

    def feed(self, data: bytes | bytearray) -> None:
        """Take in what has come. Raises :class:`BadChunk`."""
        self._unread += data
        while not self.done and self._step():
            pass

    def _step(self) -> bool:
        """Read one element; False if it is not all here."""
        if self._trailers >= 0:
            return self._trailer()
        if self._left:
            return self._data()
        line = self._line(LINE_MAX)
        if line is None:
            return False
        size = _SIZE.fullmatch(line)
        if size is None:
            raise BadChunk("a chunk must begin with its size in hexadecimal")
        number = int(size[1], 16)
        if number:
            self._left = number + 2
        else:
            self._trailers = 0
        return True

    def _data(self) -> bool:
        content = self._left - 2
        if content > 0:
            piece = self._unread[:content]
            self._body += piece
            del self._unread[: len(piece)]
            self._left -= len(piece)
            return bool(piece)
        if len(self._unread) < 2:
            return False
        if self._unread[:2] != b"\r\n":
            raise BadChunk("a chunk must end where its size says")
        del self._unread[:2]
        self._left = 0
        return True

    def _trailer(self) -> bool:
        line = self._line(TRAILERS_MAX - self._trailers)
        if line is None:
            return False
        if not _TRAILER.fullmatch(line):
            raise BadChunk("what follows the last chunk must be headers")
        self._trailers += len(line) + 2
        self.done = not line
        return True

    def _line(self, most: int) -> bytes | None:
        end = self._unread.find(b"\n", 0, most + 2)
        if end < 0:
            if len(self._unread) > most + 1:
                raise BadChunk("a line between chunks is too long")
            return None
        line = bytes(self._unread[: end + 1])
        if not line.endswith(b"\r\n") or b"\r" in line[:-2]:
            raise BadChunk("lines end in CR LF")
        del self._unread[: end + 1]
        return line[:-2]
