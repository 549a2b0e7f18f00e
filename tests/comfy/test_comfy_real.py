"""The same against a real ComfyUI, where one is given: ``SLOTD_TEST_COMFYUI=127.0.0.1:8188``.

It needs no models: its nodes that paint, blur and invert are enough. What the
fake is believed to do as ComfyUI does is seen here to be so.
"""

from __future__ import annotations

import base64
import json
import os
import random
from typing import Any

import msgspec
import pytest
import trio
from comfy_tools import LIMITS, PLAIN, PLAIN_EDIT, SDXL, Studio, Told, graph_of

from slotd.comfy.api import Api, Picture
from slotd.comfy.job import STOP_TIMEOUT_S
from slotd.comfy.workflow import Workflow, parse_workflow
from slotd.errors import EngineError, RequestUnprocessable
from slotd.testing import FakeEngine
from slotd.testing.fake_png import read_png
from slotd.wire.http1 import Http1Pool

WHERE = os.environ.get("SLOTD_TEST_COMFYUI", "")
pytestmark = pytest.mark.skipif(not WHERE, reason="SLOTD_TEST_COMFYUI names no ComfyUI")

GUARD_S = 60
BLURS = 150
SMALL = {"prompt": "a house", "size": "64x32"}


def big() -> dict[str, Any]:
    """Another one each time, so that none comes from ComfyUI's cache."""
    return {"prompt": "a house", "size": "512x512", "seed": random.getrandbits(24)}


@pytest.fixture
def comfy() -> Studio:
    host, _, port = WHERE.rpartition(":")
    return Studio(FakeEngine(host, int(port)))


def slow() -> Workflow:
    """Some seconds of work in many nodes, each a chance for an interrupt."""
    size = {"width": "{{width}}", "height": "{{height}}", "batch_size": 1, "color": "{{seed}}"}
    graph: dict[str, Any] = {"0": {"class_type": "EmptyImage", "inputs": size}}
    for n in range(BLURS):
        inputs = {"image": [str(n), 0], "blur_radius": 5, "sigma": 0.5}
        graph[str(n + 1)] = {"class_type": "ImageBlur", "inputs": inputs}
    last = {"images": [str(BLURS), 0], "filename_prefix": "slotd"}
    graph["save"] = {"class_type": "SaveImage", "inputs": last}
    return parse_workflow(json.dumps(graph).encode())


async def queue(comfy: Studio) -> tuple[int, int]:
    """How many prompts run, and how many wait."""
    http = Http1Pool(comfy.engine.host, comfy.engine.port)
    try:
        data = msgspec.json.decode(await Api(http)._get("/queue"))
    finally:
        http.close()
    return len(data["queue_running"]), len(data["queue_pending"])


async def test_pictures_and_the_same_again_from_its_cache(comfy: Studio) -> None:
    with trio.fail_after(GUARD_S):
        first = await comfy.draw({**SMALL, "n": 2, "seed": 7}, workflow=PLAIN)
        again = await comfy.draw({**SMALL, "n": 2, "seed": 7}, workflow=PLAIN)
        assert [read_png(data).width for data, _ in first.kept] == [64, 64]
        assert [kind for _, kind in first.kept] == ["image/png"] * 2
        assert again.kept == first.kept
        assert "a house (seed 7)" in graph_of(read_png(first.kept[0][0]).texts)["1"]["_meta"]["title"]


async def test_an_edit(comfy: Studio) -> None:
    with trio.fail_after(GUARD_S):
        drawn = await comfy.draw({**SMALL, "response_format": "b64_json"}, workflow=PLAIN)
        before = drawn.answer["data"][0]["b64_json"]
        edited = await comfy.draw({"prompt": "invert", "image": before}, workflow=PLAIN_EDIT)
        old, new = read_png(base64.b64decode(before)), read_png(edited.kept[0][0])
        assert [a + b for a, b in zip(old.colour, new.colour, strict=True)] == [255] * 3
        # Nothing is left of the client's picture.
        where, _, name = graph_of(new.texts)["1"]["inputs"]["image"].removesuffix(" [temp]").rpartition("/")
        http = Http1Pool(comfy.engine.host, comfy.engine.port)
        try:
            assert (await Api(http).view(Picture(name, where, "temp"), 1000))[0] == b""
        finally:
            http.close()


async def test_events(comfy: Studio) -> None:
    with trio.fail_after(GUARD_S):
        told = await comfy.draw({**big(), "stream": True}, workflow=slow())
        assert any(f"of {BLURS + 2}" in words for words in told.comments)
        assert told.body.startswith(b"event: image_generation.completed\ndata: {")
        assert told.body.endswith(b"\n\ndata: [DONE]\n\n")


async def test_what_it_refuses_and_what_fails(comfy: Studio) -> None:
    partly = json.loads(json.dumps(PLAIN.graph))
    partly["3"] = {"class_type": "SaveImage", "inputs": {"images": ["1", 0]}}
    partly["slotd"] = {"outputs": ["3"]}
    with trio.fail_after(GUARD_S):
        with pytest.raises(EngineError, match=r"ckpt_name: .* not in .*it has no such file") as missing:
            await comfy.draw(SMALL, workflow=SDXL)
        assert missing.value.details["reason"] == "model_missing"
        odd = parse_workflow(b'{"1": {"class_type": "NoSuchNode"}, "2": {"class_type": "SaveImage"}}')
        with pytest.raises(EngineError, match="node NoSuchNode does not exist"):
            await comfy.draw(SMALL, workflow=odd)
        with pytest.raises(EngineError, match=r"left out .*node 3 .*input is missing: filename_prefix"):
            await comfy.draw(SMALL, workflow=parse_workflow(json.dumps(partly).encode()))
        with pytest.raises(RequestUnprocessable, match="`image` is no picture that ComfyUI can read"):
            await comfy.draw({"prompt": "invert", "image": "YSBjYXQ="}, workflow=PLAIN_EDIT)


async def test_who_leaves_has_it_interrupted(comfy: Studio) -> None:
    told = Told()
    with trio.fail_after(GUARD_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_draw, comfy, told, big())
            await told.until_said("node 3 of")
            began = trio.current_time()
            nursery.cancel_scope.cancel()
        assert trio.current_time() - began < STOP_TIMEOUT_S
        assert await queue(comfy) == (0, 0)


async def test_who_leaves_the_queue_leaves_the_other_alone(comfy: Studio) -> None:
    first, second = Told(), Told()
    with trio.fail_after(GUARD_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_draw, comfy, first, big())
            await first.until_said("node 2 of")
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as leaving:
                    leaving.start_soon(_draw, comfy, second, big())
                    await second.until_said("queued in ComfyUI")
                    assert await queue(comfy) == (1, 1)
                    scope.cancel()
            assert await queue(comfy) == (1, 0)
        assert len(first.kept) == 1


async def test_who_leaves_at_once_leaves_nothing(comfy: Studio) -> None:
    with trio.fail_after(GUARD_S):
        for milliseconds in (0, 1, 2, 3, 5, 8, 13, 21):
            with trio.move_on_after(milliseconds / 1000):
                await _draw(comfy, Told(), big())
            # While it prepares a prompt it looks at no interrupt; at its first node it does.
            await comfy.draw({**SMALL, "seed": milliseconds}, workflow=PLAIN)
            assert await queue(comfy) == (0, 0)


async def _draw(comfy: Studio, told: Told, body: dict[str, Any]) -> None:
    await comfy.draw(body, told, workflow=slow(), limits=LIMITS)
