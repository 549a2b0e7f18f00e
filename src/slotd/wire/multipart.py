"""Finding and changing short text fields in a multipart body, without taking it apart.

Bodies are megabytes of audio or images beside a field or two. A part's head is
read only where a part can begin: behind a line that is the boundary, which
content cannot contain. The time taken grows with the body's length and no
faster, whatever the body holds.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator

__all__ = ["set_value", "short_fields"]

HEAD_MAX = 8192
"""The longest part head that is looked at; bytes."""

PARTS_MAX = 1000
"""How many parts are looked at."""

VALUE_MAX = 512
"""The longest value of a field; bytes."""

# Quoted strings are taken whole, so that nothing inside a file name is read as
# a parameter. Each alternative starts differently: there is nothing to retry.
_PARAMETER = re.compile(rb';[ \t]*([^\s=;"]++)=(?:"((?:[^"\\]++|\\.)*+)"|([^\s;"]*+))')


def short_fields(body: bytes, names: Collection[bytes]) -> dict[bytes, str]:
    """The first value of each of the named fields that is there and short.

    A field with a file name is a file, not a field. The boundary is taken from
    the body's first line.
    """
    found: dict[bytes, str] = {}
    for name, begin, end in _fields(body):
        if name in names:
            found.setdefault(name, body[begin:end].decode("utf-8", "replace"))
            if len(found) == len(names):
                break  # all there is to know
    return found


def set_value(body: bytes, name: bytes, value: bytes) -> bytes:
    """``body`` with another value in the first field of this name; as it is if there is no such short field.

    ``value`` goes in as it is: it must not contain the boundary.
    """
    for field, begin, end in _fields(body):
        if field == name:
            return b"".join((body[:begin], value, body[end:]))
    return body


def _fields(body: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Name, and begin and end of the value, of each short field."""
    at = body.find(b"\r\n")  # where a boundary line ends
    if at < 3:
        return
    delimiter = b"\r\n" + body[:at]
    for _ in range(PARTS_MAX):
        following = body.find(delimiter, at)
        if following < 0:
            return
        head_end = body.find(b"\r\n\r\n", at, min(at + HEAD_MAX, following + 2))
        if head_end >= 0 and following - (head_end + 4) <= VALUE_MAX:
            name = _name(body[at:head_end])
            if name is not None:
                yield name, head_end + 4, following
        at = following + len(delimiter)
        if body[at : at + 2] != b"\r\n":
            return  # the closing boundary


def _name(head: bytes) -> bytes | None:
    for line in head.split(b"\r\n"):
        key, _, value = line.partition(b":")
        if key.strip().lower() == b"content-disposition":
            found = {m[1].lower(): m[2] if m[2] is not None else m[3] for m in _PARAMETER.finditer(value)}
            return None if b"filename" in found or b"filename*" in found else found.get(b"name")
    return None
