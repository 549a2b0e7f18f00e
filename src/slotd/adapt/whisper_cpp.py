"""OpenAI's transcriptions and translations for whisper.cpp's server. Pure.

Its ``/inference`` takes the same form: ``file``, ``language``, ``prompt``,
``temperature`` and ``response_format`` (json, verbose_json, text, srt, vtt)
mean the same, and ``model`` means nothing to it. So the body goes through as
it came, megabytes of sound untouched.
"""

from __future__ import annotations

from functools import partial

import msgspec

from slotd.adapt.contract import Call
from slotd.adapt.translated import Ask, Document
from slotd.errors import EngineError, RequestUnprocessable
from slotd.wire.multipart import short_fields

__all__ = ["transcription", "translation"]

_JSON = "application/json"
_KINDS = {
    "json": _JSON,
    "verbose_json": _JSON,
    "text": "text/plain; charset=utf-8",
    "srt": "application/x-subrip; charset=utf-8",
    "vtt": "text/vtt; charset=utf-8",
}
"""What each format is; the server calls some of them text/html."""


def transcription(call: Call) -> Ask:
    """``POST /inference``. See :data:`slotd.adapt.Translation`."""
    return _ask(call, call.body)


def translation(call: Call) -> Ask:
    """The same with ``translate``: into English, whatever is spoken."""
    boundary = _boundary(call)
    delimiter = b"--" + boundary
    start = 0 if call.body.startswith(delimiter) else call.body.find(b"\r\n" + delimiter) + 2
    if start == 1:
        raise RequestUnprocessable("the form's boundary is nowhere in it")
    part = delimiter + b'\r\nContent-Disposition: form-data; name="translate"\r\n\r\ntrue\r\n'
    return _ask(call, b"".join((call.body[:start], part, call.body[start:])))


def _ask(call: Call, body: bytes) -> Ask:
    _boundary(call)
    form = short_fields(body, (b"response_format",)).get(b"response_format") or "json"
    if form not in _KINDS:
        raise RequestUnprocessable(
            f"`response_format` {form!r} is not to be had here; there are {', '.join(_KINDS)}",
            param="response_format",
        )
    return Ask("/inference", body, call.content_type, convert=partial(_document, _KINDS[form]))


def _boundary(call: Call) -> bytes:
    """Of the form; quoted or not."""
    kind, _, rest = call.content_type.partition(";")
    for parameter in rest.split(";"):
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "boundary" and (boundary := value.strip().strip('"')):
            if kind.strip().lower() == "multipart/form-data":
                return boundary.encode("latin-1", "replace")
            break
    raise RequestUnprocessable("the request must be a form (multipart/form-data) with the sound as `file`")


def _document(kind: str, answer: bytes) -> Document:
    """Servers from before March 2026 say 200 of many a failure, with an ``error`` in it."""
    if answer.lstrip()[:1] == b"{":
        try:
            said = msgspec.json.decode(answer)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            said = None
        if isinstance(said, dict) and "error" in said and "text" not in said:
            words = str(said["error"])
            if "'file'" in words:
                raise RequestUnprocessable("`file` is missing: the sound to listen to", param="file")
            if words.startswith("failed to read"):
                raise RequestUnprocessable(f"the engine cannot read `file`: {words}", param="file")
            raise EngineError(f"the engine answered: {words}")
    return Document(answer, kind)
