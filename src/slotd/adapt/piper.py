"""OpenAI's ``/v1/audio/speech`` for piper's HTTP server. Pure."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from slotd.adapt.contract import Call
from slotd.adapt.fields import number, read_object, text
from slotd.adapt.translated import Ask, Document
from slotd.errors import EngineError, RequestUnprocessable

__all__ = ["FORMATS", "speech"]

FORMATS = ("wav", "pcm")
"""What it can give. It has no codec: the others would have to be made from these."""

SPEED_MIN, SPEED_MAX = 0.25, 4.0

_VOICE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def speech(call: Call) -> Ask:
    """``POST /synthesize``. See :data:`slotd.adapt.Translation`.

    Answers ``wav`` where no format is asked for (OpenAI's usual one, mp3, is
    not to be had), and says so in its content type. A voice that piper does not
    have is spoken by its own.
    """
    document = read_object(call)
    asked: dict[str, Any] = {"text": text(document, "input")}
    form = document.get("response_format") or "wav"
    if form not in FORMATS:
        raise RequestUnprocessable(
            f"`response_format` {form!r} is not to be had here; there are {' and '.join(FORMATS)}",
            param="response_format",
        )
    if document.get("stream_format") not in (None, "audio"):
        raise RequestUnprocessable(
            "`stream_format` can only be 'audio': this engine speaks all of it at once", param="stream_format"
        )
    voice = _voice(document)
    if voice:
        asked["voice"] = voice
    speed = number(document, "speed", SPEED_MIN, SPEED_MAX)
    if speed is not None and speed != 1:
        asked["length_scale"] = round(1 / speed, 4)
    body = msgspec.json.encode(asked)
    if form == "pcm":
        return Ask("/synthesize", body, convert=_samples)
    # piper calls its sound text/html.
    return Ask("/synthesize", body, answer_type="audio/wav")


def _voice(document: dict[str, Any]) -> str:
    """The voice's name, "" for none. It becomes a part of a file's name: no more than a name goes through."""
    voice = document.get("voice") or ""
    if isinstance(voice, dict):
        voice = voice.get("id") or ""
    if voice and (not isinstance(voice, str) or _VOICE.fullmatch(voice) is None):
        raise RequestUnprocessable(
            "`voice` is a name of letters, digits, '.', '_' and '-', such as en_US-joe-medium", param="voice"
        )
    return str(voice)


def _samples(wav: bytes) -> Document:
    """A WAV file's samples alone. Their rate, which is the voice's, is told in the content type."""
    if wav[:4] != b"RIFF" or wav[8:12] != b"WAVE":
        raise EngineError("the engine's sound is no WAV file")
    at, rate, channels = 12, 0, 0
    while at + 8 <= len(wav):
        name, size = wav[at : at + 4], int.from_bytes(wav[at + 4 : at + 8], "little")
        part = wav[at + 8 : at + 8 + size]
        if name == b"fmt ":
            channels, rate = int.from_bytes(part[2:4], "little"), int.from_bytes(part[4:8], "little")
        elif name == b"data" and rate:
            return Document(part, f"audio/pcm;rate={rate};channels={channels}")
        at += 8 + size + size % 2
    raise EngineError("the engine's sound is a WAV file without samples")
