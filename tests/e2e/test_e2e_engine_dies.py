"""An engine that dies, at every point: its client is told in a well-formed way, the next one is served."""

from __future__ import annotations

import json

import pytest
import trio
from e2e_tools import (
    CHAT,
    EVENT_STREAM,
    GUARD_S,
    CutShort,
    Later,
    Start,
    ask,
    chunk,
    client,
    code,
    dial,
    frames,
    note,
    path_to,
    scripted,
)

from slotd.testing import Knobs, fake_slot

pytestmark = pytest.mark.usefixtures("express")

ENDLESS = Knobs(tokens=100_000, token_delay_s=0.01)
NO_REPLAY = {"max_replays": 0}


async def test_killed_mid_stream(slotd_harness: Start) -> None:
    with trio.fail_after(GUARD_S):
        async with slotd_harness({"chat": fake_slot(ENDLESS, default=True)}) as slotd:
            await slotd.load("chat")
            async with await dial(slotd) as wire:
                await wire.post(CHAT, ask(stream=True))
                head = await wire.head()
                assert head.headers["transfer-encoding"] == "chunked"
                body = await wire.until(b"word3")
                with slotd.observe("chat") as seen:
                    began = trio.current_time()
                    slotd.kill("chat")
                    assert await path_to(seen, "error") == ["error"]
                    note("state error after kill -9", trio.current_time() - began)
                body += await wire.rest()  # to the terminator of the chunked body
                note("stream ended after kill -9", trio.current_time() - began)
            *good, last = frames(body)
            assert [json.loads(f.data)["object"] for f in good] == ["chat.completion.chunk"] * len(good)
            assert last.event == "error"
            assert last.error["code"] == "slot.engine_lost"
            assert "SIGKILL" in last.error["details"]["exit"]
            record = slotd.slotd.records.recent()[0]
            assert (record.status, record.outcome, record.error) == (200, "error", "slot.engine_lost")
            async with client(slotd) as http:
                again = await http.post(CHAT, json=ask(max_tokens=2))
            assert again.status_code == 200
            assert slotd.snapshot("chat").starts == 2


async def test_every_stream_on_it_ends_so(slotd_harness: Start) -> None:
    with trio.fail_after(GUARD_S):
        async with slotd_harness({"chat": fake_slot(ENDLESS, default=True)}) as slotd:
            bodies: list[bytes] = []

            async def stream(*, task_status: trio.TaskStatus[None]) -> None:
                async with await dial(slotd) as wire:
                    await wire.post(CHAT, ask(stream=True))
                    await wire.head()
                    body = await wire.until(b"word1")
                    task_status.started()
                    bodies.append(body + await wire.rest())

            async with trio.open_nursery() as nursery:
                for _ in range(4):
                    await nursery.start(stream)
                slotd.kill("chat")
            assert [frames(b)[-1].error["code"] for b in bodies] == ["slot.engine_lost"] * 4
            assert slotd.snapshot("chat").leases == 0


@pytest.mark.parametrize("ability", ["assemble", "close"])
async def test_killed_before_a_byte_of_an_answer(slotd_harness: Start, ability: str) -> None:
    knobs = Knobs(first_token_delay_s=60, cancel_nonstream=True)
    slot = fake_slot(knobs, default=True, nonstream_cancel=ability)
    with trio.fail_after(GUARD_S):
        async with (
            slotd_harness({"chat": slot}, server=NO_REPLAY) as slotd,
            client(slotd) as http,
            trio.open_nursery() as nursery,
        ):
            await slotd.load("chat")
            waits = Later(nursery, lambda: http.post(CHAT, json=ask()))
            await slotd.fake("chat").wait_active(1)
            began = trio.current_time()
            slotd.kill("chat")
            answer = await waits.result()
            note(f"502 after kill -9, {ability}", trio.current_time() - began)
            assert (answer.status_code, code(answer)) == (502, "slot.engine_lost")
            assert "SIGKILL" in answer.json()["error"]["details"]["exit"]
            assert "retry-after" not in answer.headers


async def test_killed_in_the_middle_of_an_assembled_answer(slotd_harness: Start) -> None:
    """The client has seen nothing of it, so the error is a whole answer."""
    slot = fake_slot(Knobs(tokens=50, crash_after_tokens=20), default=True, nonstream_cancel="assemble")
    with trio.fail_after(GUARD_S):
        async with slotd_harness({"chat": slot}, server=NO_REPLAY) as slotd, client(slotd) as http:
            answer = await http.post(CHAT, json=ask())
            assert (answer.status_code, code(answer)) == (502, "slot.engine_lost")


async def test_an_exit_mid_stream_tells_status_and_last_words(slotd_harness: Start) -> None:
    knobs = Knobs(crash_after_tokens=5, exit_code=42, last_words="out of luck")
    with trio.fail_after(GUARD_S):
        async with slotd_harness({"chat": fake_slot(knobs, default=True)}) as slotd, client(slotd) as http:
            answer = await http.post(CHAT, json=ask(stream=True))
            *good, last = frames(answer.content)
            assert [json.loads(f.data)["choices"][0]["delta"].get("content") for f in good][-5:] == [
                "word0",
                " word1",
                " word2",
                " word3",
                " word4",
            ]
            assert last.error["code"] == "slot.engine_lost"
            assert "42" in last.error["details"]["exit"]
            fault = (await slotd.wait_for("chat", "error")).fault
            assert fault is not None
            assert "42" in str(fault.exit)


async def test_the_last_words_are_in_the_fault(slotd_harness: Start) -> None:
    knobs = Knobs(crash_after_tokens=1, last_words="out of luck")
    with trio.fail_after(GUARD_S):
        async with slotd_harness({"chat": fake_slot(knobs, default=True)}) as slotd, client(slotd) as http:
            await http.post(CHAT, json=ask(stream=True))
            with slotd.slotd.bus.subscribe(after=0, match=lambda e: e.kind == "slot.stopped") as stopped:
                await anext(stopped)
            answer = await http.get("/api/slots/chat")
            assert "out of luck" in answer.json()["fault"]["log"]


async def test_half_an_event_is_never_passed_on(slotd_harness: Start) -> None:
    async def cut(stream: trio.SocketStream, request: bytes) -> None:
        await stream.send_all(EVENT_STREAM + chunk(b'data: {"n": 1}\n\ndata: {"n"'))
        # and it closes without the body's end

    with trio.fail_after(GUARD_S):
        async with (
            scripted(cut) as server,
            slotd_harness({"chat": server.slot(default=True)}, server=NO_REPLAY) as slotd,
            client(slotd) as http,
        ):
            answer = await http.post(CHAT, json=ask(stream=True))
            first, last = frames(answer.content)
            assert first.data == '{"n": 1}'
            assert (last.event, last.error["code"]) == ("error", "slot.engine_lost")


async def test_an_engine_that_cuts_a_stream_and_lives_on(slotd_harness: Start) -> None:
    with trio.fail_after(GUARD_S):
        async with (
            slotd_harness({"chat": fake_slot(Knobs(cut_after_tokens=3), default=True)}) as slotd,
            client(slotd) as http,
        ):
            body = (await http.post(CHAT, json=ask(stream=True))).content
            last = frames(body)[-1]
            assert (last.event, last.error["code"]) == ("error", "slot.engine_lost")
            await slotd.fake("chat").set(cut_after_tokens=None)
            assert (await http.post(CHAT, json=ask(stream=True))).content.endswith(b"data: [DONE]\n\n")
            assert slotd.snapshot("chat").starts == 1


async def test_an_answer_that_is_no_stream_is_broken_off(slotd_harness: Start) -> None:
    """Half a document can be followed by nothing: the body must not look complete."""

    async def half(stream: trio.SocketStream, request: bytes) -> None:
        await stream.send_all(
            b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{"
        )

    with trio.fail_after(GUARD_S):
        async with scripted(half) as server, slotd_harness({"chat": server.slot(default=True)}) as slotd:
            async with await dial(slotd) as wire:
                await wire.post(CHAT, ask())
                assert (await wire.head()).status == 200
                with pytest.raises(CutShort):
                    await wire.rest()
            assert slotd.slotd.records.recent()[0].error == "slot.engine_lost"


async def test_an_answer_that_is_not_http(slotd_harness: Start) -> None:
    with trio.fail_after(GUARD_S):
        async with (
            slotd_harness(
                {"chat": fake_slot(Knobs(garbage="http"), default=True)}, server=NO_REPLAY
            ) as slotd,
            client(slotd) as http,
        ):
            answer = await http.post(CHAT, json=ask(stream=True))
            assert (answer.status_code, code(answer)) == (502, "slot.engine_lost")
            assert slotd.snapshot("chat").starts == 1


async def test_garbage_in_events_is_the_engines_own(slotd_harness: Start) -> None:
    """What is no JSON is relayed as it is; put together into a document it is a typed error."""
    slots = {
        "plain": fake_slot(Knobs(garbage="sse")),
        "put-together": fake_slot(Knobs(garbage="sse"), nonstream_cancel="assemble"),
    }
    with trio.fail_after(GUARD_S):
        async with slotd_harness(slots, server=NO_REPLAY) as slotd, client(slotd) as http:
            through = await http.post(CHAT, json=ask("plain", stream=True))
            assert b"\n\ndata {]\n\n" in through.content
            assert b"event: error" not in through.content
            assembled = await http.post(CHAT, json=ask("put-together"))
            assert (assembled.status_code, code(assembled)) == (502, "slot.engine_lost")


@pytest.mark.parametrize("terminated", [True, False])
async def test_a_stream_whose_last_event_came_is_complete(slotd_harness: Start, terminated: bool) -> None:
    """An engine that closes right behind ``[DONE]`` has said everything; no error follows."""
    knobs = Knobs(tokens=2, close_without_terminator=not terminated)
    with trio.fail_after(GUARD_S):
        async with slotd_harness({"chat": fake_slot(knobs, default=True)}) as slotd, client(slotd) as http:
            answer = await http.post(CHAT, json=ask(stream=True))
            assert frames(answer.content)[-1].data == "[DONE]"
            assert slotd.slotd.records.recent()[0].outcome == "ok"


async def test_killed_while_others_wait_in_its_queue(slotd_harness: Start) -> None:
    """The one it served hears of it; those that waited get the next engine."""
    with trio.fail_after(GUARD_S):
        async with (
            slotd_harness({"chat": fake_slot(ENDLESS, default=True, max_parallel=1)}) as slotd,
            client(slotd) as http,
            trio.open_nursery() as nursery,
        ):
            await slotd.load("chat")
            async with await dial(slotd) as wire:
                await wire.post(CHAT, ask(stream=True))
                await wire.head()
                waits = Later(nursery, lambda: http.post(CHAT, json=ask(max_tokens=2)))
                with trio.fail_after(2):
                    while slotd.snapshot("chat").queued != 1:  # noqa: ASYNC110 # nobody announces it
                        await trio.sleep(0.002)
                slotd.kill("chat")
                assert frames(await wire.rest())[-1].error["code"] == "slot.engine_lost"
            assert (await waits.result()).status_code == 200
            assert slotd.snapshot("chat").starts == 2
