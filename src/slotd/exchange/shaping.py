"""What an operator has changed in requests to a slot: parameters, and a system prompt.

Everything is spliced in: what is not touched keeps its bytes. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self

import msgspec

from slotd.config import ShapingConfig, SlotConfig, VariantConfig
from slotd.exchange.assemble.splice import edit_fields, raw_field

__all__ = ["NO_SHAPING", "Edits", "Shaping", "shape"]

Raw = bytes
"""The text of a JSON value."""

_CHAT = frozenset({"/v1/chat/completions", "/apply-template"})
_MESSAGES = frozenset({"/v1/messages", "/v1/messages/count_tokens"})
_RESPONSES = "/v1/responses"


@dataclass(frozen=True, slots=True)
class Edits:
    """Top-level fields: taken out, filled in where they are missing, set."""

    strip: frozenset[str] = frozenset()
    defaults: Mapping[str, Raw] = field(default_factory=dict)
    set: Mapping[str, Raw] = field(default_factory=dict)

    @classmethod
    def of(cls, config: VariantConfig) -> Self:
        """As a configuration has it."""

        def encoded(values: Mapping[str, Any]) -> dict[str, Raw]:
            return {key: msgspec.json.encode(value) for key, value in values.items()}

        return cls(frozenset(config.strip), encoded(config.defaults), encoded(config.set))

    def over(self, under: Edits) -> Edits:
        """One that does what ``under`` does and then what this does."""
        return Edits(
            under.strip | self.strip,
            {key: raw for key, raw in under.defaults.items() if key not in self.strip} | dict(self.defaults),
            {key: raw for key, raw in under.set.items() if key not in self.strip} | dict(self.set),
        )

    def __bool__(self) -> bool:
        return bool(self.strip or self.defaults or self.set)


@dataclass(frozen=True, slots=True)
class Shaping:
    """What a slot's requests go through. ``variants``: complete, the slot's own edits included."""

    edits: Edits = field(default_factory=Edits)
    variants: Mapping[str, Edits] = field(default_factory=dict)
    system: Literal["missing", "first", "never"] = "missing"
    prompt: str = ""

    @classmethod
    def of(cls, slot: SlotConfig) -> Self:
        """As a slot's configuration has it."""
        request: ShapingConfig = slot.request
        edits = Edits.of(request)
        return cls(
            edits,
            {name: Edits.of(variant).over(edits) for name, variant in slot.variants.items()},
            request.system,
            slot.system_prompt if request.system != "never" else "",
        )

    def __bool__(self) -> bool:
        return bool(self.edits or self.variants or self.prompt)


NO_SHAPING = Shaping()


def shape(body: bytes, path: str, shaping: Shaping, variant: str = "") -> bytes:
    """The body of a JSON request as the engine is to get it.

    ``path``: the endpoint's, which tells where a system prompt goes. A variant
    that the slot does not have (it stands in for one that has) changes nothing.
    Raises :class:`slotd.errors.InvalidJson` when the body is not a JSON object.
    """
    edits = shaping.variants.get(variant, shaping.edits)
    if edits:
        body = edit_fields(body, remove=edits.strip, fill=edits.defaults, put=edits.set)
    if shaping.prompt and (place := _PLACES.get(path)) is not None:
        name, insert = place
        found = raw_field(body, name)
        changed = insert(found, shaping.prompt, shaping.system == "first")
        if changed is not None:
            body = edit_fields(body, put={name: changed})
    return body


class _Message(msgspec.Struct):
    role: str | None = None


_messages = msgspec.json.Decoder(list[_Message])


def _into_messages(found: Raw | None, prompt: str, always: bool) -> Raw | None:
    """Before the other messages; None for no change."""
    if found is None:
        return None
    try:
        roles = {message.role for message in _messages.decode(found)}
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None  # for the engine to refuse in its own words
    if not always and roles & {"system", "developer"}:
        return None
    message = msgspec.json.encode({"role": "system", "content": prompt})
    at = found.index(b"[") + 1
    return b"".join((found[:at], message, b"," if roles else b"", found[at:]))


def _into_text(found: Raw | None, prompt: str, always: bool) -> Raw | None:
    """A field that is the system prompt itself: a string, or (Anthropic's) a list of blocks."""
    if found is None or found == b"null":
        return msgspec.json.encode(prompt)
    if not always:
        return None
    if found.startswith(b'"'):
        try:
            theirs = msgspec.json.decode(found, type=str)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return None  # for the engine to refuse in its own words
        return msgspec.json.encode(f"{prompt}\n\n{theirs}")
    if found.startswith(b"["):
        block = msgspec.json.encode({"type": "text", "text": prompt})
        empty = not found[1:-1].strip()
        return b"".join((b"[", block, b"" if empty else b",", found[1:]))
    return None


_PLACES: dict[str, tuple[str, Callable[[Raw | None, str, bool], Raw | None]]] = {
    **dict.fromkeys(_CHAT, ("messages", _into_messages)),
    **dict.fromkeys(_MESSAGES, ("system", _into_text)),
    _RESPONSES: ("instructions", _into_text),
}
"""Endpoint → the field that a system prompt goes into, and how."""
