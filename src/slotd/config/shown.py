"""Values of the configuration as a diff shows them: short, and without what may be a secret."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

__all__ = ["Scalar", "shown", "written"]

Scalar = str | int | float | bool | None

MAX_CHARS = 1000
"""A value that is longer is cut. Configurations are bounded, so what many such values take is too."""

HIDDEN = "***"

_SECRET = re.compile(r"passw|passphrase|secret|credential|bearer|^pass$|^pwd$|^auth(?!ors?$)|tokens?$|keys?$")
"""Words of a name whose value may be a secret: not "tokenizer", "author" or "keyword"."""

_COUNTS = frozenset(
    {"max", "min", "num", "n", "limit", "count", "size", "length", "budget", "per", "id", "ids"}
)
"""Words beside "token" that make a number of it a count, or the place of one in a vocabulary."""

_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_NUMBER = re.compile(r"[-+]?[0-9][0-9._]*[kKmMgG]?")
_KEY_TEXT = re.compile(r"\b(?:sk|pk|hf|gh[oprsu]|github_pat|glpat|xox[abp]|nvapi)[-_][A-Za-z0-9_-]{16,}")
"""Keys that bear their issuer's mark."""

_LOGIN = re.compile(r"://[^/@\s]+@")


def shown(value: Any) -> Scalar:
    """A value to show. Lists and tables become text; what is long is cut.

    What follows a question mark in a URL may be a token, as may the name in front of
    its host and an argument whose name says so: these become asterisks. Two different
    values may look the same.
    """
    match value:
        case bool() | int() | float() | None:
            return value
        case str():
            return _cut(_without_keys(value))
        case list() | tuple():
            return _cut(json.dumps(list(_without_secrets([str(v) for v in value])), ensure_ascii=False))
    return _cut(json.dumps(value, ensure_ascii=False, default=str))


def written(value: Scalar) -> str:
    """A shown value in a line of text, much as TOML writes it. Text that stands for a list is not quoted."""
    if value is None:
        return "unset"
    if isinstance(value, str) and not value.startswith(("[", "{")):
        return json.dumps(value, ensure_ascii=False)
    return json.dumps(value) if isinstance(value, bool) else str(value)


def _without_keys(text: str) -> str:
    """``text`` without what is a secret by its looks."""
    head, mark, _ = text.partition("?")
    text = f"{head}?{HIDDEN}" if mark and "://" in head else text
    return _KEY_TEXT.sub(HIDDEN, _LOGIN.sub(f"://{HIDDEN}@", text))


def _may_be_secret(name: str, value: str) -> bool:
    """Whether ``value`` should not be shown under ``name``. In doubt it should not."""
    words = {word.lower() for word in _WORDS.findall(name)}
    if _NUMBER.fullmatch(value) and ("tokens" in words or words & _COUNTS):
        words -= {"token", "tokens"}
    return any(_SECRET.search(word) for word in words)


def _without_secrets(args: Sequence[str]) -> Iterable[str]:
    """Command-line arguments; the value of one whose name sounds like a secret is hidden."""
    name = ""
    for arg in args:
        own, mark, value = _split(arg)
        if name and _may_be_secret(name, arg):
            yield HIDDEN
            name = ""
        elif mark and len(own.split()) == 1 and _may_be_secret(own, value):
            yield f"{own}{mark}{HIDDEN}"
            name = ""
        elif len(arg.split()) > 1:
            yield _without_secrets_within(arg)
            name = ""
        else:
            yield _without_keys(arg)
            name = arg if arg.startswith("-") and not mark else ""


def _split(arg: str) -> tuple[str, str, str]:
    """``--name=value`` and ``name:value`` at whichever comes first, but not at that of ``https://``."""
    found = re.search(r"=|:(?!//)", arg)
    return (arg, "", "") if found is None else (arg[: found.start()], found[0], arg[found.end() :])


def _without_secrets_within(text: str) -> str:
    """Words that are one argument, without those from a secret's name to the next option."""
    shown: list[str] = []
    hide = False
    for word in text.split():
        own, mark, value = _split(word)
        if word.startswith("-"):
            hide = False
        if hide:
            shown += [] if shown[-1] == HIDDEN else [HIDDEN]
        elif _may_be_secret(own, value):
            shown.append(f"{own}{mark}{HIDDEN if value else ''}")
            hide = True
        else:
            shown.append(_without_keys(word))
    return " ".join(shown)


def _cut(text: str) -> str:
    text = "".join(c if c.isprintable() else "�" for c in text.replace("\n", "⏎"))
    return text if len(text) <= MAX_CHARS else text[: MAX_CHARS - 1] + "…"
