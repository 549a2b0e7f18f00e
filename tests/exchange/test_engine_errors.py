"""Errors that an engine tells in its own stream: known for what they are, passed on as they came."""

from __future__ import annotations

import json
from typing import Any, Literal

import pytest
from exchange_world import SSE, Answer, Client, World, inbound, run
from hypothesis import given
from hypothesis import strategies as st

from slotd.exchange.engine_errors import as_event, tells_error

ERRORS = [
    b'data: {"error":{"code":500,"message":"oops"}}\n\n',
    b'data: {"error": "oops"}\n\n',
    b'event: error\ndata: {"message":"oops"}\n\n',
    b"event:error\r\ndata: not even json\r\n\r\n",
    b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error"}}\n\n',
    b'data: {"type":"error","code":"x","message":"oops","param":null,"error":null}\n\n',
    b'event: response.failed\ndata: {"type":"response.failed","response":{"error":{"code":"x"}}}\n\n',
    b'data: {"choices":[]}\n\ndata: {"error":{"message":"second"}}\n\n',
]

FINE = [
    b'data: {"choices":[{"delta":{"content":"\\"error\\": {}"}}]}\n\n',
    b'data: {"choices":[{"delta":{"content":"error"}}]}\n\n',
    b'data: {"choices":[{"delta":{"content":"event: error"}}]}\n\n',
    b'event: response.created\ndata: {"type":"response.created","response":{"error":null}}\n\n',
    b'data: {"choices":[],"error":null}\n\n',
    b'data: {"tool":{"error":{"nested":1}}}\n\n',
    b': a comment about "error"\n\n',
    b"data: [DONE]\n\n",
    b'data: broken "error"\n\n',
    b"",
]


@pytest.mark.parametrize("frames", ERRORS)
def test_an_error_is_known(frames: bytes) -> None:
    assert tells_error(frames)


@pytest.mark.parametrize("frames", FINE)
def test_what_is_none_is_none(frames: bytes) -> None:
    assert not tells_error(frames)


@given(st.text())
def test_a_models_words_are_never_an_error(words: str) -> None:
    chunk = {"choices": [{"delta": {"content": words, "tool_calls": [{"arguments": words}]}}]}
    assert not tells_error(
        b"data: " + json.dumps(chunk, ensure_ascii=False).encode("utf-8", "replace") + b"\n\n"
    )


@pytest.mark.parametrize("frames", ERRORS)
async def test_it_is_recorded_and_goes_through(frames: bytes) -> None:
    body = b"data: 1\n\n" + frames
    world, client = World(Answer(body[:15], body[15:], kind=SSE)), Client()
    record = await run(world, client)
    assert client.body == body
    assert (record.status, record.outcome, record.error) == (200, "error", "engine.error")


@pytest.mark.parametrize("frames", FINE)
async def test_what_is_none_is_recorded_as_well(frames: bytes) -> None:
    world, client = World(Answer(frames, kind=SSE)), Client()
    record = await run(world, client)
    assert (client.body, record.outcome, record.error) == (frames, "ok", None)


def test_a_document_becomes_one_frame() -> None:
    def told(body: bytes, dialect: Literal["openai", "anthropic"]) -> Any:
        return json.loads(as_event(400, body, dialect).partition(b"data: ")[2])

    frame = as_event(400, b'{\n "error": {\n  "message": "x" }\n}', "openai")
    assert frame == b'event: error\ndata: {"error":{"message":"x"}}\n\n'
    assert told(b'{"error":{}, "x": 1}', "openai")["error"]["code"] == "engine.error"
    assert told(b'{"error":{"message":"x"}}', "anthropic")["type"] == "error"


async def test_the_anthropic_dialect() -> None:
    world, client = World(Answer(b"x", status=500)), Client()
    record = await run(world, client, inbound(path="/v1/messages"))
    assert (client.body, record.error) == (b"x", None), (
        "with nothing sent before, the engine's answer is the answer"
    )
