"""What is changed in requests on their way to an engine: ``request`` and ``variants`` of a slot."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import msgspec
from pydantic import Field, field_validator

from slotd.config.fields import Section, Strings

__all__ = ["ShapingConfig", "VariantConfig"]

NEVER_CHANGED = frozenset({"model", "stream", "messages", "input", "prompt", "tools"})
"""What a request is about. Only its parameters are an operator's to change."""


class VariantConfig(Section):
    """Parameters of a JSON request. First some are taken out, then what is missing is
    filled in, then what is fixed is set."""

    strip: Strings = ()
    """Parameters that are taken out."""

    defaults: Mapping[str, Any] = Field(default_factory=dict)
    """Parameters and their values where the request has none."""

    set: Mapping[str, Any] = Field(default_factory=dict)
    """Parameters and their values, whatever the request has."""

    @field_validator("strip")
    @classmethod
    def _parameters(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            _check_name(name)
        return names

    @field_validator("defaults", "set")
    @classmethod
    def _json(cls, values: Mapping[str, Any]) -> Mapping[str, Any]:
        for name, value in values.items():
            _check_name(name)
            try:
                msgspec.json.encode(value, enc_hook=_refuse)
            except (TypeError, ValueError) as exc:
                raise ValueError(f"{name}: a date or time is no JSON value; write it as a string") from exc
        return values


class ShapingConfig(VariantConfig):
    """What is changed in every request to the slot."""

    system: Literal["missing", "first", "never"] = "missing"
    """When the slot's ``system_prompt`` is put in front of a chat: "missing" = if it has none of its
    own, "first" = always, before its own, "never"."""


def _check_name(name: str) -> None:
    if name in NEVER_CHANGED:
        raise ValueError(f"{name} is what a request is about, and no parameter of it")


def _refuse(value: Any) -> Any:
    raise TypeError(f"{type(value).__name__} is no JSON value")
