"""Faults of a configuration, in one line each: where, what, and what was probably meant."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from slotd.config.names import nearest
from slotd.config.options import OPTIONS

__all__ = ["Path", "Problem", "Report", "describe", "dotted", "no_such", "unknown_key"]

Path = tuple[str | int, ...]

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True, slots=True)
class Problem:
    """One fault. ``text`` reads on from the path: ``server.port: must be ...``."""

    path: Path
    text: str

    def __str__(self) -> str:
        return f"{dotted(self.path)}: {self.text}"


def dotted(path: Path) -> str:
    """A path as TOML would spell it: ``models."qwen2.5".source``, ``bindings[0].match``."""
    out = ""
    for part in path:
        if isinstance(part, int):
            out += f"[{part}]"
        else:
            key = part if _BARE_KEY.fullmatch(part) else json.dumps(part, ensure_ascii=False)
            out += f".{key}" if out else key
    return out


def no_such(kind: str, name: str, known: Mapping[str, object]) -> str:
    """``no slot 'chta'; did you mean 'chat'?``"""
    near = nearest(name, known)
    if near:
        return f"no {kind} {name!r}; did you mean {near!r}?"
    if not known:
        return f"no {kind} {name!r}; none is configured"
    return f"no {kind} {name!r}; there are: {_listed(known)}"


def unknown_key(key: str, model: type[BaseModel], value: object = None) -> str:
    """What to say of a key that ``model`` does not have."""
    known = [name for name in model.model_fields if name != "name"]
    if not known:
        return "unknown key; this engine takes no options"
    home = next(
        (engine for engine, options in OPTIONS.items() if "engine" in known and key in options.model_fields),
        None,
    )
    if home:
        return "unknown key; it belongs in the slot's own table 'options'"
    near = nearest(key, known)
    if near:
        return f"unknown key; did you mean {near!r}?"
    if isinstance(value, dict):
        return "unknown key; if this is part of a name with a dot, put the name in quotes"
    return f"unknown key; known are: {_listed(known)}"


class Report:
    """What was found wrong (``problems``) and what is merely suspicious (``warnings``), each thing once."""

    def __init__(self) -> None:
        self._problems: dict[Problem, None] = {}
        self._warnings: dict[Problem, None] = {}

    @property
    def problems(self) -> list[Problem]:
        return list(self._problems)

    @property
    def warnings(self) -> list[Problem]:
        return list(self._warnings)

    def fault(self, path: Path, text: str) -> None:
        self._problems[Problem(path, text)] = None

    def warn(self, path: Path, text: str) -> None:
        self._warnings[Problem(path, text)] = None


def describe(error: ErrorDetails, model: type[BaseModel]) -> str:
    """pydantic's finding in our words. ``model``: the model that has the last key of its path."""
    kind, value, ctx = error["type"], error["input"], error.get("ctx", {})
    match kind:
        case "extra_forbidden":
            return unknown_key(str(error["loc"][-1]), model, value)
        case "missing":
            return "missing"
        case "value_error":
            return str(ctx["error"])
        case "literal_error":
            return _not_among(value, _choices(model, error["loc"]))
        case "greater_than_equal":
            return f"must be at least {ctx['ge']:g}, not {_show(value)}"
        case "greater_than":
            return f"must be more than {ctx['gt']:g}, not {_show(value)}"
        case "less_than_equal":
            return f"must be at most {ctx['le']:g}, not {_show(value)}"
        case "finite_number":
            return f"must be a finite number, not {_show(value)}"
        case "string_too_short":
            return "must not be empty"
        case "string_type" if isinstance(value, int | float):
            return f'must be a string, not {_kind(value)}; write "{_show(value)}"'
    wanted = _WANTED.get(kind)
    return f"must be {wanted}, not {_kind(value)}" if wanted else error["msg"]


_WANTED = {
    "bool_type": "true or false",
    "dict_type": "a table",
    "float_type": "a number",
    "int_from_float": "a whole number",
    "int_type": "a whole number",
    "mapping_type": "a table",
    "model_type": "a table",
    "string_type": "a string",
    "tuple_type": "a list",
}


def _choices(model: type[BaseModel], loc: Path) -> tuple[str, ...]:
    field = model.model_fields.get(str(loc[-1])) if loc else None
    return tuple(str(choice) for choice in get_args(field.annotation)) if field else ()


def _not_among(value: object, choices: tuple[str, ...]) -> str:
    if not isinstance(value, str):
        return f"must be {_alternatives(choices)}, not {_kind(value)}"
    near = nearest(value, choices)
    return f"unknown {value!r}; " + (
        f"did you mean {near!r}?" if near else f"must be {_alternatives(choices)}"
    )


def _alternatives(choices: tuple[str, ...]) -> str:
    quoted = [f'"{choice}"' for choice in choices]
    return f"{', '.join(quoted[:-1])} or {quoted[-1]}" if len(quoted) > 1 else "".join(quoted)


def _listed(names: Mapping[str, object] | list[str], limit: int = 12) -> str:
    shown = list(names)[:limit]
    return ", ".join(shown) + (", ..." if len(names) > limit else "")


def _kind(value: Any) -> str:
    """What a TOML value is, in words."""
    match value:
        case bool():
            return _show(value)
        case int():
            return f"the number {value}"
        case float():
            return f"the number {_show(value)}"
        case str():
            return "a string"
        case list():
            return "a list"
        case dict():
            return "a table"
        case None:
            return "nothing"
    return "a date or time"


def _show(value: Any) -> str:
    """A value as TOML writes it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, int | float) else _kind(value)
