"""Stopping slotd: who is being answered may finish, who only waits is told at once."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import pytest
import trio
from e2e_tools import CHAT, CutShort, Start, alive, ask, client, code, dial, eventually, frames, scripted

from slotd.errors import ServerStopping
from slotd.testing import Knobs, SlotdProcess, config_text, fake_slot

ENDLESS = Knobs(tokens=1_000_000, token_delay_s=0.01)
BODY = {"model": "chat", "messages": [{"role": "user", "content": "hi"}]}


@pytest.mark.usefixtures("express")
async def test_a_stop_does_not_wait_for_a_slow_load(slotd_harness: Start) -> None:
    """Were the drain to wait for requests that only queue, it would take its whole time-out."""
    slots = {"chat": fake_slot(Knobs(load_delay_s=60), abandon_after_s=0.2)}
    with trio.fail_after(20):
        async with slotd_harness(slots, server={"shutdown_timeout_s": 60}) as slotd:
            answers: list[httpx.Response] = []

            async def post() -> None:
                async with httpx.AsyncClient(base_url=slotd.url, trust_env=False, timeout=30) as client:
                    answers.append(await client.post("/v1/chat/completions", json=BODY))

            refused: list[ServerStopping] = []

            async def load() -> None:
                try:
                    await slotd.load("chat")
                except ServerStopping as error:
                    refused.append(error)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(post)
                nursery.start_soon(load)
                await slotd.wait_for("chat", "warming")
                slotd.slotd.stop()
            assert answers[0].status_code == 503
            assert answers[0].json()["error"]["code"] == "server.stopping"
            assert len(refused) == 1


# --- in a process, by signals ----------------------------------------------------------------


@contextmanager
def process(tmp_path: Path, knobs: Knobs = ENDLESS, **server: Any) -> Iterator[SlotdProcess]:
    given = {"state_dir": str(tmp_path / "state"), "heartbeat_after_s": 0.2, **server}
    config = tmp_path / "slotd.toml"
    ports = "[process]\nport_first = 22500\nport_last = 22599\n"
    config.write_text(config_text({"chat": fake_slot(knobs, default=True)}, server=given, more=ports))
    with SlotdProcess(config) as slotd:
        yield slotd


def engine_pid(slotd: SlotdProcess) -> int:
    pid = httpx.get(f"{slotd.url}/api/slots/chat", trust_env=False).json()["pid"]
    assert isinstance(pid, int)
    return pid


def openai_stream(url: str, begun: list[str]) -> None:
    with (
        openai.OpenAI(base_url=f"{url}/v1", api_key="-", max_retries=0) as api,
        api.chat.completions.create(
            model="chat", messages=[{"role": "user", "content": "hi"}], stream=True
        ) as s,
    ):
        for chunk in s:
            if chunk.choices and chunk.choices[0].delta.content == " word3":
                begun.append("openai")


def anthropic_stream(url: str, begun: list[str]) -> None:
    with (
        anthropic.Anthropic(base_url=url, api_key="-", max_retries=0) as api,
        api.messages.stream(
            model="chat", max_tokens=1_000_000, messages=[{"role": "user", "content": "hi"}]
        ) as s,
    ):
        for text in s.text_stream:
            if text == " word3":
                begun.append("anthropic")


def until_begun(begun: list[str], count: int, futures: list[Future[None]]) -> None:
    deadline = time.monotonic() + 15
    while len(begun) < count:
        assert time.monotonic() < deadline
        for future in futures:
            assert not future.done(), future.exception()
        time.sleep(0.01)  # threads of client libraries: no event to wait for


@pytest.mark.parametrize("second", [False, True], ids=["drain is over", "second signal"])
def test_streams_that_run_are_ended_with_an_event(tmp_path: Path, second: bool) -> None:
    """However slotd is stopped, the official clients raise; none sees a stream that just ends."""
    with process(tmp_path, shutdown_timeout_s=60 if second else 0.5) as slotd:
        begun: list[str] = []
        with ThreadPoolExecutor(4) as pool:
            futures = [pool.submit(openai_stream, slotd.url, begun) for _ in range(3)]
            futures.append(pool.submit(anthropic_stream, slotd.url, begun))
            until_begun(begun, 4, futures)
            pid = engine_pid(slotd)
            began = time.monotonic()
            slotd.send(signal.SIGTERM)
            if second:
                time.sleep(0.3)
                assert not any(future.done() for future in futures), "the first signal lets them run"
                began = time.monotonic()
                slotd.send(signal.SIGTERM)
            errors = [future.exception(10) for future in futures]
        ended = time.monotonic() - began
        assert slotd.wait(10) == 0
        assert ended < (0.3 if second else 1.5)
        assert time.monotonic() - began < 6
        for error in errors[:3]:
            assert isinstance(error, openai.APIError)
            assert error.code == "server.stopping"
        assert isinstance(errors[3], anthropic.APIStatusError)
        assert "server.stopping" in str(errors[3])
        assert not alive(pid)


def test_nothing_is_left_after_a_stop_with_requests(tmp_path: Path) -> None:
    """Whole requests are told so, by a status; and no process remains."""
    knobs = Knobs(first_token_delay_s=60)
    with process(tmp_path, knobs, shutdown_timeout_s=0.3) as slotd:
        with ThreadPoolExecutor(2) as pool:
            whole = pool.submit(
                httpx.post, f"{slotd.url}{CHAT}", json=ask("chat"), trust_env=False, timeout=20
            )
            pid = 0
            deadline = time.monotonic() + 15
            while not pid:
                assert time.monotonic() < deadline
                listed = httpx.get(f"{slotd.url}/api/slots/chat", trust_env=False).json()
                pid = listed["pid"] if listed["state"] == "serving" else 0
            slotd.send(signal.SIGTERM)
            answer = whole.result(10)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "server.stopping")
        assert slotd.wait(10) == 0
        assert not alive(pid)


# --- in this process, byte by byte --------------------------------------------------------------


@pytest.mark.usefixtures("express")
async def test_each_kind_of_answer_is_ended_as_it_can_be(slotd_harness: Start) -> None:
    """A stream by an event and its proper end, a document in the middle by breaking off."""

    async def half(stream: trio.SocketStream, request: bytes) -> None:
        await stream.send_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{")
        await trio.sleep_forever()

    with trio.fail_after(20):
        async with scripted(half) as server:
            slots = {"chat": fake_slot(ENDLESS), "half": server.slot()}
            async with slotd_harness(slots, server={"shutdown_timeout_s": 0.3}) as slotd:
                stream, document, upload = await dial(slotd), await dial(slotd), await dial(slotd)
                async with stream, document, upload:
                    await stream.post(CHAT, ask("chat", stream=True))
                    await stream.head()
                    body = await stream.until(b"word3")
                    await document.post(CHAT, ask("half"))
                    await document.head()
                    await upload.stream.send_all(
                        f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{{".encode()
                    )
                    await eventually(lambda: slotd.slotd.records.live_count == 2)
                    slotd.slotd.stop()
                    body += await stream.rest()  # to the terminator of the chunked body
                    assert frames(body)[-1].error["code"] == "server.stopping"
                    with pytest.raises(CutShort):
                        await document.rest()
                    assert (await upload.head()).status == 503
                    assert json.loads(await upload.rest())["error"]["code"] == "server.stopping"
            assert {r.error for r in slotd.slotd.records.recent()} == {"server.stopping"}


@pytest.mark.usefixtures("express")
async def test_who_does_not_read_its_end_does_not_hold_up_the_stop(slotd_harness: Start) -> None:
    knobs = Knobs(oversized_response_mb=64, tokens=1)
    with trio.fail_after(20):
        began = 0.0
        async with slotd_harness({"chat": fake_slot(knobs)}, server={"shutdown_timeout_s": 0.2}) as slotd:
            wire = await dial(slotd, receive_buffer=4096)
            await wire.post(CHAT, ask("chat", stream=True))
            await wire.head()
            began = trio.current_time()
        assert trio.current_time() - began < 4
        await wire.hang_up()


@pytest.mark.usefixtures("express")
async def test_who_finishes_in_time_is_not_disturbed(slotd_harness: Start) -> None:
    knobs = Knobs(tokens=30, token_delay_s=0.02)
    with trio.fail_after(20):
        async with slotd_harness({"chat": fake_slot(knobs)}) as slotd, client(slotd) as http:
            async with http.stream("POST", CHAT, json=ask("chat", stream=True)) as answer:
                body = b""
                async for data in answer.aiter_raw():
                    if not body:
                        slotd.slotd.stop()
                    body += data
            assert frames(body)[-1].data == "[DONE]"
            assert slotd.slotd.records.recent()[0].outcome == "ok"


@pytest.mark.usefixtures("express")
async def test_one_that_is_being_replayed_is_told(slotd_harness: Start) -> None:
    """The doors are closed: there is no engine for it any more."""
    knobs = Knobs(first_token_delay_s=60)
    with trio.fail_after(20):
        async with slotd_harness({"chat": fake_slot(knobs)}) as slotd, client(slotd) as http:
            answers: list[httpx.Response] = []

            async def post() -> None:
                answers.append(await http.post(CHAT, json=ask("chat")))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(post)
                await slotd.wait_for("chat", "serving")
                await slotd.fake("chat").wait_active(1)
                slotd.slotd.stop()
                slotd.kill("chat")
            assert answers[0].status_code == 503
            assert answers[0].json()["error"]["code"] == "server.stopping"
            assert slotd.snapshot("chat").starts == 1


# --- who comes while it stops --------------------------------------------------------------------


@pytest.mark.usefixtures("express")
async def test_who_comes_during_the_drain_is_told_at_once(slotd_harness: Start) -> None:
    """However many: nobody is left in a queue that nobody reads."""
    with trio.fail_after(20):
        async with slotd_harness({"chat": fake_slot(ENDLESS)}, server={"max_sockets": 3}) as slotd:
            busy, kept = await dial(slotd), await dial(slotd)
            async with busy, kept, client(slotd) as http:
                await kept.get("/health")
                assert (await kept.head()).status == 200
                await busy.post(CHAT, ask("chat", stream=True))
                await busy.head()
                slotd.slotd.stop()
                before = trio.current_time()
                async with await dial(slotd):  # one that says nothing
                    for path, method in ((CHAT, "POST"), ("/v1/messages", "POST"), ("/health", "GET")) * 3:
                        answer = await http.request(method, path, json=ask("chat"))
                        assert (answer.status_code, code(answer)) == (503, "server.stopping")
                        assert answer.headers["connection"] == "close"
                        assert int(answer.headers["retry-after"]) > 0
                        assert (answer.json().get("type") == "error") is (path == "/v1/messages")
                assert trio.current_time() - before < 2
                await busy.until(b"word3")  # who is being answered is not disturbed
                slotd.slotd.stop()
        with pytest.raises(OSError, match=r"all attempts|refused"):
            await trio.open_tcp_stream("127.0.0.1", slotd.slotd.address[1])


@pytest.mark.usefixtures("express")
async def test_a_long_body_that_comes_during_the_drain_is_answered_too(slotd_harness: Start) -> None:
    with trio.fail_after(20):
        async with (
            slotd_harness({"chat": fake_slot(ENDLESS)}) as slotd,
            client(slotd) as http,
            await dial(slotd) as busy,
        ):
            await busy.post(CHAT, ask("chat", stream=True))
            await busy.head()
            slotd.slotd.stop()
            answer = await http.post(CHAT, json=ask("chat", user="x" * (8 << 20)))
            assert (answer.status_code, code(answer)) == (503, "server.stopping")
            slotd.slotd.stop()
