"""The tool loop with real engines: what its clients see, and what is left when they have gone."""

from __future__ import annotations

import hashlib
import json
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import trio
from e2e_tools import (
    CHAT,
    GUARD_S,
    Baseline,
    Later,
    Start,
    client,
    code,
    dial,
    eventually,
    frames,
    idle_again,
    note,
    tasks,
)
from room_tools import memory, starts, story

from slotd.testing import Harness, Knobs, fake_slot
from slotd.testing.fake_knobs import command

PLENTY = memory(0)
SLOW = Knobs(first_token_delay_s=60, cancel_nonstream=True)
DRAW = {"name": "generate_image", "arguments": {"prompt": "a house"}}
SPEAK = {"name": "text_to_speech", "arguments": {"input": "a house"}}
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"where": {"type": "string"}}},
    },
}
GENERATIONS = "/v1/images/generations"
DONE = {"content": "Here it is."}


def calling(*calls: dict[str, Any], content: str = "") -> dict[str, Any]:
    """What the model says when it calls tools."""
    named = [{"id": f"c{n}", **call} for n, call in enumerate(calls)]
    return {"content": content, "tool_calls": named}


def caller(*script: dict[str, Any], **settings: Any) -> dict[str, Any]:
    """A slot whose model calls tools, and says this in turn."""
    return fake_slot(
        Knobs(script=json.dumps(script)),
        **{"default": True, "labels": ["tool-calling"], "nonstream_cancel": "close", **settings},
    )


def house(
    *script: dict[str, Any], image: Knobs | None = None, tts: Knobs | None = None
) -> dict[str, dict[str, Any]]:
    return {
        "chat": caller(*(script or (calling(DRAW), DONE))),
        "image": fake_slot(image, type="image", nonstream_cancel="close"),
        "tts": fake_slot(tts, type="tts", nonstream_cancel="close"),
    }


def omni(**more: Any) -> dict[str, Any]:
    return {"model": "chat", "omni": True, "messages": [{"role": "user", "content": "draw"}], **more}


async def up(slotd: Harness, *names: str) -> None:
    for name in names:
        await slotd.load(name)


async def post(http: httpx.AsyncClient, body: dict[str, Any] | None = None) -> httpx.Response:
    return await http.post(CHAT, json=body or omni())


# --- what they see ----------------------------------------------------------------------------


async def test_two_tools_of_a_second_take_a_second(slotd_harness: Start) -> None:
    second = Knobs(first_token_delay_s=1)
    slots = house(calling(DRAW, SPEAK), DONE, image=second, tts=second)
    with trio.fail_after(GUARD_S):
        async with slotd_harness(slots, more=PLENTY) as slotd, client(slotd) as http:
            await up(slotd, *slots)
            began = trio.current_time()
            answer = (await post(http)).json()
            took = trio.current_time() - began
            note("a chat with two tools of a second", took)
            assert took < 1.5
            assert answer["choices"][0]["message"]["content"] == "Here it is."
            assert [t["status"] for t in answer["slotd"]["tools"]] == ["ok", "ok"]


async def test_results_are_fetched_by_their_urls(slotd_harness: Start) -> None:
    with trio.fail_after(GUARD_S):
        async with (
            slotd_harness(house(calling(DRAW, SPEAK), DONE), more=PLENTY) as slotd,
            client(slotd) as http,
        ):
            drawn, spoken = (await post(http)).json()["slotd"]["tools"]
            for tool, kind, first in ((drawn, "image/png", b"\x89PNG"), (spoken, "audio/wav", b"RIFF")):
                [kept] = tool["artifacts"]
                assert kept["url"].startswith(slotd.url)
                found = await http.get(kept["url"])
                assert found.headers["content-type"] == kept["content_type"] == kind
                assert found.content.startswith(first)
                assert len(found.content) == kept["bytes"]


async def test_a_result_is_what_another_tool_is_given(slotd_harness: Start) -> None:
    """A picture is drawn by an engine of its own, edited by its URL, and looked at."""
    slots = {
        "chat": caller(DONE),
        "image": fake_slot(type="image", labels=["image", "edit"]),
        "eyes": fake_slot(labels=["vision"]),
        "ears": fake_slot(type="transcription"),
    }
    with trio.fail_after(GUARD_S):
        async with slotd_harness(slots, more=PLENTY) as slotd, client(slotd) as http:
            url = f"{slotd.url}/api/artifacts/{slotd.slotd.artifacts.put(b'RIFF....WAVE', 'audio/wav')}"
            calls = [
                {"name": "edit_image", "arguments": {"image": url, "prompt": "blue"}},
                {"name": "analyze_image", "arguments": {"image": url, "question": "What is it?"}},
                {"name": "transcribe_audio", "arguments": {"audio": url}},
            ]
            await up(slotd, "chat")
            await slotd.fake("chat").set(script=json.dumps([calling(*calls), DONE]))
            answer = (await post(http)).json()
            assert [t["status"] for t in answer["slotd"]["tools"]] == ["ok", "ok", "ok"], answer


async def test_an_endless_caller_stops(slotd_harness: Start) -> None:
    with trio.fail_after(GUARD_S):
        async with slotd_harness(house(calling(DRAW)), more=PLENTY) as slotd, client(slotd) as http:
            answer = (await post(http)).json()
            assert answer["slotd"]["ended"] == "rounds"
            assert answer["choices"][0]["finish_reason"] == "length"
            assert (await slotd.fake("chat").stats())["finished"] == 8
            assert (await slotd.fake("image").stats())["finished"] == 7


async def test_a_tool_that_fails_is_told_to_the_model(slotd_harness: Start) -> None:
    with trio.fail_after(GUARD_S):
        async with (
            slotd_harness(house(image=Knobs(error_status=500)), more=PLENTY) as slotd,
            client(slotd) as http,
        ):
            answer = (await post(http)).json()
            assert answer["choices"][0]["message"]["content"] == "Here it is."
            [tool] = answer["slotd"]["tools"]
            assert (tool["status"], tool["error"]) == ("error", "an error, as told")


async def test_a_slot_that_cannot_load_is_told_too(slotd_harness: Start) -> None:
    with trio.fail_after(GUARD_S):
        async with (
            slotd_harness(house(image=Knobs(crash_at_start=True)), more=PLENTY) as slotd,
            client(slotd) as http,
        ):
            [tool] = (await post(http)).json()["slotd"]["tools"]
            assert (tool["status"], tool["code"]) == ("error", "slot.load_failed")


async def test_an_engine_that_dies_is_replaced_within_the_chat(slotd_harness: Start) -> None:
    """Turns and tools are requests like any other: lost before their first byte, they are sent again."""
    slots = house(image=Knobs(first_token_delay_s=0.3))
    with trio.fail_after(GUARD_S):
        async with (
            slotd_harness(slots, more=PLENTY) as slotd,
            client(slotd) as http,
            trio.open_nursery() as nursery,
        ):
            await up(slotd, *slots)
            answer = Later(nursery, partial(post, http))
            await slotd.fake("image").wait_active(1)
            slotd.kill("image")
            [tool] = (await answer.result()).json()["slotd"]["tools"]
            assert tool["status"] == "ok"
            assert starts(slotd, "image") == [2]


@pytest.mark.parametrize("stream", [False, True])
async def test_without_omni_the_engine_gets_the_very_bytes(slotd_harness: Start, stream: bool) -> None:
    body = json.dumps(
        {"messages": [{"role": "user", "content": "the word \u00e9omni"}], "stream": stream, "x": 1.5},
        indent=1,
    ).encode()
    with trio.fail_after(GUARD_S):
        async with slotd_harness(house(DONE), more=PLENTY) as slotd, client(slotd) as http:
            assert (await http.post(CHAT, content=body)).status_code == 200
            [seen] = (await slotd.fake("chat").stats())["requests"]
            assert seen["body_sha256"] == hashlib.sha256(body).hexdigest()
            assert [r.target for r in slotd.slotd.records.recent()] == ["slot:chat"]


async def test_what_was_asked_of_whom_is_on_record(slotd_harness: Start) -> None:
    with trio.fail_after(GUARD_S):
        async with slotd_harness(house(), more=PLENTY) as slotd, client(slotd) as http:
            answer = await post(http)
            recent = (await http.get("/api/requests")).json()["recent"]
            id = answer.headers["x-request-id"]
            assert [(r["id"], r["parent"], r["target"], r["outcome"]) for r in recent] == [
                (id, None, "omni", "ok"),
                (f"{id}.2", id, "slot:chat", "ok"),
                (f"{id}.1.a", id, "slot:image", "ok"),
                (f"{id}.1", id, "slot:chat", "ok"),
            ]
            metrics = (await http.get("/metrics")).text
            assert (
                'slotd_requests_total{outcome="ok",path="/v1/chat/completions",target="omni"} 1.0' in metrics
            )
            assert 'target="slot:chat"} ' in metrics
            counted = [line for line in metrics.splitlines() if "tokens" in line and '"omni"' in line]
            assert all(line.endswith(" 0.0") for line in counted if "_created" not in line)


# --- official clients ---------------------------------------------------------------------------


def openai_whole(url: str, **more: Any) -> Any:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="-", max_retries=0, timeout=GUARD_S) as api:
        return api.chat.completions.create(
            model="chat",
            messages=[{"role": "user", "content": "draw"}],
            extra_body={"omni": True},
            **more,
        )


def openai_stream(url: str, **more: Any) -> list[Any]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="-", max_retries=0, timeout=GUARD_S) as api:
        return list(
            api.chat.completions.create(
                model="chat",
                messages=[{"role": "user", "content": "draw"}],
                stream=True,
                stream_options={"include_usage": True},
                extra_body={"omni": True},
                **more,
            )
        )


async def test_openais_client_reads_it(slotd_harness: Start) -> None:
    slots = house(calling(DRAW, content="I draw."), DONE)
    with trio.fail_after(GUARD_S):
        async with slotd_harness(slots, more=PLENTY) as slotd:
            answer = await trio.to_thread.run_sync(openai_whole, slotd.url)
            assert answer.choices[0].message.content == "Here it is."
            assert answer.choices[0].message.tool_calls is None
            assert answer.slotd["ended"] == "final"
            assert answer.usage.completion_tokens == 2 + 3

            *chunks, last = await trio.to_thread.run_sync(openai_stream, slotd.url)
            assert "".join(c.choices[0].delta.content or "" for c in chunks) == "I draw.\n\nHere it is."
            assert [c.choices[0].finish_reason for c in chunks if c.choices[0].finish_reason] == ["stop"]
            assert len({(c.id, c.created, c.model) for c in [*chunks, last]}) == 1
            assert not any(c.choices[0].delta.tool_calls for c in chunks)
            assert chunks[-1].slotd["tools"][0]["artifacts"]
            assert (last.choices, last.usage.completion_tokens) == ([], 5)


async def test_openais_client_runs_its_own_tools(slotd_harness: Start) -> None:
    own = {"name": "weather", "arguments": {"where": "here"}}
    with trio.fail_after(GUARD_S):
        async with slotd_harness(house(calling(DRAW), calling(DRAW, own)), more=PLENTY) as slotd:
            whole = await trio.to_thread.run_sync(partial(openai_whole, slotd.url, tools=[WEATHER]))
            [choice] = whole.choices
            assert choice.finish_reason == "tool_calls"
            [call] = choice.message.tool_calls
            assert (call.function.name, call.function.arguments) == ("weather", '{"where":"here"}')

            chunks = await trio.to_thread.run_sync(partial(openai_stream, slotd.url, tools=[WEATHER]))
            pieces = [p for c in chunks if c.choices for p in c.choices[0].delta.tool_calls or ()]
            assert {p.index for p in pieces} == {0}
            assert (pieces[0].function.name, bool(pieces[0].id)) == ("weather", True)
            assert "".join(p.function.arguments for p in pieces) == '{"where":"here"}'
            assert [c.choices[0].finish_reason for c in chunks[-2:-1]] == ["tool_calls"]


# --- the end before the end -----------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_in_a_tool_frees_its_engine(slotd_harness: Start, stream: bool) -> None:
    slots = house(image=SLOW)
    with trio.fail_after(GUARD_S):
        async with slotd_harness(slots, more=PLENTY) as slotd:
            await up(slotd, *slots)
            async with client(slotd) as http:  # a connection to the model's engine is kept
                assert (await post(http, omni(omni=False))).status_code == 200
            baseline = Baseline(slotd, "image")
            async with await dial(slotd) as wire:
                await wire.post(CHAT, omni(stream=stream))
                await slotd.fake("image").wait_active(1)
            await idle_again(slotd.fake("image"), "a client left in the middle of a tool")
            await baseline.again()
            parent = next(r for r in slotd.slotd.records.recent() if r.target == "omni")
            assert parent.outcome == "client_gone"


async def test_a_client_that_leaves_in_a_turn_frees_its_engine(slotd_harness: Start) -> None:
    slots = house(DONE)
    slots["chat"] = caller(DONE)
    with trio.fail_after(GUARD_S):
        async with slotd_harness(slots, more=PLENTY) as slotd:
            await up(slotd, "chat")
            await slotd.fake("chat").set(first_token_delay_s=60)
            async with await dial(slotd) as wire:
                await wire.post(CHAT, omni(stream=True))
                await slotd.fake("chat").wait_active(1)
            await idle_again(slotd.fake("chat"), "a client left in the middle of a turn")


async def test_an_operator_ends_a_tool_or_the_whole(slotd_harness: Start) -> None:
    slots = house(image=SLOW)
    with trio.fail_after(GUARD_S):
        async with (
            slotd_harness(slots, more=PLENTY) as slotd,
            client(slotd) as http,
            trio.open_nursery() as nursery,
        ):
            await up(slotd, *slots)

            async def live(target: str) -> str:
                await slotd.fake("image").wait_active(1)
                return next(r.id for r in slotd.slotd.records.live() if r.target == target)

            answer = Later(nursery, partial(post, http))
            assert (await http.delete(f"/api/requests/{await live('slot:image')}")).status_code == 200
            [tool] = (await answer.result()).json()["slotd"]["tools"]
            assert (tool["status"], tool["code"]) == ("error", "request.cancelled")
            await slotd.fake("image").wait_active(0)

            answer = Later(nursery, partial(post, http))
            assert (await http.delete(f"/api/requests/{await live('omni')}")).status_code == 200
            whole = await answer.result()
            assert (whole.status_code, code(whole)) == (499, "request.cancelled")
            assert [(r.path, r.outcome, r.error) for r in slotd.slotd.records.recent()[:2]] == [
                (path, "error", "request.cancelled") for path in (CHAT, GENERATIONS)
            ]
            await idle_again(slotd.fake("image"), "an operator ended the chat")


@pytest.mark.parametrize("stream", [False, True])
async def test_slotd_stops_in_the_middle_of_a_tool(slotd_harness: Start, stream: bool) -> None:
    slots = house(image=SLOW)
    with trio.fail_after(GUARD_S):
        async with slotd_harness(slots, server={"shutdown_timeout_s": 0.3}, more=PLENTY) as slotd:
            await up(slotd, *slots)
            async with await dial(slotd) as wire:
                await wire.post(CHAT, omni(stream=stream))
                await slotd.fake("image").wait_active(1)
                slotd.slotd.stop()
                head = await wire.head()
                body = await wire.rest()
            if stream:
                assert head.status == 200
                *_, last = frames(body)
                assert (last.event, last.error["code"]) == ("error", "server.stopping")
            else:
                assert (head.status, json.loads(body)["error"]["code"]) == (503, "server.stopping")


async def test_a_stop_that_waits_for_the_tool_still_gives_its_result(slotd_harness: Start) -> None:
    """The doors are closed to the model's next turn, but what was drawn is not lost."""
    slots = house(image=Knobs(first_token_delay_s=0.4))
    with trio.fail_after(GUARD_S):
        async with (
            slotd_harness(slots, more=PLENTY) as slotd,
            client(slotd) as http,
            trio.open_nursery() as nursery,
        ):
            await up(slotd, *slots)
            answer = Later(nursery, partial(post, http))
            await slotd.fake("image").wait_active(1)
            slotd.slotd.stop()
            document = (await answer.result()).json()
            assert document["slotd"]["ended"] == "degraded"
            url = document["slotd"]["tools"][0]["artifacts"][0]["url"]
            assert url in document["choices"][0]["message"]["content"]


# --- a device that the tools need for themselves ------------------------------------------------


def one_gpu(image: Knobs | None = None, **settings: Any) -> dict[str, dict[str, Any]]:
    """The model and the pictures need the same device; only a person gives it back."""
    script = (calling(DRAW, DRAW, DRAW), calling(DRAW), DONE)
    return {
        "chat": caller(*script, device="gpu0", drain_timeout_s=0.5, **settings),
        "image": fake_slot(image, type="image", exclusive="gpu0", restore_after_s=0, max_parallel=1),
    }


async def modes(slotd: Harness) -> list[str]:
    return [event.data["mode"] for event in await story(slotd, "arbiter.mode")]


@pytest.mark.parametrize("stream", [False, True])
async def test_each_round_of_pictures_brings_the_model_back_once(slotd_harness: Start, stream: bool) -> None:
    slots = one_gpu(Knobs(first_token_delay_s=0.2))
    with trio.fail_after(GUARD_S):
        async with (
            slotd_harness(slots, server={"turn_hold_s": 0.05}, more=PLENTY) as slotd,
            client(slotd) as http,
        ):
            began = trio.current_time()
            answer = await post(http, omni(stream=stream))
            note("two rounds of pictures, two swaps each", trio.current_time() - began)
            if not stream:
                document = answer.json()
                assert document["slotd"]["rounds"] == 3
                assert document["slotd"]["ended"] == "final"
                assert [t["status"] for t in document["slotd"]["tools"]] == ["ok"] * 4
            else:
                assert frames(answer.content)[-1].data == "[DONE]"
                assert '"ended":"final"' in answer.text
            assert starts(slotd, "chat", "image") == [3, 2]
            once = ["entering", "exclusive", "shared"]
            assert await modes(slotd) == once * 2


async def test_a_slot_that_stood_in_gives_the_device_back_too(slotd_harness: Start) -> None:
    """The model's device is taken by the one that drew, and not by the one that was asked to."""
    slots = one_gpu()
    slots["chat"] = caller(calling(DRAW), DONE, device="gpu0", drain_timeout_s=0.5)
    slots["stand-in"] = slots["image"]
    slots["image"] = fake_slot(Knobs(crash_at_start=True), type="image", default=True, fallbacks=["stand-in"])
    with trio.fail_after(GUARD_S):
        async with (
            slotd_harness(slots, server={"turn_hold_s": 0.05}, more=PLENTY) as slotd,
            client(slotd) as http,
        ):
            document = (await post(http)).json()
            [tool] = document["slotd"]["tools"]
            assert (tool["status"], document["slotd"]["ended"]) == ("ok", "final")
            record = (await http.get(f"/api/requests/{tool['id']}")).json()
            assert (record["target"], record["fallback_from"]) == ("slot:stand-in", "image")
            assert starts(slotd, "chat", "stand-in") == [2, 1]
            assert await modes(slotd) == ["entering", "exclusive", "shared"]


async def test_a_model_that_cannot_come_back_leaves_the_results(slotd_harness: Start, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    slots = one_gpu(Knobs(first_token_delay_s=0.3))
    script = f'test -e {broken} && exit 1; exec "$@"'
    slots["chat"]["command"] = ["/bin/sh", "-c", script, "sh", *slots["chat"]["command"]]
    with trio.fail_after(GUARD_S):
        async with (
            slotd_harness(slots, server={"turn_hold_s": 0.05}, more=PLENTY) as slotd,
            client(slotd) as http,
            trio.open_nursery() as nursery,
        ):
            answer = Later(nursery, partial(post, http))
            await slotd.wait_for("image", "serving")
            broken.touch()
            document = (await answer.result()).json()
            [choice] = document["choices"]
            assert choice["finish_reason"] == "stop"
            assert (document["slotd"]["ended"], document["slotd"]["error"]["code"]) == (
                "degraded",
                "slot.load_failed",
            )
            for tool in document["slotd"]["tools"]:
                url = tool["artifacts"][0]["url"]
                assert url in choice["message"]["content"]
                assert (await http.get(url)).status_code == 200


async def test_delegation_asks_another_slot(slotd_harness: Start) -> None:
    away = {"name": "route_to_chat", "arguments": {"target": "peer", "prompt": "Say it again."}}
    home = {"name": "route_to_chat", "arguments": {"target": "chat", "prompt": "Say it again."}}
    slots = {
        "chat": caller(calling(away, home), DONE),
        "peer": fake_slot(Knobs(echo=True), labels=["tool-calling"]),
    }
    with trio.fail_after(GUARD_S):
        async with slotd_harness(slots, more=PLENTY) as slotd, client(slotd) as http:
            one, two = (await post(http)).json()["slotd"]["tools"]
            assert (one["status"], one["slot"]) == ("ok", "peer")
            assert (two["status"], two["slot"]) == ("error", None)
            assert (await slotd.fake("peer").stats())["finished"] == 1


def test_the_command_of_a_scripted_engine_is_a_command() -> None:
    """Scripts are JSON with blanks and quotes; they travel as one word."""
    script = json.dumps([calling(DRAW), DONE])
    assert f"--script={script}" in command(Knobs(script=script))


async def test_nothing_is_left_of_many(slotd_harness: Start) -> None:
    slots = house(calling(DRAW, SPEAK), calling(DRAW), DONE)
    with trio.fail_after(GUARD_S):
        async with slotd_harness(slots, more=PLENTY) as slotd, client(slotd) as http:
            await up(slotd, *slots)
            await post(http)
            before = tasks()

            async def one(stream: bool) -> None:
                answer = await post(http, omni(stream=stream))
                assert answer.status_code == 200
                assert '"ended":"final"' in answer.text

            async with trio.open_nursery() as nursery:
                for n in range(20):
                    nursery.start_soon(one, bool(n % 2))
            for slot in slots:
                assert (slotd.snapshot(slot).leases, slotd.snapshot(slot).queued) == (0, 0)
            assert slotd.slotd.records.live_count == 0
            await eventually(lambda: tasks() <= before, "tasks")
