"""Image mode: ComfyUI needs the accelerator that the chat model sits on.

What any exclusive slot does is in ``test_e2e_exclusive.py``. Here the one that
takes the device works by prompts in a queue of its own, and both take up memory
that is known: at no time is there more of it in use than one of them needs.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
from comfy_house import GENERATIONS, HOUSE, draw, picture, studio
from e2e_tools import CHAT, GUARD_S, Later, Start, ask, client, code, dial, frames, idle_again, note
from room_tools import QUICK, evicted, heard, memory, most_at_once, moved, starts, story

from slotd.testing import ComfyKnobs, Harness, Knobs, fake_slot

CHAT_MB, IMAGE_MB = 120, 160
SERVER = {"turn_hold_s": 0.05}
ROOM = memory(CHAT_MB + IMAGE_MB - 40)
"""Room for each, and not for both."""

ENDLESS = Knobs(tokens=100_000, token_delay_s=0.01, memory_mb=CHAT_MB)
SLACK_S = 1.0


def house(
    image: ComfyKnobs | None = None, chat: Knobs | None = None, **settings: Any
) -> dict[str, dict[str, Any]]:
    """A chat model on the device that the image slot needs for itself. By hand only is it given back."""
    words = chat or Knobs(tokens=3, memory_mb=CHAT_MB)
    return {
        "chat": fake_slot(words, default=True, device="gpu0", memory_mb=CHAT_MB, drain_timeout_s=0.5),
        "image": studio(
            image or ComfyKnobs(memory_mb=IMAGE_MB),
            exclusive="gpu0",
            memory_mb=IMAGE_MB,
            **{"restore_after_s": 0, **settings},
        ),
    }


async def chat(http: httpx.AsyncClient) -> httpx.Response:
    return await http.post(CHAT, json=ask("chat"))


def mode(word: str) -> Any:
    return lambda event: event.kind == "arbiter.mode" and event.data["mode"] == word


async def modes(slotd: Harness) -> list[str]:
    return [event.data["mode"] for event in await story(slotd, "arbiter.mode")]


async def test_chat_drains_pictures_are_drawn_chat_comes_back(slotd_harness: Start) -> None:
    answering = Knobs(tokens=10, token_delay_s=0.02, memory_mb=CHAT_MB)
    with trio.fail_after(GUARD_S):
        async with (
            slotd_harness(house(chat=answering), server=SERVER, more=ROOM) as slotd,
            client(slotd) as http,
            trio.open_nursery() as nursery,
            await dial(slotd) as wire,
        ):
            await slotd.load("chat")
            await wire.post(CHAT, ask("chat", stream=True))
            await wire.head()
            body = await wire.until(b"word1")
            began = trio.current_time()
            drawn = Later(nursery, partial(draw, http, n=2))
            body += await wire.rest()  # to its proper end: it was given its time
            assert frames(body)[-1].data == "[DONE]"
            answer = await drawn.result()
            note("from the wish for a picture to the picture, with a swap", trio.current_time() - began)
            for item in answer.json()["data"]:
                assert (await picture(http, item)).width == 48
            assert slotd.snapshot("chat").state == "offline"
            refused = await chat(http)
            assert (refused.status_code, code(refused)) == (503, "gpu.exclusive")
            # Its turn lasts: the next picture needs no swap.
            assert (await draw(http, seed=8)).status_code == 200
            assert (await http.post("/api/devices/gpu0/release")).status_code == 200
            await slotd.wait_for("chat", "ready")
            assert (await chat(http)).status_code == 200
            assert await modes(slotd) == ["entering", "exclusive", "shared"]
            assert starts(slotd, "chat", "image") == [2, 1]
            assert await most_at_once(slotd) == 1


async def test_chat_comes_back_by_itself(slotd_harness: Start) -> None:
    with trio.fail_after(GUARD_S):
        async with (
            slotd_harness(house(restore_after_s=0.4), server=SERVER, more=ROOM) as slotd,
            client(slotd) as http,
        ):
            await slotd.load("chat")
            assert (await draw(http)).status_code == 200
            await slotd.wait_for("chat", "ready")
            assert await modes(slotd) == ["entering", "exclusive", "shared"]
            assert await most_at_once(slotd) == 1


@pytest.mark.parametrize(
    "broken", [ComfyKnobs(refuse_start=True), ComfyKnobs(start_delay_s=60, memory_mb=IMAGE_MB)]
)
async def test_a_comfyui_that_does_not_start_leaves_chat_as_it_was(
    slotd_harness: Start, broken: ComfyKnobs
) -> None:
    with trio.fail_after(GUARD_S):
        async with (
            slotd_harness(house(broken, ready_timeout_s=1), server=SERVER, more=ROOM) as slotd,
            client(slotd) as http,
        ):
            await slotd.load("chat")
            answer = await draw(http)
            assert (answer.status_code, code(answer)) == (502, "slot.load_failed")
            began = trio.current_time()
            await slotd.wait_for("chat", "ready")
            note("chat is back after ComfyUI failed to start", trio.current_time() - began)
            assert (await chat(http)).status_code == 200
            assert await modes(slotd) == ["entering", "shared"]
            assert await most_at_once(slotd) == 1


async def test_a_stream_that_outlasts_the_drain_ends_with_an_error_event(slotd_harness: Start) -> None:
    with trio.fail_after(GUARD_S):
        async with (
            slotd_harness(house(chat=ENDLESS), server=SERVER, more=ROOM) as slotd,
            client(slotd) as http,
            trio.open_nursery() as nursery,
            await dial(slotd) as wire,
        ):
            await slotd.load("chat")
            await wire.post(CHAT, ask("chat", stream=True))
            await wire.head()
            body = await wire.until(b"word3")
            began = trio.current_time()
            drawn = Later(nursery, partial(draw, http))
            body += await wire.rest()  # raises unless the body has its proper end
            took = trio.current_time() - began
            assert 0.45 <= took < 0.5 + SLACK_S
            *good, last = frames(body)
            assert all(json.loads(frame.data)["object"] == "chat.completion.chunk" for frame in good)
            assert (last.event, set(json.loads(last.data))) == ("error", {"error"})
            assert last.error["code"] == "slot.engine_lost"
            assert "'image'" in last.error["message"]
            assert (await drawn.result()).status_code == 200


async def test_the_device_is_given_back_when_the_picture_is_done(slotd_harness: Start) -> None:
    slow = ComfyKnobs(step_s=0.02, memory_mb=IMAGE_MB)
    with trio.fail_after(GUARD_S):
        async with (
            slotd_harness(house(slow), server=SERVER, more=ROOM) as slotd,
            client(slotd) as http,
            await dial(slotd) as wire,
        ):
            await slotd.load("chat")
            await wire.post(GENERATIONS, {**HOUSE, "steps": 40, "stream": True})
            await wire.head()
            body = await wire.until(b"step ")
            assert (await http.post("/api/devices/gpu0/release")).status_code == 200
            body += await wire.rest()
            assert [frame.event for frame in frames(body)] == ["image_generation.completed", ""]
            await slotd.wait_for("chat", "ready")
            assert await most_at_once(slotd) == 1


async def test_a_stream_of_pictures_that_is_cut_ends_with_an_error_event(slotd_harness: Start) -> None:
    slow = ComfyKnobs(step_s=0.02, memory_mb=IMAGE_MB)
    with trio.fail_after(GUARD_S):
        async with (
            slotd_harness(house(slow, drain_timeout_s=0.1), server=SERVER, more=ROOM) as slotd,
            await dial(slotd) as wire,
        ):
            await slotd.load("chat")
            await wire.post(GENERATIONS, {**HOUSE, "steps": 30, "n": 9, "stream": True})
            await wire.head()
            body = await wire.until(b"event: image_generation.completed")
            await slotd.stop("image")
            *drawn, failure = frames(body + await wire.rest())
            assert {frame.event for frame in drawn} == {"image_generation.completed"}
            assert (failure.event, failure.error["code"]) == ("error", "slot.engine_lost")
            assert failure.error["details"]["reason"] == "unloaded"
            await slotd.wait_for("chat", "ready")


async def test_comfyui_that_dies_in_the_middle_is_replaced_within_its_turn(
    slotd_harness: Start, tmp_path: Path
) -> None:
    once = ComfyKnobs(crash_at="VAEDecode", crash_once=str(tmp_path / "crashed"), memory_mb=IMAGE_MB)
    with trio.fail_after(GUARD_S):
        async with slotd_harness(house(once), server=SERVER, more=ROOM) as slotd, client(slotd) as http:
            await slotd.load("chat")
            assert (await draw(http)).status_code == 200
            assert starts(slotd, "chat", "image") == [1, 2]
            assert (await modes(slotd))[-1] == "exclusive"
            assert await most_at_once(slotd) == 1


async def test_who_leaves_while_chat_drains_costs_chat_nothing(slotd_harness: Start) -> None:
    slots = house(chat=ENDLESS, abandon_after_s=0.05)
    slots["chat"]["drain_timeout_s"] = 10
    with trio.fail_after(GUARD_S):
        async with (
            slotd_harness(slots, server=SERVER, more=ROOM) as slotd,
            await dial(slotd) as wire,
        ):
            await slotd.load("chat")
            await wire.post(CHAT, ask("chat", stream=True))
            await wire.head()
            await wire.until(b"word3")
            async with await dial(slotd) as leaving:
                await leaving.post(GENERATIONS, HOUSE)
                await heard(slotd, mode("entering"))
            await heard(slotd, mode("shared"))
            await wire.until(b"word")  # it goes on
            assert starts(slotd, "chat", "image") == [1, 0]
            assert (await slotd.fake("chat").stats())["active"] == 1


async def test_who_leaves_while_comfyui_starts_brings_chat_back(slotd_harness: Start) -> None:
    slow = ComfyKnobs(start_delay_s=60, memory_mb=IMAGE_MB)
    with trio.fail_after(GUARD_S):
        async with slotd_harness(house(slow, abandon_after_s=0.1), server=SERVER, more=ROOM) as slotd:
            await slotd.load("chat")
            async with await dial(slotd) as wire:
                await wire.post(GENERATIONS, HOUSE)
                await slotd.wait_for("image", "starting", "warming")
            await heard(slotd, moved("image", "offline"))
            await slotd.wait_for("chat", "ready")
            assert await modes(slotd) == ["entering", "shared"]


async def test_who_leaves_a_picture_leaves_the_device_in_its_turn(slotd_harness: Start) -> None:
    slow = ComfyKnobs(step_s=0.02, memory_mb=IMAGE_MB)
    with trio.fail_after(GUARD_S):
        async with (
            slotd_harness(house(slow, restore_after_s=0.4), server=SERVER, more=ROOM) as slotd,
            client(slotd) as http,
        ):
            await slotd.load("chat")
            async with await dial(slotd) as wire:
                await wire.post(GENERATIONS, {**HOUSE, "steps": 10_000, "stream": True})
                await wire.head()
                await wire.until(b"step ")
            await idle_again(slotd.fake("image"), "a client left a picture in image mode")
            await slotd.wait_for("chat", "ready")  # after restore_after_s without work
            assert (await chat(http)).status_code == 200
            assert starts(slotd, "chat", "image") == [2, 1]


async def test_many_at_once_share_one_turn(slotd_harness: Start) -> None:
    with trio.fail_after(GUARD_S):
        async with slotd_harness(house(), server=SERVER, more=ROOM) as slotd, client(slotd) as http:
            await slotd.load("chat")
            async with trio.open_nursery() as nursery:
                drawn = [Later(nursery, partial(draw, http, seed=n)) for n in range(6)]
            assert [(await d.result()).status_code for d in drawn] == [200] * 6
            assert starts(slotd, "chat", "image") == [1, 1]
            assert [slot for slot, _ in await evicted(slotd)] == ["chat"]


async def test_without_a_device_to_itself_memory_makes_them_take_turns(slotd_harness: Start) -> None:
    slots = house()
    del slots["chat"]["device"], slots["image"]["exclusive"], slots["image"]["restore_after_s"]
    with trio.fail_after(GUARD_S):
        async with slotd_harness(slots, server=QUICK, more=ROOM) as slotd, client(slotd) as http:
            for _ in range(2):
                assert (await chat(http)).status_code == 200
                assert (await draw(http)).status_code == 200
            assert starts(slotd, "chat", "image") == [2, 2]
            assert await most_at_once(slotd) == 1
