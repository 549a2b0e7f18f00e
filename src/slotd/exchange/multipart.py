"""Finding short text fields in a multipart body, without taking it apart.

Bodies are megabytes of audio or images beside a field or two. A part's head is
read only where a part can begin: behind a line that is the boundary, which
content cannot contain. The time taken grows with the body's length and no
faster, whatever the body holds.
"""

from __future__ import annotations

import re
from collections.abc import Collection

__all__ = ["short_fields"]

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
    end = body.find(b"\r\n")
    boundary = body[:end]
    if end < 3:
        return {}
    found: dict[bytes, str] = {}
    delimiter = b"\r\n" + boundary
    at = end  # where a boundary line ends
    for _ in range(PARTS_MAX):
        following = body.find(delimiter, at)
        if following < 0:
            break
        head_end = body.find(b"\r\n\r\n", at, min(at + HEAD_MAX, following + 2))
        if head_end >= 0 and following - (head_end + 4) <= VALUE_MAX:
            name = _name(body[at:head_end])
            if name is not None and name in names:
                found.setdefault(name, body[head_end + 4 : following].decode("utf-8", "replace"))
        at = following + len(delimiter)
        if len(found) == len(names) or body[at : at + 2] != b"\r\n":
            break  # all there is to know, or the closing boundary
    return found


def _name(head: bytes) -> bytes | None:
    for line in head.split(b"\r\n"):
        key, _, value = line.partition(b":")
        if key.strip().lower() == b"content-disposition":
            found = {m[1].lower(): m[2] if m[2] is not None else m[3] for m in _PARAMETER.finditer(value)}
            return None if b"filename" in found or b"filename*" in found else found.get(b"name")
    return None
