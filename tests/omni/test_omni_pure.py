"""What the loop decides, and how it reads and writes: no trio in it."""

from __future__ import annotations

import json
import math
from contextlib import suppress
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from omni_world import inbound

from slotd.capability.choice import LoadedSlot
from slotd.errors import AnswerTooLarge, RequestInvalid
from slotd.omni import deltas as deltas_room
from slotd.omni.child import letters
from slotd.omni.deltas import Call, Deltas
from slotd.omni.failure import said
from slotd.omni.form import encode_form
from slotd.omni.report import Note, Report, results_in_words
from slotd.omni.request import asks, read_chat
from slotd.omni.tools import TOOLS, BadArguments, GenerateImage, offered
from slotd.omni.turns import Final, HandOver, Retry, Rules, Run, State, Turn, added, step
from slotd.omni.vectors import likeness
from slotd.wire.multipart import short_fields

names = st.sampled_from(["generate_image", "weather", "embed_text", "unknown", ""])
scalars = st.none() | st.booleans() | st.integers() | st.text(max_size=5)
documents = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
)


# --- what is asked -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "answer"),
    [
        (b'{"omni":true}', "on"),
        (b'{"omni": false}', "off"),
        (b'{"omni":null}', "off"),
        (b'{"\\u006fmni":true}', "on"),
        (b'{"omni":1}', "on"),  # to be refused in words
        (b'{"messages":[{"content":"omni"}]}', "no"),
        (b'{"x":{"omni":true}}', "no"),
        (b"{}", "no"),
        (b"omni", "no"),
        (b'["omni"]', "no"),
        (b'{"omni":true', "no"),
        (b"[" * 10_000 + b'"omni"', "no"),
        (b'{"omni":\xff}', "no"),
    ],
)
def test_who_asks_for_tools(body: bytes, answer: str) -> None:
    assert asks(inbound(body)) == answer


@given(document=st.dictionaries(st.text(max_size=6), documents, max_size=5), ascii=st.booleans())
def test_who_does_not_name_it_does_not_ask(document: dict[str, Any], ascii: bool) -> None:
    document.pop("omni", None)
    body = json.dumps(document, ensure_ascii=ascii).encode("utf-8", "surrogatepass")
    assert asks(inbound(body)) == "no"


@given(extra=st.dictionaries(st.text(max_size=6).map("x-".__add__), documents, max_size=4))
def test_a_turn_keeps_what_the_loop_does_not_know(extra: dict[str, Any]) -> None:
    messages = [{"role": "user", "content": "hi"}]
    body = msgspec.json.encode({**extra, "omni": True, "model": "m", "messages": messages})
    chat = read_chat(body)
    turn = msgspec.json.decode(chat.turn((), [], first=True))
    assert turn == {**extra, "model": "m", "messages": messages}


def test_a_body_that_is_read_is_not_kept() -> None:
    """What a turn is made of must not change with the buffer that it was read from."""
    body = b'{"omni":true,"messages":[{"role":"user"}],"seed":7}'
    first = read_chat(body).turn((), [], first=True)
    assert json.loads(first) == {"messages": [{"role": "user"}], "seed": 7}


def test_the_limit_is_raised_where_it_is() -> None:
    chat = read_chat(b'{"omni":true,"messages":[],"max_tokens":1,"max_completion_tokens":5}')
    assert chat.limit == ("max_completion_tokens", 5)
    turn = json.loads(chat.turn((), [], first=True, tokens=9))
    assert (turn["max_completion_tokens"], turn["max_tokens"]) == (9, 1)


@pytest.mark.parametrize(
    "body",
    [
        b'{"omni":true}',
        b'{"omni":true,"messages":[],"stream":"yes"}',
        b'{"omni":true,"messages":[],"model":"\xff"}',
        b'{"omni":true,"messages":[],"\xff":1}',
        b'{"omni":true,"messages":[],"stream":true,"stream_options":{"\xff":1}}',
    ],
)
def test_what_cannot_be_read_is_refused(body: bytes) -> None:
    with pytest.raises(RequestInvalid):
        read_chat(body)


def test_a_tool_without_a_readable_name_is_for_the_engine_to_refuse() -> None:
    body = b'{"omni":true,"messages":[],"tools":[3,{"function":{"name":"\xff"}}]}'
    assert read_chat(body).theirs == frozenset()


# --- putting an answer together ------------------------------------------------------------

calls_made = st.lists(
    st.tuples(
        st.sampled_from(["generate_image", "weather", "other"]),
        st.text(max_size=12),
        st.sampled_from(["", "c1", "c2"]),
    ),
    max_size=5,
)


@given(made=calls_made, cuts=st.data(), indexed=st.booleans())
def test_pieces_come_together_again(
    made: list[tuple[str, str, str]], cuts: st.DataObject, indexed: bool
) -> None:
    deltas = Deltas({"weather"}, taken={"c1"}, prefix="call-1")
    passed: list[dict[str, Any]] = []
    for n, (name, arguments, id) in enumerate(made):
        cut = cuts.draw(st.integers(0, len(arguments)))
        place = {"index": n} if indexed else {}
        head = {**place, "id": id, "type": "function", "function": {"name": name, "arguments": ""}}
        if not id:
            del head["id"]
        passed.append(deltas.feed({"tool_calls": [head]}))
        for piece in (arguments[:cut], arguments[cut:]):
            passed.append(deltas.feed({"tool_calls": [{**place, "function": {"arguments": piece}}]}))
    passed.append(deltas.end())

    calls = deltas.calls()
    assert [(call.name, call.arguments) for call in calls] == [(name, text) for name, text, _ in made]
    ids = [call.id for call in calls]
    assert len({*ids, "c1"}) == len(ids) + 1, "each id once, and none that was used before"
    # The client gets its own calls, whole, numbered from 0, and nothing of the others.
    got: dict[int, list[str]] = {}
    for delta in passed:
        for piece in delta.get("tool_calls", ()):
            if "id" in piece:
                assert piece["index"] == len(got)
                got[piece["index"]] = [piece["id"], piece["function"]["name"], ""]
            got[piece["index"]][2] += piece["function"]["arguments"]
    assert list(map(tuple, got.values())) == [
        (call.id, call.name, call.arguments) for call in calls if call.name == "weather"
    ]


@given(delta=st.dictionaries(st.sampled_from(["content", "tool_calls", "role", "x"]), documents))
def test_an_engine_may_say_anything(delta: dict[str, Any]) -> None:
    deltas = Deltas(())
    deltas.feed(delta)
    deltas.feed({"tool_calls": [delta, {"function": delta, "index": delta.get("x")}]})
    deltas.end()
    assert all(call.id for call in deltas.calls())


def test_engines_that_give_every_call_the_same_index() -> None:
    deltas = Deltas(())
    for id in ("a", "b"):
        deltas.feed({"tool_calls": [{"index": 0, "id": id, "function": {"name": "f", "arguments": "{}"}}]})
    deltas.end()
    assert deltas.calls() == (Call("a", "f", "{}"), Call("b", "f", "{}"))


def test_engines_that_give_arguments_as_an_object_and_names_again() -> None:
    deltas = Deltas(())
    deltas.feed({"tool_calls": [{"index": 0, "id": "a", "function": {"name": "f"}}]})
    deltas.feed({"tool_calls": [{"index": 0, "function": {"name": "f", "arguments": {"a": 1}}}]})
    deltas.end()
    assert deltas.calls() == (Call("a", "f", '{"a":1}'),)


def test_text_passes_and_thought_is_kept() -> None:
    deltas = Deltas(())
    assert deltas.feed({"role": "assistant", "content": None}) == {}
    assert deltas.feed({"reasoning_content": "hm"}) == {"reasoning_content": "hm"}
    assert deltas.feed({"content": "yes"}) == {"content": "yes"}
    assert (deltas.content, deltas.reasoning) == ("yes", "hm")


def test_an_answer_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deltas_room, "MAX_CHARS", 10)
    deltas = Deltas(())
    deltas.feed({"content": "x" * 10})
    with pytest.raises(AnswerTooLarge):
        deltas.feed({"content": "x"})
    deltas = Deltas(())
    with pytest.raises(AnswerTooLarge):
        deltas.feed({"tool_calls": [{"index": n, "id": str(n)} for n in range(1000)]})


# --- what follows ---------------------------------------------------------------------------

turns = st.builds(
    Turn,
    content=st.text(max_size=3),
    calls=st.lists(st.builds(Call, st.uuids().map(str), names, st.text(max_size=6)), max_size=4).map(tuple),
    finish_reason=st.sampled_from(["stop", "length", "tool_calls"]),
)


@given(said=st.lists(turns, min_size=30, max_size=30), rounds=st.integers(1, 8), most=st.integers(1, 3))
def test_every_conversation_ends_in_its_bounds(said: list[Turn], rounds: int, most: int) -> None:
    rules = Rules(rounds, most, frozenset({"generate_image", "embed_text"}), frozenset({"weather"}))
    state, retries = State(), 0
    for number, turn in enumerate(said, start=1):
        state, following = step(state, turn, rules)
        assert state.rounds == number <= rounds
        match following:
            case Run(planned):
                assert number < rounds
                assert len(planned) == len(turn.calls) > 0
                run = [p for p in planned if not p.refusal]
                assert len(run) <= most
                assert all(p.call.name in rules.ours for p in run)
                before = len(state.messages)
                state = state.answered(turn, planned, [b"{}"] * len(planned))
                new = [json.loads(bytes(m)) for m in state.messages[before:]]
                assert [m["role"] for m in new] == ["assistant", *["tool"] * len(planned)]
                # Every call has its answer, and arguments that an engine can read.
                assert [m["tool_call_id"] for m in new[1:]] == [c["id"] for c in new[0]["tool_calls"]]
                for c in new[0]["tool_calls"]:
                    assert isinstance(json.loads(c["function"]["arguments"]), dict)
            case Retry():
                retries += 1
                assert not turn.calls
                assert not turn.content
                assert state.tokens == 8192
            case HandOver(calls):
                assert {c.name for c in calls} == {"weather"}
                return
            case Final(ended):
                assert ended == ("rounds" if turn.calls else "final")
                assert "weather" not in {c.name for c in turn.calls}
                return
        assert retries <= 1
    raise AssertionError("it did not end")


def test_usage_is_counted_together() -> None:
    one = {"total_tokens": 3, "details": {"a": 1, "b": None}, "x": None, "flag": True}
    other = {"total_tokens": 4, "details": {"a": 2, "c": 5}, "x": 2, "flag": True}
    assert added(one, other) == {
        "total_tokens": 7,
        "details": {"a": 3, "b": None, "c": 5},
        "x": 2,
        "flag": True,
    }


# --- the tools ----------------------------------------------------------------------------


def llm(name: str = "chat", *labels: str) -> LoadedSlot:
    return LoadedSlot(name, f"model-{name}", "llm", labels=labels)


CALLER = llm("chat", "tool-calling")


def test_each_tool_needs_a_slot() -> None:
    assert offered([CALLER], CALLER).names == set()
    by_type = {
        "image": {"generate_image"},
        "tts": {"text_to_speech"},
        "transcription": {"transcribe_audio"},
        "embedding": {"embed_text"},
        "reranking": {"rerank_documents"},
        "llm": {"route_to_chat"},
    }
    for type, expected in by_type.items():
        # One without labels can do what its type is called for.
        assert offered([CALLER, LoadedSlot("s", "m", type)], CALLER).names == expected


def test_labels_that_tell_one_from_another_count() -> None:
    painter = LoadedSlot("painter", "m", "image", labels=("edit",))
    drawer = LoadedSlot("drawer", "m", "image", labels=("image",))
    both = offered([CALLER, painter, drawer], CALLER)
    assert {name: slot.name for name, slot in both.slots.items()} == {
        "generate_image": "drawer",
        "edit_image": "painter",
    }
    assert offered([CALLER, painter], CALLER).names == {"edit_image"}
    assert offered([CALLER, llm("eyes", "vision")], CALLER).names == {"analyze_image", "route_to_chat"}


def test_a_caller_without_the_label_gets_none() -> None:
    slots = [llm("chat"), LoadedSlot("s", "m", "image"), llm("peer")]
    assert offered(slots, slots[0]).names == set()
    assert offered(slots, None).names == set()


def test_peers_are_the_others() -> None:
    peer = llm("peer", "code")
    offer = offered([CALLER, peer], CALLER)
    assert offer.target("peer") == offer.target("model-peer") == offer.target("slotd/peer") == peer
    with pytest.raises(BadArguments, match="there are: peer"):
        offer.target("chat")
    [definition] = offer.definitions()
    function = definition["function"]
    assert function["parameters"]["properties"]["target"]["enum"] == ["peer"]
    assert "peer (model-peer): code" in function["description"]


def test_definitions_are_what_engines_understand() -> None:
    for tool in TOOLS.values():
        function = tool.definition()["function"]
        parameters = function["parameters"]
        assert function["name"] == tool.name
        assert parameters["type"] == "object"
        assert set(parameters["required"]) <= set(parameters["properties"])
        assert "$ref" not in json.dumps(parameters)
        assert all("description" in value for value in parameters["properties"].values())
    required = {name: tool.definition()["function"]["parameters"]["required"] for name, tool in TOOLS.items()}
    assert required == {
        "generate_image": ["prompt"],
        "edit_image": ["image", "prompt"],
        "text_to_speech": ["input"],
        "transcribe_audio": ["audio"],
        "analyze_image": ["image", "question"],
        "embed_text": ["input"],
        "rerank_documents": ["query", "documents"],
        "route_to_chat": ["target", "prompt"],
    }


def test_arguments_are_read_with_some_patience() -> None:
    tool = TOOLS["generate_image"]
    assert tool.read({"prompt": "x", "n": "2", "size": None, "style": "?"}) == GenerateImage("x", n=2)
    for wrong in ({}, {"prompt": 1}, {"prompt": "x", "n": 5}, {"prompt": "x", "size": "big"}):
        with pytest.raises(BadArguments, match="generate_image"):
            tool.read(wrong)
    with pytest.raises(BadArguments):
        TOOLS["embed_text"].read({"input": []})


@given(name=st.sampled_from(sorted(TOOLS)), arguments=st.dictionaries(st.text(max_size=8), documents))
def test_no_arguments_surprise_a_tool(name: str, arguments: dict[str, Any]) -> None:
    with suppress(BadArguments):
        TOOLS[name].read(arguments)


# --- words and bytes ------------------------------------------------------------------------


@given(data=st.binary(max_size=200), value=st.text(max_size=50))
def test_a_form_is_read_as_it_was_written(data: bytes, value: str) -> None:
    kind, body = encode_form({"model": "slotd/x", "prompt": value}, "image", "image.png", "image/png", data)
    boundary = kind.partition("boundary=")[2].encode()
    assert body.startswith(b"--" + boundary)
    assert short_fields(body, (b"model",)) == {b"model": "slotd/x"}
    assert b"\r\n\r\n" + data + b"\r\n--" + boundary + b"--\r\n" in body


def test_names_of_many_calls() -> None:
    assert [letters(n) for n in (0, 1, 25, 26, 27, 701, 702)] == ["a", "b", "z", "aa", "ab", "zz", "aaa"]
    assert len({letters(n) for n in range(2000)}) == 2000


@given(words=st.text())
def test_a_comment_is_one_line(words: str) -> None:
    frame = Note("r", "generate_image", "draw", "error", 1.0, words).comment()
    assert frame.endswith(b"\n\n")
    assert b"\n" not in frame[:-2]
    assert b"\r" not in frame
    assert frame.startswith(b": omni generate_image error 1.0 s")


@pytest.mark.parametrize(
    ("body", "words", "code"),
    [
        (b'{"error":{"message":"m","code":"slot.stalled"}}', "m", "slot.stalled"),
        (b'{"error":{"message":"m","code":400}}', "m", ""),
        (b'{"error":"m"}', "m", ""),
        (b"<h1>Bad Gateway</h1>", "the engine answered 502: <h1>Bad Gateway</h1>", ""),
        (b"", "the engine answered 502", ""),
        (b"\xff", "the engine answered 502: \ufffd", ""),
    ],
)
def test_what_an_error_says(body: bytes, words: str, code: str) -> None:
    assert said(502, body) == (words, code)


def test_results_in_words_are_those_that_are_there() -> None:
    assert results_in_words([Report("r", "embed_text", "v", 0.0, error="no")]) == ""
    assert results_in_words([Report("r", "route_to_chat", "v", 0.0, text="yes")]) == "- route_to_chat: yes"


@given(
    vectors=st.lists(st.lists(st.floats(-10, 10), min_size=3, max_size=3), min_size=1, max_size=4),
)
def test_likeness(vectors: list[list[float]]) -> None:
    found = likeness(vectors)
    for i, row in enumerate(found):
        for j, value in enumerate(row):
            assert abs(value) <= 1.001
            assert value == found[j][i]
        assert found[i][i] in (0.0, 1.0) or math.hypot(*vectors[i]) < 1e-150
