"""Clients that take a connection and give nothing for it, and what is not HTTP: each wait has an end."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
from gateway_server import Gateway, with_gateway

from slotd.exchange.inbound import Inbound, Outbound
from slotd.gateway import door
from slotd.slot.actor import SlotIdentity
from slotd.slot.machine import SlotSpec

CHAT = "/v1/chat/completions"
HEALTH = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"


async def fine(inbound: Inbound, out: Outbound) -> None:
    out.start(200, [(b"content-type", b"application/json"), (b"content-length", b"2")])
    await out.send(b"{}")


async def to_the_end(stream: trio.SocketStream) -> bytes:
    got = bytearray()
    async with stream:
        async for data in stream:
            got += data
    return bytes(got)


async def status(stream: trio.SocketStream) -> int:
    """Read one whole answer."""
    got = bytearray()
    while b"\r\n\r\n" not in got:
        got += await stream.receive_some() or b"nothing: it hung up\r\n\r\n"
    head, _, body = bytes(got).partition(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head.lower())
    assert length is not None, head
    while len(body) < int(length[1]):
        body += await stream.receive_some()
    return int(head.split()[1])


def refusal(answer: bytes) -> tuple[int, str]:
    """Status and code of an answer that is an error of ours and ends its connection."""
    head, _, body = answer.partition(b"\r\n\r\n")
    lines = head.decode().lower().split("\r\n")
    assert {"content-type: application/json", "connection: close"} <= set(lines)
    assert f"content-length: {len(body)}" in lines
    error = json.loads(body)["error"]
    assert error["type"] == "invalid_request_error"
    assert error["message"]
    return int(lines[0].split()[1]), error["code"]


# --- how many -------------------------------------------------------------------------


async def test_beyond_max_sockets_a_client_waits_until_another_has_left(
    tmp_path: Path, express: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = trio.Event()

    class Log:
        def warning(self, words: str, **facts: object) -> None:
            full.set()

    monkeypatch.setattr(door, "log", Log())

    async def test(gateway: Gateway) -> None:
        first, second = await gateway.connect(), await gateway.connect()
        for stream in (first, second):
            await stream.send_all(HEALTH)
            assert await status(stream) == 200
        await full.wait()
        third = await gateway.connect()  # the kernel has it
        await third.send_all(b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n")
        await second.send_all(HEALTH)
        assert await status(second) == 200, "those inside are served"
        await first.aclose()
        assert await status(third) == 404
        for stream in (second, third):
            await stream.aclose()

    await with_gateway(test, fine, server="max_sockets = 2", tmp_path=tmp_path, express=express)


async def test_a_reload_of_the_configuration_lets_more_in(
    tmp_path: Path, express: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = trio.Event()

    class Log:
        def warning(self, words: str, **facts: object) -> None:
            full.set()

    monkeypatch.setattr(door, "log", Log())

    async def test(gateway: Gateway) -> None:
        async with await gateway.connect() as inside:
            await full.wait()
            settings = gateway.services.settings
            server = settings.value.config.server.model_copy(update={"max_sockets": 2})
            config = settings.value.config.model_copy(update={"server": server})
            async with await gateway.connect() as next_one:
                await next_one.send_all(HEALTH)
                settings.publish(replace(settings.value, config=config))
                assert await status(next_one) == 200
            await inside.send_all(HEALTH)
            assert await status(inside) == 200

    await with_gateway(test, fine, server="max_sockets = 1", tmp_path=tmp_path, express=express)


# --- how long -------------------------------------------------------------------------


async def test_a_head_that_does_not_come_to_its_end_ends_its_connection(
    tmp_path: Path, express: bool
) -> None:
    async def test(gateway: Gateway) -> None:
        stream = await gateway.connect()
        await stream.send_all(b"POST /v1/completions HTTP/1.1\r\nHost:")
        assert refusal(await to_the_end(stream)) == (408, "request.head_timeout")
        # A further request on a connection that has served one.
        stream = await gateway.connect()
        await stream.send_all(HEALTH)
        assert await status(stream) == 200
        await stream.send_all(HEALTH[:-2])
        assert refusal(await to_the_end(stream)) == (408, "request.head_timeout")

    await with_gateway(test, fine, server="head_timeout_s = 0.2", tmp_path=tmp_path, express=express)


async def test_a_head_has_its_time_however_short_a_connection_is_kept(
    tmp_path: Path, express: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("slotd.gateway.server.KEEP_ALIVE_S", 0.05)

    async def test(gateway: Gateway) -> None:
        stream = await gateway.connect()
        await stream.send_all(HEALTH[:-2])
        assert refusal(await to_the_end(stream)) == (408, "request.head_timeout")

    await with_gateway(test, fine, server="head_timeout_s = 0.3", tmp_path=tmp_path, express=express)


async def test_one_that_never_begins_a_request_is_closed_without_a_word(
    tmp_path: Path, express: bool
) -> None:
    async def test(gateway: Gateway) -> None:
        assert await to_the_end(await gateway.connect()) == b""

    await with_gateway(test, fine, server="head_timeout_s = 0.2", tmp_path=tmp_path, express=express)


async def test_trickling_does_not_help(tmp_path: Path, express: bool) -> None:
    async def test(gateway: Gateway) -> None:
        stream = await gateway.connect()
        async with stream:
            with pytest.raises(trio.BrokenResourceError):  # noqa: PT012 # one write or other finds it closed
                while True:
                    await stream.send_all(b"G")
                    await trio.sleep(0.02)  # a slow client

    await with_gateway(test, fine, server="head_timeout_s = 0.2", tmp_path=tmp_path, express=express)


async def test_only_the_head_is_waited_for_so_briefly(tmp_path: Path, express: bool) -> None:
    """Not an answer that takes long, nor a connection that is kept for its next request."""
    go = trio.Event()

    async def slow(inbound: Inbound, out: Outbound) -> None:
        await go.wait()
        await fine(inbound, out)

    async def test(gateway: Gateway) -> None:
        busy, kept = await gateway.connect(), await gateway.connect()
        head = b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n" % CHAT.encode()
        await busy.send_all(head + b"{}")
        await kept.send_all(HEALTH)
        assert await status(kept) == 200
        for _ in range(2):  # connections that came later have been ended by now
            await to_the_end(await gateway.connect())
        go.set()
        assert await status(busy) == 200
        await kept.send_all(HEALTH)
        assert await status(kept) == 200
        for stream in (busy, kept):
            await stream.aclose()

    await with_gateway(test, slow, server="head_timeout_s = 0.2", tmp_path=tmp_path, express=express)


async def test_a_body_that_stalls_is_not_waited_for(tmp_path: Path, express: bool) -> None:
    async def test(gateway: Gateway) -> None:
        stream = await gateway.connect()
        await stream.send_all(b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{" % CHAT.encode())
        assert await status(stream) == 408
        assert gateway.services.uploads.count == 0
        assert gateway.behind.seen == []
        await stream.aclose()

    await with_gateway(test, fine, server="idle_timeout_s = 0.2", tmp_path=tmp_path, express=express)


# --- what is no request ---------------------------------------------------------------


@pytest.mark.parametrize(
    "sent",
    [
        b"hello\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",  # the beginning of TLS
        b"GET /health HTTP/1.1\r\n\r\n",  # no Host
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: x\r\n\r\n",
    ],
)
async def test_what_is_no_http_is_told_so(sent: bytes, tmp_path: Path, express: bool) -> None:
    async def test(gateway: Gateway) -> None:
        stream = await gateway.connect()
        await stream.send_all(sent)
        assert refusal(await to_the_end(stream)) == (400, "request.invalid_http")

    await with_gateway(test, fine, tmp_path=tmp_path, express=express)


async def test_a_head_that_is_too_large_is_told_so_though_more_of_it_comes(
    tmp_path: Path, express: bool
) -> None:
    async def test(gateway: Gateway) -> None:
        stream = await gateway.connect()
        await stream.send_all(b"GET /health HTTP/1.1\r\nHost: x\r\nX-Large: " + b"x" * 600_000 + b"\r\n\r\n")
        await stream.send_eof()
        answer = await to_the_end(stream)
        assert refusal(answer) == (431, "request.head_too_large")
        assert b"server.max_head_kb = 16" in answer

    await with_gateway(test, fine, server="max_head_kb = 16", tmp_path=tmp_path, express=express)


# --- what is listed -------------------------------------------------------------------


@pytest.mark.parametrize("listed", [False, True])
async def test_aliases_are_listed_if_that_is_wished(listed: bool, tmp_path: Path, express: bool) -> None:
    async def test(gateway: Gateway) -> None:
        slots = gateway.services.slots
        chat = SlotIdentity(SlotSpec("chat"), "llm", "fake", "m", aliases=("gpt-x",))
        slots.add(chat, Any)  # type: ignore[arg-type] # never started
        snapshot = slots.snapshot("chat")
        slots.snapshots = lambda: {"chat": replace(snapshot, aliases=chat.aliases)}  # type: ignore[method-assign]
        items = (await gateway.client.get("/v1/models")).json()["data"]
        assert [(i["id"], i.get("alias_of")) for i in items] == [
            ("m", None),
            *([("chat", "m"), ("gpt-x", "m")] if listed else []),
        ]
        one = (await gateway.client.get("/v1/models/gpt-x")).json()
        assert one["id"] == ("gpt-x" if listed else "m")

    await with_gateway(test, fine, server="list_aliases = true" * listed, tmp_path=tmp_path, express=express)
