"""Deciding whether a request is assembled, and what the engine is sent instead.

Correctness wins: where the stream of llama.cpp lacks something that its
non-streaming answer has, the request is left as it is. That is so for

- ``logprobs`` (or ``n_probs``) on a chat: tokens that add no text have no
  chunk, so the end-of-text token and tokens held back for a stop string are
  missing, and with tools the engine refuses to stream them at all;
- ``logprobs`` together with ``stop`` on a text completion: the engine cuts as
  many entries as the stop string has tokens, which the stream does not tell;
- a conversation that ends with the assistant's words, to be continued: the
  engine's answer begins with those words, its stream after them;
- ``stop`` on the responses path: whether text was held back for it at a token
  limit, and lost to the stream, cannot be told there;
- ``verbose``: the ``__verbose`` object describes a different request;
- ``n`` on the Anthropic, responses and infill paths, where it means nothing;
- ``response_fields``, ``return_tokens`` and ``n_probs`` on the infill path, which change what an answer has.

An engine that was itself started with maximal verbosity adds ``__verbose`` to
every answer; assembled answers do not have it.
"""

from __future__ import annotations

import msgspec

from slotd.exchange.assemble.assembly import Assembly
from slotd.exchange.assemble.chat import Chat
from slotd.exchange.assemble.completions import Completions
from slotd.exchange.assemble.infill import Infill
from slotd.exchange.assemble.messages import Messages
from slotd.exchange.assemble.responses import Responses
from slotd.exchange.assemble.shape import ABSENT, Budget, Shape
from slotd.exchange.assemble.splice import set_field

__all__ = ["MAX_BYTES", "plan_assembly"]

MAX_BYTES = 64 * 1024 * 1024

_SHAPES: dict[str, type[Shape]] = {
    "/v1/chat/completions": Chat,
    "/v1/completions": Completions,
    "/v1/messages": Messages,
    "/v1/responses": Responses,
    "/infill": Infill,
}
_OFF = frozenset({b"false", b"null", b"0", b""})
_NONE = frozenset({b"null", b"[]", b'""', b""})
_ONE = frozenset({b"1", b"null", b""})


class _Asked(msgspec.Struct):
    """The fields that decide, unread; everything else is skipped."""

    stream: msgspec.Raw = ABSENT
    messages: msgspec.Raw = ABSENT
    input: msgspec.Raw = ABSENT
    stream_options: msgspec.Raw = ABSENT
    logprobs: msgspec.Raw = ABSENT
    n_probs: msgspec.Raw = ABSENT
    stop: msgspec.Raw = ABSENT
    stop_sequences: msgspec.Raw = ABSENT
    verbose: msgspec.Raw = ABSENT
    n: msgspec.Raw = ABSENT
    n_cmpl: msgspec.Raw = ABSENT
    response_fields: msgspec.Raw = ABSENT
    return_tokens: msgspec.Raw = ABSENT


class _Turn(msgspec.Struct):
    role: str = ""


_decoder = msgspec.json.Decoder(_Asked)
_turns_decoder = msgspec.json.Decoder(list[_Turn])


def plan_assembly(path: str, body: bytes, *, max_bytes: int = MAX_BYTES) -> Assembly | None:
    """How to serve a non-streaming request by a stream, or None to send it as it is.

    ``path`` is canonical. None means that there is nothing to assemble: another
    path, a request that streams already, one whose stream would lack something,
    or a body that the engine should refuse in its own words. ``max_bytes``
    bounds what the assembly keeps.
    """
    shape = _SHAPES.get(path)
    if shape is None:
        return None
    try:
        asked = _decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    if bytes(asked.stream) not in (b"", b"false") or not _complete_in_stream(shape, asked):
        return None
    if shape in (Chat, Completions):
        options = bytes(asked.stream_options)
        if options in (b"", b"null"):
            options = b"{}"
        elif not options.startswith(b"{"):
            return None
        body = set_field(body, "stream_options", set_field(options, "include_usage", b"true"))
        body = set_field(body, "timings_per_token", b"true")
    stops = any(bytes(given) not in _NONE for given in (asked.stop, asked.stop_sequences))
    return Assembly(set_field(body, "stream", b"true"), shape(Budget(max_bytes), stops=stops))


def _complete_in_stream(shape: type[Shape], asked: _Asked) -> bool:
    if bytes(asked.verbose) not in _OFF:
        return False
    if bytes(asked.logprobs) not in _OFF or bytes(asked.n_probs) not in _OFF:
        return shape is Completions and bytes(asked.stop) in _NONE
    if shape is not Completions and _continues(asked.input if shape is Responses else asked.messages):
        return False
    if shape is Responses and bytes(asked.stop) not in _NONE:
        return False
    if shape is Infill and (
        bytes(asked.response_fields) not in _NONE or bytes(asked.return_tokens) not in _OFF
    ):
        return False
    if shape in (Messages, Responses, Infill):
        return bytes(asked.n) in _ONE and bytes(asked.n_cmpl) in _ONE
    return True


def _continues(turns: msgspec.Raw) -> bool:
    """Whether the conversation ends with the assistant's words."""
    try:
        roles = _turns_decoder.decode(turns)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False  # a plain string, or something for the engine to refuse
    return bool(roles) and roles[-1].role == "assistant"
