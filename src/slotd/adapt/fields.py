"""Reading the fields of a client's JSON request. Pure; whatever is wrong is the client's to mend."""

from __future__ import annotations

from typing import Any

import msgspec

from slotd.adapt.contract import Call
from slotd.errors import RequestUnprocessable

__all__ = ["number", "read_object", "text"]


def read_object(call: Call) -> dict[str, Any]:
    """The request's JSON object. Raises :class:`RequestUnprocessable`."""
    try:
        document = msgspec.json.decode(call.body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise RequestUnprocessable(f"the request's body cannot be read: {exc}") from exc
    if not isinstance(document, dict):
        raise RequestUnprocessable("the request's body must be a JSON object")
    return document


def text(document: dict[str, Any], name: str) -> str:
    """A text that must be there and say something."""
    value = document.get(name)
    if not isinstance(value, str) or not value.strip():
        raise RequestUnprocessable(f"`{name}` is missing: give a text that is not empty", param=name)
    return value


def number(document: dict[str, Any], name: str, low: float, high: float) -> float | None:
    """A number within bounds, None if the client gives none."""
    value = document.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise RequestUnprocessable(f"`{name}` must be a number from {low:g} to {high:g}", param=name)
    return float(value)
