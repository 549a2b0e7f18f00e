"""Reading and changing single top-level keys of a JSON object, in place.

A request body can be megabytes of messages and base64 images, of which slotd
wants two fields and changes at most three. Nothing here builds the document:
the values are skipped in C, and changing a key copies the bytes around it as
they came, whitespace and number spelling included.

A body that repeats a top-level key is written anew without the repetitions
before it is changed: the last value counts, as in every parser the engines
use, and afterwards no reader can disagree. Its values still keep their bytes.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import msgspec

from slotd.errors import InvalidJson

__all__ = ["Head", "edit_fields", "raw_field", "remove_field", "set_field", "top_level"]


class Head(msgspec.Struct, frozen=True):
    """What of a request's body decides who answers it. ``omni``: that key's value, as it stands there."""

    model: str | None
    stream: bool
    omni: bytes = b""


class _Top(msgspec.Struct):
    model: str | None = None
    stream: msgspec.Raw = msgspec.Raw(b"false")
    omni: msgspec.Raw = msgspec.Raw(b"")


_top_decoder = msgspec.json.Decoder(_Top)

_TOO_DEEP = "the request body is nested too deeply"


def top_level(body: bytes) -> Head:
    """``model``, ``stream`` and ``omni`` of a JSON object.

    A missing or null model is None; a stream that is not ``true`` is False
    (what else it may be is for the engine to judge). Raises
    :class:`~slotd.errors.InvalidJson` when the body is not JSON, not an object,
    or its model is not a string.
    """
    try:
        top = _top_decoder.decode(body)
    except msgspec.ValidationError as error:
        if str(error).endswith("$.model`"):
            raise InvalidJson("`model` must be a string naming the model", param="model") from error
        raise InvalidJson("the request body must be a JSON object with named fields") from error
    except RecursionError as error:
        raise InvalidJson(_TOO_DEEP) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        reason = str(error) if body.strip() else "it is empty"
        raise InvalidJson(f"the request body is not valid JSON: {reason}") from error
    return Head(top.model, bytes(top.stream) == b"true", bytes(top.omni))


def set_field(body: bytes, key: str, raw_value: bytes) -> bytes:
    """``body`` with the top-level ``key`` set to ``raw_value``; see :func:`edit_fields`."""
    return edit_fields(body, put={key: raw_value})


def remove_field(body: bytes, key: str) -> bytes:
    """``body`` without the top-level ``key``; see :func:`edit_fields`."""
    return edit_fields(body, remove=(key,))


def edit_fields(
    body: bytes,
    *,
    remove: Collection[str] = (),
    fill: Mapping[str, bytes] = MappingProxyType({}),
    put: Mapping[str, bytes] = MappingProxyType({}),
) -> bytes:
    """``body`` with top-level keys removed, then filled in where missing, then set; values are JSON text.

    An existing key is changed where it stands, a new one comes first; all else
    keeps its bytes. Raises :class:`~slotd.errors.InvalidJson` when the body is
    not a JSON object.
    """
    body, members = _members(body)
    inside = body.index(b"{") + 1
    new = {**fill, **put}
    kept: list[bytes] = []  # each with what separates it from the one before
    at = inside
    for member in members:
        before, at = at, member.end
        if member.key not in put and member.key in remove:
            continue
        if not kept and before != inside:  # those that it was separated from are gone
            kept.append(body[inside : members[0].start])
            before = member.start
        value = new.pop(member.key, None)
        if member.key in put:
            assert value is not None
            kept += (body[before : member.value], value)
        else:
            kept.append(body[before : member.end])
    added = b",".join(msgspec.json.encode(key) + b":" + raw for key, raw in new.items())
    return b"".join((body[:inside], added, b"," if added and kept else b"", *kept, body[at:]))


def raw_field(body: bytes, key: str) -> bytes | None:
    """The text of a top-level value; None if there is none, or the body is no JSON object."""
    try:
        found = _object_decoder.decode(body).get(key)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return None if found is None else bytes(found)


# --- where the members are ---------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Member:
    """``"key" : value`` of the outermost object, as offsets into the body."""

    key: str
    start: int  # of the key's opening quote
    value: int
    end: int  # just past the value


_SPACE = re.compile(rb"[ \t\n\r]*+")
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"', re.DOTALL)

_object_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])
_key_decoder = msgspec.json.Decoder(str)


def _members(body: bytes) -> tuple[bytes, list[_Member]]:
    """The top-level members in order, of ``body`` or of its unambiguous form."""
    try:
        values = {key: bytes(raw) for key, raw in _object_decoder.decode(body).items()}
    except RecursionError as error:
        raise InvalidJson(_TOO_DEEP) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidJson(f"the request body is not a JSON object: {error}") from error
    members = _walk(body, values)
    if members is None:
        pairs = (msgspec.json.encode(key) + b":" + value for key, value in values.items())
        body = b"{" + b",".join(pairs) + b"}"
        members = _walk(body, values)
        assert members is not None, "without repetitions the walk cannot fail"
    return body, members


def _walk(body: bytes, values: dict[str, bytes]) -> list[_Member] | None:
    """Offsets of every member, or None if a key is repeated.

    ``body`` is known to be a JSON object with these members. Where a value's
    text starts with the expected text it is the expected value, since no JSON
    value is the beginning of another (but for numbers, whose end the next
    separator shows). So either each step is exact or the walk gives up.
    """
    members: list[_Member] = []
    at = _skip(_SPACE, body, _skip(_SPACE, body, 0) + 1)
    for expected, text in values.items():
        if members:
            if body[at : at + 1] != b",":
                return None
            at = _skip(_SPACE, body, at + 1)
        key_end = _skip(_STRING, body, at)
        if _key_decoder.decode(body[at:key_end]) != expected:
            return None
        value = _skip(_SPACE, body, _skip(_SPACE, body, key_end) + 1)
        if not body.startswith(text, value):
            return None
        end = value + len(text)
        members.append(_Member(expected, at, value, end))
        at = _skip(_SPACE, body, end)
    return members if body[at : at + 1] == b"}" else None


def _skip(pattern: re.Pattern[bytes], body: bytes, at: int) -> int:
    match = pattern.match(body, at)
    assert match is not None, "the body was validated as JSON"
    return match.end()
