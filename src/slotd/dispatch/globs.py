"""Many globs at once: which of them match a name, without trying them all."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable

__all__ = ["GlobIndex"]

_SPECIAL = re.compile(r"[*?\[]")


class GlobIndex:
    """Globs in the order given. What they mean: see :func:`slotd.config.globs.glob_matches`.

    Those without a wildcard are looked up. The others are filed under the literal
    text at their two ends (of ``gpt-*-mini``: ``gpt-`` and ``-mini``): a name is looked
    up once for every pair of lengths that such ends have, which are few, and only
    the globs that are found there are tried. The worst are globs with a wildcard at
    both ends, which share one drawer.
    """

    def __init__(self, globs: Iterable[str]) -> None:
        self._exact: dict[str, list[int]] = {}
        self._drawers: dict[tuple[int, int], dict[tuple[str, str], list[_Glob]]] = {}
        for at, text in enumerate(globs):
            if _SPECIAL.search(text) is None:
                self._exact.setdefault(text, []).append(at)
                continue
            glob = _Glob(at, text)
            lengths = len(glob.head), len(glob.tail)
            self._drawers.setdefault(lengths, {}).setdefault((glob.head, glob.tail), []).append(glob)

    def matching(self, name: str) -> list[int]:
        """The places, from 0 and ascending, of those that match the whole of ``name``."""
        found = list(self._exact.get(name, ()))
        size = len(name)
        for (head, tail), drawer in self._drawers.items():
            if head + tail <= size:
                globs = drawer.get((name[:head], name[size - tail :]), ())
                found += [glob.at for glob in globs if glob.matches(name)]
        return sorted(found)

    def exact(self) -> Iterable[str]:
        """Those without a wildcard, each once."""
        return self._exact.keys()


class _Glob:
    """One with a wildcard. ``head``, ``tail``: the literal text before and after the wildcards."""

    __slots__ = ("_inner", "_pattern", "_text", "at", "head", "tail")

    def __init__(self, at: int, text: str) -> None:
        self.at = at
        self._text = text
        first = _SPECIAL.search(text)
        assert first is not None
        self.head = text[: first.start()]
        # A set ends with "]", so that what comes after the last "]" is not in one;
        # where none begins, "]" is a character like others.
        special = "*?[]" if "[" in text else "*?"
        self.tail = text[max(text.rfind(c) for c in special) + 1 :]
        between = text[len(self.head) : len(text) - len(self.tail)]
        only_stars = not any(c in between for c in "?[")
        self._inner = tuple(filter(None, between.split("*"))) if only_stars else None
        self._pattern: re.Pattern[str] | None = None

    def matches(self, name: str) -> bool:
        """Whether it matches ``name``, whose ends are ``head`` and ``tail`` and do not overlap."""
        if self._inner is not None:
            at, end = len(self.head), len(name) - len(self.tail)
            for piece in self._inner:
                at = name.find(piece, at, end) + len(piece)
                if at < len(piece):
                    return False
            return True
        if self._pattern is None:
            # When first needed: of thousands, few ever are, and each takes some 40 µs.
            self._pattern = re.compile(fnmatch.translate(self._text))
        return self._pattern.match(name) is not None
