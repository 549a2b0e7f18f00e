"""The loop on virtual time: rounds, tools side by side, failures as messages, and how it ends."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
import trio
from omni_world import (
    CHAT,
    IMAGES,
    PNG,
    PNG_BASE64,
    RECORDS,
    SLOTS,
    SPEECH,
    Client,
    World,
    asked,
    call,
    carried,
    form,
    gives,
    inbound,
    picture,
    refuses,
    run,
    says,
)
from trio.testing import MockClock

from slotd.arbiter.snapshot import ArbiterSnapshot, ModeShown
from slotd.artifacts import ArtifactLimits, Artifacts
from slotd.capability.choice import LoadedSlot
from slotd.errors import GpuExclusive, ServerStopping, SlotLoading
from slotd.exchange.inbound import ClientGone, Inbound, Outbound
from slotd.exchange.record import RequestRecord

DRAW = call("generate_image", {"prompt": "a cat"})
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


async def test_without_omni_the_very_request_goes_on(autojump_clock: MockClock) -> None:
    world = World(says("hello"))
    body = b'{ "model":"m","messages":[],"x":1.50 }'
    given = inbound(body)
    with trio.fail_after(1):
        await world.omni.run(given, Client())
    assert world.seen == [given]
    assert world.finished == []


@pytest.mark.parametrize("said", [b"false", b"null"])
async def test_omni_that_is_not_wanted_is_taken_out(autojump_clock: MockClock, said: bytes) -> None:
    world = World(says("hello"))
    await world.omni.run(inbound(b'{"model":"m", "omni": ' + said + b', "x":1.50}'), Client())
    assert world.seen[0].body == b'{"model":"m", "x":1.50}'


async def test_a_round_of_tools_and_an_answer(autojump_clock: MockClock) -> None:
    world = World(says(None, DRAW), says("Here it is."), images=[picture()])
    client = await run(world, asked(temperature=0.5))
    assert client.status == 200
    answer = client.document
    assert answer["choices"] == [
        {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "Here it is."}}
    ]
    assert (answer["id"], answer["created"], answer["model"]) == ("id-of-req-1.1", 5, "engine's name")
    assert answer["usage"] == {
        "prompt_tokens": 20,
        "completion_tokens": 6,
        "total_tokens": 26,
        "prompt_tokens_details": {"cached_tokens": 2},
    }
    slotd = answer["slotd"]
    assert (slotd["rounds"], slotd["ended"]) == (2, "final")
    [tool] = slotd["tools"]
    assert (tool["name"], tool["slot"], tool["status"], tool["id"]) == (
        "generate_image",
        "draw",
        "ok",
        "req-1.1.a",
    )
    [kept] = tool["artifacts"]
    assert kept["url"].startswith("http://here/api/artifacts/")
    found = world.artifacts.get(kept["url"].rpartition("/")[2])
    assert found is not None
    assert (found.data, found.content_type, kept["bytes"]) == (PNG, "image/png", len(PNG))
    # What the model was told: a reference, and nothing of the picture itself.
    assert world.told(1) == [{"images": [kept]}]
    assert [(i.id, i.parent, i.path) for i in world.seen] == [
        ("req-1.1", "req-1", CHAT),
        ("req-1.1.a", "req-1", IMAGES),
        ("req-1.2", "req-1", CHAT),
    ]
    first, second = world.bodies()
    assert "omni" not in first
    assert first["temperature"] == second["temperature"] == 0.5
    assert second["messages"][:2] == [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": None, "tool_calls": [DRAW]}
        | {"tool_calls": [call("generate_image", '{"prompt":"a cat"}')]},
    ]
    assert world.bodies(IMAGES) == [
        {"model": "slotd/draw", "prompt": "a cat", "n": 1, "response_format": "b64_json"}
    ]


async def test_the_record_of_the_whole_is_the_parent(autojump_clock: MockClock) -> None:
    world = World(says(None, DRAW), says("done"), images=[picture()])
    await run(world)
    [record] = world.finished
    assert (record.id, record.target, record.outcome, record.status) == ("req-1", "omni", "ok", 200)
    assert (record.model, record.tokens_out) == ("m", 6)


async def test_the_tools_of_a_round_run_side_by_side(autojump_clock: MockClock) -> None:
    calls = [DRAW, call("text_to_speech", {"input": "hi"}, "c2")]
    world = World(
        says(None, *calls),
        says("done"),
        images=[picture(after_s=1.0)],
        speech=[gives(b"RIFF....WAVE", after_s=1.0, kind=b"audio/x-wav; rate=1")],
    )
    client = await run(world)
    assert trio.current_time() == 1.0
    assert world.most == 2
    _, audio = world.told(1)
    assert audio["audio"]["content_type"] == "audio/wav"
    assert [t["took_s"] for t in client.document["slotd"]["tools"]] == [1.0, 1.0]
    assert world.bodies(SPEECH) == [{"model": "slotd/voice", "input": "hi"}]


async def test_a_model_that_never_stops_calling_stops_after_eight_rounds(autojump_clock: MockClock) -> None:
    world = World(says("more", DRAW), images=[picture()])
    answer = (await run(world)).document
    assert len(world.bodies()) == 8
    assert len(world.bodies(IMAGES)) == 7
    assert answer["slotd"]["ended"] == "rounds"
    assert answer["slotd"]["rounds"] == 8
    [choice] = answer["choices"]
    assert choice["finish_reason"] == "length"
    assert choice["message"] == {"role": "assistant", "content": "more"}


async def test_with_no_word_at_the_last_round_the_results_are_told(autojump_clock: MockClock) -> None:
    world = World(says(None, DRAW), images=[picture()], omni={"max_rounds": 2})
    answer = (await run(world)).document
    kept = answer["slotd"]["tools"][0]["artifacts"][0]["url"]
    assert kept in answer["choices"][0]["message"]["content"]


async def test_a_tool_that_fails_is_a_message(autojump_clock: MockClock) -> None:
    calls = [
        call("generate_image", {"prompt": "x"}, "c1"),
        call("text_to_speech", {"input": "x"}, "c2"),
        call("generate_image", {"n": 9, "prompt": "x"}, "c3"),
        call("generate_image", "{no json", "c4"),
        call("what_is_this", {}, "c5"),
        call("embed_text", {"input": ["x"]}, "c6"),
    ]

    async def bug(inbound: Inbound, out: Outbound) -> None:
        raise KeyError("a bug of ours")

    async def own_words(inbound: Inbound, out: Outbound) -> None:
        out.start(400, [])
        await out.send(b'{"error":{"code":400,"message":"no such voice"}}')

    world = World(
        says(None, *calls),
        says("done"),
        images=[refuses(GpuExclusive("busy with another"))],
        speech=[own_words],
        embed=[bug],
    )
    answer = (await run(world)).document
    assert answer["choices"][0]["message"]["content"] == "done"
    told = world.told(1)
    assert told[0] == {"error": "busy with another", "code": "gpu.exclusive"}
    assert told[1] == {"error": "no such voice"}
    assert "<= 4" in told[2]["error"]
    assert "no JSON object" in told[3]["error"]
    assert "what_is_this" in told[4]["error"]
    assert told[5]["code"] == "internal.error"
    # Engines take nothing but an object for arguments, also in what has been said.
    history = world.bodies()[1]["messages"][1]["tool_calls"]
    assert history[3]["function"]["arguments"] == "{}"
    assert {t["status"] for t in answer["slotd"]["tools"]} == {"error"}


async def test_a_tool_that_takes_too_long_is_a_message_and_ends(autojump_clock: MockClock) -> None:
    world = World(says(None, DRAW), says("done"), images=[picture(after_s=1000)])
    await run(world)
    assert trio.current_time() == 120
    assert "omni.tool_timeout_s" in world.told(1)[0]["error"]


async def test_more_calls_than_allowed_are_told_so(autojump_clock: MockClock) -> None:
    calls = [call("generate_image", {"prompt": str(n)}, f"c{n}") for n in range(5)]
    world = World(says(None, *calls), says("done"), images=[picture()], omni={"max_calls": 3})
    await run(world)
    told = world.told(1)
    assert ["error" in message for message in told] == [False, False, False, True, True]
    assert "no more than 3" in told[4]["error"]


# --- the model's turns -----------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
async def test_an_error_of_the_first_turn_is_the_answer(autojump_clock: MockClock, stream: bool) -> None:
    world = World(refuses(SlotLoading("not yet", retry_after_s=7)))
    client = await run(world, asked(stream=stream))
    assert client.status == 503
    assert client.document["error"]["code"] == "slot.loading"
    assert client.headers[b"retry-after"] == b"7"
    assert client.headers[b"x-request-id"] == b"req-1"
    [record] = world.finished
    assert (record.outcome, record.error) == ("error", "slot.loading")


async def test_an_error_after_comments_is_the_last_event(autojump_clock: MockClock) -> None:
    world = World(refuses(SlotLoading("not yet"), streamed=True))
    client = await run(world, asked(stream=True))
    first, last = client.frames
    assert (client.status, first) == (200, ": slotd: chat is starting")
    assert last.startswith("event: error\ndata: ")
    assert json.loads(last.partition("data: ")[2])["error"]["code"] == "slot.loading"


@pytest.mark.parametrize("stream", [False, True])
async def test_when_the_model_cannot_go_on_the_results_are_the_answer(
    autojump_clock: MockClock, stream: bool
) -> None:
    world = World(says(None, DRAW), refuses(GpuExclusive("gpu0 is taken")), images=[picture()])
    client = await run(world, asked(stream=stream))
    assert client.status == 200
    if stream:
        text, end = client.text, client.end
        slotd, reason = end["slotd"], end["choices"][0]["finish_reason"]
    else:
        answer = client.document
        text, slotd = answer["choices"][0]["message"]["content"], answer["slotd"]
        reason = answer["choices"][0]["finish_reason"]
    assert reason == "stop"
    assert "gpu0 is taken" in text
    assert slotd["tools"][0]["artifacts"][0]["url"] in text
    assert (slotd["ended"], slotd["error"]["code"]) == ("degraded", "gpu.exclusive")


async def test_with_no_results_the_later_error_is_the_answer(autojump_clock: MockClock) -> None:
    world = World(says(None, DRAW), refuses(SlotLoading("not yet")), images=[refuses(GpuExclusive("no"))])
    client = await run(world)
    assert (client.status, client.document["error"]["code"]) == (503, "slot.loading")


async def test_a_turn_that_is_too_long_to_keep_leaves_the_results(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("slotd.omni.deltas.MAX_CHARS", 100)
    world = World(says(None, DRAW), says("x" * 101), images=[picture()])
    answer = (await run(world)).document
    assert answer["slotd"]["ended"] == "degraded"
    assert answer["slotd"]["error"]["code"] == "slot.answer_too_large"
    assert "/api/artifacts/" in answer["choices"][0]["message"]["content"]


@pytest.mark.parametrize("given", [f"data:image/png;base64,{PNG_BASE64}", f"DATA:;base64,{PNG_BASE64}"])
async def test_a_picture_in_its_address_is_kept_and_not_told(autojump_clock: MockClock, given: str) -> None:
    answers = gives({"data": [{"url": given}, {"url": "http://e/x.png"}, {"url": "http://e/" + "x" * 5000}]})
    world = World(says(None, DRAW), says("done"), images=[answers])
    client = await run(world)
    [kept] = client.document["slotd"]["tools"][0]["artifacts"]
    assert (kept["content_type"], kept["bytes"]) == ("image/png", len(PNG))
    assert world.told(1) == [{"images": [kept, {"url": "http://e/x.png"}]}]


async def test_a_turn_that_takes_too_long_ends(autojump_clock: MockClock) -> None:
    async def hangs(inbound: Inbound, out: Outbound) -> None:
        await trio.sleep_forever()

    client = await run(World(hangs))
    assert trio.current_time() == 300
    assert (client.status, client.document["error"]["code"]) == (504, "slot.stalled")


async def test_an_answer_that_was_cut_off_is_asked_for_once_more(autojump_clock: MockClock) -> None:
    world = World(says(None, finish="length"), says("done"))
    answer = (await run(world, asked(max_tokens=5000))).document
    assert [body["max_tokens"] for body in world.bodies()] == [5000, 10000]
    assert answer["choices"][0]["message"]["content"] == "done"
    assert answer["slotd"] == {"rounds": 2, "ended": "final", "tools": []}


async def test_without_tools_it_is_not() -> None:
    """There was no call to be cut off: what the client has asked for is what came."""
    world = World(says(None, finish="length"), says("done"))
    world.loaded_slots = lambda: ()  # type: ignore[method-assign] # nobody who could serve a tool
    answer = (await run(world)).document
    assert len(world.bodies()) == 1
    assert answer["choices"][0]["finish_reason"] == "length"


async def test_what_has_words_is_an_answer_though_it_was_cut(autojump_clock: MockClock) -> None:
    """The client's own limit is the client's to set."""
    world = World(says("wor", finish="length"), says("done"))
    answer = (await run(world, asked(max_tokens=8))).document
    assert len(world.bodies()) == 1
    assert answer["choices"][0]["message"]["content"] == "wor"


async def test_and_only_once(autojump_clock: MockClock) -> None:
    world = World(says(None, finish="length"), says(None, finish="length"))
    answer = (await run(world)).document
    assert [body.get("max_tokens") for body in world.bodies()] == [None, 8192]
    assert answer["choices"][0]["finish_reason"] == "length"


async def test_what_has_been_read_is_not_said_again(autojump_clock: MockClock) -> None:
    """A stream whose text was cut off ends so: asked again, the client would read it twice."""
    world = World(says("wor", finish="length"))
    client = await run(world, asked(stream=True))
    assert len(world.bodies()) == 1
    assert (client.text, client.end["choices"][0]["finish_reason"]) == ("wor", "length")


async def test_only_the_first_turn_may_be_made_to_call(autojump_clock: MockClock) -> None:
    world = World(says(None, DRAW), says("done"), images=[picture()])
    await run(world, asked(tool_choice="required"))
    first, second = world.bodies()
    assert first["tool_choice"] == "required"
    assert "tool_choice" not in second


async def test_how_long_it_waits_for_a_slot_is_said_of_the_first_turn(autojump_clock: MockClock) -> None:
    world = World(says(None, DRAW), says("done"), images=[picture()])
    await run(world, x_slotd_wait="0", x_slotd_priority="5")
    names = [sorted(k for k, _ in i.headers if k.startswith(b"x-")) for i in world.seen]
    both = [b"x-slotd-priority", b"x-slotd-wait"]
    assert names == [both, both[:1], both[:1]]


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"omni": "yes"}, "omni"),
        ({"n": 2}, "n"),
        ({"messages": "hi"}, "messages"),
        ({"tools": {"a": 1}}, "tools"),
        ({"stream_options": {"omni_events": 1}}, "stream_options"),
    ],
)
async def test_what_cannot_be_carried_is_refused(
    autojump_clock: MockClock, more: dict[str, Any], param: str
) -> None:
    world = World(says("x"))
    client = await run(world, asked(**more))
    assert client.status == 400
    assert client.document["error"]["param"] == param
    assert world.seen == []


# --- whose tool it is ------------------------------------------------------------------


async def test_a_call_of_the_clients_own_tool_is_handed_over(autojump_clock: MockClock) -> None:
    own = call("weather", {"where": "here"}, "c2")
    world = World(says("Let me see.", DRAW, own), images=[picture()])
    client = await run(world, asked(tools=[WEATHER]))
    [choice] = client.document["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"] == {"role": "assistant", "content": "Let me see.", "tool_calls": [own]}
    assert client.document["slotd"]["ended"] == "handed_over"
    assert world.bodies()[0]["tools"][0] == WEATHER
    assert len(world.seen) == 1, "ours are not run"


async def test_the_same_in_a_stream_numbered_anew(autojump_clock: MockClock) -> None:
    calls = [DRAW, call("weather", {"where": "here"}, "c2"), call("weather", {"where": "there"}, "c2")]
    world = World(says("Let me see.", *calls))
    client = await run(world, asked(tools=[WEATHER], stream=True))
    assert client.end["choices"][0]["finish_reason"] == "tool_calls"
    got: dict[int, dict[str, str]] = {}
    for chunk in client.chunks:
        for piece in chunk["choices"][0]["delta"].get("tool_calls", ()):
            to = got.setdefault(piece["index"], {"arguments": ""})
            to["arguments"] += piece["function"]["arguments"]
            to.update({k: piece[k] for k in ("id",) if k in piece})
            to.update({k: v for k, v in piece["function"].items() if k == "name"})
    assert [(c["name"], json.loads(c["arguments"])["where"]) for c in got.values()] == [
        ("weather", "here"),
        ("weather", "there"),
    ]
    assert len({c["id"] for c in got.values()}) == 2
    assert "generate_image" not in client.body.decode().partition('"slotd"')[0]


async def test_a_client_that_has_a_tool_of_that_name_keeps_it(autojump_clock: MockClock) -> None:
    own = {"type": "function", "function": {"name": "generate_image"}}
    world = World(says(None, DRAW))
    client = await run(world, asked(tools=[own]))
    names = [tool["function"]["name"] for tool in world.bodies()[0]["tools"]]
    assert names.count("generate_image") == 1
    assert client.document["slotd"]["ended"] == "handed_over"


async def test_a_model_that_calls_no_tools_is_offered_none(autojump_clock: MockClock) -> None:
    plain = [LoadedSlot("chat", "m", "llm"), *SLOTS[1:]]
    world = World(says("hello"), slots=plain)
    answer = (await run(world)).document
    assert "tools" not in world.bodies()[0]
    assert answer["slotd"] == {"rounds": 1, "ended": "final", "tools": []}


async def test_nor_one_that_is_none_of_ours(autojump_clock: MockClock) -> None:
    world = World(says("hello"), remote=True)
    await run(world)
    assert "tools" not in world.bodies()[0]


async def test_delegation_goes_one_level_deep_and_not_home(autojump_clock: MockClock) -> None:
    away = call("route_to_chat", {"target": "eyes", "prompt": "Why?", "context": "All of it."}, "c1")
    home = call("route_to_chat", {"target": "chat", "prompt": "Why?"}, "c2")
    world = World(
        says(None, away, home),
        says("done"),
        completions=[gives({"choices": [{"message": {"content": "Because."}, "finish_reason": "stop"}]})],
    )
    await run(world, asked(messages=[{"role": "user", "content": "a secret"}]))
    assert world.told(1)[0] == {"model": "eyes", "text": "Because."}
    assert "nobody called 'chat'" in world.told(1)[1]["error"]
    delegated = next(i for i in world.seen if i.id == "req-1.1.a")
    assert json.loads(delegated.body) == {
        "model": "slotd/eyes",
        "messages": [{"role": "user", "content": "All of it.\n\nWhy?"}],
        "stream": False,
    }


# --- streaming -----------------------------------------------------------------------


async def test_one_stream_of_all_turns(autojump_clock: MockClock) -> None:
    world = World(says("I draw.", DRAW), says("Here it is.", tokens=4), images=[picture(after_s=12.0)])
    client = await run(world, asked(stream=True, stream_options={"include_usage": True, "other": 1}))
    assert client.text == "Idraw.\n\nHereitis."
    assert client.end["slotd"]["ended"] == "final"
    *_, last = client.chunks
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 7
    assert "slotd.tool" not in client.body.decode()
    started, one, two, ended = client.comments
    assert started == "omni generate_image started"
    assert one.startswith("omni generate_image running 5.0 s")
    assert two.startswith("omni generate_image running 10.0 s")
    assert ended.startswith("omni generate_image ok 12.0 s http://here/api/artifacts/")
    assert [body["stream_options"] for body in world.bodies()] == [{"include_usage": True, "other": 1}] * 2
    # The words of the first turn were there before its tools had begun.
    assert client.pieces[0][0] == 0.0


async def test_progress_in_events_for_who_wants_them(autojump_clock: MockClock) -> None:
    world = World(says(None, DRAW), says("done"), images=[picture()])
    client = await run(world, asked(stream=True, stream_options={"omni_events": True}))
    assert client.comments == []
    events = [
        json.loads(frame.partition("data: ")[2])
        for frame in client.frames
        if frame.startswith("event: slotd.tool\n")
    ]
    assert [(e["name"], e["slot"], e["status"]) for e in events] == [
        ("generate_image", "draw", "started"),
        ("generate_image", "draw", "ok"),
    ]
    assert world.bodies()[0]["stream_options"] == {"include_usage": True}
    assert not any("usage" in chunk for chunk in client.chunks)


async def test_an_engine_that_answers_a_stream_with_a_document(autojump_clock: MockClock) -> None:
    async def whole(inbound: Inbound, out: Outbound) -> None:
        body = json.loads(inbound.body)
        await says("hello")(
            Inbound(**{**_fields(inbound), "body": json.dumps({**body, "stream": False}).encode()}), out
        )

    client = await run(World(whole), asked(stream=True))
    assert client.text == "hello"


def _fields(inbound: Inbound) -> dict[str, Any]:
    return {name: getattr(inbound, name) for name in Inbound.__struct_fields__}


async def test_a_client_that_takes_nothing_more_ends_everything(autojump_clock: MockClock) -> None:
    world = World(says(None, DRAW), says("done"), images=[picture(after_s=100)])
    with pytest.raises(ClientGone):
        await run(world, asked(stream=True), Client(leaves_after=2))
    assert trio.current_time() == 10.0  # at the third comment, and not at the end of the tool
    [record] = world.finished
    assert record.outcome == "client_gone"


async def test_a_client_that_leaves_ends_everything(autojump_clock: MockClock) -> None:
    world = World(says(None, DRAW), says("done"), images=[picture(after_s=100)])
    with trio.move_on_after(3):
        await run(world)
    assert trio.current_time() == 3
    assert world.finished[0].outcome == "client_gone"


@pytest.mark.parametrize("stopping", [False, True])
async def test_what_is_ended_with_the_whole_is_recorded_so(autojump_clock: MockClock, stopping: bool) -> None:
    """A tool and a turn, too: none of them has been left by its client."""
    for turns, ended in (([says(None, DRAW)], "req-1.1.a"), ([gives({}, after_s=100)], "req-1.1")):
        world = World(images=[picture(after_s=100)])
        world.turns = [carried(turn, world.records, "chat") for turn in turns]
        world.tools = {"images": [carried(picture(after_s=100), world.records, "draw")]}
        async with trio.open_nursery() as nursery:
            client = Client()
            nursery.start_soon(run, world, asked(), client)
            await trio.sleep(1)
            if stopping:
                world.records.end_all(ServerStopping("going down"))
            else:
                assert world.records.cancel("req-1")
        code = "server.stopping" if stopping else "request.cancelled"
        assert client.document["error"]["code"] == code
        found = {r.id: (r.outcome, r.error) for r in world.finished}
        assert found[ended] == found["req-1"] == ("error", code)


async def test_a_tool_that_is_left_by_its_client_is_still_recorded_so(autojump_clock: MockClock) -> None:
    world = World(says(None, DRAW))
    world.tools = {"images": [carried(picture(after_s=100), world.records, "draw")]}
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run, world)
        await trio.sleep(3)
        nursery.cancel_scope.cancel()
    assert [(r.id, r.outcome, r.error) for r in world.finished] == [
        ("req-1.1.a", "client_gone", None),
        ("req-1", "client_gone", None),
    ]


@pytest.mark.parametrize("stream", [False, True])
async def test_slotd_that_stops_ends_the_whole_with_its_cause(
    autojump_clock: MockClock, stream: bool
) -> None:
    world = World(says(None, DRAW), says("done"), images=[picture(after_s=100)])
    async with trio.open_nursery() as nursery:
        client = Client()
        nursery.start_soon(run, world, asked(stream=stream), client)
        await trio.sleep(1)
        assert world.records.end_all(ServerStopping("going down")) == 1
    assert trio.current_time() == 1
    if stream:
        assert '"code":"server.stopping"' in client.frames[-1]
    else:
        assert (client.status, client.document["error"]["code"]) == (503, "server.stopping")


# --- devices --------------------------------------------------------------------------


def mode(phase: str = "committed", owner: str = "draw", **more: Any) -> ModeShown:
    return ModeShown("gpu0", owner, phase, more.get("losers", ("chat",)), None)


async def test_the_device_is_given_back_once_after_all_renders(autojump_clock: MockClock) -> None:
    calls = [call("generate_image", {"prompt": str(n)}, f"c{n}") for n in range(3)]
    world = World(says(None, *calls), says("done"), images=[picture(1.0), picture(2.0), picture(3.0)])
    world.devices.show(mode())

    async def arbiter() -> None:
        await trio.sleep(2.5)
        assert world.devices.released == [], "not before the last of them is done"
        await trio.sleep(1.5)
        assert world.devices.released == ["gpu0"]
        assert len(world.bodies()) == 1, "the model is asked when the device is shared again"
        world.devices.show(mode("restoring"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(arbiter)
        client = await run(world)
    assert client.document["choices"][0]["message"]["content"] == "done"
    assert world.devices.released == ["gpu0"]
    assert trio.current_time() == 4.0


@pytest.mark.parametrize(
    "shown",
    [
        ArbiterSnapshot(),
        ArbiterSnapshot(modes=(mode(owner="another's"),)),
        ArbiterSnapshot(modes=(mode("restoring"),)),
        ArbiterSnapshot(modes=(ModeShown("gpu1", "draw", "committed", ("vectors",), None),)),
    ],
)
async def test_devices_that_are_not_in_its_way_are_left_alone(
    autojump_clock: MockClock, shown: ArbiterSnapshot
) -> None:
    world = World(says(None, DRAW), says("done"), images=[picture()])
    world.devices.cell.publish(shown)
    await run(world)
    assert world.devices.released == []
    assert trio.current_time() == 0


async def test_a_device_that_does_not_come_back_is_not_waited_for_for_ever(autojump_clock: MockClock) -> None:
    world = World(says(None, DRAW), refuses(GpuExclusive("taken")), images=[picture()])
    world.devices.show(mode())
    answer = (await run(world)).document
    assert trio.current_time() == 300
    assert answer["slotd"]["ended"] == "degraded"


async def test_a_stream_is_told_that_the_device_is_waited_for(autojump_clock: MockClock) -> None:
    world = World(says(None, DRAW), says("done"), images=[picture()])
    world.devices.show(mode())
    client = await run(world, asked(stream=True))
    times = [at for at, _ in client.pieces]
    assert times[-1] == 300
    assert max(b - a for a, b in pairwise(times)) == 5
    world = World(says(None, DRAW), says("done"), images=[picture()])
    world.devices.show(mode())
    with pytest.raises(ClientGone):
        await run(world, asked(stream=True), Client(leaves_after=3))


@pytest.mark.parametrize("stream", [False, True])
async def test_who_leaves_in_the_middle_of_a_picture_gives_the_device_back_too(
    autojump_clock: MockClock, stream: bool
) -> None:
    """Else the model stays driven out, for everybody, for as long as a mode lasts by itself."""
    world = World(says(None, DRAW), says("done"), images=[picture(after_s=100)])
    world.devices.show(mode())
    if stream:
        with pytest.raises(ClientGone):
            await run(world, asked(stream=True), Client(leaves_after=2))
    else:
        with trio.move_on_after(3):
            await run(world)
    assert world.devices.released == ["gpu0"]


async def test_who_leaves_gives_back_nothing_that_its_tools_have_not_taken(autojump_clock: MockClock) -> None:
    world = World(
        says(None, call("text_to_speech", {"input": "hi"})), says("done"), speech=[gives(b"x", after_s=100)]
    )
    world.devices.show(mode())
    with trio.move_on_after(3):
        await run(world)
    assert world.devices.released == []


@pytest.mark.parametrize("ended", ["well", "badly", "late", "left"])
async def test_a_slot_that_stood_in_for_another_gives_the_device_back(
    autojump_clock: MockClock, ended: str
) -> None:
    """And the one that was asked, which may have begun to load."""
    does = {"well": picture(1.0), "badly": refuses(GpuExclusive("taken"))}
    world = World(says(None, DRAW), says("done"))
    tool = does.get(ended, picture(after_s=1000))
    world.tools = {"images": [carried(tool, world.records, "stand-in")]}
    world.devices.show(mode(owner="stand-in"), ModeShown("gpu1", "draw", "committed", ("chat",), None))
    with trio.move_on_after(3 if ended == "left" else 1000):
        await run(world)
    assert world.devices.released == ["gpu0", "gpu1"]


async def test_who_stood_in_is_known_though_its_record_is_gone(autojump_clock: MockClock) -> None:
    calls = [DRAW, call("text_to_speech", {"input": "hi"}, "c2")]
    world = World(says(None, *calls), says("done"))
    world.tools = {
        "images": [carried(picture(1.0), world.records, "stand-in")],
        "speech": [gives(b"RIFF....WAVE", after_s=5.0, kind=b"audio/wav")],
    }
    world.devices.show(mode(owner="stand-in"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run, world)
        await trio.sleep(2)
        for n in range(RECORDS):
            other = RequestRecord(f"other-{n}", CHAT, "", 0.0, 0.0)
            world.records.open(other)
            world.records.close(other)
        assert world.records.find("req-1.1.a") is None
    assert world.devices.released == ["gpu0"]


# --- what is kept of results --------------------------------------------------------------


def shelf(pictures: int) -> Artifacts:
    return Artifacts(lambda: ArtifactLimits(pictures * len(PNG)))


def kept_urls(world: World, answer: Any) -> list[bool]:
    """Of each URL that the answer names, whether something is there."""
    urls = [kept["url"] for tool in answer["slotd"]["tools"] for kept in tool.get("artifacts", ())]
    return [world.artifacts.get(url.rpartition("/")[2]) is not None for url in urls]


async def test_no_url_of_an_answer_is_dead(autojump_clock: MockClock) -> None:
    """What does not fit beside the chat's other results is refused; the model is told by which limit."""
    world = World(
        *[says(None, DRAW)] * 5, says("done"), images=[picture(after_s=10.0)], artifacts=shelf(pictures=3)
    )
    world.artifacts.put(PNG, "image/png")  # an older one makes room
    answer = (await run(world)).document
    assert kept_urls(world, answer) == [True] * 3
    assert [tool["status"] for tool in answer["slotd"]["tools"]] == ["ok"] * 3 + ["error"] * 2
    told = world.told(5)
    assert "omni.artifacts_mb" in told[3]["error"]
    assert told[4]["code"] == "slot.answer_too_large"


async def test_a_tools_pictures_are_kept_all_or_not_at_all(autojump_clock: MockClock) -> None:
    two = gives({"data": [{"b64_json": PNG_BASE64}] * 2})
    world = World(
        *[says(None, DRAW)] * 3,
        says("done"),
        images=[two, two, picture()],
        artifacts=shelf(pictures=3),
    )
    answer = (await run(world)).document
    assert [tool["status"] for tool in answer["slotd"]["tools"]] == ["ok", "error", "ok"]
    assert kept_urls(world, answer) == [True] * 3


async def test_chats_side_by_side_leave_each_others_results_alone(autojump_clock: MockClock) -> None:
    slow = [picture(after_s=1.0)]
    one = World(says(None, DRAW, DRAW), gives(b"{}", after_s=50.0), images=slow, artifacts=shelf(pictures=3))
    other = World(says(None, DRAW), says(None, DRAW), says("done"), images=slow, artifacts=one.artifacts)
    client = Client()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run, one, asked(), client)
        await trio.sleep(5)
        answer = (await run(other)).document
        assert [tool["status"] for tool in answer["slotd"]["tools"]] == ["ok", "error"]
        assert kept_urls(other, answer) == [True]
    answer = client.document
    assert answer["slotd"]["ended"] == "degraded"
    assert kept_urls(one, answer) == [True] * 2


# --- the other tools --------------------------------------------------------------------


async def test_pictures_and_sounds_go_to_the_tools_that_read_them(autojump_clock: MockClock) -> None:
    calls = [
        call("edit_image", {"image": "/api/artifacts/ID", "prompt": "blue", "size": "64x64"}, "c1"),
        call("transcribe_audio", {"audio": "data:audio/ogg;base64,T2dnUw==", "language": "de"}, "c2"),
        call("analyze_image", {"image": "https://elsewhere/api/artifacts/ID", "question": "What?"}, "c3"),
        call("analyze_image", {"image": "http://elsewhere/x.png", "question": "What?"}, "c4"),
        call("analyze_image", {"image": "not base64 at all", "question": "What?"}, "c5"),
    ]
    world = World(
        edits=[picture()],
        transcriptions=[gives({"text": "Guten Tag"})],
        completions=[gives({"choices": [{"message": {"content": "A cat."}, "finish_reason": "length"}]})],
    )
    id = world.artifacts.put(PNG, "image/png")
    named = [json.loads(json.dumps(c).replace("ID", id)) for c in calls]
    world.turns = [says(None, *named), says("done")]
    await run(world)
    edited, heard, seen, fetched, nonsense = world.told(1)
    assert edited["images"][0]["bytes"] == len(PNG)
    assert heard == {"text": "Guten Tag"}
    assert seen == {"model": "eyes", "text": "A cat.", "cut": True}
    assert "omni.fetch_urls" in fetched["error"]
    assert "base64" in nonsense["error"]
    by_id = {i.id: i for i in world.seen}
    assert form(by_id["req-1.1.a"]) == {
        "model": ("", b"slotd/draw"),
        "prompt": ("", b"blue"),
        "response_format": ("", b"b64_json"),
        "size": ("", b"64x64"),
        "image": ("image.png", PNG),
    }
    parts = form(by_id["req-1.1.b"])
    assert parts["file"] == ("file.ogg", b"OggS")
    assert parts["language"] == ("", b"de")
    [message] = json.loads(by_id["req-1.1.c"].body)["messages"]
    assert message["content"][0] == {"type": "text", "text": "What?"}
    assert message["content"][1]["image_url"]["url"].startswith("data:image/png;base64,iVBOR")


async def test_vectors_and_ranks_are_told_in_short(autojump_clock: MockClock) -> None:
    many = [[float(n == m) for n in range(600)] for m in range(2)]
    calls = [
        call("embed_text", {"input": ["a", "b"]}, "c1"),
        call("embed_text", {"input": "one"}, "c2"),
        call("rerank_documents", {"query": "q", "documents": ["x" * 500, "y"], "top_n": 1}, "c3"),
    ]

    async def vectors(inbound: Inbound, out: Outbound) -> None:
        small = len(json.loads(inbound.body)["input"]) == 1
        await gives({"data": [{"embedding": v} for v in ([[0.123456789, 1]] if small else many)]})(
            inbound, out
        )

    ranks = {"results": [{"index": 1, "relevance_score": 0.1}, {"index": 0, "relevance_score": 0.9}]}
    world = World(
        says(None, *calls),
        says("done"),
        embed=[vectors],
        rerank=[gives(ranks)],
    )
    await run(world)
    large, small, ranked = world.told(1)
    assert (large["count"], large["dimensions"], large["cosine_similarity"]) == (2, 600, [[1, 0], [0, 1]])
    found = world.artifacts.get(large["embeddings"]["url"].rpartition("/")[2])
    assert found is not None
    assert json.loads(found.data) == many
    assert small["embeddings"] == [[0.12346, 1]]
    assert ranked == {"results": [{"index": 0, "score": 0.9, "document": "x" * 200}]}
