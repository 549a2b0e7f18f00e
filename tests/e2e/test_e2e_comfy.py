"""Pictures by ComfyUI: the whole of slotd with a fake ComfyUI, over real sockets."""

from __future__ import annotations

import base64
import hashlib
import io
import json
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import trio
from comfy_house import EDITS, GENERATIONS, HOUSE, draw, picture, shipped, studio
from e2e_tools import (
    CHAT,
    GUARD_S,
    Baseline,
    Later,
    Start,
    Wire,
    client,
    code,
    dial,
    frames,
    idle_again,
)
from room_tools import starts, story

from slotd.errors import ConfigInvalid
from slotd.testing import ComfyKnobs, FakeServer, Harness, Knobs, comfy_command, fake_slot
from slotd.testing.fake_png import read_png, write_png

SLOW = ComfyKnobs(step_s=0.02)
ENDLESS = {**HOUSE, "steps": 10_000}


async def graphs(http: httpx.AsyncClient, answer: httpx.Response) -> list[dict[str, Any]]:
    """The graph that each picture was made from."""
    assert answer.status_code == 200, answer.text
    return [json.loads((await picture(http, item)).texts["prompt"]) for item in answer.json()["data"]]


async def progress(http: httpx.AsyncClient, words: str) -> None:
    """Wait until a live request is told to be so far."""
    while True:
        live = (await http.get("/api/requests")).json()["live"]
        if any(words in (request["progress"] or "") for request in live):
            return
        await trio.sleep(0.005)  # another's view of it: nothing announces words


# --- what comes of a request ----------------------------------------------------------------


async def test_a_cold_slot_draws(slotd_harness: Start) -> None:
    with trio.fail_after(GUARD_S):
        async with slotd_harness({"image": studio()}) as slotd, client(slotd) as http:
            assert slotd.snapshot("image").state == "offline"
            answer = await draw(http, negative_prompt="people")
            [item] = answer.json()["data"]
            drawn = await picture(http, item)
            assert (drawn.width, drawn.height) == (48, 32)
            [graph] = await graphs(http, answer)
            assert graph["6"]["inputs"]["text"] == "a house"
            assert graph["7"]["inputs"]["text"] == "people"
            assert (graph["3"]["inputs"]["seed"], graph["3"]["inputs"]["steps"]) == (7, 4)
            await slotd.wait_for("image", "ready")
            assert answer.headers["x-slotd-route"].startswith("slot:image;")


async def test_several_pictures_and_both_formats(slotd_harness: Start) -> None:
    with trio.fail_after(GUARD_S):
        async with slotd_harness({"image": studio()}) as slotd, client(slotd) as http:
            seeds = [g["3"]["inputs"]["seed"] for g in await graphs(http, await draw(http, n=3))]
            assert seeds == [7, 8, 9]
            inline = (await draw(http, n=2, model="plain", response_format="b64_json")).json()["data"]
            assert [read_png(base64.b64decode(i["b64_json"])).width for i in inline] == [48, 48]
            # The template takes {{n}}: one prompt for both.
            assert (await slotd.fake("image").stats())["finished"] == 4


@pytest.mark.parametrize("stream", [False, True])
async def test_no_url_of_an_answer_is_dead(slotd_harness: Start, stream: bool) -> None:
    """What cannot be kept beside the answer's others comes itself."""
    words = "a house " * 25_000  # every picture says what it was made from
    more = "[omni]\nartifacts_mb = 1\n"
    with trio.fail_after(GUARD_S):
        async with slotd_harness({"image": studio()}, more=more) as slotd, client(slotd) as http:
            many = {"prompt": words, "n": 8, "response_format": "url", "stream": stream}
            answer = await draw(http, **many)
            items = (
                answer.json()["data"]
                if not stream
                else [json.loads(f.data) for f in frames(answer.content) if f.event]
            )
            kinds = ["url" if "url" in item else "b64_json" for item in items]
            assert kinds == ["url"] * 5 + ["b64_json"] * 3
            drawn = [(await http.get(item["url"])).content for item in items[:5]]
            drawn += [base64.b64decode(item["b64_json"]) for item in items[5:]]
            seeds = [json.loads(read_png(data).texts["prompt"])["3"]["inputs"]["seed"] for data in drawn]
            assert seeds == list(range(7, 15))


async def test_workflows_are_models(slotd_harness: Start) -> None:
    with trio.fail_after(GUARD_S):
        async with slotd_harness({"image": studio(aliases=["dall-e-3"])}) as slotd, client(slotd) as http:
            await slotd.load("image")
            listed = {m["id"] for m in (await http.get("/v1/models")).json()["data"]}
            assert listed >= {"sdxl", "plain", "plain-edit", "sdxl-inpaint"}
            for name in ("sdxl", "dall-e-3", "image", "slotd/image"):
                [graph] = await graphs(http, await draw(http, model=name))
                assert "KSampler" in {node["class_type"] for node in graph.values()}
            [graph] = await graphs(http, await draw(http, model="plain"))
            assert graph["1"]["class_type"] == "EmptyImage"
            unknown = await draw(http, model="nobody")
            assert (unknown.status_code, code(unknown)) == (404, "dispatch.no_route")
            other_kind = await draw(http, model="plain-edit")
            assert (other_kind.status_code, code(other_kind)) == (404, "dispatch.no_route")
            assert "sdxl, plain" in other_kind.json()["error"]["message"]


async def test_a_binding_names_the_workflow(slotd_harness: Start) -> None:
    more = '[[bindings]]\nmatch = "gpt-image-*"\nslot = "image"\nmodel = "plain"\n'
    with trio.fail_after(GUARD_S):
        async with slotd_harness({"image": studio()}, more=more) as slotd, client(slotd) as http:
            [graph] = await graphs(http, await draw(http, model="gpt-image-1"))
            assert graph["1"]["class_type"] == "EmptyImage"


async def test_edits_of_a_picture_and_of_its_masked_part(slotd_harness: Start) -> None:
    cat, mask = (write_png(8, 8, (9, 9, n), {}) for n in (1, 2))
    files = {"image": ("../../cat.png", cat, "image/png")}
    with trio.fail_after(GUARD_S):
        async with slotd_harness({"image": studio()}) as slotd, client(slotd) as http:
            plain = await http.post(EDITS, data={"prompt": "a hat"}, files=files)
            [item] = plain.json()["data"]
            assert (await picture(http, item)).texts["source"] == hashlib.sha256(cat).hexdigest()

            both = {**files, "mask": ("mask.png", mask, "image/png")}
            [graph] = await graphs(http, await http.post(EDITS, data={"prompt": "a hat"}, files=both))
            assert graph["12"]["class_type"] == "LoadImageMask"
            assert graph["12"]["inputs"]["image"] != graph["10"]["inputs"]["image"]

            missing = await http.post(EDITS, json={"prompt": "a hat"})
            assert (missing.status_code, code(missing)) == (422, "request.unprocessable")
            assert missing.json()["error"]["param"] == "image"


async def test_openais_client(slotd_harness: Start) -> None:
    def ask(url: str) -> tuple[list[str | None], bytes, list[Any]]:
        with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=GUARD_S) as asker:
            drawn = asker.images.generate(prompt="a house", n=2, size="256x256")
            urls = [item.url for item in drawn.data or ()]
            edited = asker.images.edit(
                image=io.BytesIO(write_png(8, 8, (1, 2, 3), {})), prompt="a hat", response_format="b64_json"
            )
            assert edited.data is not None
            [item] = edited.data
            events = list(asker.images.generate(prompt="a house", stream=True))
            return urls, base64.b64decode(item.b64_json or ""), events

    with trio.fail_after(GUARD_S):
        async with slotd_harness({"image": studio()}) as slotd, client(slotd) as http:
            urls, edited, [event] = await trio.to_thread.run_sync(ask, slotd.url)
            assert [(await picture(http, {"url": url})).width for url in urls] == [256, 256]
            assert read_png(edited).width == 64
            assert event.type == "image_generation.completed"
            assert read_png(base64.b64decode(event.b64_json)).width == 1024


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": "a", "n": 0}, "n"),
        ({"prompt": "a", "n": 11}, "n"),
        ({"prompt": "a", "size": "huge"}, "size"),
        ({"prompt": "a", "size": "9000x9000"}, "size"),
        ({"prompt": "a", "seed": -1}, "seed"),
        ({"prompt": "a", "response_format": "gif"}, "response_format"),
    ],
)
async def test_what_makes_no_sense_is_refused_by_name(
    slotd_harness: Start, body: dict[str, Any], param: str
) -> None:
    with trio.fail_after(GUARD_S):
        async with slotd_harness({"image": studio()}) as slotd, client(slotd) as http:
            answer = await http.post(GENERATIONS, json=body)
            assert (answer.status_code, code(answer)) == (422, "request.unprocessable")
            assert answer.json()["error"]["param"] == param
            assert (await slotd.fake("image").stats())["started"] == 0


async def test_one_that_somebody_else_runs(slotd_harness: Start) -> None:
    with (
        trio.fail_after(GUARD_S),
        FakeServer(argv=comfy_command(host="127.0.0.1", port="0")) as server,
    ):
        async with slotd_harness({"image": studio(url=server.url)}) as slotd, client(slotd) as http:
            assert len(await graphs(http, await draw(http))) == 1
            await slotd.stop("image")
            assert (await server.engine.stats())["finished"] == 1  # and it runs on


# --- while it works ---------------------------------------------------------------------------


async def test_progress_is_shown(slotd_harness: Start) -> None:
    with trio.fail_after(GUARD_S):
        async with (
            slotd_harness({"image": studio(SLOW)}) as slotd,
            client(slotd) as http,
            trio.open_nursery() as nursery,
        ):
            drawn = Later(nursery, partial(draw, http, n=2, steps=20))
            await progress(http, "picture 1 of 2, node 5 of 7, step ")
            await progress(http, "picture 2 of 2, node ")
            assert (await drawn.result()).status_code == 200


async def test_a_stream_tells_how_far_it_is_and_brings_each_picture(slotd_harness: Start) -> None:
    with trio.fail_after(GUARD_S):
        async with slotd_harness({"image": studio()}) as slotd, await dial(slotd) as wire:
            await slotd.load("image")
            await slotd.fake("image").set(hold=True)
            await wire.post(GENERATIONS, {**HOUSE, "n": 2, "stream": True})
            head = await wire.head()
            assert (head.status, head.headers["content-type"]) == (200, "text/event-stream")
            body = await wire.until(b"picture 1 of 2, node 1 of 7\n\n")
            await slotd.fake("image").set(hold=False)
            body += await wire.rest()
            *pictures, last = frames(body)
            assert last.data == "[DONE]"
            assert [p.event for p in pictures] == ["image_generation.completed"] * 2
            seeds = [
                json.loads(read_png(base64.b64decode(json.loads(p.data)["b64_json"])).texts["prompt"])["3"]
                for p in pictures
            ]
            assert [node["inputs"]["seed"] for node in seeds] == [7, 8]


async def test_a_node_that_takes_long_and_says_nothing_is_not_hung(slotd_harness: Start) -> None:
    """ComfyUI answers meanwhile, so slotd sees that it lives, and does not kill it."""
    with trio.fail_after(GUARD_S):
        async with (
            slotd_harness({"image": studio(liveness_timeout_s=0.5)}) as slotd,
            client(slotd) as http,
            trio.open_nursery() as nursery,
        ):
            await slotd.load("image")
            await slotd.fake("image").set(hold=True)
            drawn = Later(nursery, partial(draw, http))
            await slotd.fake("image").wait_active(1)
            await trio.sleep(1.5)  # the silence that is tested
            await slotd.fake("image").set(hold=False)
            assert (await drawn.result()).status_code == 200
            assert starts(slotd, "image") == [1]


async def test_the_work_on_one_picture_is_bounded(slotd_harness: Start) -> None:
    slots = {"image": studio(SLOW)}
    slots["image"]["options"]["run_timeout_s"] = 0.5
    with trio.fail_after(GUARD_S):
        async with slotd_harness(slots) as slotd, client(slotd) as http:
            late = await http.post(GENERATIONS, json=ENDLESS)
            assert (late.status_code, code(late)) == (504, "slot.stalled")
            await idle_again(slotd.fake("image"), "a prompt that took too long")


# --- clients that leave -------------------------------------------------------------------------


async def leave(slotd: Harness, wire: Wire, body: dict[str, Any]) -> None:
    await wire.post(GENERATIONS, body)
    await slotd.fake("image").wait_active(1)
    await wire.hang_up()


@pytest.mark.parametrize("stream", [False, True])
async def test_who_leaves_has_the_work_interrupted(slotd_harness: Start, stream: bool) -> None:
    with trio.fail_after(GUARD_S):
        async with slotd_harness({"image": studio(SLOW)}) as slotd, client(slotd) as http:
            await slotd.load("image")
            await draw(http)
            baseline = Baseline(slotd, "image")
            async with await dial(slotd) as wire:
                await wire.post(GENERATIONS, {**ENDLESS, "stream": stream})
                await progress(http, "step ")
                await wire.hang_up()
                await idle_again(slotd.fake("image"), "a client left in the middle of a picture")
            await baseline.again()
            stats = await slotd.fake("image").stats()
            assert (stats["interrupted"], stats["finished"], stats["websockets"]) == (1, 1, 0)
            assert slotd.snapshot("image").state == "ready"
            assert (await draw(http)).status_code == 200


async def test_who_leaves_comfyuis_queue_is_deleted_and_the_other_is_not_touched(
    slotd_harness: Start,
) -> None:
    with trio.fail_after(GUARD_S):
        async with (
            slotd_harness({"image": studio()}) as slotd,
            client(slotd) as http,
            trio.open_nursery() as nursery,
        ):
            await slotd.load("image")
            fake = slotd.fake("image")
            await fake.set(hold=True)
            first = Later(nursery, partial(draw, http))
            await fake.wait_active(1)
            async with await dial(slotd) as wire:
                await wire.post(GENERATIONS, HOUSE)
                await fake.wait_active(2)
            with trio.fail_after(0.3):
                await fake.wait_active(1)
            stats = await fake.stats()
            assert (stats["deleted"], stats["interrupts"]) == (1, 0)
            await fake.set(hold=False)
            assert (await first.result()).status_code == 200


async def test_an_operator_ends_it(slotd_harness: Start) -> None:
    with trio.fail_after(GUARD_S):
        async with (
            slotd_harness({"image": studio(SLOW)}) as slotd,
            client(slotd) as http,
            trio.open_nursery() as nursery,
        ):
            drawn = Later(nursery, partial(http.post, GENERATIONS, json=ENDLESS))
            await progress(http, "step ")
            [live] = (await http.get("/api/requests")).json()["live"]
            assert (await http.delete(f"/api/requests/{live['id']}")).status_code == 200
            await idle_again(slotd.fake("image"), "an operator ended a picture")
            assert code(await drawn.result()) == "request.cancelled"


# --- what goes wrong -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("knobs", "status", "error", "reason", "words"),
    [
        (
            ComfyKnobs(node_error="KSampler"),
            502,
            "engine.error",
            "node_failed",
            "ComfyUI: node 3 (KSampler) failed: RuntimeError: a node that fails, as told",
        ),
        (
            ComfyKnobs(node_error="VAEDecode", node_exception="torch.OutOfMemoryError: Allocation on device"),
            507,
            "slot.out_of_memory",
            "out_of_memory",
            "node 8 (VAEDecode) ran out of memory",
        ),
        (
            ComfyKnobs(checkpoints=("other.safetensors",)),
            502,
            "engine.error",
            "model_missing",
            "ckpt_name: 'sd_xl_base_1.0.safetensors' not in ['other.safetensors']",
        ),
        (ComfyKnobs(no_pictures=True), 502, "engine.error", "no_picture", "put out no picture (node 9)"),
    ],
)
async def test_failures_are_typed_and_in_comfyuis_words(
    slotd_harness: Start, knobs: ComfyKnobs, status: int, error: str, reason: str, words: str
) -> None:
    with trio.fail_after(GUARD_S):
        async with slotd_harness({"image": studio(knobs)}) as slotd, client(slotd) as http:
            answer = await draw(http)
            assert (answer.status_code, code(answer)) == (status, error)
            assert answer.json()["error"]["details"]["reason"] == reason
            assert words in answer.json()["error"]["message"]
            assert slotd.snapshot("image").state == "ready"
            # And in a stream, whose head may have gone out with a comment.
            async with await dial(slotd) as wire:
                await wire.post(GENERATIONS, {**HOUSE, "stream": True})
                head = await wire.head()
                body = await wire.rest()
                told = frames(body)[-1].error if head.status == 200 else json.loads(body)["error"]
                assert told["code"] == error


async def test_a_failure_after_comments_is_an_error_event(slotd_harness: Start) -> None:
    knobs = ComfyKnobs(node_error="KSampler", hold=True)
    with trio.fail_after(GUARD_S):
        async with slotd_harness({"image": studio(knobs)}) as slotd, await dial(slotd) as wire:
            await slotd.load("image")
            await wire.post(GENERATIONS, {**HOUSE, "stream": True})
            await wire.head()
            body = await wire.until(b"node 1 of 7")
            await slotd.fake("image").set(hold=False)
            [failure] = frames(body + await wire.rest())
            assert (failure.event, failure.error["code"]) == ("error", "engine.error")


@pytest.mark.parametrize("stream", [False, True])
async def test_an_engine_that_dies_in_the_middle_is_replaced(
    slotd_harness: Start, tmp_path: Path, stream: bool
) -> None:
    once = ComfyKnobs(crash_at="VAEDecode", crash_once=str(tmp_path / "crashed"), step_s=0.05)
    with trio.fail_after(GUARD_S):
        async with slotd_harness({"image": studio(once)}) as slotd, client(slotd) as http:
            answer = await draw(http, steps=12, stream=stream)
            assert answer.status_code == 200
            if stream:
                drawn, done = frames(answer.content)
                assert (drawn.event, done.data) == ("image_generation.completed", "[DONE]")
                assert ": slotd: node" in answer.text
            else:
                assert len(await graphs(http, answer)) == 1
            assert starts(slotd, "image") == [2]
            [replay] = await story(slotd, "request.replayed")
            assert replay.slot == "image"


async def test_an_engine_that_dies_after_the_first_picture_ends_the_stream_with_an_error_event(
    slotd_harness: Start,
) -> None:
    with trio.fail_after(GUARD_S):
        async with slotd_harness({"image": studio(SLOW)}) as slotd, await dial(slotd) as wire:
            await wire.post(GENERATIONS, {**HOUSE, "steps": 20, "n": 9, "stream": True})
            await wire.head()
            body = await wire.until(b"event: image_generation.completed")
            slotd.kill("image")
            *drawn, failure = frames(body + await wire.rest())
            assert {frame.event for frame in drawn} == {"image_generation.completed"}
            assert (failure.event, failure.error["code"]) == ("error", "slot.engine_lost")


async def test_an_engine_that_is_killed_is_replaced(slotd_harness: Start) -> None:
    with trio.fail_after(GUARD_S):
        async with (
            slotd_harness({"image": studio()}) as slotd,
            client(slotd) as http,
            trio.open_nursery() as nursery,
        ):
            await slotd.load("image")
            await slotd.fake("image").set(hold=True)
            drawn = Later(nursery, partial(draw, http))
            await slotd.fake("image").wait_active(1)
            slotd.kill("image")
            assert (await drawn.result()).status_code == 200
            assert starts(slotd, "image") == [2]


async def test_an_engine_that_freezes_is_replaced(slotd_harness: Start) -> None:
    with trio.fail_after(GUARD_S):
        async with (
            slotd_harness({"image": studio(liveness_timeout_s=1)}) as slotd,
            client(slotd) as http,
            trio.open_nursery() as nursery,
        ):
            await slotd.load("image")
            await slotd.fake("image").set(hold=True)
            drawn = Later(nursery, partial(draw, http))
            await slotd.fake("image").wait_active(1)
            slotd.freeze("image")
            assert (await drawn.result()).status_code == 200
            assert starts(slotd, "image") == [2]


async def test_a_picture_that_kills_every_engine_ends_in_an_error(slotd_harness: Start) -> None:
    slots = {"image": studio(ComfyKnobs(crash_at="KSampler"))}
    with trio.fail_after(GUARD_S):
        async with slotd_harness(slots, server={"max_replays": 1}) as slotd, client(slotd) as http:
            answer = await draw(http)
            assert (answer.status_code, code(answer)) == (502, "slot.engine_lost")
            assert starts(slotd, "image") == [2]


async def test_one_that_does_not_start(slotd_harness: Start) -> None:
    with trio.fail_after(GUARD_S):
        async with slotd_harness({"image": studio(ComfyKnobs(refuse_start=True))}) as slotd:
            async with client(slotd) as http:
                answer = await draw(http)
            assert (answer.status_code, code(answer)) == (502, "slot.load_failed")
            assert "no start, as told" in json.dumps(answer.json())


async def test_a_long_queue_in_comfyui_is_not_waited_for_for_ever(slotd_harness: Start) -> None:
    slots = {"image": studio()}
    slots["image"]["options"]["queue_timeout_s"] = 0.3
    with trio.fail_after(GUARD_S):
        async with (
            slotd_harness(slots) as slotd,
            client(slotd) as http,
            trio.open_nursery() as nursery,
        ):
            await slotd.load("image")
            await slotd.fake("image").set(hold=True)
            first = Later(nursery, partial(draw, http))
            await slotd.fake("image").wait_active(1)
            late = await draw(http)
            assert (late.status_code, code(late)) == (504, "slot.queue_timeout")
            await slotd.fake("image").set(hold=False)
            assert (await first.result()).status_code == 200


# --- together with the rest -------------------------------------------------------------------------


async def test_a_model_draws_with_it(slotd_harness: Start) -> None:
    calls = [
        {"id": "c1", "name": "generate_image", "arguments": {"prompt": "a house", "size": "48x32", "n": 2}}
    ]
    script = json.dumps([{"content": "", "tool_calls": calls}, {"content": "Here it is."}])
    slots = {
        "chat": fake_slot(
            Knobs(script=script), default=True, labels=["tool-calling"], nonstream_cancel="close"
        ),
        "image": studio(labels=["image", "edit"]),
    }
    with trio.fail_after(GUARD_S):
        async with slotd_harness(slots) as slotd, client(slotd) as http:
            body = {"model": "chat", "omni": True, "messages": [{"role": "user", "content": "draw"}]}
            answer = (await http.post(CHAT, json=body)).json()
            assert answer["choices"][0]["message"]["content"] == "Here it is."
            [tool] = answer["slotd"]["tools"]
            assert (tool["name"], tool["status"], tool["slot"]) == ("generate_image", "ok", "image")
            assert [(await picture(http, kept)).height for kept in tool["artifacts"]] == [32, 32]


async def test_a_faulty_workflow_is_found_before_anything_starts(
    slotd_harness: Start, tmp_path: Path
) -> None:
    (tmp_path / "bad.json").write_text('{"1": {"class_type": "SaveImage", "inputs": {"a": "{{promt}}"}}}')
    slots = {"image": studio()}
    slots["image"]["options"]["workflows"] = {"bad": "bad.json", **shipped("plain")}
    with pytest.raises(ConfigInvalid, match=r"bad\.json.*did you mean prompt"):
        async with slotd_harness(slots):
            raise AssertionError("it started")
