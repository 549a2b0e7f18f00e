"""The management surface: it answers while all else waits, wakes nothing, and does what it says."""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path
from typing import Any

import pytest
import trio
from e2e_tools import (
    CHAT,
    GUARD_S,
    Later,
    Start,
    Wire,
    alive,
    ask,
    client,
    code,
    dial,
    eventually,
    frames,
    idle_again,
    note,
    path_to,
)

from slotd.testing import Knobs, fake_slot

ENDLESS = Knobs(tokens=100_000, token_delay_s=0.01)
READS = (
    "/health",
    "/metrics",
    "/v1/models",
    "/api/slots",
    "/api/slots/chat",
    "/api/slots/chat/logs",
    "/api/routes",
    "/api/explain?model=chat",
    "/api/upstreams",
    "/api/requests",
)


async def test_reads_answer_while_a_model_loads_and_wake_nothing(slotd_harness: Start) -> None:
    slots = {"chat": fake_slot(Knobs(load_delay_s=60), default=True), "other": fake_slot()}
    with trio.fail_after(GUARD_S):
        async with slotd_harness(slots) as slotd, client(slotd) as http, await dial(slotd) as wire:
            await wire.post(CHAT, ask(stream=True))
            before = await slotd.wait_for("chat", "warming")
            times = []
            for _ in range(5):
                for path in READS:
                    began = time.perf_counter()
                    answer = await http.get(path)
                    times.append(time.perf_counter() - began)
                    assert answer.status_code == 200, path
            note(f"median of {len(times)} management reads during a load", statistics.median(times))
            note("the slowest of them", max(times))
            assert statistics.median(times) < 0.05
            after = slotd.snapshot("chat")
            assert (after.state, after.since, after.starts) == (before.state, before.since, before.starts)
            assert slotd.snapshot("other").state == "offline"
            assert slotd.snapshot("other").starts == 0


async def test_what_the_reads_show(slotd_harness: Start) -> None:
    slots = {"chat": fake_slot(Knobs(tokens=3), default=True, aliases=["mini"]), "other": fake_slot()}
    with trio.fail_after(GUARD_S):
        async with slotd_harness(slots) as slotd, client(slotd) as http:
            done = await http.post(CHAT, json=ask())
            metrics = (await http.get("/metrics")).text
            assert "slotd_" in metrics
            chat = (await http.get("/api/slots/chat")).json()
            assert chat["pid"] == slotd.snapshot("chat").pid
            assert (chat["state"], chat["generation"], chat["leases"]) == ("ready", 1, 0)
            assert [s["name"] for s in (await http.get("/api/slots")).json()["slots"]] == ["chat", "other"]
            explained = (await http.get("/api/explain", params={"model": "mini"})).json()
            assert "chat" in json.dumps(explained)
            mistyped = await http.get("/api/explain", params={"model": "mini", "path": "/v1/embedding"})
            assert (mistyped.status_code, code(mistyped)) == (400, "request.invalid")
            assert "/v1/embeddings" in mistyped.json()["error"]["message"]
            recent = (await http.get("/api/requests")).json()["recent"]
            assert recent[0]["id"] == done.headers["x-request-id"]
            nobody = await http.get("/api/slots/chta")
            assert (nobody.status_code, code(nobody)) == (404, "slot.not_found")
            assert "chat" in nobody.json()["error"]["message"]
            for answer in (
                await http.post("/api/slots/chta/load"),
                await http.get("/api/slots/chta/logs"),
                await http.get("/api/requests/req-none"),
                await http.delete("/api/requests/req-none"),
            ):
                assert answer.status_code == 404


async def test_commands(slotd_harness: Start) -> None:
    more = '[models.one]\nsource = "file:one.gguf"\n[models.two]\nsource = "file:two.gguf"\n'
    with trio.fail_after(GUARD_S):
        async with slotd_harness({"chat": fake_slot()}, more=more) as slotd, client(slotd) as http:

            async def command(verb: str, **body: Any) -> tuple[str, int | None]:
                answer = await http.post(f"/api/slots/chat/{verb}", json=body or None)
                assert answer.status_code == 200, answer.text
                return answer.json()["state"], answer.json()["pid"]

            state, first = await command("load")
            assert state == "ready"
            assert await command("load") == ("ready", first)
            state, second = await command("restart")
            assert (state, slotd.snapshot("chat").generation) == ("ready", 2)
            assert first is not None
            assert second not in (None, first)
            assert not alive(first)
            began = trio.current_time()
            assert await command("kill") == ("offline", None)
            note("kill command", trio.current_time() - began)
            assert await command("unload") == ("offline", None)

            unknown = await http.post("/api/slots/chat/swap", json={"model": "tow"})
            assert unknown.status_code == 400
            assert unknown.json()["error"]["details"]["close"] == ["two"]
            assert (await http.post("/api/slots/chat/swap", content=b"{}")).status_code == 400
            assert (await http.post("/api/slots/chat/explode")).status_code == 400
            assert (await http.get("/api/slots/chat/load")).status_code in (404, 405)


async def test_swap_serves_the_other_model(slotd_harness: Start, tmp_path: Path) -> None:
    more = ""
    for name in ("one", "two"):
        (tmp_path / f"{name}.gguf").write_bytes(b"weights")
        more += f'[models.{name}]\nsource = "file:{tmp_path}/{name}.gguf"\n'
    slot = fake_slot(model="one")
    slot["command"] = [*slot["command"], "--models", "{model}"]
    with trio.fail_after(GUARD_S):
        async with slotd_harness({"chat": slot}, more=more) as slotd, client(slotd) as http:
            assert (await http.post(CHAT, json=ask("one"))).json()["model"] == "one"
            with slotd.observe("chat") as seen:
                swapped = await http.post("/api/slots/chat/swap", json={"model": "two"})
                assert swapped.json()["model"] == "two"
                path = await path_to(seen, "ready")
            assert path[:2] == ["unloading", "offline"]
            assert (await http.post(CHAT, json=ask("two"))).json()["model"] == "two"
            assert (await http.post(CHAT, json=ask("chat"))).json()["model"] == "two"
            assert (await http.post(CHAT, json=ask("one"))).status_code == 404
            listed = {m["id"] for m in (await http.get("/v1/models")).json()["data"]}
            assert listed == {"two"}


async def test_an_operators_unload_drains_first(slotd_harness: Start) -> None:
    with trio.fail_after(GUARD_S):
        async with (
            slotd_harness({"chat": fake_slot(Knobs(tokens=40, token_delay_s=0.01), default=True)}) as slotd,
            client(slotd) as http,
            trio.open_nursery() as nursery,
            await dial(slotd) as wire,
        ):
            await wire.post(CHAT, ask(stream=True))
            await wire.head()
            await wire.until(b"word1")
            unload = Later(nursery, lambda: http.post("/api/slots/chat/unload"))
            await eventually(lambda: slotd.snapshot("chat").draining)
            assert (await wire.rest()).endswith(b"data: [DONE]\n\n")
            assert (await unload.result()).json()["state"] == "offline"


async def test_an_unload_that_drains_too_long_ends_the_stream_well(slotd_harness: Start) -> None:
    slot = fake_slot(ENDLESS, default=True, drain_timeout_s=0.3)
    with trio.fail_after(GUARD_S):
        async with slotd_harness({"chat": slot}) as slotd, await dial(slotd) as wire:
            await wire.post(CHAT, ask(stream=True))
            await wire.head()
            await wire.until(b"word1")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(slotd.stop, "chat")
                last = frames(await wire.rest())[-1]
            assert (last.event, last.error["code"]) == ("error", "slot.engine_lost")
            assert last.error["details"]["reason"] == "unloaded"


@pytest.mark.parametrize("phase", ["streaming", "loading"])
async def test_a_request_is_cancelled_by_its_id(slotd_harness: Start, phase: str) -> None:
    knobs = ENDLESS if phase == "streaming" else Knobs(load_delay_s=60)
    with trio.fail_after(GUARD_S):
        async with (
            slotd_harness({"chat": fake_slot(knobs, default=True, abandon_after_s=0.1)}) as slotd,
            client(slotd) as http,
            await dial(slotd) as wire,
        ):
            await wire.post(CHAT, ask(stream=True))
            if phase == "streaming":
                await wire.head()
                await wire.until(b"word2")
            else:
                await slotd.wait_for("chat", "warming")
            [live] = (await http.get("/api/requests")).json()["live"]
            began = trio.current_time()
            assert (await http.delete(f"/api/requests/{live['id']}")).json() == {"cancelled": live["id"]}
            if phase == "streaming":
                last = frames(await wire.rest())[-1]
                assert (last.event, last.error["code"]) == ("error", "request.cancelled")
                note("client told of a cancelled request", trio.current_time() - began)
                await idle_again(slotd.fake("chat"), "DELETE /api/requests")
            else:
                assert (await wire.head()).status == 499
                assert json.loads(await wire.rest())["error"]["code"] == "request.cancelled"
                await slotd.wait_for("chat", "offline")
            record = (await http.get(f"/api/requests/{live['id']}")).json()
            assert (record["outcome"], record["error"]) == ("error", "request.cancelled")
            assert (await http.delete(f"/api/requests/{live['id']}")).status_code == 404


# --- streams ----------------------------------------------------------------------------------


async def next_frame(wire: Wire) -> tuple[str, dict[str, Any]]:
    """One event of an event stream: its name and its data. Nothing is read beyond it."""
    body = b""
    while not body.endswith(b"\n\n"):
        data = await wire.some()
        assert data, "the stream has ended"
        body += data
    [frame] = frames(body)
    return frame.event, json.loads(frame.data)


async def test_events_snapshot_first_then_what_happens(slotd_harness: Start) -> None:
    with trio.fail_after(GUARD_S):
        async with slotd_harness({"chat": fake_slot(default=True)}) as slotd:
            async with await dial(slotd) as wire:
                await wire.get("/api/events")
                assert (await wire.head()).headers["content-type"] == "text/event-stream"
                kind, snapshot = await next_frame(wire)
                assert kind == "snapshot"
                assert [s["state"] for s in snapshot["slots"]] == ["offline"]
                await slotd.load("chat")
                text = await wire.until(b"slot.loaded")
                while not text.endswith(b"\n\n"):
                    text += await wire.some()
                kinds = [f.event for f in frames(text)]
                assert kinds == ["slot.transition"] * 3 + ["slot.loaded"]
                seqs = [json.loads(f.data)["seq"] for f in frames(text)]
                assert seqs == list(range(seqs[0], seqs[0] + 4))
                last_id = text.decode().rpartition("id: ")[2].splitlines()[0]
            await slotd.stop("chat")
            async with await dial(slotd) as wire:
                await wire.get("/api/events", last_event_id=last_id)
                await wire.head()
                assert (await next_frame(wire))[0] == "snapshot"
                text = await wire.until(b'"offline"')
                first = frames(text[: text.index(b"\n\n") + 2])[0]
                assert (first.event, json.loads(first.data)["to"]) == ("slot.transition", "unloading")
                assert json.loads(first.data)["seq"] == seqs[-1] + 1


async def test_events_that_are_no_longer_kept_are_announced(slotd_harness: Start) -> None:
    with trio.fail_after(GUARD_S):
        async with slotd_harness({"chat": fake_slot()}, server={"event_buffer": 3}) as slotd:
            await slotd.load("chat")
            await slotd.stop("chat")
            async with await dial(slotd) as wire:
                await wire.get("/api/events?after=1")
                await wire.head()
                await next_frame(wire)
                text = await wire.until(b"\n\n")
                gap = frames(text[: text.index(b"\n\n") + 2])[0]
                assert gap.event == "gap"
                assert json.loads(gap.data)["missed"] >= 1


async def test_logs(slotd_harness: Start) -> None:
    with trio.fail_after(GUARD_S):
        async with (
            slotd_harness({"chat": fake_slot(Knobs(stderr="first words"))}) as slotd,
            client(slotd) as http,
            await dial(slotd) as wire,
        ):
            await slotd.load("chat")
            text = (await http.get("/api/slots/chat/logs")).text
            assert text.splitlines()[0] == "first words"
            assert text.splitlines()[-1] == "model loaded"
            one = (await http.get("/api/slots/chat/logs", params={"lines": 1})).text
            assert one == "model loaded\n"
            await wire.get("/api/slots/chat/logs?follow=1")
            await wire.head()
            await slotd.fake("chat").set(log_flood=50)
            assert (await wire.until(b"a line of a log")).startswith(b"first words\n")
