"""The globs of ``[[bindings]]``."""

from __future__ import annotations

import fnmatch

__all__ = ["glob_matches", "is_glob"]


def glob_matches(pattern: str, name: str) -> bool:
    """Whether the whole of ``name`` matches.

    ``*`` stands for any run of characters, ``/`` and ``:`` too, ``?`` for one,
    ``[abc]`` and ``[!abc]`` for one of a set. Case counts, on every platform.
    """
    return fnmatch.fnmatchcase(name, pattern)


def is_glob(text: str) -> bool:
    """Whether ``text`` holds a character that is special in a glob."""
    return any(c in text for c in "*?[")
