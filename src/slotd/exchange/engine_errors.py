"""An engine's own errors where they come as part of an event stream."""

from __future__ import annotations

from typing import Any

import msgspec

from slotd.errors import EngineError
from slotd.exchange.render import Dialect, sse_error
from slotd.wire.sse import EventParser, EventTooLarge

__all__ = ["SHOWN_BYTES", "as_event", "tells_error"]

SHOWN_BYTES = 64 * 1024
"""An error that an engine answers with is no longer than this; what is, is cut."""

_TEXT_SHOWN = 500


class _Data(msgspec.Struct):
    """The fields by which an event is known to be an error. All else is skipped."""

    error: Any = None
    type: Any = None


_decoder = msgspec.json.Decoder(_Data)


def tells_error(frames: bytes) -> bool:
    """Whether one of these whole frames is an error of the engine's, in any dialect.

    Cheap for what is none: a model's words cannot look like the keys of an
    event, as JSON escapes their quotes, and only what might be one is parsed.
    """
    if b'"error"' not in frames and b"event: error" not in frames and b"event:error" not in frames:
        return False
    try:
        events = EventParser(max_event_bytes=len(frames) + 1).feed(frames)
    except EventTooLarge:
        return False
    return any(event.name == "error" or _is_error(event.data) for event in events)


def _is_error(data: bytes) -> bool:
    try:
        found = _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False
    return bool(found.error) or found.type in ("error", "response.failed")


def as_event(status: int, body: bytes, dialect: Dialect) -> bytes:
    """An engine's answer that is no event stream, as the error event of a stream that has begun.

    The engine's own document if it is one that clients know as an error; else
    an error of ours that quotes it.
    """
    try:
        document = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        document = None
    if isinstance(document, dict) and document.get("error"):
        if dialect == "anthropic":
            document.setdefault("type", "error")
        return b"event: error\ndata: " + msgspec.json.encode(document) + b"\n\n"
    words = body[:_TEXT_SHOWN].decode("utf-8", "replace").strip()
    error = EngineError(
        f"the engine answered {status} and no event stream" + (f": {words}" if words else ""),
        details={"status": status},
    )
    return sse_error(error, dialect)
