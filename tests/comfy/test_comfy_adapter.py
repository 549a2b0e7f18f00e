"""The adapter and a fake ComfyUI: a real process, real sockets."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
from comfy_tools import GUARD_S, LIMITS, PLAIN, PLAIN_EDIT, SDXL, Studio, Told, graph_of, studio

from slotd.comfy.api import Api, Picture
from slotd.comfy.job import STOP_TIMEOUT_S, Limits, run_prompt
from slotd.comfy.workflow import parse_workflow
from slotd.errors import (
    AnswerTooLarge,
    EngineError,
    NoRouteFound,
    RequestUnprocessable,
    SlotdError,
    SlotQueueTimeout,
    StreamStalled,
)
from slotd.testing import ComfyKnobs
from slotd.testing.fake_png import read_png
from slotd.wire.http1 import ConnectFailed, Http1Pool, UpstreamBroken

HOUSE = {"prompt": "a house", "size": "48x32", "steps": 4, "seed": 7}
GONE_S = 0.3


async def idle(fake: Studio) -> None:
    with trio.fail_after(GONE_S):
        await fake.engine.wait_active(0)


async def test_a_picture_by_url() -> None:
    with trio.fail_after(GUARD_S), studio(ComfyKnobs(step_s=0.01)) as fake:
        told = await fake.draw({**HOUSE, "negative_prompt": "people"})
        [item] = told.answer["data"]
        assert item == {"url": "http://slotd/api/artifacts/1"}
        assert told.answer["created"] > 0
        [(data, kind)] = told.kept
        assert kind == "image/png"
        picture = read_png(data)
        assert (picture.width, picture.height) == (48, 32)
        graph = graph_of(picture.texts)
        assert graph["6"]["inputs"]["text"] == "a house"
        assert graph["7"]["inputs"]["text"] == "people"
        assert (graph["3"]["inputs"]["seed"], graph["3"]["inputs"]["steps"]) == (7, 4)
        assert "node 5 of 7, step 3 of 4" in told.words


async def test_a_picture_as_base64() -> None:
    with trio.fail_after(GUARD_S), studio() as fake:
        told = await fake.draw({**HOUSE, "response_format": "b64_json"})
        [item] = told.answer["data"]
        assert read_png(base64.b64decode(item["b64_json"])).width == 48
        assert not told.kept


async def test_what_cannot_be_kept_comes_itself() -> None:
    with trio.fail_after(GUARD_S), studio() as fake:
        told = await fake.draw({**HOUSE, "n": 3}, Told(room=2))
        first, second, third = told.answer["data"]
        assert ("url" in first, "url" in second) == (True, True)
        assert list(third) == ["b64_json"]
        assert graph_of(read_png(base64.b64decode(third["b64_json"])).texts)["3"]["inputs"]["seed"] == 9


async def test_several_pictures_are_several_prompts_with_seeds_of_their_own() -> None:
    with trio.fail_after(GUARD_S), studio() as fake:
        told = await fake.draw({**HOUSE, "n": 3, "seed": 2**64 - 1})
        seeds = [graph_of(read_png(data).texts)["3"]["inputs"]["seed"] for data, _ in told.kept]
        assert seeds == [2**64 - 1, 0, 1]
        assert (await fake.engine.stats())["finished"] == 3
        assert any(words.startswith("picture 3 of 3, node ") for words in told.words)
        assert len({read_png(data).colour for data, _ in told.kept}) == 3


async def test_a_template_that_batches_makes_them_in_one_prompt() -> None:
    with trio.fail_after(GUARD_S), studio() as fake:
        told = await fake.draw({"prompt": "a house", "n": 3}, workflow=PLAIN)
        assert len(told.answer["data"]) == 3
        assert (await fake.engine.stats())["finished"] == 1
        assert read_png(told.kept[0][0]).width == 512  # the template's default


async def test_without_a_seed_each_picture_is_another() -> None:
    with trio.fail_after(GUARD_S), studio() as fake:
        seeds = set()
        for _ in range(2):
            told = await fake.draw({"prompt": "a house"})
            seeds.add(graph_of(read_png(told.kept[0][0]).texts)["3"]["inputs"]["seed"])
        assert len(seeds) == 2


async def test_an_edit_from_a_form_works_on_the_clients_picture() -> None:
    files = [("image", ("../../cat.png", b"a cat", "image/png"))]
    request = httpx.Request("POST", "http://slotd/", data={"prompt": "a hat"}, files=files)
    with trio.fail_after(GUARD_S), studio() as fake:
        told = await fake.draw(
            request.read(), workflow=PLAIN_EDIT, content_type=request.headers["content-type"]
        )
        texts = read_png(told.kept[0][0]).texts
        assert texts["source"] == hashlib.sha256(b"a cat").hexdigest()
        name = graph_of(texts)["1"]["inputs"]["image"]
        assert name.startswith("slotd/")
        assert name.endswith(".png [temp]")
        assert "cat" not in name
        stats = await fake.engine.stats()
        assert stats["uploads"] == 1
        # What it drew goes when it starts anew; of what the client gave it nothing stays.
        assert stats["stored"] == {"input": 0, "output": 0, "temp": len(told.kept[0][0])}


@pytest.mark.parametrize(
    ("body", "error", "words"),
    [
        ({}, RequestUnprocessable, "prompt"),
        ({"prompt": "a", "model": "nobody"}, NoRouteFound, "sdxl"),
        ({"prompt": "a", "size": "9000x9000"}, RequestUnprocessable, "megapixels"),
        ({"prompt": "a"}, RequestUnprocessable, "`image` is missing"),
        ({"prompt": "a", "image": ["YQ==", "YQ=="]}, RequestUnprocessable, "2 pictures were given"),
        ({"prompt": "a", "image": "YQ==", "mask": "YQ=="}, RequestUnprocessable, "takes no mask"),
    ],
)
async def test_what_is_refused_never_reaches_comfyui(
    body: dict[str, Any], error: type[SlotdError], words: str
) -> None:
    with trio.fail_after(GUARD_S), studio() as fake:
        with pytest.raises(error, match=words):
            await fake.draw(body, workflow=PLAIN_EDIT)
        stats = await fake.engine.stats()
        assert (stats["started"], stats["uploads"], stats["websockets"]) == (0, 0, 0)


# --- as events ----------------------------------------------------------------------------


async def test_pictures_come_one_by_one_after_comments() -> None:
    told = Told()
    with trio.fail_after(GUARD_S), studio(ComfyKnobs(hold=True)) as fake:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fake.draw, {**HOUSE, "n": 2, "stream": True}, told)
            while "picture 1 of 2, node 1 of 7" not in told.comments:
                await told.changed.wait()
            assert not told.begun
            await fake.engine.set(hold=False)
        first, second, done, rest = told.body.decode().split("\n\n")
        assert (done, rest) == ("data: [DONE]", "")
        for event in (first, second):
            name, _, data = event.removeprefix("event: ").partition("\ndata: ")
            document = json.loads(data)
            assert name == document["type"] == "image_generation.completed"
            assert (document["size"], document["output_format"]) == ("48x32", "png")
            assert read_png(base64.b64decode(document["b64_json"])).width == 48


async def test_a_failure_before_the_first_picture_is_an_error_like_any() -> None:
    told = Told()
    with trio.fail_after(GUARD_S), studio(ComfyKnobs(node_error="KSampler")) as fake:
        with pytest.raises(EngineError, match="KSampler"):
            await fake.draw({**HOUSE, "stream": True}, told)
        assert not told.begun


# --- what goes wrong in ComfyUI -----------------------------------------------------------


async def test_a_node_that_fails_is_named() -> None:
    with trio.fail_after(GUARD_S), studio(ComfyKnobs(node_error="KSampler")) as fake:
        with pytest.raises(EngineError, match=r"node 3 \(KSampler\) failed: RuntimeError: a node") as failed:
            await fake.draw(HOUSE)
        assert failed.value.details["node_type"] == "KSampler"
        await idle(fake)


async def test_a_graph_that_is_refused_is_not_stopped_either() -> None:
    odd = parse_workflow(b'{"1": {"class_type": "NoSuchNode"}, "2": {"class_type": "SaveImage"}}')
    with trio.fail_after(GUARD_S), studio() as fake:
        with pytest.raises(EngineError, match="node NoSuchNode does not exist") as refused:
            await fake.draw(HOUSE, workflow=odd)
        assert refused.value.details["status"] == 400
        bad = parse_workflow(b'{"2": {"class_type": "SaveImage", "inputs": {"images": ["7", 0]}}}')
        with pytest.raises(EngineError, match=r"node 2 \(SaveImage\): Exception when validating node: '7'"):
            await fake.draw(HOUSE, workflow=bad)


async def test_a_workflow_that_puts_nothing_out() -> None:
    with (
        trio.fail_after(GUARD_S),
        studio(ComfyKnobs(no_pictures=True)) as fake,
        pytest.raises(EngineError, match=r"no picture \(node 9\)"),
    ):
        await fake.draw(HOUSE)


async def test_a_checkpoint_that_is_not_there() -> None:
    with trio.fail_after(GUARD_S), studio(ComfyKnobs(checkpoints=("other.safetensors",))) as fake:
        with pytest.raises(
            EngineError, match=r"'sd_xl_base.*' not in \['other.safetensors'\]; it has"
        ) as error:
            await fake.draw(HOUSE)
        assert error.value.details["reason"] == "model_missing"


async def test_an_output_that_was_left_out_is_why_there_is_no_picture() -> None:
    """ComfyUI makes the outputs that it can, and says at the beginning what is wrong with the others."""
    graph = json.loads(json.dumps(PLAIN.graph))
    graph["3"] = {"class_type": "SaveImage", "inputs": {"images": ["1", 0]}}
    partly = parse_workflow(json.dumps({**graph, "slotd": {"outputs": ["3"]}}).encode())
    with trio.fail_after(GUARD_S), studio() as fake:
        with pytest.raises(EngineError, match=r"left out .*node 3 .*input is missing: filename_prefix"):
            await fake.draw(HOUSE, workflow=partly)
        assert (await fake.engine.stats())["finished"] == 1


async def test_the_same_again_comes_from_comfyuis_cache() -> None:
    with trio.fail_after(GUARD_S), studio() as fake:
        first, second = await fake.draw(HOUSE), await fake.draw(HOUSE)
        assert first.kept == second.kept
        assert (await fake.engine.stats())["nodes"] == len(SDXL.graph)


async def test_one_that_dies_is_lost() -> None:
    with (
        trio.fail_after(GUARD_S),
        studio(ComfyKnobs(crash_at="KSampler")) as fake,
        pytest.raises((ConnectFailed, UpstreamBroken)),
    ):
        await fake.draw(HOUSE)


async def test_one_that_has_forgotten_the_prompt_is_lost() -> None:
    told = Told()
    with trio.fail_after(GUARD_S), studio(ComfyKnobs(hold=True, refuse_websocket=True)) as fake:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_fails, UpstreamBroken, partial(fake.draw, HOUSE, told))
            await fake.engine.wait_active(1)
            await fake.engine._call(b"POST", b"/fake/forget", b"{}")


async def _fails(error: type[Exception], call: Callable[[], Any]) -> None:
    with pytest.raises(error):
        await call()


# --- the websocket ------------------------------------------------------------------------


async def test_without_a_websocket_it_looks_by_itself() -> None:
    with trio.fail_after(GUARD_S), studio(ComfyKnobs(refuse_websocket=True)) as fake:
        told = await fake.draw(HOUSE)
        assert len(told.kept) == 1


@pytest.mark.parametrize("messages", [1, 3])
async def test_a_websocket_that_breaks_costs_nothing_but_words(messages: int) -> None:
    told = Told()
    with trio.fail_after(GUARD_S), studio(ComfyKnobs(drop_websocket_after=messages, hold=True)) as fake:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fake.draw, HOUSE, told)
            await told.until_said("node 1 of 7")  # by a look, if not by a message
            await fake.engine.set(hold=False)
        assert len(told.kept) == 1


async def test_the_websocket_ends_with_the_request() -> None:
    with trio.fail_after(GUARD_S), studio() as fake:
        await fake.draw(HOUSE)
        while (await fake.engine.stats())["websockets"]:  # noqa: ASYNC110 # another process
            await trio.sleep(0.005)


# --- stopping -----------------------------------------------------------------------------


async def test_who_leaves_while_it_is_drawn_has_it_interrupted() -> None:
    with trio.fail_after(GUARD_S), studio(ComfyKnobs(step_s=0.02)) as fake:
        told = Told()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fake.draw, {**HOUSE, "steps": 1000}, told)
            await told.until_said("step 2 of")
            nursery.cancel_scope.cancel()
        await idle(fake)
        stats = await fake.engine.stats()
        assert (stats["interrupted"], stats["finished"]) == (1, 0)


async def test_who_leaves_leaves_no_picture_there() -> None:
    edit = {"prompt": "a hat", "image": base64.b64encode(b"a cat").decode()}
    with trio.fail_after(GUARD_S), studio(ComfyKnobs(hold=True)) as fake:
        told = Told()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(fake.draw, workflow=PLAIN_EDIT), edit, told)
            await told.until_said("node 1")
            assert (await fake.engine.stats())["stored"]["temp"] == len(b"a cat")
            nursery.cancel_scope.cancel()
        assert (await fake.engine.stats())["stored"]["temp"] == 0


async def test_a_picture_that_cannot_be_taken_away_again_spoils_no_answer() -> None:
    edit = {"prompt": "a hat", "image": base64.b64encode(b"a cat").decode()}

    class Last(Told):
        async def document(self, body: bytes, *, content_type: str = "application/json") -> None:
            await super().document(body, content_type=content_type)
            os.kill((await fake.engine.stats())["pid"], signal.SIGKILL)

    with trio.fail_after(GUARD_S), studio() as fake:
        told = await fake.draw(edit, Last(), workflow=PLAIN_EDIT)
        assert len(told.answer["data"]) == 1


async def test_an_interrupt_that_comes_too_early_is_sent_again() -> None:
    told = Told()
    with trio.fail_after(GUARD_S), studio(ComfyKnobs(hold=True, lose_interrupts=2)) as fake:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fake.draw, HOUSE, told)
            await told.until_said("node 1")
            nursery.cancel_scope.cancel()
        stats = await fake.engine.stats()  # at once: who has left has seen it stop
        assert (stats["active"], stats["interrupted"], stats["interrupts"]) == (0, 1, 3)


async def test_the_work_on_one_prompt_is_bounded() -> None:
    with trio.fail_after(GUARD_S), studio(ComfyKnobs(step_s=0.02, refuse_websocket=True)) as fake:
        with pytest.raises(StreamStalled, match=r"run_timeout_s\); it was at node") as late:
            await fake.draw({**HOUSE, "steps": 1000}, limits=Limits(wait_s=600, run_s=0.3))
        assert late.value.details == {"limit": "run_timeout_s"}
        assert (await fake.engine.stats())["interrupted"] == 1


async def test_who_leaves_the_queue_is_deleted_and_the_other_is_not_touched() -> None:
    first, second = Told(), Told()
    with trio.fail_after(GUARD_S), studio(ComfyKnobs(hold=True)) as fake:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fake.draw, HOUSE, first)
            await first.until_said("node 1")
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as leaving:
                    leaving.start_soon(fake.draw, HOUSE, second)
                    await second.until_said("queued in ComfyUI")
                    scope.cancel()
            stats = await fake.engine.stats()
            assert (stats["deleted"], stats["interrupted"], stats["active"]) == (1, 0, 1)
            await fake.engine.set(hold=False)
        assert len(first.kept) == 1


async def test_the_wait_in_comfyuis_queue_is_bounded() -> None:
    first = Told()
    with trio.fail_after(GUARD_S), studio(ComfyKnobs(hold=True)) as fake:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fake.draw, HOUSE, first)
            await first.until_said("node 1")
            with pytest.raises(SlotQueueTimeout) as late:
                await fake.draw(HOUSE, limits=Limits(wait_s=0.1))
            assert late.value.status == 504
            assert (await fake.engine.stats())["deleted"] == 1
            # What runs is not late, however long it takes.
            await fake.engine.set(hold=False)
        assert len(first.kept) == 1


async def test_stopping_a_prompt_that_does_not_answer_is_bounded(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """ComfyUI accepts the prompt and then says nothing at all."""

    class Silent:
        async def submit(self, graph: Any, *, prompt_id: str, client_id: str) -> None:
            await trio.sleep_forever()

        async def stop(self, prompt_id: str) -> None:
            await trio.sleep_forever()

    class NoLine:
        client_id, up = "", False
        heard: Any = None

    began = trio.current_time()
    with trio.move_on_after(1):
        await run_prompt(Silent(), NoLine(), {}, LIMITS, Told().says)  # type: ignore[arg-type] # fakes
    assert trio.current_time() - began == 1 + STOP_TIMEOUT_S


# --- the calls, one by one ------------------------------------------------------------------


async def test_pictures_are_bounded_and_stay_in_their_place() -> None:
    with trio.fail_after(GUARD_S), studio() as fake:
        http = Http1Pool(fake.engine.host, fake.engine.port)
        try:
            api = Api(http)
            await fake.draw(HOUSE)
            picture = Picture("ComfyUI_temp_fakes_00001_.png", "", "temp")
            data, kind = await api.view(picture, 10_000)
            assert read_png(data).width == 48
            assert kind == "image/png"
            with pytest.raises(AnswerTooLarge):
                await api.view(picture, 10)
            with pytest.raises(EngineError, match="404"):
                await api.view(Picture("no such", "", "output"), 10)
            with pytest.raises(EngineError, match="400"):
                await api.view(Picture("../secrets", "", "output"), 10)
            assert await api.history("nobody") is None
            assert await api.place("nobody") == "absent"
        finally:
            http.close()


def test_the_fake_says_what_its_graph_has(tmp_path: Path) -> None:
    """The tests above look into pictures; this one sees that there is something to see."""
    from slotd.testing.comfy_graph import draw

    graph = json.loads(json.dumps(SDXL.graph))
    graph["5"]["inputs"] |= {"width": 8, "height": 8}
    other = json.loads(json.dumps(graph))
    other["3"]["inputs"]["seed"] = 1
    first, second = (read_png(draw(g, "9", lambda name: b"")[0]) for g in (graph, other))
    assert first.colour != second.colour
    assert json.loads(second.texts["prompt"]) == other


async def test_a_history_that_says_success_beside_an_error_is_none() -> None:
    """So ComfyUI does when it gets stuck between nodes: its last node did succeed."""

    class Said(Api):
        def __init__(self) -> None:
            pass

        async def _get(self, target: str) -> bytes:
            messages = [["execution_start", {}], ["execution_error", {"node_id": "1"}], "odd", [1, 2]]
            status = {"status_str": "success", "completed": True, "messages": messages}
            return json.dumps({"p": {"outputs": {}, "status": status}}).encode()

    entry = await Said().history("p")
    assert entry is not None
    assert not entry.succeeded
    assert [kind for kind, _ in entry.messages] == ["execution_start", "execution_error"]
