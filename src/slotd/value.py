"""What values are made of that many are made of."""

from __future__ import annotations

import msgspec

__all__ = ["Value"]


class Value(msgspec.Struct, frozen=True):
    """A frozen record, to be inherited from: some eight times as cheap to make as a frozen dataclass.

    Where mypyc compiles the heir, its own ``frozen=True`` is for the type checker alone: mypyc hands
    the options in a class's head to no metaclass. What it inherits from here holds all the same.
    """
