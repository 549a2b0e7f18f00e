"""OpenAI's speech for piper: what it is asked, and what its sound becomes."""

from __future__ import annotations

import io
import json
import wave
from contextlib import suppress
from typing import Any

import pytest
from adapt_tools import call
from hypothesis import given
from hypothesis import strategies as st

from slotd.adapt.piper import FORMATS, SPEED_MAX, SPEED_MIN, speech
from slotd.errors import EngineError, RequestUnprocessable

PATH = "/v1/audio/speech"


def asked(**fields: Any) -> Any:
    return json.loads(speech(call(PATH, {"model": "tts-1", "input": "Hello.", **fields})).body)


def test_the_engine_is_asked_in_its_own_words() -> None:
    ask = speech(call(PATH, {"model": "tts-1", "input": "Hello.", "voice": "en_US-joe-medium", "speed": 2}))
    assert (ask.method, ask.target, ask.content_type) == ("POST", "/synthesize", "application/json")
    assert json.loads(ask.body) == {"text": "Hello.", "voice": "en_US-joe-medium", "length_scale": 0.5}


def test_its_sound_is_relayed_as_it_comes_under_its_right_name() -> None:
    # piper says text/html.
    ask = speech(call(PATH, {"input": "Hello."}))
    assert ask.convert is None
    assert ask.answer_type == "audio/wav"


def test_what_is_not_asked_for_is_left_to_the_engine() -> None:
    assert asked() == {"text": "Hello."}
    assert asked(speed=1, voice="", response_format="wav", stream_format="audio") == {"text": "Hello."}


def test_a_voice_may_be_an_object() -> None:
    assert asked(voice={"id": "joe"})["voice"] == "joe"
    assert "voice" not in asked(voice={})


@given(st.floats(SPEED_MIN, SPEED_MAX))
def test_twice_the_speed_is_half_the_length(speed: float) -> None:
    scale = asked(speed=speed).get("length_scale", 1.0)
    assert scale == pytest.approx(1 / speed, rel=1e-3)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": ""}, "input"),
        ({"input": "  "}, "input"),
        ({"input": None}, "input"),
        ({"input": ["a"]}, "input"),
        ({"response_format": "mp3"}, "response_format"),
        ({"response_format": 3}, "response_format"),
        ({"response_format": ["wav"]}, "response_format"),
        ({"stream_format": "sse"}, "stream_format"),
        ({"speed": 5}, "speed"),
        ({"speed": 0}, "speed"),
        ({"speed": True}, "speed"),
        ({"speed": "fast"}, "speed"),
        ({"voice": 7}, "voice"),
        ({"voice": {"id": 7}}, "voice"),
        ({"voice": "../../etc/passwd"}, "voice"),
        ({"voice": "a/b"}, "voice"),
        ({"voice": ".hidden"}, "voice"),
        ({"voice": "x" * 129}, "voice"),
    ],
)
def test_what_has_no_meaning_is_the_clients_to_mend(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(RequestUnprocessable) as caught:
        asked(**fields)
    assert (caught.value.status, caught.value.param) == (422, param)


def test_a_format_that_is_not_to_be_had_is_told_with_those_that_are() -> None:
    with pytest.raises(RequestUnprocessable) as caught:
        asked(response_format="opus")
    assert all(form in caught.value.message for form in FORMATS)


@given(st.text(max_size=200))
def test_no_voice_is_more_than_a_file_s_name(voice: str) -> None:
    try:
        name = asked(voice=voice).get("voice", "")
    except RequestUnprocessable:
        return
    assert "/" not in name
    assert "\0" not in name
    assert not name.startswith(".")


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists, max_leaves=4))
def test_any_value_anywhere_is_asked_or_refused(value: Any) -> None:
    for name in ("input", "voice", "speed", "response_format", "stream_format"):
        with suppress(RequestUnprocessable):
            asked(**{name: value})


@given(st.binary(max_size=60))
def test_any_body_is_asked_or_refused(body: bytes) -> None:
    with suppress(RequestUnprocessable):
        speech(call(PATH, body))


# --- samples alone ----------------------------------------------------------------------


def samples_of(wav: bytes) -> tuple[bytes, str]:
    convert = speech(call(PATH, {"input": "Hello.", "response_format": "pcm"})).convert
    assert convert is not None
    document = convert(wav)
    return document.body, document.content_type


def a_wav(samples: bytes, rate: int = 22050, channels: int = 1) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(channels)
        out.setsampwidth(2)
        out.setframerate(rate)
        out.writeframes(samples)
    return file.getvalue()


@given(
    st.binary(max_size=200).map(lambda b: b + b if len(b) % 4 else b).filter(lambda b: len(b) % 4 == 0),
    st.sampled_from([8000, 16000, 22050, 48000]),
    st.sampled_from([1, 2]),
)
def test_pcm_is_the_samples_and_their_rate(samples: bytes, rate: int, channels: int) -> None:
    got, kind = samples_of(a_wav(samples, rate, channels))
    assert got == samples
    assert kind == f"audio/pcm;rate={rate};channels={channels}"


def test_parts_between_format_and_samples_are_passed_over() -> None:
    wav = a_wav(b"\1\2\3\4")
    odd = b"LIST" + (3).to_bytes(4, "little") + b"abc\0"
    at = wav.index(b"data")
    assert samples_of(wav[:at] + odd + wav[at:])[0] == b"\1\2\3\4"


@given(st.binary(max_size=80))
def test_what_is_no_wav_is_the_engine_s_fault(data: bytes) -> None:
    for sound in (data, b"RIFF\0\0\0\0WAVE" + data):
        with suppress(EngineError):
            samples_of(sound)


def test_a_wav_without_samples_is_the_engine_s_fault() -> None:
    with pytest.raises(EngineError, match="without samples"):
        samples_of(a_wav(b"")[:36])


def test_samples_of_an_unknown_rate_are_the_engine_s_fault() -> None:
    wav = a_wav(b"\1\2\3\4")
    at = wav.index(b"data")
    with pytest.raises(EngineError, match="without samples"):
        samples_of(wav[:12] + wav[at:])
