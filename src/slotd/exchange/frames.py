"""Cutting a stream of server-sent events at frame boundaries only."""

from __future__ import annotations

__all__ = ["FrameGate"]


class FrameGate:
    """Lets whole event frames through and holds back a partial one.

    The bytes that come out are the bytes that went in. Because nothing but
    whole frames has been sent when the upstream breaks off, an error event can
    follow without being glued into the middle of another. A frame larger than
    ``limit`` bytes is let through in pieces; :attr:`clean` is then False until
    it ends.
    """

    __slots__ = ("_held", "_limit", "_size", "_tail", "clean")

    def __init__(self, limit: int = 1 << 20) -> None:
        self._held: list[bytes] = []  # joined once, when its frame ends
        self._size = 0
        self._tail = b""  # the last bytes held: a boundary may be cut in two
        self._limit = limit
        self.clean = True

    def feed(self, data: bytes) -> bytes:
        """Bytes that may be sent now (possibly none)."""
        if not self._held and data.endswith((b"\n\n", b"\r\n\r\n")):
            self.clean = True
            return data
        window = self._tail + data
        lf, crlf = window.rfind(b"\n\n"), window.rfind(b"\r\n\r\n")
        end = max(lf + 2 if lf >= 0 else 0, crlf + 4 if crlf >= 0 else 0)
        ready = b""
        if end:
            # What was held has no boundary, so this one ends in the new bytes.
            cut = end - len(self._tail)
            self._held.append(data[:cut])
            ready, data = self.rest(), data[cut:]
            window = data
            self.clean = True
        if data:
            self._held.append(data)
            self._size += len(data)
            self._tail = window[-3:]
        if self._size > self._limit:
            self.clean = False
            ready += self.rest()
        return ready

    @property
    def holds(self) -> bool:
        """Whether part of a frame is held back."""
        return bool(self._held)

    def rest(self) -> bytes:
        """What is held back, at the natural end of the stream."""
        held = b"".join(self._held)
        self._held.clear()
        self._size, self._tail = 0, b""
        return held
