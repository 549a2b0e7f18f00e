"""Header fields, and what follows from them. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

__all__ = ["Field", "Fields", "lines"]

T = TypeVar("T")

Field = tuple[bytes, bytes]
"""A name, in lower case, and a value."""


class Fields(tuple[Field, ...]):
    """Header fields in the order of their head.

    Heads repeat: a client sends the same one again and again, and so does an
    engine. Whoever reads them keeps these (:class:`~slotd.wire.memo.HeadMemo`), and what follows
    from them is worked out once and kept with them.
    """

    _derived: dict[Callable[[Fields], Any], Any]

    def derive(self, make: Callable[[Fields], T]) -> T:
        """``make(self)``, which must depend on nothing else; a failure of it is not kept."""
        try:
            found: T = self._derived[make]
        except AttributeError:
            self._derived = {}
        except KeyError:
            pass
        else:
            return found
        found = self._derived[make] = make(self)
        return found


def lines(fields: Sequence[Field]) -> bytes:
    """As they stand in a head, each with its line end.

    Raises :class:`ValueError` for bytes that would make another head of it (CR, LF, NUL).
    """
    text = b"".join([b"%b: %b\r\n" % field for field in fields])
    # One look at all of it: the only line ends must be those that were just put there.
    if text.count(b"\r") != len(fields) or text.count(b"\n") != len(fields) or b"\0" in text:
        raise ValueError("a CR, LF or NUL in a header")
    return text
