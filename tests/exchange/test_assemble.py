"""Assembly of streams recorded from a real llama.cpp, cut at any byte."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from assemble_support import (
    ASSEMBLED,
    CHAT,
    FAILING,
    FILLED,
    FILLED_HELD_BACK,
    HELD_BACK,
    INFILL,
    MESSAGES,
    RESPONSES,
    TEXT,
    comparable,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from slotd.exchange.assemble import (
    AssemblyTooLarge,
    IncompleteStream,
    MalformedStream,
    NotAssemblable,
    plan_assembly,
)
from slotd.exchange.assemble.assembly import Assembly

RECORDED: dict[str, dict[str, Any]] = json.loads(
    (Path(__file__).parent / "data" / "llama_cpp_streams.json").read_text("utf-8")
)
COMPLETE = [name for name in RECORDED if name in {**ASSEMBLED, **FILLED}]
HELD = [name for name in RECORDED if name in {**HELD_BACK, **FILLED_HELD_BACK}]
FAILED = [name for name in RECORDED if name in FAILING]


def planned(path: str, request: dict[str, Any], **options: int) -> Assembly:
    assembly = plan_assembly(path, json.dumps(request).encode(), **options)
    assert assembly is not None
    return assembly


def recorded(name: str) -> tuple[Assembly, bytes]:
    record = RECORDED[name]
    return planned(record["path"], record["request"]), record["stream"].encode()


def test_the_recordings_are_of_every_kind() -> None:
    assert len(COMPLETE) > 20
    assert len(HELD) > 5
    assert len(FAILED) > 2


@pytest.mark.parametrize("name", COMPLETE)
def test_equals_the_engines_own_answer(name: str) -> None:
    assembly, stream = recorded(name)
    assembly.feed(stream)
    answer = assembly.finish()
    assert answer.status == 200
    assert comparable(answer.body) == comparable(json.dumps(RECORDED[name]["answer"]).encode())


@settings(max_examples=60)
@given(name=st.sampled_from([*COMPLETE, *FAILED]), cuts=st.lists(st.integers(0, 10_000), max_size=30))
def test_cuts_change_nothing(name: str, cuts: list[int]) -> None:
    whole, stream = recorded(name)
    whole.feed(stream)
    pieces, _ = recorded(name)
    places = sorted({0, len(stream), *(cut % len(stream) for cut in cuts)})
    for start, end in pairwise(places):
        pieces.feed(stream[start:end])
    assert pieces.finish() == whole.finish()


@pytest.mark.parametrize("name", COMPLETE)
def test_a_stream_that_ends_early_is_incomplete(name: str) -> None:
    _, stream = recorded(name)
    last_event = stream.rindex(b"\n\n", 0, len(stream) - 2)
    for end in (0, 1, len(stream) // 3, len(stream) // 2, last_event + 2, len(stream.rstrip()) + 1):
        assembly, _ = recorded(name)
        assembly.feed(stream[:end])
        assert not assembly.done
        with pytest.raises(IncompleteStream):
            assembly.finish()


@pytest.mark.parametrize("name", FAILED)
def test_an_error_inside_the_stream_is_the_answer(name: str) -> None:
    assembly, stream = recorded(name)
    assembly.feed(stream)
    assert assembly.done
    answer = assembly.finish()
    assert answer.status == RECORDED[name]["status"]
    assert json.loads(answer.body) == RECORDED[name]["answer"]


@pytest.mark.parametrize("name", HELD)
def test_text_that_the_stream_left_out_is_noticed(name: str) -> None:
    assembly, stream = recorded(name)
    assembly.feed(stream)
    assert assembly.done
    with pytest.raises(NotAssemblable):
        assembly.finish()


def test_an_error_event_of_the_messages_path_has_no_envelope() -> None:
    error = {"code": 500, "message": "Context size has been exceeded.", "type": "server_error"}
    assembly, stream = recorded("messages-limit")
    half = stream.index(b"event: content_block_stop")
    assembly.feed(stream[:half] + b"event: error\ndata: " + json.dumps(error).encode() + b"\n\n")
    answer = assembly.finish()
    assert (answer.status, json.loads(answer.body)) == (500, {"error": error})


def test_an_error_without_a_status_of_its_own_is_500() -> None:
    for error in ({"message": "no"}, {"code": "x"}, {"code": 200}, {"code": 700}, "text"):
        assembly = planned(CHAT, {"messages": []})
        assembly.feed(b"data: " + json.dumps({"error": error}).encode() + b"\n\n")
        assert assembly.finish().status == 500


def test_a_message_whose_first_token_is_part_of_a_character_has_no_start() -> None:
    assembly, stream = recorded("messages-limit")
    start = stream.index(b"event: content_block_start")
    with pytest.raises(NotAssemblable, match="message_start"):
        assembly.feed(stream[start : stream.index(b"\n\n", start) + 2])


def test_blocks_of_a_message_may_share_an_index_and_be_announced_twice() -> None:
    events: list[dict[str, Any]] = [
        {
            "type": "message_start",
            "message": {"id": "m", "model": "demo", "usage": {"input_tokens": 3, "output_tokens": 0}},
        },
        {
            "type": "content_block_start",
            "index": 0,
            "content_block": {"type": "tool_use", "id": "t", "name": "f"},
        },
        {
            "type": "content_block_delta",
            "index": 0,
            "delta": {"type": "input_json_delta", "partial_json": '{"a"'},
        },
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "hi"}},
        {
            "type": "content_block_start",
            "index": 1,
            "content_block": {"type": "tool_use", "id": "t", "name": "f"},
        },
        {
            "type": "content_block_delta",
            "index": 1,
            "delta": {"type": "input_json_delta", "partial_json": ":1}"},
        },
        {"type": "ping"},
        {"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": {"output_tokens": 9}},
        {"type": "message_stop"},
    ]
    assembly = planned(MESSAGES, {"messages": []})
    for event in events:
        assembly.feed(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode())
    answer = json.loads(assembly.finish().body)
    assert answer["content"] == [
        {"type": "text", "text": "hi"},
        {"type": "tool_use", "id": "t", "name": "f", "input": {"a": 1}},
    ]
    assert answer["usage"] == {"input_tokens": 3, "output_tokens": 9}


def test_usage_and_timings_are_those_of_choice_0_whatever_ends_first() -> None:
    head = {"id": "c", "model": "demo", "created": 1, "object": "chat.completion.chunk"}
    chunks: list[dict[str, Any]] = []
    for index in (1, 0, 2):
        counts = {"completion_tokens": index + 10}
        chunks += [
            {"choices": [{"index": index, "delta": {"role": "assistant", "content": None}}]},
            {"choices": [{"index": index, "delta": {"content": f"text {index}"}}]},
            {"choices": [{"index": index, "delta": {}, "finish_reason": "stop"}]},
            {"choices": [], "usage": counts, "timings": {"predicted_n": index + 10}},
        ]
    assembly = planned(CHAT, {"messages": [], "n": 3})
    for chunk in chunks:
        assembly.feed(f"data: {json.dumps(head | chunk)}\n\n".encode())
    assembly.feed(b"data: [DONE]\n\n")
    answer = json.loads(assembly.finish().body)
    assert [choice["message"]["content"] for choice in answer["choices"]] == ["text 0", "text 1", "text 2"]
    assert answer["usage"] == {"completion_tokens": 10}
    assert answer["timings"] == {"predicted_n": 10}


def test_a_chunk_that_adds_no_text_does_not_count_as_sent() -> None:
    """The opening chunk carries timings too: of a token whose text is held back."""
    assembly = planned(CHAT, {"messages": []})
    for chunk in (
        {
            "choices": [{"index": 0, "delta": {"role": "assistant", "content": None}}],
            "timings": {"predicted_n": 1},
        },
        {"choices": [{"index": 0, "delta": {}, "finish_reason": "length"}]},
        {"choices": [], "usage": {"completion_tokens": 1}},
    ):
        assembly.feed(f"data: {json.dumps(chunk)}\n\n".encode())
    assembly.feed(b"data: [DONE]\n\n")
    with pytest.raises(NotAssemblable):
        assembly.finish()


@pytest.mark.parametrize("path", [CHAT, TEXT, MESSAGES, RESPONSES, INFILL])
@pytest.mark.parametrize("data", [b"{", b"[1]", b'{"choices":3,"delta":3,"response":3,"error":', b'"x"'])
def test_what_no_engine_sends_is_malformed(path: str, data: bytes) -> None:
    assembly = planned(path, {"messages": [], "prompt": "", "input": ""})
    with pytest.raises(MalformedStream):
        assembly.feed(b"data: " + data + b"\n\n")


def test_an_error_in_the_middle_of_a_gap_is_the_answer() -> None:
    assembly = planned(INFILL, {})
    error = b'{"error":{"code":400,"message":"too long","type":"exceed_context_size_error"}}'
    assembly.feed(b'data: {"content":"a","stop":false,"tokens_predicted":1}\n\ndata: ' + error + b"\n\n")
    answer = assembly.finish()
    assert (answer.status, json.loads(answer.body)) == (400, json.loads(error))


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_an_end_without_a_finished_choice_is_malformed(path: str) -> None:
    assembly = planned(path, {"messages": [], "prompt": ""})
    assembly.feed(b'data: {"choices":[{"index":0,"delta":{"content":"a"},"text":"a"}]}\n\n')
    with pytest.raises(MalformedStream):
        assembly.feed(b"data: [DONE]\n\n")


def test_comments_and_what_follows_the_end_are_ignored() -> None:
    assembly, stream = recorded("chat-end")
    assembly.feed(b": ping\n\n" + stream + b'data: {"error":{"code":500}}\n\ndata: nonsense\n\n')
    assert assembly.finish().status == 200


@pytest.mark.parametrize(
    "name", ["chat-tools-parallel", "text-logprobs", "messages-tool", "responses-tool", "infill-limit"]
)
def test_memory_is_bounded(name: str) -> None:
    record = RECORDED[name]
    limit = 500
    assembly = planned(record["path"], record["request"], max_bytes=limit)
    with pytest.raises(AssemblyTooLarge, match=str(limit)):
        assembly.feed(record["stream"].encode())


def test_many_small_pieces_are_bounded() -> None:
    assembly = planned(CHAT, {"messages": []}, max_bytes=10_000)
    piece = b'data: {"choices":[{"index":0,"delta":{"content":"a"}}]}\n\n'
    assembly.feed(piece * 100)
    with pytest.raises(AssemblyTooLarge):
        assembly.feed(piece * 100)


def test_an_event_without_end_is_bounded() -> None:
    assembly = planned(CHAT, {"messages": []}, max_bytes=1000)
    for _ in range(18):
        assembly.feed(b"data: " + b"x" * 50 + b"\n")
    with pytest.raises(AssemblyTooLarge, match="1000"):
        assembly.feed(b"data: " + b"x" * 100)
