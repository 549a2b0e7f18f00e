"""OpenAI's transcriptions for whisper.cpp: the form goes through, the answer is called what it is."""

from __future__ import annotations

import json
from collections.abc import Mapping

import pytest
from adapt_tools import call
from hypothesis import given
from hypothesis import strategies as st

from slotd.adapt import Ask
from slotd.adapt.whisper_cpp import transcription, translation
from slotd.errors import EngineError, RequestUnprocessable
from slotd.wire.multipart import short_fields

PATH = "/v1/audio/transcriptions"
SOUND = b"RIFF\x00\xff\r\n--almost\r\n\r\n" * 40


def form(fields: Mapping[str, str] | None = None, *, boundary: str = "xYz", sound: bytes = SOUND) -> bytes:
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, value in (fields or {}).items()
    ]
    file = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n'
        "Content-Type: audio/wav\r\n\r\n"
    )
    return b"".join([*parts, file.encode(), sound, f"\r\n--{boundary}--\r\n".encode()])


def kind_of(boundary: str = "xYz") -> str:
    return f"multipart/form-data; boundary={boundary}"


def asked(body: bytes, kind: str = kind_of()) -> Ask:
    return transcription(call(PATH, body, content_type=kind))


def answered(ask: Ask, answer: bytes) -> tuple[bytes, str]:
    assert ask.convert is not None
    document = ask.convert(answer)
    return document.body, document.content_type


@given(st.binary(max_size=300), st.sampled_from(["json", "text", ""]))
def test_the_form_goes_through_byte_for_byte(sound: bytes, form_asked: str) -> None:
    fields = {"model": "whisper-1"} | ({"response_format": form_asked} if form_asked else {})
    body = form(fields, sound=sound)
    ask = asked(body)
    assert ask.body is body
    assert (ask.method, ask.target, ask.content_type) == ("POST", "/inference", kind_of())


@pytest.mark.parametrize(
    ("wanted", "called"),
    [
        ("", "application/json"),
        ("json", "application/json"),
        ("verbose_json", "application/json"),
        ("text", "text/plain; charset=utf-8"),
        ("srt", "application/x-subrip; charset=utf-8"),
        ("vtt", "text/vtt; charset=utf-8"),
    ],
)
def test_the_answer_is_called_what_it_is(wanted: str, called: str) -> None:
    ask = asked(form({"response_format": wanted} if wanted else {}))
    assert answered(ask, b"hello\n") == (b"hello\n", called)


def test_a_format_that_it_does_not_have_is_told_with_those_it_has() -> None:
    with pytest.raises(RequestUnprocessable, match="diarized") as caught:
        asked(form({"response_format": "diarized_json"}))
    assert caught.value.param == "response_format"
    assert "verbose_json" in caught.value.message


@pytest.mark.parametrize(
    "kind", ["application/json", "multipart/form-data", "multipart/mixed; boundary=xYz", "", "; boundary=xYz"]
)
def test_what_is_no_form_is_refused(kind: str) -> None:
    with pytest.raises(RequestUnprocessable, match="must be a form"):
        asked(form(), kind)


@given(st.text(alphabet="abcXYZ019'()+_,-./:=?", min_size=1, max_size=60), st.booleans(), st.booleans())
def test_a_translation_has_one_field_more_and_all_the_others(
    boundary: str, quoted: bool, preamble: bool
) -> None:
    body = (b"ignored\r\n" if preamble else b"") + form(
        {"language": "de", "response_format": "text"}, boundary=boundary
    )
    kind = f'multipart/form-data; charset=utf-8; boundary="{boundary}"' if quoted else kind_of(boundary)
    ask = translation(call("/v1/audio/translations", body, content_type=kind))
    begin = ask.body.index(f"--{boundary}\r\n".encode())
    names = (b"translate", b"language", b"response_format")
    assert short_fields(ask.body[begin:], names) == {
        b"translate": "true",
        b"language": "de",
        b"response_format": "text",
    }
    assert ask.body.count(SOUND) == 1
    assert ask.body.endswith(body[body.index(b"--" + boundary.encode()) :])
    assert ask.target == "/inference"


def test_a_form_without_its_boundary_is_refused() -> None:
    with pytest.raises(RequestUnprocessable, match="boundary"):
        translation(call("/v1/audio/translations", b"nothing of it", content_type=kind_of()))


# --- failures that say 200 -----------------------------------------------------------------


def test_a_missing_file_is_the_clients_to_mend() -> None:
    with pytest.raises(RequestUnprocessable) as caught:
        answered(asked(form()), b'{"error":"no \'file\' field in the request"}')
    assert caught.value.param == "file"


@pytest.mark.parametrize("words", ["failed to read WAV file", "failed to read audio data"])
def test_sound_that_cannot_be_read_is_the_clients_to_mend(words: str) -> None:
    with pytest.raises(RequestUnprocessable, match=words):
        answered(asked(form({"response_format": "text"})), json.dumps({"error": words}).encode())


def test_any_other_failure_is_the_engines() -> None:
    with pytest.raises(EngineError, match="failed to process audio"):
        answered(asked(form()), b' {"error":"failed to process audio"}')


@pytest.mark.parametrize(
    "answer", [b'{"text": "he said error", "error": null}', b'{"text": " hi"}', b"{ he hums", b"", b"[1]"]
)
def test_an_answer_is_no_failure(answer: bytes) -> None:
    assert answered(asked(form()), answer)[0] == answer
