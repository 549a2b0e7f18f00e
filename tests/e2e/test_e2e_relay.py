"""What passes through unchanged, what is kept off, and what slotd does when one side stalls."""

from __future__ import annotations

import hashlib
import json
import resource
import time

import httpx
import pytest
import trio
from e2e_tools import (
    CHAT,
    EVENT_STREAM,
    GUARD_S,
    Start,
    ask,
    chunk,
    client,
    code,
    dial,
    eventually,
    frames,
    idle_again,
    note,
    scripted,
)

from slotd.testing import Knobs, fake_slot

pytestmark = pytest.mark.usefixtures("express")

STREAM = [
    b'data: {"n": 1}\n\n',
    b": a comment\n\n",
    b"event: odd\r\nid: 7\r\ndata: two\r\ndata: lines\r\n\r\n",
    'data: {"text": "Gr\u00fc\u00dfe \U0001f44b"}\n\n'.encode(),
    b"data: \xff not text \x00\n\n",
    b"data: [DONE]\n\n",
    b"data: no blank line at the end",
]


@pytest.mark.parametrize("size", [1, 7, 100_000])
async def test_a_stream_is_byte_identical_however_it_is_cut(slotd_harness: Start, size: int) -> None:
    whole = b"".join(STREAM)

    async def send(stream: trio.SocketStream, request: bytes) -> None:
        await stream.send_all(EVENT_STREAM)
        for start in range(0, len(whole), size):
            await stream.send_all(chunk(whole[start : start + size]))
        await stream.send_all(b"0\r\n\r\n")

    with trio.fail_after(GUARD_S):
        async with (
            scripted(send) as server,
            slotd_harness({"chat": server.slot(default=True)}) as slotd,
            client(slotd) as http,
        ):
            answer = await http.post(CHAT, json=ask(stream=True))
            assert answer.content == whole
            assert answer.headers["content-type"] == "text/event-stream"


async def test_the_fake_engines_stream_is_the_same_straight_and_through(slotd_harness: Start) -> None:
    def essence(body: bytes) -> list[object]:
        found: list[object] = []
        for frame in frames(body):
            if frame.data == "[DONE]":
                found.append(frame.data)
                continue
            document = json.loads(frame.data)
            for varying in ("id", "created", "timings"):
                document.pop(varying, None)
            found.append(document)
        return found

    with trio.fail_after(GUARD_S):
        async with slotd_harness({"chat": fake_slot(default=True)}) as slotd, client(slotd) as http:
            await slotd.load("chat")
            through = await http.post(CHAT, json=ask(stream=True))
            async with httpx.AsyncClient(trust_env=False) as straight:
                direct = await straight.post(
                    f"http://{slotd.snapshot('chat').address}{CHAT}", json=ask(stream=True)
                )
            assert essence(through.content) == essence(direct.content)


async def test_audio_is_byte_identical(slotd_harness: Start) -> None:
    with trio.fail_after(GUARD_S):
        async with (
            slotd_harness({"voice": fake_slot(type="tts", default=True)}) as slotd,
            client(slotd) as http,
        ):
            body = {"model": "kokoro-v1", "input": "a few words to speak", "voice": "none"}
            through = await http.post("/v1/audio/speech", json=body)
            assert through.status_code == 200
            assert through.headers["content-type"] == "audio/wav"
            async with httpx.AsyncClient(trust_env=False) as straight:
                address = slotd.snapshot("voice").address
                direct = await straight.post(f"http://{address}/v1/audio/speech", json=body)
            assert through.content == direct.content
            assert len(through.content) > 1000


async def test_an_upload_arrives_as_it_was_sent(slotd_harness: Start) -> None:
    audio = bytes(range(256)) * 4000 + b"\r\n--not-a-boundary\r\n"
    with trio.fail_after(GUARD_S):
        async with (
            slotd_harness({"ears": fake_slot(type="transcription", default=True)}) as slotd,
            client(slotd) as http,
        ):
            upload = http.build_request(
                "POST",
                "/v1/audio/transcriptions",
                files={"file": ("talk.wav", audio, "audio/wav")},
                data={"model": "whisper-1", "language": "de"},
            )
            sent = upload.read()
            answer = await http.send(upload)
            assert answer.status_code == 200, answer.text
            assert answer.json()["file"] == {"filename": "talk.wav", "bytes": len(audio)}
            assert answer.json()["model"] == "whisper-1"
            [request] = (await slotd.fake("ears").stats())["requests"]
            assert request["body_sha256"] == hashlib.sha256(sent).hexdigest()


async def test_a_body_of_ten_megabytes(slotd_harness: Start) -> None:
    body = json.dumps(ask(padding="x" * 10_000_000)).encode()
    with trio.fail_after(GUARD_S):
        async with (
            slotd_harness({"chat": fake_slot(Knobs(tokens=1), default=True)}) as slotd,
            client(slotd) as http,
        ):
            await slotd.load("chat")
            began = time.monotonic()
            answer = await http.post(CHAT, content=body)
            note("10 MB request through slotd", time.monotonic() - began)
            assert answer.status_code == 200
            [request] = (await slotd.fake("chat").stats())["requests"]
            assert request["body_bytes"] == len(body)
            assert request["body_sha256"] == hashlib.sha256(body).hexdigest()


async def test_an_event_of_eight_megabytes(slotd_harness: Start) -> None:
    with trio.fail_after(GUARD_S):
        async with (
            slotd_harness({"chat": fake_slot(Knobs(oversized_response_mb=8), default=True)}) as slotd,
            client(slotd) as http,
        ):
            for stream in (True, False):
                answer = await http.post(CHAT, json=ask(stream=stream))
                assert answer.content.count(b"x") >= 8 << 20
            assert frames((await http.post(CHAT, json=ask(stream=True))).content)[-1].data == "[DONE]"


async def test_headers(slotd_harness: Start) -> None:
    with trio.fail_after(GUARD_S):
        async with (
            slotd_harness({"chat": fake_slot(Knobs(tokens=1), default=True)}) as slotd,
            client(slotd) as http,
        ):
            answer = await http.post(
                f"{CHAT}?trace=1",
                json=ask(),
                headers={
                    "authorization": "Bearer secret",
                    "x-api-key": "secret",
                    "connection": "keep-alive, x-drop",
                    "x-drop": "1",
                    "te": "trailers",
                    "x-slotd-wait": "1",
                    "x-keep": "1",
                    "user-agent": "me/1.0",
                },
            )
            [request] = (await slotd.fake("chat").stats())["requests"]
            got = request["headers"]
            assert got["x-keep"] == "1"
            assert got["user-agent"] == "me/1.0"
            assert not {"authorization", "x-api-key", "x-drop", "te", "x-slotd-wait"} & set(got)
            assert "secret" not in json.dumps(got)

            assert answer.headers["x-slotd-route"].startswith("slot:chat; tier=1; rule=")
            assert {p.split(";")[0].strip() for p in answer.headers["server-timing"].split(",")} == {
                "resolve",
                "wait",
                "total",
            }
            assert "keep-alive" not in answer.headers
            assert "server" not in answer.headers
            record = await http.get(f"/api/requests/{answer.headers['x-request-id']}")
            assert record.json()["outcome"] == "ok"
            assert record.json()["target"] == "slot:chat"
            assert record.json()["tokens_out"] == 1

            failed = await http.post(CHAT, json=ask("nobody"))
            assert failed.headers["x-request-id"] != answer.headers["x-request-id"]


async def test_a_reader_that_stops_is_cut_off_and_costs_no_memory(slotd_harness: Start) -> None:
    knobs = Knobs(tokens=1_000_000)
    with trio.fail_after(GUARD_S):
        async with slotd_harness(
            {"chat": fake_slot(knobs, default=True)}, server={"write_timeout_s": 1}
        ) as slotd:
            await slotd.load("chat")
            engine = slotd.fake("chat")
            before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            async with await dial(slotd, receive_buffer=4096) as wire:
                await wire.post(CHAT, ask(stream=True))
                await wire.head()
                began = trio.current_time()
                await engine.wait_active(0)
                took = trio.current_time() - began
            note("engine idle after its client stopped reading (write_timeout_s = 1 s)", took)
            assert 0.9 < took < 4
            assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb < 50_000
            await eventually(lambda: slotd.slotd.records.live_count == 0)
            assert slotd.snapshot("chat").leases == 0
            assert slotd.slotd.records.recent()[0].outcome == "client_gone"


async def test_a_reader_that_is_slow_but_reads_gets_everything(slotd_harness: Start) -> None:
    with trio.fail_after(GUARD_S):
        async with (
            slotd_harness({"chat": fake_slot(Knobs(tokens=3000), default=True)}) as slotd,
            await dial(slotd, receive_buffer=4096) as wire,
        ):
            await wire.post(CHAT, ask(stream=True))
            await wire.head()
            body = b""
            while data := await wire.some():
                body += data
                await trio.lowlevel.checkpoint()
            assert len(frames(body)) == 3003  # the opening, the tokens, the closing, [DONE]


async def test_a_stream_that_stalls_ends_with_an_error_event(slotd_harness: Start) -> None:
    with trio.fail_after(GUARD_S):
        async with (
            slotd_harness(
                {"chat": fake_slot(Knobs(hang_after_tokens=3), default=True)}, server={"idle_timeout_s": 0.3}
            ) as slotd,
            await dial(slotd) as wire,
        ):
            await slotd.load("chat")
            await wire.post(CHAT, ask(stream=True))
            await wire.head()
            body = await wire.until(b"word2")
            began = trio.current_time()
            body += await wire.rest()
            took = trio.current_time() - began
            note("slot.stalled after the last byte (idle_timeout_s = 300 ms)", took)
            assert 0.25 < took < 1.5
            last = frames(body)[-1]
            assert (last.event, last.error["code"]) == ("error", "slot.stalled")
            await idle_again(slotd.fake("chat"), "a stalled stream was ended")
            assert slotd.snapshot("chat").leases == 0


@pytest.mark.parametrize("ability", ["close", "assemble"])
async def test_an_answer_that_does_not_begin(slotd_harness: Start, ability: str) -> None:
    slot = fake_slot(Knobs(hang_requests=True, cancel_nonstream=True), default=True, nonstream_cancel=ability)
    with trio.fail_after(GUARD_S):
        async with (
            slotd_harness({"chat": slot}, server={"first_byte_timeout_s": 0.3}) as slotd,
            client(slotd) as http,
        ):
            await slotd.load("chat")
            began = time.monotonic()
            answer = await http.post(CHAT, json=ask())
            note("504 slot.stalled (first_byte_timeout_s = 300 ms)", time.monotonic() - began)
            assert (answer.status_code, code(answer)) == (504, "slot.stalled")
            await idle_again(slotd.fake("chat"), f"first byte time-out, {ability}")


async def test_an_endless_chatty_stream_is_cut_by_the_total(slotd_harness: Start) -> None:
    slot = fake_slot(Knobs(tokens=100_000, token_delay_s=0.01), default=True)
    with trio.fail_after(GUARD_S):
        async with (
            slotd_harness({"chat": slot}, server={"total_timeout_s": 0.5}) as slotd,
            client(slotd) as http,
        ):
            await slotd.load("chat")
            last = frames((await http.post(CHAT, json=ask(stream=True))).content)[-1]
            assert last.error["code"] == "slot.stalled"
            assert "total_timeout_s" in last.error["message"]
            await idle_again(slotd.fake("chat"), "total time-out")
