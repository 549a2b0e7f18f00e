"""The gateway on a socket: what goes wrong with one request stays with it, and is told in the right shape."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
from gateway_server import Gateway, with_gateway

from slotd.errors import SlotQueueFull, StreamStalled
from slotd.exchange.inbound import Inbound, Outbound
from slotd.exchange.render import error_response
from slotd.slot.actor import SlotIdentity
from slotd.slot.machine import SlotSpec

CHAT = "/v1/chat/completions"


async def fine(inbound: Inbound, out: Outbound) -> None:
    out.start(200, [(b"content-type", b"application/json")])
    await out.send(b'{"echo":')
    await out.send(inbound.body + b"}")


async def test_the_exchange_gets_the_request_as_it_came(tmp_path: Path, express: bool) -> None:
    async def test(gateway: Gateway) -> None:
        answer = await gateway.client.post(
            CHAT + "?a=b&c=%20", content=b"{}", headers={"X-Slotd-Wait": "0", "X-Some": "Thing"}
        )
        assert answer.json() == {"echo": {}}
        (seen,) = gateway.behind.seen
        assert (seen.method, seen.path, seen.query, seen.body) == ("POST", CHAT, b"a=b&c=%20", b"{}")
        assert (b"x-slotd-wait", b"0") in seen.headers
        assert seen.key_priority is None
        assert (b"x-some", b"Thing") in seen.headers
        again = await gateway.client.post(CHAT, content=b"1")
        assert again.json() == {"echo": 1}
        assert gateway.behind.seen[1].id != seen.id

    await with_gateway(test, fine, tmp_path=tmp_path, express=express)


async def test_a_bug_before_the_answer_is_a_500_in_the_endpoints_dialect(
    tmp_path: Path, express: bool
) -> None:
    async def bug(inbound: Inbound, out: Outbound) -> None:
        if inbound.body != b"{}":
            raise KeyError("secret")
        await fine(inbound, out)

    async def test(gateway: Gateway) -> None:
        for path, kind in ((CHAT, "server_error"), ("/v1/messages", "api_error")):
            answer = await gateway.client.post(path, content=b"[]")
            assert answer.status_code == 500
            error = answer.json()["error"]
            assert (error["code"], error["type"]) == ("internal.error", kind)
            assert "secret" not in answer.text
        assert (await gateway.client.post(CHAT, content=b"{}")).status_code == 200
        answer = await gateway.client.get("/api/routes")
        assert answer.json()["error"]["code"] == "internal.error"

    await with_gateway(test, bug, tmp_path=tmp_path, express=express)


@pytest.mark.parametrize("error", [KeyError("a bug"), StreamStalled("quiet")])
async def test_an_answer_that_breaks_off_ends_its_own_connection_only(
    tmp_path: Path, express: bool, error: Exception
) -> None:
    go_on = trio.Event()

    async def breaks(inbound: Inbound, out: Outbound) -> None:
        out.start(200, [(b"content-type", b"application/json")])
        await out.send(b'{"half":')
        if inbound.body == b"break":
            raise error
        await go_on.wait()
        await out.send(b"1}")

    async def test(gateway: Gateway) -> None:
        async with gateway.client.stream("POST", CHAT, content=b"whole") as other:
            with pytest.raises(httpx.RemoteProtocolError):
                await gateway.client.post(CHAT, content=b"break")
            go_on.set()
            assert await other.aread() == b'{"half":1}'
        assert (await gateway.client.get("/health")).status_code == 200

    await with_gateway(test, breaks, tmp_path=tmp_path, express=express)


async def test_a_client_that_leaves_cancels_its_exchange(tmp_path: Path, express: bool) -> None:
    began, ended = trio.Event(), trio.Event()

    async def waits(inbound: Inbound, out: Outbound) -> None:
        try:
            if inbound.body == b"stream":
                out.start(200, [(b"content-type", b"text/event-stream")])
                await out.send(b"data: 1\n\n")
            began.set()
            await trio.sleep_forever()
        finally:
            ended.set()

    async def test(gateway: Gateway) -> None:
        nonlocal began, ended
        for body in (b"silent", b"stream"):
            began, ended = trio.Event(), trio.Event()
            stream = await gateway.connect()
            await stream.send_all(b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: 6\r\n\r\n" % CHAT.encode())
            await stream.send_all(body)
            await began.wait()
            await stream.aclose()
            await ended.wait()

    await with_gateway(test, waits, tmp_path=tmp_path, express=express)


async def test_errors_of_the_framework_have_our_envelope(tmp_path: Path, express: bool) -> None:
    async def test(gateway: Gateway) -> None:
        async def error(method: str, path: str, **more: Any) -> tuple[int, str]:
            answer = await gateway.client.request(method, path, **more)
            return answer.status_code, answer.json()["error"]["code"]

        assert await error("GET", "/v1/chat/completion") == (404, "request.no_such_path")
        assert await error("GET", CHAT) == (405, "request.method_not_allowed")
        assert await error("GET", "/api/slots/nobody") == (404, "slot.not_found")
        assert await error("GET", "/api/slots/nobody/logs") == (404, "slot.not_found")
        assert await error("GET", "/api/requests/nobody") == (404, "request.not_found")
        assert await error("DELETE", "/api/requests/nobody") == (404, "request.not_found")
        assert await error("GET", "/v1/models/nobody") == (404, "dispatch.no_route")
        assert await error("POST", "/api/slots/x/explode") == (400, "request.invalid")
        assert await error("POST", "/api/slots/x/swap", content=b"{") == (400, "request.invalid")
        wrong = await gateway.client.get("/v1/messages")
        assert wrong.json()["type"] == "error", "in the endpoint's own dialect"
        missing = (await gateway.client.get("/v1/chat/completion")).json()
        assert CHAT in missing["error"]["details"]["close"]

    await with_gateway(test, fine, tmp_path=tmp_path, express=express)


async def test_a_body_that_is_too_large_is_refused_before_it_has_come(tmp_path: Path, express: bool) -> None:
    async def test(gateway: Gateway) -> None:
        stream = await gateway.connect()
        await stream.send_all(
            b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: 1048577\r\n\r\n" % CHAT.encode()
        )
        answer = b""
        while b"request.too_large" not in answer:
            data = await stream.receive_some()
            assert data, answer
            answer += data
        assert answer.startswith(b"HTTP/1.1 413")
        await stream.aclose()

    await with_gateway(test, fine, server="max_body_mb = 1", tmp_path=tmp_path, express=express)


async def test_a_count_of_log_lines_is_a_count(tmp_path: Path, express: bool) -> None:
    async def test(gateway: Gateway) -> None:
        slots = gateway.services.slots
        slots.add(SlotIdentity(SlotSpec("chat"), "llm", "fake", "m"), Any)  # type: ignore[arg-type] # never started
        slots.logs("chat").append(b"one\ntwo\nthree\n")
        assert (await gateway.client.get("/api/slots/chat/logs?lines=2")).text == "two\nthree\n"
        for bad in ("x", "-1", "1e3", "9" * 30):
            answer = await gateway.client.get(f"/api/slots/chat/logs?lines={bad}")
            assert (answer.status_code, answer.json()["error"]["param"]) == (400, "lines")

    await with_gateway(test, fine, tmp_path=tmp_path, express=express)


@pytest.mark.parametrize("path", ["/api/slots/chat/logs?follow=1", "/api/events"])
async def test_what_never_ends_by_itself_ends_when_slotd_stops(
    tmp_path: Path, express: bool, path: str
) -> None:
    async def test(gateway: Gateway) -> None:
        slots = gateway.services.slots
        slots.add(SlotIdentity(SlotSpec("chat"), "llm", "fake", "m"), Any)  # type: ignore[arg-type] # never started
        slots.logs("chat").append(b"one\n")
        got = ""
        async with gateway.client.stream("GET", path) as answer:
            async for text in answer.aiter_text():
                got += text
                gateway.services.bus.close()
        assert got.startswith(("one\n", "event: snapshot\n"))

    await with_gateway(test, fine, tmp_path=tmp_path, express=express)


async def test_keys_guard_everything_but_health(tmp_path: Path, express: bool) -> None:
    async def test(gateway: Gateway) -> None:
        get, post = gateway.client.get, gateway.client.post
        assert (await get("/health")).status_code == 200
        for path in ("/metrics", "/v1/models", "/api/slots", "/api/events"):
            assert (await get(path)).status_code == 401
        assert (await post(CHAT, content=b"{}")).status_code == 401
        assert (await post(CHAT, content=b"{}", headers={"x-api-key": "no"})).status_code == 403
        assert not gateway.behind.seen
        good = {"authorization": "Bearer yes"}
        assert (await post(CHAT, content=b"{}", headers=good)).status_code == 200
        assert (await get("/metrics", headers=good)).status_code == 200

    await with_gateway(test, fine, keys={"yes": 7}, tmp_path=tmp_path, express=express)


async def test_bodies_that_are_still_coming_count_as_requests_under_way(
    tmp_path: Path, express: bool
) -> None:
    async def test(gateway: Gateway) -> None:
        uploading = await gateway.connect()
        head = b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n" % CHAT.encode()
        await uploading.send_all(head + b"{")
        with trio.fail_after(5):
            # The head takes a moment to arrive; until then there is room.
            while (answer := await gateway.client.post(CHAT, content=b"{}")).status_code == 200:
                pass
        assert answer.status_code == 503
        assert answer.headers["retry-after"]
        assert (await gateway.client.get("/v1/models")).status_code == 200, "management is never refused"
        await uploading.send_all(b"}")
        assert (await uploading.receive_some()).startswith(b"HTTP/1.1 200")
        assert (await gateway.client.post(CHAT, content=b"{}")).status_code == 200
        # One that gives up gives its place back.
        await uploading.send_all(head)
        await uploading.aclose()
        with trio.fail_after(5):
            while (await gateway.client.post(CHAT, content=b"{}")).status_code != 200:
                pass

    await with_gateway(test, fine, server="max_connections = 1", tmp_path=tmp_path, express=express)


async def test_a_typed_refusal_keeps_its_headers(tmp_path: Path, express: bool) -> None:
    async def refuses(inbound: Inbound, out: Outbound) -> None:
        status, headers, body = error_response(SlotQueueFull("full", retry_after_s=2))
        out.start(status, headers)
        await out.send(body)

    async def test(gateway: Gateway) -> None:
        answer = await gateway.client.post(CHAT, content=b"{}")
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "2")

    await with_gateway(test, refuses, tmp_path=tmp_path, express=express)
