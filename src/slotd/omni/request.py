"""What an omni chat asks for, read once, and the bodies of the turns that it becomes. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from slotd.errors import RequestInvalid
from slotd.exchange.inbound import Inbound

__all__ = ["LIMITS", "Chat", "asks", "read_chat"]

LIMITS = ("max_completion_tokens", "max_tokens", "n_predict")
"""Spellings of the token limit; the first that a request has is the one that is raised."""


def asks(chat: Inbound) -> Literal["no", "off", "on"]:
    """Whether a chat asks for the tool loop; ``off``: it has the field, and does not want it.

    A body that cannot be read asks for nothing: refusing it is the exchange's business.
    """
    try:
        said = chat.head.omni
    except RequestInvalid:
        return "no"
    if not said:
        return "no"
    return "off" if said in (b"false", b"null") else "on"


class _Function(msgspec.Struct):
    name: str = ""


class _Tool(msgspec.Struct):
    function: _Function | None = None


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = None
    omni_events: bool | None = None


class _Asked(msgspec.Struct):
    omni: bool
    messages: list[msgspec.Raw]
    model: str | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    tools: list[msgspec.Raw] | None = None
    n: int | None = None
    max_completion_tokens: int | None = None
    max_tokens: int | None = None
    n_predict: int | None = None


_asked = msgspec.json.Decoder(_Asked)
_members = msgspec.json.Decoder(dict[str, msgspec.Raw])
_tool = msgspec.json.Decoder(_Tool)


@dataclass(frozen=True, slots=True)
class Chat:
    """An omni chat. ``fields``: what of the body goes into every turn as it came.

    ``tools``: the client's own; ``theirs``: their names. ``limit``: the key and
    the value of the token limit, if there is one.
    """

    fields: Mapping[str, msgspec.Raw]
    messages: tuple[msgspec.Raw, ...]
    tools: tuple[msgspec.Raw, ...]
    theirs: frozenset[str]
    model: str | None
    stream: bool
    include_usage: bool
    events: bool
    limit: tuple[str, int] | None

    def turn(
        self,
        added: Sequence[msgspec.Raw],
        tools: Sequence[Mapping[str, Any]],
        *,
        first: bool,
        tokens: int | None = None,
    ) -> bytes:
        """The body of the model's next turn: ``added`` follows the client's messages.

        ``tokens`` raises the token limit. Only the ``first`` turn may be made to
        call a tool: one that must would never come to an end.
        """
        body: dict[str, Any] = dict(self.fields)
        body["messages"] = [*self.messages, *added]
        if self.tools or tools:
            body["tools"] = [*self.tools, *tools]
        if not first and bytes(body.get("tool_choice", b'"auto"')) not in (b'"auto"', b'"none"', b"null"):
            del body["tool_choice"]
        if self.stream:
            options = dict(_options(self.fields.get("stream_options")))
            options.pop("omni_events", None)
            body["stream_options"] = {**options, "include_usage": True}
        if tokens is not None:
            body[self.limit[0] if self.limit else "max_tokens"] = tokens
        return msgspec.json.encode(body)


def read_chat(body: bytes) -> Chat:
    """Raises :class:`slotd.errors.RequestInvalid` for what the loop could not carry."""
    try:
        asked = _asked.decode(body)
        fields = {key: value.copy() for key, value in _members.decode(body).items()}
        _options(fields.get("stream_options"))  # each turn reads them again
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RequestInvalid(f"an omni chat cannot be read: {error}", param=_where(str(error))) from error
    if not asked.omni:
        raise RequestInvalid("`omni` is true or false", param="omni")
    if asked.n not in (None, 1):
        raise RequestInvalid('a chat with "omni": true has one choice, and no `n`', param="n")
    for key in ("omni", "messages", "tools"):
        fields.pop(key, None)
    options = asked.stream_options or _StreamOptions()
    tools = tuple(tool.copy() for tool in asked.tools or ())
    limits = ((key, getattr(asked, key)) for key in LIMITS)
    return Chat(
        fields=fields,
        messages=tuple(message.copy() for message in asked.messages),
        tools=tools,
        theirs=frozenset(name for tool in tools if (name := _name(tool))),
        model=asked.model,
        stream=bool(asked.stream),
        include_usage=bool(options.include_usage),
        events=bool(options.omni_events),
        limit=next(((key, value) for key, value in limits if value is not None), None),
    )


def _name(tool: msgspec.Raw) -> str:
    """The name of a client's tool. One that cannot be read is for the engine to refuse."""
    try:
        function = _tool.decode(tool).function
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""
    return function.name if function is not None else ""


def _options(raw: msgspec.Raw | None) -> Mapping[str, msgspec.Raw]:
    return {} if raw is None or bytes(raw) == b"null" else _members.decode(raw)


def _where(words: str) -> str | None:
    """The field that a validation error is about, as msgspec tells it."""
    _, found, path = words.partition("at `$.")
    if found:
        return path.rstrip("`").partition("[")[0].partition(".")[0]
    _, found, name = words.partition("missing required field `")
    return name.rstrip("`") if found else None
