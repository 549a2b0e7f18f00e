"""Every typed error, in both dialects, as the official clients expect it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest

import slotd.errors as errors
from slotd.errors import ActorGone, ConfigInvalid, SlotdError, SlotQueueFull
from slotd.exchange.render import envelope, error_response, sse_error

Dialect = Literal["openai", "anthropic"]


def every_error() -> Iterator[SlotdError]:
    for name in errors.__all__:
        kind: Any = getattr(errors, name)
        if kind is ActorGone:
            yield ActorGone("slot chat")
        elif kind is ConfigInvalid:
            yield ConfigInvalid("slotd.toml", ["server.port: too big"])
        else:
            yield kind("what happened", param="model", details={"slot": "chat", "path": Path("/x")})


@pytest.mark.parametrize("error", list(every_error()), ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("dialect", ["openai", "anthropic"])
def test_every_error_renders_in_both_dialects(error: SlotdError, dialect: Dialect) -> None:
    status, headers, body = error_response(error, dialect)
    document = json.loads(body)
    inner = document["error"]
    assert status == error.status
    assert 400 <= status < 600
    assert dict(headers)[b"content-type"] == b"application/json"
    assert dict(headers)[b"content-length"] == str(len(body)).encode()
    assert inner["message"] == error.message
    assert inner["code"] == error.code
    assert "." in error.code
    if dialect == "openai":
        assert set(inner) == {"message", "type", "param", "code", "details"}
        assert inner["type"] == error.type
    else:
        assert document["type"] == "error"
        assert inner["type"].endswith("_error") or inner["type"] == "request_too_large"
    assert (b"retry-after" in dict(headers)) == (error.retry_after_s is not None)


def test_codes_are_unique_but_for_the_base() -> None:
    codes = [getattr(errors, name).code for name in errors.__all__]
    assert len(codes) == len(set(codes))


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.0, b"1"), (0.2, b"1"), (1, b"1"), (1.01, b"2"), (59.5, b"60")]
)
def test_retry_after_is_whole_seconds_rounded_up(seconds: float, shown: bytes) -> None:
    _, headers, _ = error_response(SlotQueueFull("full", retry_after_s=seconds))
    assert dict(headers)[b"retry-after"] == shown


def test_the_official_shapes() -> None:
    error = SlotQueueFull("full", param="model")
    assert envelope(error) == {
        "error": {
            "message": "full",
            "type": "rate_limit_error",
            "param": "model",
            "code": "slot.queue_full",
            "details": {},
        }
    }
    assert envelope(error, "anthropic") == {
        "type": "error",
        "error": {"type": "rate_limit_error", "message": "full", "code": "slot.queue_full", "details": {}},
    }


@pytest.mark.parametrize("dialect", ["openai", "anthropic"])
def test_an_error_in_a_stream_is_one_frame(dialect: Dialect) -> None:
    frame = sse_error(SlotdError("two\nlines\r\n\r\nand a blank one"), dialect)
    assert frame.startswith(b"event: error\ndata: {")
    assert frame.endswith(b"}\n\n")
    assert frame.count(b"\n") == 3, "whatever the message holds, it is one data line"
    assert b"\r" not in frame
    assert json.loads(frame.split(b"data: ", 1)[1])["error"]["message"].startswith("two")
