"""Finding the model in a request's body, JSON or multipart, whatever else the body holds."""

from __future__ import annotations

import time

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slotd.capability.endpoints import ENDPOINTS
from slotd.errors import InvalidJson
from slotd.exchange.inbound import Head, Inbound, header, read_head
from slotd.wire.fields import Fields
from slotd.wire.multipart import short_fields

CHAT = ENDPOINTS["/v1/chat/completions"]
AUDIO = ENDPOINTS["/v1/audio/transcriptions"]


def part(disposition: str, content: bytes, *more: str) -> bytes:
    lines = [f"Content-Disposition: {disposition}", *more]
    return b"--BOUND\r\n" + "\r\n".join(lines).encode() + b"\r\n\r\n" + content + b"\r\n"


def form(*parts: bytes) -> bytes:
    return b"".join(parts) + b"--BOUND--\r\n"


MODEL = part('form-data; name="model"', b"whisper-1")
FILE = part('form-data; name="file"; filename="a.wav"', b"RIFF\0\r\n\r\n", "Content-Type: audio/wav")


@pytest.mark.parametrize(
    "body",
    [
        form(MODEL),
        form(FILE, MODEL),
        form(MODEL, FILE),
        form(part("form-data; name=model", b"whisper-1")),
        form(part('form-data;name="model"', b"whisper-1")),
        form(part('form-data; name="model"', b"whisper-1", "Content-Type: text/plain")),
        form(part('form-data; name="model"', b"whisper-1").replace(b"Content-Disp", b"CONTENT-DISP")),
        form(part('form-data; foo="; name=\\"x\\""; name="model"', b"whisper-1")),
        form(MODEL, part('form-data; name="model"', b"the second does not count")),
    ],
)
def test_the_model_field_is_found(body: bytes) -> None:
    assert read_head(AUDIO, body).model == "whisper-1"


@pytest.mark.parametrize(
    "body",
    [
        form(FILE),
        form(part('form-data; name="model_name"', b"x")),
        form(part('form-data; name="my; name=model"', b"x")),
        form(part('form-data; name="file"; filename="x; name=model"', b"x")),
        form(part('form-data; name="file"; filename="x; name=\\"model\\""', b"x")),
        form(part('form-data; name="model"; filename="model.txt"', b"a file is no field")),
        form(part('form-data; name="model"', b"")),
        form(part('form-data; name="model"', b"x" * 600)),
        b"--BOUND\r\n",
        b"--BOUND",
        b"--\r\n",
        b"--",
    ],
)
def test_what_only_looks_like_a_model_field_is_not_taken_for_one(body: bytes) -> None:
    assert read_head(AUDIO, body) == Head(None, False)


@pytest.mark.parametrize(
    "content",
    [
        b'\r\nContent-Disposition: form-data; name="model"\r\n\r\nevil\r\n',
        b'--OTHER\r\nContent-Disposition: form-data; name="model"\r\n\r\nevil\r\n',
        b'x--BOUND\r\nContent-Disposition: form-data; name="model"\r\n\r\nevil\r\n',
        b'\n--BOUND\r\nContent-Disposition: form-data; name="model"\r\n\r\nevil\r\n',
    ],
)
def test_a_files_content_is_not_read_as_a_part(content: bytes) -> None:
    evil = part('form-data; name="file"; filename="a"', content)
    assert read_head(AUDIO, form(evil)).model is None
    assert read_head(AUDIO, form(evil, MODEL)).model == "whisper-1"


def test_stream_is_true_only_if_it_says_so() -> None:
    assert read_head(AUDIO, form(MODEL, part('form-data; name="stream"', b"true"))) == Head("whisper-1", True)
    assert read_head(AUDIO, form(part('form-data; name="stream"', b"1"), MODEL)) == Head("whisper-1", False)


@given(st.binary(max_size=200), st.sampled_from(["model", "stream", "language"]), st.binary(max_size=20))
def test_any_content_beside_it_changes_nothing(content: bytes, name: str, value: bytes) -> None:
    if b"--BOUND" in content or b"--BOUND" in value:
        return  # no encoder picks a boundary that the content has
    body = form(
        part('form-data; name="file"; filename="f"', content), part(f'form-data; name="{name}"', value)
    )
    assert short_fields(body, (name.encode(),)) == {name.encode(): value.decode("utf-8", "replace")}


@pytest.mark.parametrize(
    "body",
    [
        b"--B\r\n" + b'Content-Disposition: form-data; name="model"\r\n' * 100_000 + b"\r\n",
        b"--B" + b"\r\n--B" * 1_000_000,
        b'--B\r\nContent-Disposition: form-data; name="model"\r\n\r\n' + b"\r\n--" * 1_000_000,
        b"--B\r\nContent-Disposition: form-data" + b'; name="' * 500_000,
    ],
    ids=["heads", "parts", "content", "quotes"],
)
def test_a_hostile_body_costs_no_more_than_its_length(body: bytes) -> None:
    began = time.process_time()
    read_head(AUDIO, body)
    assert time.process_time() - began < 1.0


def test_json_heads() -> None:
    assert read_head(CHAT, b'{"model": "m", "stream": true}') == Head("m", True)
    assert read_head(CHAT, b'{"messages": []}') == Head(None, False)
    assert read_head(AUDIO, b'{"model": "m"}') == Head("m", False), "a JSON body is taken anywhere"
    for bad in (b"", b"[]", b'{"model": 1}', b"{", b"--BOUND\r\n"):
        with pytest.raises(InvalidJson):
            read_head(CHAT, bad)


def test_the_first_of_several_headers() -> None:
    headers = [(b"a", b"1"), (b"b", b"2"), (b"a", b"3")]
    assert header(headers, b"a") == b"1"
    assert header(headers, b"c") is None


def test_what_decides_is_read_once_and_anew_for_another_body(monkeypatch: pytest.MonkeyPatch) -> None:
    first = Inbound("r", "POST", CHAT.path, b"", Fields(), b'{"model":"m","omni":true}', CHAT)
    assert first.head == Head("m", False, b"true")
    other = msgspec.structs.replace(first, body=b'{"model":"n"}')
    assert other.head == Head("n", False)
    monkeypatch.delattr("slotd.exchange.inbound.read_head")
    assert (first.head.model, other.head.model) == ("m", "n")
