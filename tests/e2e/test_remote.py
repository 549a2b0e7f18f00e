"""Requests to upstreams that slotd does not own, over real sockets."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager

import httpx
import pytest
import trio

from slotd.testing import FakeServer, Harness, Knobs, fake_slot

Start = Callable[..., AbstractAsyncContextManager[Harness]]
CHAT = "/v1/chat/completions"


def ask(model: str | None, **more: object) -> dict[str, object]:
    named = {} if model is None else {"model": model}
    return {**named, "messages": [{"role": "user", "content": "hi"}], **more}


def upstream(name: str, url: str, more: str = "") -> str:
    return f'[upstreams.{name}]\nurl = "{url}/v1"\n{more}\n'


@contextmanager
def remote(**knobs: object) -> Iterator[FakeServer]:
    with FakeServer(Knobs(**{"models": ("far",), "tokens": 3, **knobs})) as server:  # type: ignore[arg-type]
        yield server


def client(slotd: Harness) -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    return httpx.AsyncClient(base_url=slotd.url, trust_env=False, timeout=20, limits=limits)


async def test_a_listed_model_is_passed_through_and_no_slot_is_touched(slotd_harness: Start) -> None:
    with trio.fail_after(20), remote() as far:
        async with (
            slotd_harness({"chat": fake_slot(default=True)}, more=upstream("lab", far.url)) as slotd,
            client(slotd) as http,
        ):
            answer = await http.post(CHAT, json=ask("far"))
            assert answer.status_code == 200
            assert answer.json()["choices"][0]["message"]["content"] == "word0 word1 word2"
            assert answer.headers["x-slotd-route"].startswith("upstream:lab; tier=")
            assert slotd.snapshot("chat").starts == 0
            models = {m["id"] for m in (await http.get("/v1/models")).json()["data"]}
            assert "far" in models


async def test_a_stream_is_relayed_byte_for_byte(slotd_harness: Start) -> None:
    with trio.fail_after(20), remote() as far:
        async with slotd_harness({}, more=upstream("lab", far.url)) as slotd, client(slotd) as http:
            through = await http.post(CHAT, json=ask("far", stream=True, seed=1))
            direct = await http.post(f"{far.url}{CHAT}", json=ask("far", stream=True, seed=1))

            def texts(body: bytes) -> list[object]:
                events = [json.loads(e[6:]) for e in body.split(b"\n\n") if e.startswith(b"data: {")]
                return [[c["delta"] for c in e["choices"]] for e in events]

            assert through.status_code == 200
            assert texts(through.content) == texts(direct.content)
            assert through.content.endswith(b"data: [DONE]\n\n")


async def test_a_binding_rewrites_the_name_and_nothing_else(slotd_harness: Start) -> None:
    more = '[[bindings]]\nmatch = "gpt-*"\nupstream = "lab"\nmodel = "far"\n'
    with trio.fail_after(20), remote(strict_model=True) as far:
        async with (
            slotd_harness({}, more=upstream("lab", far.url) + more) as slotd,
            client(slotd) as http,
        ):
            answer = await http.post(CHAT, json=ask("gpt-9"))
            assert answer.status_code == 200, answer.text
            [request] = [r for r in (await far.engine.stats())["requests"] if r["path"] == CHAT]
            assert request["model"] == "far"


async def test_keys_are_the_upstreams_and_not_the_clients(slotd_harness: Start) -> None:
    with trio.fail_after(20), remote() as far:
        more = upstream("lab", far.url, 'auth = "bearer"\nkey_env = "LAB_KEY"')
        async with (
            slotd_harness({}, more=more, env={"LAB_KEY": "their-key"}) as slotd,
            client(slotd) as http,
        ):
            await http.post(
                CHAT, json=ask("far"), headers={"authorization": "Bearer mine", "x-api-key": "mine"}
            )
            stats = await far.engine.stats()
            for request in stats["requests"]:
                if request["path"] == CHAT:
                    sent = {k.lower(): v for k, v in dict(request["headers"]).items()}
                    assert sent["authorization"] == "Bearer their-key"
                    assert "mine" not in json.dumps(sent)
                    break
            else:
                pytest.fail("the request did not arrive")


async def test_an_upstreams_own_error_passes_unchanged(slotd_harness: Start) -> None:
    with trio.fail_after(20), remote(error_status=418, error_body='{"error": {"message": "teapot"}}') as far:
        async with slotd_harness({}, more=upstream("lab", far.url)) as slotd, client(slotd) as http:
            answer = await http.post(CHAT, json=ask("far"))
            assert answer.status_code == 418
            assert answer.json() == {"error": {"message": "teapot"}}


async def test_a_dead_upstream_is_a_502_and_then_not_asked_for_a_while(slotd_harness: Start) -> None:
    with trio.fail_after(20), remote() as far:
        async with slotd_harness({}, more=upstream("lab", far.url)) as slotd, client(slotd) as http:
            assert (await http.post(CHAT, json=ask("far"))).status_code == 200
            far.kill()
            gone = await http.post(CHAT, json=ask("far"))
            assert gone.status_code == 502
            assert gone.json()["error"]["code"] == "dispatch.upstream_unavailable"
            assert "retry-after" not in gone.headers
            after = await http.post(CHAT, json=ask("far"))
            assert after.status_code == 404
            [lab] = (await http.get("/api/upstreams")).json()["upstreams"]
            assert lab["status"] == "offline"


async def test_an_upstream_that_dies_mid_stream_ends_it_with_an_error_event(slotd_harness: Start) -> None:
    with trio.fail_after(20), remote(tokens=1000, token_delay_s=0.01) as far:
        async with slotd_harness({}, more=upstream("lab", far.url)) as slotd, client(slotd) as http:
            async with http.stream("POST", CHAT, json=ask("far", stream=True)) as answer:
                lines = answer.aiter_lines()
                async for line in lines:
                    if "word1" in line:
                        break
                far.kill()
                rest = [line async for line in lines]
            assert rest[-3] == "event: error"
            assert json.loads(rest[-2][6:])["error"]["code"] == "dispatch.upstream_unavailable"


async def test_a_client_that_leaves_stops_the_upstreams_stream(slotd_harness: Start) -> None:
    with trio.fail_after(20), remote(tokens=1000, token_delay_s=0.01) as far:
        async with slotd_harness({}, more=upstream("lab", far.url)) as slotd:
            # Cancelled rather than left by `break`, which would leave httpx's generators about.
            with trio.CancelScope() as leave:
                async with (
                    client(slotd) as http,
                    http.stream("POST", CHAT, json=ask("far", stream=True)) as answer,
                ):
                    async for line in answer.aiter_lines():
                        if "word1" in line:
                            leave.cancel()
            with trio.fail_after(1):
                await far.engine.wait_active(0)
            assert (await far.engine.stats())["cancelled"] == 1


async def test_an_unreachable_upstream_does_not_hide_a_slot(slotd_harness: Start) -> None:
    """A bound remote that is offline falls through to the later rules."""
    more = '[[bindings]]\nmatch = "big"\nupstream = "lab"\n[[bindings]]\nmatch = "b*"\nslot = "chat"\n'
    with trio.fail_after(20), remote() as far:
        async with (
            slotd_harness({"chat": fake_slot()}, more=upstream("lab", far.url) + more) as slotd,
            client(slotd) as http,
        ):
            assert (
                (await http.post(CHAT, json=ask("big"))).headers["x-slotd-route"].startswith("upstream:lab")
            )
            far.kill()
            assert (await http.post(CHAT, json=ask("big"))).status_code == 502
            answer = await http.post(CHAT, json=ask("big"))
            assert answer.status_code == 200, answer.text
            assert answer.headers["x-slotd-route"].startswith("slot:chat")
