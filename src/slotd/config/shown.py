"""Values of the configuration as a diff shows them: short, and without what may be a secret."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

__all__ = ["Scalar", "shown", "written"]

Scalar = str | int | float | bool | None

MAX_CHARS = 120

_SECRET = re.compile(r"(key|token|secret|passw|auth)", re.IGNORECASE)


def shown(value: Any) -> Scalar:
    """A value to show. Lists and tables become text; what is long is cut.

    What follows a question mark in a URL may be a token, and so may an argument
    whose name says so: both become asterisks. Two different values may look the same.
    """
    match value:
        case bool() | int() | float() | None:
            return value
        case str():
            return _cut(_without_query(value))
        case list() | tuple():
            return _cut(json.dumps(list(_without_secrets(map(str, value))), ensure_ascii=False))
    return _cut(json.dumps(value, ensure_ascii=False, default=str))


def written(value: Scalar) -> str:
    """A shown value in a line of text, much as TOML writes it. Text that stands for a list is not quoted."""
    if value is None:
        return "unset"
    if isinstance(value, str) and not value.startswith(("[", "{")):
        return json.dumps(value, ensure_ascii=False)
    return json.dumps(value) if isinstance(value, bool) else str(value)


def _without_query(text: str) -> str:
    head, mark, _ = text.partition("?")
    return f"{head}?***" if mark and "://" in head else text


def _without_secrets(args: Iterable[str]) -> Iterable[str]:
    """Command-line arguments; the value of one whose name sounds like a secret is hidden."""
    hide = False
    for arg in args:
        name, equals, _ = arg.partition("=")
        if hide:
            yield "***"
            hide = False
        elif equals and _SECRET.search(name):
            yield f"{name}=***"
        else:
            hide = arg.startswith("-") and _SECRET.search(arg) is not None
            yield _without_query(arg)


def _cut(text: str) -> str:
    text = "".join(c if c.isprintable() else "�" for c in text.replace("\n", "⏎"))
    return text if len(text) <= MAX_CHARS else text[: MAX_CHARS - 1] + "…"
