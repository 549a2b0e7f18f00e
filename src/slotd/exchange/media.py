"""Pictures and sound in a chat, and their refusal where the model reads nothing but text. Pure.

An engine that cannot see says so after a load, and as a failure of its own
(llama.cpp: 500, which clients try again). What is known beforehand is told
beforehand, with a way out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from slotd.errors import RequestUnprocessable

__all__ = ["media_in", "refuse_media"]

_KINDS = {
    "image_url": "a picture",
    "input_image": "a picture",
    "image": "a picture",
    "input_audio": "sound",
}
"""Types of content parts, of every API, and what they hold."""

_MARKS = (b'"image_url"', b'"input_image"', b'"image"', b'"input_audio"')
"""None of these in the body: none of those in the chat. Cheap, for the many that have none."""

_FIELDS = {
    "/v1/chat/completions": "messages",
    "/apply-template": "messages",
    "/v1/messages": "messages",
    "/v1/messages/count_tokens": "messages",
    "/v1/responses": "input",
}
"""Where each endpoint has its chat. (Its paths in their main spelling.)"""


class _Part(msgspec.Struct):
    type: str | None = None
    content: str | list[_Part] | None = None
    """Of a message; also of a tool's result, which is a part that has parts."""


class _Body(msgspec.Struct):
    messages: list[_Part] | None = None
    input: str | list[_Part] | None = None


_decoder = msgspec.json.Decoder(_Body)


def media_in(path: str, body: bytes) -> tuple[str, ...]:
    """What a chat has besides text, in words, each once; ``path``: the endpoint's.

    Nothing, for a body that is not shaped as that endpoint's bodies are: the
    engine refuses it in its own words.
    """
    field = _FIELDS.get(path)
    if field is None or not any(mark in body for mark in _MARKS):
        return ()
    try:
        found = _decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ()
    chat = found.messages if field == "messages" else found.input
    if not isinstance(chat, list):
        return ()
    return tuple(dict.fromkeys(_KINDS[kind] for kind in _types(chat) if kind in _KINDS))


def _types(parts: Sequence[_Part]) -> Iterator[str | None]:
    for part in parts:
        yield part.type
        if isinstance(part.content, list):
            yield from _types(part.content)


def refuse_media(path: str, body: bytes, slot: str, seeing: Sequence[str]) -> None:
    """Raises :class:`RequestUnprocessable` if there is more than text for ``slot``, which reads only text.

    ``seeing``: slots that can do more, for the message.
    """
    media = media_in(path, body)
    if not media:
        return
    what = " and ".join(media)
    if seeing:
        advice = f"leave it out, or ask a model that takes it: {', '.join(seeing)}"
    else:
        advice = (
            "leave it out, or configure a model that takes it: one with a projector file "
            '(options.mmproj), and with the label "vision"'
        )
    raise RequestUnprocessable(
        f"there is {what} in this request, and the model of slot {slot!r} reads only text: {advice}",
        param=_FIELDS[path],
        details={"slot": slot, "needs": ["vision"], "slots": list(seeing)},
    )
