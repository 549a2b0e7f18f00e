"""Typed errors as clients expect to read them."""

from __future__ import annotations

import math
from typing import Any, Literal

import msgspec

from slotd.errors import SlotdError

__all__ = ["Dialect", "envelope", "error_response", "sse_comment", "sse_error"]

Dialect = Literal["openai", "anthropic"]

_ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    422: "invalid_request_error",
    429: "rate_limit_error",
    503: "overloaded_error",
}


def envelope(error: SlotdError, dialect: Dialect = "openai") -> dict[str, Any]:
    """The error's JSON document in the dialect of the endpoint."""
    if dialect == "anthropic":
        inner = {
            "type": _ANTHROPIC_TYPES.get(error.status, "api_error"),
            "message": error.message,
            "code": error.code,
            "details": error.details,
        }
        return {"type": "error", "error": inner}
    return {
        "error": {
            "message": error.message,
            "type": error.type,
            "param": error.param,
            "code": error.code,
            "details": error.details,
        }
    }


def error_response(
    error: SlotdError, dialect: Dialect = "openai"
) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    """Status, headers and body of an error that comes before anything else."""
    body = msgspec.json.encode(envelope(error, dialect), enc_hook=str)
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if error.retry_after_s is not None:
        seconds = max(1, math.ceil(error.retry_after_s))
        headers.append((b"retry-after", str(seconds).encode()))
    return error.status, headers, body


def sse_error(error: SlotdError, dialect: Dialect = "openai") -> bytes:
    """The error as the last event of a stream, in the shape that the official clients raise on.

    ``Retry-After`` cannot be a header any more: it is in the details.
    """
    document = envelope(error, dialect)
    if error.retry_after_s is not None:
        seconds = max(1, math.ceil(error.retry_after_s))
        document["error"]["details"] = {**error.details, "retry_after_s": seconds}
    return b"event: error\ndata: " + msgspec.json.encode(document, enc_hook=str) + b"\n\n"


def sse_comment(text: str) -> bytes:
    """A line that readers of a stream ignore, as a frame of its own."""
    return f": slotd: {' '.join(text.split())}\n\n".encode("utf-8", "replace")
