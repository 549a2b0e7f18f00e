"""What a client reads when it cannot be served: status, code, shape, and what else it is told."""

from __future__ import annotations

import json
import time

import pytest
import trio
from e2e_tools import (
    CHAT,
    GUARD_S,
    Later,
    Start,
    ask,
    client,
    code,
    dial,
    eventually,
    frames,
    note,
    path_to,
)

from slotd.testing import Harness, Knobs, fake_slot

BOTH_LANES = pytest.mark.usefixtures("express")
ENDLESS = Knobs(tokens=100_000, token_delay_s=0.01)
EMBED = fake_slot(Knobs(), type="embedding", default=True)


def untouched(slotd: Harness, *names: str) -> bool:
    return all(slotd.snapshot(name).starts == 0 for name in names)


# --- the request itself --------------------------------------------------------------------


@BOTH_LANES
async def test_requests_that_go_nowhere_touch_no_slot(slotd_harness: Start) -> None:
    slots = {"chat": fake_slot(default=True, aliases=["gpt-mini"]), "embed": EMBED}
    with trio.fail_after(GUARD_S):
        async with slotd_harness(slots) as slotd, client(slotd) as http:
            unknown = await http.post(CHAT, json=ask("gpt-minj"))
            assert (unknown.status_code, code(unknown)) == (404, "dispatch.no_route")
            assert "gpt-mini" in unknown.json()["error"]["details"]["close"]

            wrong_type = await http.post(CHAT, json=ask("embed"))
            assert (wrong_type.status_code, code(wrong_type)) == (409, "dispatch.capability_mismatch")

            not_json = await http.post(CHAT, content=b'{"model": "chat", ')
            assert (not_json.status_code, code(not_json)) == (400, "request.invalid_json")

            no_object = await http.post(CHAT, content=b"[1, 2]")
            assert (no_object.status_code, code(no_object)) == (400, "request.invalid_json")

            no_path = await http.post("/v1/chat/completion", json=ask())
            assert no_path.status_code == 404
            assert code(no_path) == "request.no_such_path"
            assert CHAT in no_path.json()["error"]["details"]["close"]
            assert set(no_path.json()["error"]) == {"message", "type", "param", "code", "details"}

            wrong_method = await http.get(CHAT)
            assert (wrong_method.status_code, code(wrong_method)) == (405, "request.method_not_allowed")

            nobody = await http.post("/v1/audio/speech", json={"input": "hi"})
            assert (nobody.status_code, code(nobody)) == (400, "request.model_missing")
            assert untouched(slotd, "chat", "embed")
            assert await slotd.state("embed") == "offline"


@pytest.mark.parametrize("framing", ["content-length: 100000000", "transfer-encoding: chunked"])
@BOTH_LANES
async def test_a_body_that_is_too_large(slotd_harness: Start, framing: str) -> None:
    """It is refused while it comes, also when nobody has said how long it is."""
    with trio.fail_after(GUARD_S):
        async with (
            slotd_harness({"chat": fake_slot(default=True)}, server={"max_body_mb": 1}) as slotd,
            await dial(slotd) as wire,
            trio.open_nursery() as nursery,
        ):

            async def send() -> None:
                head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\n{framing}\r\n\r\n"
                try:
                    await wire.stream.send_all(head.encode())
                    while True:
                        await wire.stream.send_all(b"10000\r\n" + b"x" * 65536 + b"\r\n")
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    return  # slotd has had enough

            nursery.start_soon(send)
            assert (await wire.head()).status == 413
            assert json.loads(await wire.rest())["error"]["code"] == "request.too_large"
            nursery.cancel_scope.cancel()
            assert untouched(slotd, "chat")


@BOTH_LANES
async def test_anthropic_clients_read_anthropic_errors(slotd_harness: Start) -> None:
    with trio.fail_after(GUARD_S):
        async with slotd_harness({"chat": fake_slot(Knobs(tokens=50))}) as slotd, client(slotd) as http:
            for answer, status, kind in (
                (await http.post("/v1/messages", json=ask("nobody")), 404, "not_found_error"),
                (await http.post("/v1/messages", content=b"{"), 400, "invalid_request_error"),
                (
                    await http.post("/v1/messages", json=ask("chat"), headers={"x-slotd-wait": "0"}),
                    503,
                    "overloaded_error",
                ),
            ):
                assert answer.status_code == status
                document = answer.json()
                assert document["type"] == "error"
                assert document["error"]["type"] == kind
            await slotd.wait_for("chat", "ready")
            await slotd.fake("chat").set(crash_after_tokens=5)
            answer = await http.post("/v1/messages", json=ask("chat", stream=True, max_tokens=50))
            last = frames(answer.content)[-1]
            assert last.event == "error"
            assert json.loads(last.data)["type"] == "error"
            assert last.error["code"] == "slot.engine_lost"


@BOTH_LANES
async def test_keys(slotd_harness: Start) -> None:
    with trio.fail_after(GUARD_S):
        async with (
            slotd_harness({"chat": fake_slot(default=True)}, env={"SLOTD_API_KEYS": "one, two"}) as slotd,
            client(slotd) as http,
        ):
            for path in (CHAT, "/v1/models", "/api/slots", "/metrics", "/nowhere"):
                answer = await http.request("POST" if path == CHAT else "GET", path)
                assert (answer.status_code, code(answer)) == (401, "auth.required"), path
                answer = await http.request(
                    "POST" if path == CHAT else "GET", path, headers={"authorization": "Bearer three"}
                )
                assert (answer.status_code, code(answer)) == (403, "auth.forbidden"), path
            assert (await http.get("/health")).status_code == 200
            for headers in ({"authorization": "Bearer one"}, {"x-api-key": "two"}):
                assert (await http.get("/api/slots", headers=headers)).status_code == 200
            anthropic = await http.post("/v1/messages", json=ask())
            assert anthropic.json()["error"]["type"] == "authentication_error"
            assert untouched(slotd, "chat")


# --- waiting -------------------------------------------------------------------------------


@BOTH_LANES
async def test_a_full_queue_and_a_queue_time_out(slotd_harness: Start) -> None:
    slot = fake_slot(ENDLESS, default=True, max_parallel=1, max_queue=1)
    with trio.fail_after(GUARD_S):
        async with (
            slotd_harness({"chat": slot}, server={"queue_timeout_s": 0.6}) as slotd,
            client(slotd) as http,
            trio.open_nursery() as nursery,
        ):
            await slotd.load("chat")
            async with await dial(slotd) as wire:
                await wire.post(CHAT, ask(stream=True))
                await wire.head()
                began = time.monotonic()
                waits = Later(nursery, lambda: http.post(CHAT, json=ask()))
                await eventually(lambda: slotd.snapshot("chat").queued == 1)
                full = await http.post(CHAT, json=ask())
                note("429 of a full queue", time.monotonic() - began)
                assert (full.status_code, code(full)) == (429, "slot.queue_full")
                assert int(full.headers["retry-after"]) >= 1
                late = await waits.result()
                took = time.monotonic() - began
                note("504 of a queue time-out of 600 ms", took)
                assert (late.status_code, code(late)) == (504, "slot.queue_timeout")
                assert 0.6 <= took < 1.5
                assert slotd.snapshot("chat").queued == 0
                assert (await slotd.fake("chat").stats())["started"] == 1


@BOTH_LANES
async def test_who_does_not_wait_is_told_and_the_load_goes_on(slotd_harness: Start) -> None:
    slot = fake_slot(Knobs(load_delay_s=0.5, tokens=2), default=True, abandon_after_s=0.1)
    with trio.fail_after(GUARD_S):
        async with slotd_harness({"chat": slot}) as slotd, client(slotd) as http:
            began = time.monotonic()
            answer = await http.post(CHAT, json=ask(), headers={"x-slotd-wait": "0"})
            note("503 slot.loading", time.monotonic() - began)
            assert (answer.status_code, code(answer)) == (503, "slot.loading")
            assert int(answer.headers["retry-after"]) >= 1
            await slotd.wait_for("chat", "ready")
            again = await http.post(CHAT, json=ask(), headers={"x-slotd-wait": "0"})
            assert again.status_code == 200
            assert slotd.snapshot("chat").starts == 1


@BOTH_LANES
async def test_an_unload_answers_everyone_who_waits(slotd_harness: Start) -> None:
    with trio.fail_after(GUARD_S):
        async with (
            slotd_harness({"chat": fake_slot(Knobs(load_delay_s=60), default=True)}) as slotd,
            client(slotd) as http,
            trio.open_nursery() as nursery,
        ):
            waiters = [Later(nursery, lambda: http.post(CHAT, json=ask())) for _ in range(5)]
            await eventually(lambda: slotd.snapshot("chat").queued == 5)
            await slotd.wait_for("chat", "warming")
            began = time.monotonic()
            assert (await http.post("/api/slots/chat/unload")).json()["state"] == "offline"
            note("unload while loading", time.monotonic() - began)
            for waiter in waiters:
                answer = await waiter.result()
                assert (answer.status_code, code(answer)) == (503, "slot.stopped")
                assert "retry-after" in answer.headers


# --- loads that fail ---------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
@BOTH_LANES
async def test_a_crash_at_start_is_told_with_the_engines_words(slotd_harness: Start, stream: bool) -> None:
    knobs = Knobs(crash_at_start=True, exit_code=3, last_words="cannot read weights: bad magic")
    with trio.fail_after(GUARD_S):
        async with slotd_harness({"chat": fake_slot(knobs, default=True)}) as slotd, client(slotd) as http:
            began = time.monotonic()
            answer = await http.post(CHAT, json=ask(stream=stream))
            took = time.monotonic() - began
            note("502 slot.load_failed after a crash at start", took)
            assert took < 2
            assert (answer.status_code, code(answer)) == (502, "slot.load_failed")
            assert "retry-after" not in answer.headers
            details = answer.json()["error"]["details"]
            assert "cannot read weights: bad magic" in details["log"]
            assert details["reason"] == "bad_model"
            assert "3" in details["exit"]
            assert await slotd.state("chat") == "error"


async def test_a_program_that_is_not_there(slotd_harness: Start) -> None:
    slot = {**fake_slot(default=True), "command": ["no-such-program", "--port", "{port}"]}
    with trio.fail_after(GUARD_S):
        async with slotd_harness({"chat": slot}) as slotd, client(slotd) as http:
            answer = await http.post(CHAT, json=ask())
            assert (answer.status_code, code(answer)) == (500, "slot.spawn_failed")
            assert "no-such-program" in answer.json()["error"]["message"]
            assert await slotd.state("chat") == "error"


@pytest.mark.parametrize(
    "knobs",
    [Knobs(hang_health=True), Knobs(health_status=500), Knobs(models=()), Knobs(startup_delay_s=60)],
    ids=["hangs", "sick", "no model", "no port"],
)
async def test_a_time_out_never_promotes(slotd_harness: Start, knobs: Knobs) -> None:
    slot = fake_slot(knobs, default=True, ready_timeout_s=0.7)
    with trio.fail_after(GUARD_S):
        async with slotd_harness({"chat": slot}) as slotd, client(slotd) as http:
            began = time.monotonic()
            with slotd.observe("chat") as seen:
                answer = await http.post(CHAT, json=ask())
                states = await path_to(seen, "error")
            took = time.monotonic() - began
            assert (answer.status_code, code(answer)) == (502, "slot.load_failed")
            assert answer.json()["error"]["details"]["reason"] == "load_timeout"
            assert 0.7 <= took < 3
            assert not {"ready", "serving"} & set(states)
            assert states[-2:] == ["unloading", "error"]


# --- the engine's own answers ---------------------------------------------------------------------


@pytest.mark.parametrize("ability", ["close", "assemble"])
@BOTH_LANES
async def test_an_engines_own_error_passes_unchanged(slotd_harness: Start, ability: str) -> None:
    body = '{"error":{"code":418,"message":"I\\u2019m  a teapot","type":"brew"}} \n'
    knobs = Knobs(error_status=418, error_body=body)
    with trio.fail_after(GUARD_S):
        async with (
            slotd_harness({"chat": fake_slot(knobs, default=True, nonstream_cancel=ability)}) as slotd,
            client(slotd) as http,
        ):
            for stream in (False, True):
                answer = await http.post(CHAT, json=ask(stream=stream))
                assert answer.status_code == 418
                assert answer.content == body.encode()
            assert slotd.snapshot("chat").leases == 0


@BOTH_LANES
async def test_too_many_requests_at_a_time_are_refused_but_management_is_not(slotd_harness: Start) -> None:
    with trio.fail_after(GUARD_S):
        async with (
            slotd_harness({"chat": fake_slot(ENDLESS, default=True)}, server={"max_connections": 1}) as slotd,
            client(slotd) as http,
            await dial(slotd) as wire,
        ):
            await wire.post(CHAT, ask(stream=True))
            await wire.head()
            busy = await http.post(CHAT, json=ask())
            assert (busy.status_code, code(busy)) == (503, "server.busy")
            assert (await http.get("/api/slots")).status_code == 200
