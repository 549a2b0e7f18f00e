"""A device that one slot needs for itself: the others are drained, refused, and brought back."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import httpx
import openai
import pytest
import trio
from e2e_tools import CHAT, GUARD_S, Later, Start, ask, client, code, dial, eventually, frames, note
from room_tools import evicted, heard, memory, moved, starts, story

from slotd.events import Event
from slotd.testing import Harness, Knobs, fake_slot

EMBED, IMAGE = "/v1/embeddings", "/v1/images/generations"
ENDLESS = Knobs(tokens=100_000, token_delay_s=0.01)
PLENTY = memory(0)
SERVER = {"turn_hold_s": 0.05}
SLACK_S = 1.0


def house(
    image: Knobs | None = None, chat: Knobs | None = None, **settings: Any
) -> dict[str, dict[str, Any]]:
    """Chat and embeddings on a device that the image slot needs for itself; beside them, one on another."""
    brief = Knobs(tokens=3)
    return {
        "chat": fake_slot(chat or brief, default=True, device="gpu0", drain_timeout_s=0.5),
        "embed": fake_slot(type="embedding", default=True, device="gpu0"),
        "image": fake_slot(image, type="image", default=True, exclusive="gpu0", **settings),
        "beside": fake_slot(brief, device="cpu"),
    }


async def draw(http: httpx.AsyncClient) -> httpx.Response:
    return await http.post(IMAGE, json={"prompt": "a house"})


async def chat(http: httpx.AsyncClient, model: str = "chat") -> httpx.Response:
    return await http.post(CHAT, json=ask(model))


def mode(word: str) -> Callable[[Event], bool]:
    return lambda event: event.kind == "arbiter.mode" and event.data["mode"] == word


async def modes(slotd: Harness) -> list[str]:
    """The modes that the device has been in, in order."""
    return [event.data["mode"] for event in await story(slotd, "arbiter.mode")]


async def all_up(slotd: Harness, *names: str) -> None:
    for name in names:
        await slotd.load(name)


def refusal(answer: httpx.Response) -> float:
    """Checks the answer of those who share the device meanwhile; returns its ``Retry-After``."""
    assert (answer.status_code, code(answer)) == (503, "gpu.exclusive"), answer.text
    assert answer.json()["error"]["details"]["owner"] == "image"
    assert "'slotd release gpu0'" in answer.json()["error"]["message"], "what to do"
    return float(answer.headers["retry-after"])


async def test_a_turn_and_its_end_by_hand(slotd_harness: Start) -> None:
    """Image mode, and what each kind of request sees before, in, and after it."""
    slots = house(Knobs(load_delay_s=0.5))
    with trio.fail_after(GUARD_S):
        async with (
            slotd_harness(slots, server=SERVER, more=PLENTY) as slotd,
            client(slotd) as http,
            trio.open_nursery() as nursery,
        ):
            await all_up(slotd, "chat", "embed", "beside")
            drawn = Later(nursery, partial(draw, http))
            await heard(slotd, mode("entering"))
            await slotd.wait_for("image", "warming")
            # Both have gone before the image's engine was spawned.
            assert slotd.snapshot("chat").state == slotd.snapshot("embed").state == "offline"
            assert refusal(await chat(http)) >= 1
            [device] = (await http.get("/api/memory")).json()["devices"]
            assert (device["owner"], device["phase"]) == ("image", "entering")
            assert (await drawn.result()).status_code == 200
            await heard(slotd, mode("exclusive"))
            began = trio.current_time()
            refusal(await http.post(EMBED, json={"input": "words"}))
            assert trio.current_time() - began < SLACK_S  # at once, not after a wait in a queue
            refusal(await chat(http))
            assert (await draw(http)).status_code == 200
            assert (await chat(http, "beside")).status_code == 200
            load = await http.post("/api/slots/chat/load")
            refusal(load)

            released = await http.post("/api/devices/gpu0/release")
            assert released.json() == {"released": "gpu0", "owner": "image"}
            began = trio.current_time()
            await slotd.wait_for("chat", "ready")
            await slotd.wait_for("embed", "ready")
            note(
                "the device was released, and those it was taken from are ready", trio.current_time() - began
            )
            assert slotd.snapshot("image").state == "offline"
            assert (await chat(http)).status_code == 200
            assert await modes(slotd) == ["entering", "exclusive", "shared"]
            assert starts(slotd, "chat", "embed", "image", "beside") == [2, 2, 1, 1]
            again = await http.post("/api/devices/gpu0/release")
            assert (again.status_code, code(again)) == (400, "request.invalid")
            assert "nothing to release" in again.json()["error"]["message"]
            unknown = await http.post("/api/devices/gpu7/release")
            assert (unknown.status_code, code(unknown)) == (400, "request.invalid")
            assert unknown.json()["error"]["message"] == "no slot names a device 'gpu7'; devices: cpu, gpu0"


async def test_a_long_stream_is_cut_at_the_drain_timeout(slotd_harness: Start) -> None:
    with trio.fail_after(GUARD_S):
        async with (
            slotd_harness(house(chat=ENDLESS), server=SERVER, more=PLENTY) as slotd,
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
            await heard(slotd, mode("entering"))
            assert slotd.snapshot("chat").leases == 1
            refusal(await chat(http))  # it drains: no further request
            body += await wire.rest()
            took = trio.current_time() - began
            note("a stream of a slot with drain_timeout_s = 0.5 was cut", took)
            assert 0.45 <= took < 0.5 + SLACK_S
            *good, last = frames(body)
            assert len(good) > 20  # it went on meanwhile
            assert last.event == "error"
            assert last.error["code"] == "slot.engine_lost"
            assert "'image'" in last.error["message"]
            assert (await drawn.result()).status_code == 200
            assert slotd.snapshot("chat").state == "offline"


async def test_openais_client_raises_at_the_cut(slotd_harness: Start) -> None:
    def stream(url: str, words: list[str]) -> None:
        with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=GUARD_S) as asker:
            chunks = asker.chat.completions.create(
                model="chat", messages=[{"role": "user", "content": "hi"}], stream=True
            )
            for chunk in chunks:
                words.append(chunk.choices[0].delta.content or "")

    words: list[str] = []
    with trio.fail_after(GUARD_S):
        async with (
            slotd_harness(house(chat=ENDLESS), server=SERVER, more=PLENTY) as slotd,
            client(slotd) as http,
            trio.open_nursery() as nursery,
        ):
            await slotd.load("chat")

            async def read() -> str:
                with pytest.raises(openai.APIError) as raised:
                    await trio.to_thread.run_sync(stream, slotd.url, words)
                return raised.value.message

            message = Later(nursery, read)
            await eventually(lambda: len(words) > 3)
            assert (await draw(http)).status_code == 200
            assert "'image'" in await message.result()


async def test_who_waits_in_line_is_refused_and_who_is_served_is_finished(slotd_harness: Start) -> None:
    slots = house(chat=Knobs(first_token_delay_s=0.3, tokens=1))
    slots["chat"].update(max_parallel=1, drain_timeout_s=5)
    with trio.fail_after(GUARD_S):
        async with (
            slotd_harness(slots, server=SERVER, more=PLENTY) as slotd,
            client(slotd) as http,
            trio.open_nursery() as nursery,
        ):
            await slotd.load("chat")
            served = Later(nursery, partial(chat, http))
            await eventually(lambda: slotd.snapshot("chat").leases == 1)
            waiting = Later(nursery, partial(chat, http))
            await eventually(lambda: slotd.snapshot("chat").queued == 1)
            drawn = Later(nursery, partial(draw, http))
            refusal(await waiting.result())
            assert not served.done
            assert (await served.result()).status_code == 200
            assert (await drawn.result()).status_code == 200


@pytest.mark.parametrize("ability", ["assemble", "close"])
async def test_an_answer_that_has_not_begun_is_refused_at_the_cut(slotd_harness: Start, ability: str) -> None:
    """It is not lost with its engine: it is told, as all the others are, when to come again."""
    slots = house(chat=Knobs(first_token_delay_s=60, cancel_nonstream=True))
    slots["chat"]["nonstream_cancel"] = ability
    with trio.fail_after(GUARD_S):
        async with (
            slotd_harness(slots, server=SERVER, more=PLENTY) as slotd,
            client(slotd) as http,
            trio.open_nursery() as nursery,
        ):
            await slotd.load("chat")
            cut = Later(nursery, partial(chat, http))
            await slotd.fake("chat").wait_active(1)
            assert (await draw(http)).status_code == 200
            refusal(await cut.result())


async def test_it_ends_by_itself(slotd_harness: Start) -> None:
    slots = house(restore_after_s=0.4)
    with trio.fail_after(GUARD_S):
        async with slotd_harness(slots, server=SERVER, more=PLENTY) as slotd, client(slotd) as http:
            await slotd.load("chat")
            assert (await draw(http)).status_code == 200
            began = trio.current_time()
            assert refusal(await chat(http)) == 1
            await slotd.wait_for("chat", "ready")
            note("back after restore_after_s = 0.4", trio.current_time() - began)
            assert slotd.snapshot("image").state == "offline"
            assert await modes(slotd) == ["entering", "exclusive", "shared"]
            # What was not loaded before is not loaded for that.
            assert starts(slotd, "chat", "embed", "image") == [2, 0, 1]


async def test_it_does_not_end_while_it_is_used(slotd_harness: Start) -> None:
    slots = house(Knobs(first_token_delay_s=0.9), restore_after_s=0.3)
    with trio.fail_after(GUARD_S):
        async with slotd_harness(slots, server=SERVER, more=PLENTY) as slotd, client(slotd) as http:
            await slotd.load("chat")
            for _ in range(2):
                assert (await draw(http)).status_code == 200
            assert starts(slotd, "image") == [1]
            await slotd.wait_for("chat", "ready")


@pytest.mark.parametrize("knobs", [Knobs(crash_at_start=True), Knobs(hang_health=True)])
async def test_one_that_cannot_load_gives_the_device_back(slotd_harness: Start, knobs: Knobs) -> None:
    with trio.fail_after(GUARD_S):
        async with (
            slotd_harness(house(knobs, ready_timeout_s=1), server=SERVER, more=PLENTY) as slotd,
            client(slotd) as http,
        ):
            await all_up(slotd, "chat", "embed")
            answer = await draw(http)
            assert (answer.status_code, code(answer)) == (502, "slot.load_failed")
            began = trio.current_time()
            await slotd.wait_for("chat", "ready")
            await slotd.wait_for("embed", "ready")
            note("back after a failed load of the newcomer", trio.current_time() - began)
            assert await modes(slotd) == ["entering", "shared"]
            assert (await chat(http)).status_code == 200
            assert starts(slotd, "chat", "embed") == [2, 2]


async def test_its_engine_that_is_killed_is_replaced_within_the_turn(slotd_harness: Start) -> None:
    with trio.fail_after(GUARD_S):
        async with slotd_harness(house(), server=SERVER, more=PLENTY) as slotd, client(slotd) as http:
            await slotd.load("chat")
            assert (await draw(http)).status_code == 200
            slotd.kill("image")
            assert (await draw(http)).status_code == 200
            assert starts(slotd, "image") == [2]
            # Seen dead before the next request came, it had nobody to keep the device for.
            once = ["entering", "exclusive"]
            assert await modes(slotd) in (once, [*once, "shared", *once])
            refusal(await chat(http))


async def test_one_that_nobody_waits_for_any_more_gives_the_device_back(slotd_harness: Start) -> None:
    slots = house(Knobs(load_delay_s=30), abandon_after_s=0.1)
    with trio.fail_after(GUARD_S):
        async with slotd_harness(slots, server=SERVER, more=PLENTY) as slotd:
            await slotd.load("chat")
            async with await dial(slotd) as wire:
                await wire.post(IMAGE, {"prompt": "a house"})
                await slotd.wait_for("image", "warming")
            await heard(slotd, moved("image", "offline"))
            await slotd.wait_for("chat", "ready")
            assert await modes(slotd) == ["entering", "shared"]
            assert [slot for slot, _ in await evicted(slotd)] == ["chat"]
