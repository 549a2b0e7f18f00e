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

    __slots__ = ("_held", "_limit", "clean")

    def __init__(self, limit: int = 1 << 20) -> None:
        self._held = b""
        self._limit = limit
        self.clean = True

    def feed(self, data: bytes) -> bytes:
        """Bytes that may be sent now (possibly none)."""
        if self._held:
            data = self._held + data
            self._held = b""
        if data.endswith((b"\n\n", b"\r\n\r\n")):
            self.clean = True
            return data
        lf, crlf = data.rfind(b"\n\n"), data.rfind(b"\r\n\r\n")
        end = max(lf + 2 if lf >= 0 else 0, crlf + 4 if crlf >= 0 else 0)
        if end:
            self.clean = True
        if len(data) - end > self._limit:
            self.clean = False
            return data
        self._held = data[end:]
        return data[:end]

    def rest(self) -> bytes:
        """What is held back, at the natural end of the stream."""
        held, self._held = self._held, b""
        return held
