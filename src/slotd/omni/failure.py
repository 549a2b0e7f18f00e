"""How a tool and a turn of the model fail."""

from __future__ import annotations

import msgspec

from slotd.errors import SlotdError
from slotd.exchange.render import error_response

__all__ = ["ToolFailed", "TurnFailed", "said"]

SHOWN_CHARS = 1000


class ToolFailed(Exception):
    """A tool cannot do it. The text is for the model; ``code`` where an error of slotd's is the reason."""

    def __init__(self, message: str, code: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.code = code


class TurnFailed(Exception):
    """The model's turn has come to nothing: the response that a client of the turn alone would have got."""

    def __init__(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
        super().__init__(f"status {status}")
        self.status = status
        self.headers = headers
        self.body = body

    @classmethod
    def of(cls, error: SlotdError) -> TurnFailed:
        """The failure that ``error`` is."""
        return cls(*error_response(error))


class _Error(msgspec.Struct):
    message: str | None = None
    code: str | int | None = None


class _Document(msgspec.Struct):
    error: _Error | str


_document = msgspec.json.Decoder(_Document)


def said(status: int, body: bytes) -> tuple[str, str]:
    """What an error response says: its words, and its code if it is one of slotd's."""
    try:
        error = _document.decode(body).error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        words = body[:SHOWN_CHARS].decode("utf-8", "replace").strip()
        return f"the engine answered {status}" + (f": {words}" if words else ""), ""
    if isinstance(error, str):
        return error[:SHOWN_CHARS], ""
    message = error.message or f"the engine answered {status}"
    return message[:SHOWN_CHARS], error.code if isinstance(error.code, str) else ""
