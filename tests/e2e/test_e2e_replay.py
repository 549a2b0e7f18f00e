"""An engine that dies before it has answered is replaced, and its clients never hear of it."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
import trio
from e2e_tools import CHAT, GUARD_S, Later, Start, ask, client, code, eventually, frames, note, scripted

from slotd.testing import Knobs, fake_slot


@pytest.mark.parametrize("ability", ["assemble", "close"])
async def test_kill_under_many_requests(slotd_harness: Start, ability: str) -> None:
    """Those that it serves and those that wait: each has its answer."""
    slot = fake_slot(
        Knobs(first_token_delay_s=0.8, parallel=8), default=True, nonstream_cancel=ability, max_parallel=8
    )
    with trio.fail_after(GUARD_S):
        async with (
            slotd_harness({"chat": slot}) as slotd,
            client(slotd) as http,
            trio.open_nursery() as nursery,
        ):
            await slotd.load("chat")
            waits = [Later(nursery, lambda: http.post(CHAT, json=ask(max_tokens=2))) for _ in range(16)]
            await eventually(lambda: slotd.snapshot("chat").queued == 8)
            await slotd.fake("chat").wait_active(8)
            began = trio.current_time()
            slotd.kill("chat")
            answers = [await later.result() for later in waits]
            note(f"16 answers after kill -9, {ability}", trio.current_time() - began)
            assert [a.status_code for a in answers] == [200] * 16
            records = slotd.slotd.records.recent()
            assert sorted(r.replays for r in records) == [0] * 8 + [1] * 8
            assert {r.outcome for r in records} == {"ok"}
            assert slotd.snapshot("chat").starts == 2


@pytest.mark.parametrize("ability", ["assemble", "close"])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.usefixtures("express")
async def test_a_crash_before_the_first_byte_is_not_seen(
    slotd_harness: Start, tmp_path: Path, ability: str, stream: bool
) -> None:
    knobs = Knobs(crash_after_tokens=0, crash_once=str(tmp_path / "crashed"), tokens=3)
    slot = fake_slot(knobs, default=True, nonstream_cancel=ability, max_parallel=16)
    with trio.fail_after(GUARD_S):
        async with slotd_harness({"chat": slot}) as slotd, client(slotd) as http:
            answers: list[httpx.Response] = []

            async def post() -> None:
                answers.append(await http.post(CHAT, json=ask(stream=stream)))

            async with trio.open_nursery() as nursery:
                for _ in range(16):
                    nursery.start_soon(post)
            assert [a.status_code for a in answers] == [200] * 16
            assert all(b"error" not in a.content for a in answers)
            assert slotd.snapshot("chat").starts == 2
            records = slotd.slotd.records.recent()
            assert {r.outcome for r in records} == {"ok"}
            assert max(r.replays for r in records) == 1


@pytest.mark.usefixtures("express")
async def test_it_is_in_the_middle_of_an_assembled_answer(slotd_harness: Start, tmp_path: Path) -> None:
    knobs = Knobs(crash_after_tokens=5, crash_once=str(tmp_path / "crashed"), tokens=8)
    slot = fake_slot(knobs, default=True, nonstream_cancel="assemble")
    with trio.fail_after(GUARD_S):
        async with slotd_harness({"chat": slot}) as slotd, client(slotd) as http:
            answer = await http.post(CHAT, json=ask())
            words = answer.json()["choices"][0]["message"]["content"].split()
            assert words == [f"word{n}" for n in range(8)]
            record = slotd.slotd.records.recent()[0]
            assert (record.replays, record.tokens_out) == (1, 8)
            with slotd.slotd.bus.subscribe(after=0, match=lambda e: e.kind == "request.replayed") as seen:
                event = await anext(seen)
            assert getattr(event, "slot", None) == "chat"


@pytest.mark.parametrize("how", ["kill", "unload", "restart"])
async def test_an_operator_who_ends_the_engine_does_not_end_the_request(
    slotd_harness: Start, how: str
) -> None:
    slot = fake_slot(Knobs(first_token_delay_s=0.6), default=True, drain_timeout_s=0.1)
    with trio.fail_after(GUARD_S):
        async with (
            slotd_harness({"chat": slot}) as slotd,
            client(slotd) as http,
            trio.open_nursery() as nursery,
        ):
            await slotd.load("chat")
            waits = Later(nursery, lambda: http.post(CHAT, json=ask(max_tokens=2)))
            await slotd.fake("chat").wait_active(1)
            await http.post(f"/api/slots/chat/{how}")
            assert (await waits.result()).status_code == 200
            assert slotd.slotd.records.recent()[0].replays == 1
            assert slotd.snapshot("chat").starts == 2


async def test_an_engine_that_dies_of_a_request_is_not_tried_for_ever(slotd_harness: Start) -> None:
    slot = fake_slot(Knobs(crash_after_tokens=0), default=True)
    with trio.fail_after(GUARD_S):
        async with slotd_harness({"chat": slot}, server={"max_replays": 1}) as slotd, client(slotd) as http:
            answer = await http.post(CHAT, json=ask())
            assert answer.status_code in (502, 503)
            assert slotd.slotd.records.recent()[0].replays == 1


async def test_an_engine_that_cuts_its_connection_is_asked_again(slotd_harness: Start) -> None:
    cuts = 0

    async def flaky(stream: trio.SocketStream, request: bytes) -> None:
        nonlocal cuts
        cuts += 1
        if cuts == 3:
            await stream.send_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")

    with trio.fail_after(GUARD_S):
        async with (
            scripted(flaky) as server,
            slotd_harness({"chat": server.slot(default=True)}) as slotd,
            client(slotd) as http,
        ):
            answer = await http.post(CHAT, json=ask())
            assert (answer.status_code, answer.content) == (200, b"{}")
            assert slotd.slotd.records.recent()[0].replays == 2
            cuts = -10
            answer = await http.post(CHAT, json=ask(stream=True))
            assert (answer.status_code, code(answer)) == (502, "slot.engine_lost")


async def test_an_error_that_an_engine_tells_in_its_stream_is_recorded(slotd_harness: Start) -> None:
    body = b'data: {"n":1}\n\ndata: {"error":{"message":"out of slots"}}\n\n'

    async def errs(stream: trio.SocketStream, request: bytes) -> None:
        await stream.send_all(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n" + body
        )

    with trio.fail_after(GUARD_S):
        async with (
            scripted(errs) as server,
            slotd_harness({"chat": server.slot(default=True)}) as slotd,
            client(slotd) as http,
        ):
            answer = await http.post(CHAT, json=ask(stream=True))
            assert answer.content == body
            assert frames(answer.content)[-1].error == {"message": "out of slots"}
            record = slotd.slotd.records.recent()[0]
            assert (record.status, record.outcome, record.error) == (200, "error", "engine.error")
