"""What clients and engines may send at the edge of HTTP, and a stop that nobody can hold up."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import trio
from e2e_tools import (
    CHAT,
    GUARD_S,
    Baseline,
    Start,
    ask,
    chunk,
    client,
    code,
    dial,
    eventually,
    frames,
    scripted,
)
from structlog.testing import capture_logs

from slotd.exchange.inbound import MODEL_MAX
from slotd.testing import Knobs, fake_slot

pytestmark = pytest.mark.usefixtures("express")

DEEP = b"[" * 100_000 + b"]" * 100_000


@pytest.mark.parametrize("calls", [1, 2])
async def test_a_client_that_reads_nothing_does_not_hold_up_a_stop(slotd_harness: Start, calls: int) -> None:
    """The web server shields its sends; the drain's end and a second call end them all the same."""
    slot = fake_slot(Knobs(tokens=10_000_000, parallel=1), default=True)
    server = {"write_timeout_s": 600, "shutdown_timeout_s": 0.2 if calls == 1 else 600}
    with trio.fail_after(GUARD_S):
        async with slotd_harness({"chat": slot}, server=server) as slotd:
            wire = await dial(slotd, receive_buffer=4096)
            async with wire:
                await wire.post(CHAT, ask(stream=True))
                await eventually(lambda: bool(slotd.slotd.records.live()))
                (record,) = slotd.slotd.records.live()
                sent = -1
                while sent != record.bytes_out or not sent:
                    sent = record.bytes_out
                    await trio.sleep(0.2)  # nobody announces that bytes have stopped to flow
                for _ in range(calls):
                    slotd.slotd.stop()
                began = trio.current_time()
                await eventually(lambda: slotd.slotd.records.live_count == 0)
        assert trio.current_time() - began < 3


async def test_bodies_that_no_parser_can_take_are_the_clients_fault(slotd_harness: Start) -> None:
    bodies = {
        b'{"messages":' + DEEP + b"}": "request.invalid_json",
        b'{"model":"%b"}' % (b"m" * (MODEL_MAX + 1)): "request.invalid",
    }
    with trio.fail_after(GUARD_S):
        async with slotd_harness({"chat": fake_slot(default=True)}) as slotd, client(slotd) as http:
            for body, wanted in bodies.items():
                answer = await http.post(CHAT, content=body)
                assert (answer.status_code, code(answer)) == (400, wanted)
                record = slotd.slotd.records.recent()[0]
                assert (record.outcome, record.error) == ("error", wanted)
                assert len(record.model or "") <= MODEL_MAX
            for body in (b'{"model":"\xff"}', b'{"x":' + DEEP + b"}"):
                answer = await http.post("/api/slots/chat/swap", content=body)
                assert (answer.status_code, code(answer)) == (400, "request.invalid")


async def test_a_websocket_is_turned_away_quietly(
    slotd_harness: Start, caplog: pytest.LogCaptureFixture
) -> None:
    with trio.fail_after(GUARD_S), caplog.at_level(logging.ERROR):
        async with slotd_harness({"chat": fake_slot(default=True)}) as slotd, await dial(slotd) as wire:
            await wire.get(
                CHAT,
                connection="upgrade",
                upgrade="websocket",
                sec_websocket_version="13",
                sec_websocket_key="dGhlIHNhbXBsZSBub25jZQ==",
            )
            assert 400 <= (await wire.head()).status < 500
    assert not caplog.records


async def test_only_http_1_is_spoken(slotd_harness: Start) -> None:
    """A stalled HTTP/2 stream would keep its lease: what bounds a client is its socket."""
    with trio.fail_after(GUARD_S):
        async with slotd_harness({"chat": fake_slot()}) as slotd:
            async with await dial(slotd) as wire:
                settings = "AAMAAABkAAQAAP__"
                await wire.get(
                    "/health", connection="upgrade, http2-settings", upgrade="h2c", http2_settings=settings
                )
                assert (await wire.head()).status == 200
            async with await dial(slotd) as wire:
                await wire.stream.send_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9))
                assert (await wire.stream.receive_some()).startswith(b"HTTP/1.1 4")


async def test_an_event_stream_is_known_however_its_type_is_spelt(slotd_harness: Start) -> None:
    async def script(stream: trio.SocketStream, request: bytes) -> None:
        await stream.send_all(
            b"HTTP/1.1 200 OK\r\ncontent-type: Text/Event-Stream\r\ntransfer-encoding: chunked\r\n\r\n"
            + chunk(b"data: 1\n\ndata: cut")
        )

    with trio.fail_after(GUARD_S):
        async with (
            scripted(script) as engine,
            slotd_harness({"chat": engine.slot(default=True)}) as slotd,
            await dial(slotd) as wire,
        ):
            await wire.post(CHAT, ask(stream=True))
            await wire.head()
            first, last = frames(await wire.rest())
            assert first.data == "1"
            assert last.error["code"] == "slot.engine_lost"


@pytest.mark.parametrize("ahead", [b"\r\n", b"GET /health HTTP/1.1\r\nhost: slotd\r\n\r\n" * 3])
async def test_a_client_that_sends_ahead_is_answered_in_turn_and_its_leaving_is_seen(
    slotd_harness: Start, ahead: bytes
) -> None:
    slot = fake_slot(Knobs(tokens=3), default=True)
    with trio.fail_after(GUARD_S):
        async with slotd_harness({"chat": slot}) as slotd:
            await slotd.load("chat")
            engine = slotd.fake("chat")
            async with await dial(slotd) as wire:
                await wire.post(CHAT, ask())
                await wire.head()
                await wire.rest()
            before = Baseline(slotd)
            async with await dial(slotd) as wire:
                await wire.post(CHAT, ask(stream=True))
                await wire.stream.send_all(ahead)
                assert (await wire.head()).status == 200
                assert frames(await wire.rest())[-1].data == "[DONE]"
                for _ in range(ahead.count(b"GET")):
                    assert (await wire.head()).status == 200
                    await wire.rest()
            await engine.set(tokens=100_000, token_delay_s=30)
            for _ in range(3):
                async with await dial(slotd) as wire:
                    await wire.post(CHAT, ask(stream=True))
                    await wire.stream.send_all(ahead)
                    await engine.wait_active(1)
                await engine.wait_active(0)
            await before.again()


async def test_a_kept_connection_may_be_used_again_at_once(slotd_harness: Start) -> None:
    """The next request can arrive before hypercorn has put the last one away: it is not "sent ahead"."""
    with trio.fail_after(GUARD_S):
        async with slotd_harness({"chat": fake_slot()}) as slotd, await dial(slotd) as wire:
            for _ in range(500):
                await wire.stream.send_all(b"GET /health HTTP/1.1\r\nhost: slotd\r\n\r\n")
                assert (await wire.head()).status == 200
                await wire.rest()


async def test_a_slots_crash_is_in_the_log(slotd_harness: Start, tmp_path: Path) -> None:
    """It is a bug of ours: without the traceback nobody could mend it."""
    with trio.fail_after(GUARD_S), capture_logs() as logged:
        async with slotd_harness({"chat": fake_slot()}) as slotd:
            slotd.crash_actor("chat")
            await eventually(lambda: any(entry["event"] == "actor crashed" for entry in logged))
            (entry,) = (entry for entry in logged if entry["event"] == "actor crashed")
            assert entry["actor"] == "slot chat"
            assert isinstance(entry["exc_info"], BaseException)
            assert json.dumps(entry["restart_in_s"])


async def test_the_log_says_when_it_could_not_tell_everything(slotd_harness: Start) -> None:
    with capture_logs() as logs, trio.fail_after(GUARD_S):
        async with slotd_harness({"chat": fake_slot(default=True)}, server={"event_buffer": 10}) as slotd:
            for _ in range(50):
                slotd.slotd.bus.publish("slot.fault", {"reason": "none", "message": "said"}, slot="chat")
            await eventually(lambda: sum(line["event"] == "fault" for line in logs) == 10)
    (told,) = [line for line in logs if line["event"] == "more happened than the log could tell"]
    assert told["missed"] == 40
