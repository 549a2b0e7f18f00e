"""Which requests are assembled, and what the engine is sent instead."""

from __future__ import annotations

import json
from typing import Any

import pytest
from assemble_support import ASSEMBLED, CHAT, FILLED, INFILL, MESSAGES, RESPONSES, TEXT, Case

from slotd.exchange.assemble import plan_assembly

_TURNS = [{"role": "user", "content": "hi"}]
_PREFILL = [*_TURNS, {"role": "assistant", "content": "I think"}]


def sent(path: str, body: bytes) -> bytes:
    assembly = plan_assembly(path, body)
    assert assembly is not None
    return assembly.body


@pytest.mark.parametrize("case", [*ASSEMBLED.values(), *FILLED.values()], ids=[*ASSEMBLED, *FILLED])
def test_only_the_streaming_keys_change(case: Case) -> None:
    path, request = case
    body = json.loads(sent(path, json.dumps(request).encode()))
    expected = {**request, "stream": True}
    if path in (CHAT, TEXT):
        expected |= {
            "stream_options": {**request.get("stream_options", {}), "include_usage": True},
            "timings_per_token": True,
        }
    assert body == expected


def test_the_rest_keeps_its_bytes() -> None:
    rest = b'"temperature": 1.0e0 ,"messages":[ {"role":"user","content":"\\u00e9 \\"stream\\": false"} ]'
    assert rest in sent(CHAT, b'{"stream" : false, ' + rest + b"}")


def test_other_stream_options_are_kept() -> None:
    body = sent(CHAT, b'{"messages":[],"stream_options":{"other":[1],"include_usage":false}}')
    assert json.loads(body)["stream_options"] == {"other": [1], "include_usage": True}
    assert json.loads(sent(CHAT, b'{"messages":[],"stream_options":null}'))["stream_options"] == {
        "include_usage": True
    }


@pytest.mark.parametrize(
    ("path", "request_"),
    [
        ("/v1/embeddings", {"input": "a"}),
        ("/completion", {"prompt": "a"}),
        (CHAT, {"messages": _TURNS, "stream": True}),
        (CHAT, {"messages": _TURNS, "stream": None}),
        (CHAT, {"messages": _TURNS, "stream": 1}),
        (CHAT, {"messages": _TURNS, "stream_options": "x"}),
        (CHAT, {"messages": _TURNS, "logprobs": True}),
        (CHAT, {"messages": _TURNS, "n_probs": 2}),
        (CHAT, {"messages": _TURNS, "verbose": True}),
        (TEXT, {"prompt": "a", "verbose": True}),
        (TEXT, {"prompt": "a", "logprobs": 1, "stop": ["x"]}),
        (TEXT, {"prompt": "a", "n_probs": 1, "stop": "x"}),
        (CHAT, {"messages": _PREFILL}),
        (MESSAGES, {"messages": _PREFILL}),
        (RESPONSES, {"input": _PREFILL}),
        (MESSAGES, {"messages": _TURNS, "n": 2}),
        (RESPONSES, {"input": "a", "n_cmpl": 2}),
        (RESPONSES, {"input": "a", "stop": ["x"]}),
        (INFILL, {"input_prefix": "a", "input_suffix": "b", "n_probs": 1}),
        (INFILL, {"input_prefix": "a", "input_suffix": "b", "response_fields": ["content"]}),
        (INFILL, {"input_prefix": "a", "input_suffix": "b", "return_tokens": True}),
        (INFILL, {"input_prefix": "a", "input_suffix": "b", "n_cmpl": 2}),
        (INFILL, {"input_prefix": "a", "input_suffix": "b", "stream": True}),
    ],
)
def test_sent_as_it_is(path: str, request_: dict[str, Any]) -> None:
    assert plan_assembly(path, json.dumps(request_).encode()) is None


@pytest.mark.parametrize("body", [b"", b"[]", b"nonsense", b'{"stream":', b'"x"'])
def test_what_is_no_json_object_is_for_the_engine_to_refuse(body: bytes) -> None:
    assert plan_assembly(CHAT, body) is None


@pytest.mark.parametrize(
    ("path", "request_"),
    [
        (CHAT, {"messages": _TURNS, "logprobs": False, "n_probs": 0, "verbose": False}),
        (CHAT, {"messages": _TURNS, "logprobs": None}),
        (CHAT, {"messages": "not a list"}),
        (TEXT, {"prompt": "a", "logprobs": 1, "stop": []}),
        (TEXT, {"prompt": "a", "stop": ["x"]}),
        (RESPONSES, {"input": [{"type": "function_call_output", "call_id": "x", "output": "y"}]}),
        (MESSAGES, {"messages": _TURNS, "n": 1}),
        (INFILL, {"input_prefix": "a", "input_suffix": "b", "response_fields": [], "return_tokens": False}),
        (INFILL, {}),
    ],
)
def test_assembled(path: str, request_: dict[str, Any]) -> None:
    assert plan_assembly(path, json.dumps(request_).encode()) is not None


def test_of_a_repeated_key_the_last_decides_and_the_engine_sees_one() -> None:
    assert plan_assembly(CHAT, b'{"messages":[],"stream":false,"stream":true}') is None
    assert sent(CHAT, b'{"messages":[],"stream":true,"stream":false}').count(b'"stream"') == 1
