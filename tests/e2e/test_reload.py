"""Another configuration while slotd runs: who is not concerned notices nothing, and nobody is dropped."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
import trio.testing
from e2e_tools import CHAT, GUARD_S, Later, Start, Wire, alive, ask, client, code, dial, eventually, frames

from slotd.testing import FakeServer, Harness, Knobs, SlotdProcess, config_text, fake_slot

RELOAD = "/api/config/reload"


def slot(knobs: Knobs, **settings: Any) -> dict[str, Any]:
    """A slot of a fake engine, which nobody asks but the test."""
    return fake_slot(knobs, check_output=False, **settings)


def held(tokens: int, at: int = 3, **settings: Any) -> dict[str, Any]:
    """A slot whose engine stops after some tokens of an answer, until it is told to go on."""
    return slot(Knobs(tokens=tokens, hang_after_tokens=at), **settings)


def words(body: bytes) -> int:
    """How many tokens a complete stream had."""
    events = frames(body)
    assert events[-1].data == "[DONE]"
    assert not any(e.event == "error" for e in events)
    return len(re.findall(rb'"content": ?" ?word\d+"', body))


async def stream(slotd: Harness, model: str) -> tuple[Wire, bytes]:
    """A stream that has begun, and what has come of it."""
    wire = await dial(slotd)
    await wire.post(CHAT, ask(model, stream=True))
    assert (await wire.head()).status == 200
    return wire, await wire.until(b"word2")


async def reload(slotd: Harness, slots: Mapping[str, Mapping[str, Any]], **more: Any) -> dict[str, Any]:
    """Write another configuration and have it read; what has changed."""
    slotd.rewrite(config_text(slots, **more))
    async with client(slotd) as http:
        answer = await http.post(RELOAD)
    assert answer.status_code == 200, answer.text
    document: dict[str, Any] = answer.json()
    return document


async def content(http: httpx.AsyncClient, model: str) -> str:
    answer = await http.post(CHAT, json=ask(model))
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["message"]["content"])


# --- one of ten -----------------------------------------------------------------------------


async def test_changing_one_of_ten_slots_drops_nothing_anywhere(slotd_harness: Start) -> None:
    slots = {f"s{i}": held(12) for i in range(10)}
    with trio.fail_after(3 * GUARD_S):
        async with slotd_harness(slots) as slotd, client(slotd) as http:
            wires: dict[str, tuple[Wire, bytes]] = {}

            async def begin(name: str) -> None:
                wires[name] = await stream(slotd, name)

            async with trio.open_nursery() as nursery:
                for name in slots:
                    nursery.start_soon(begin, name)
            pids = {name: slotd.snapshot(name).pid for name in slots}
            old_engines = {name: slotd.fake(name) for name in slots}

            done = await reload(slotd, {**slots, "s3": slot(Knobs(tokens=2))})
            assert done["slots"]["changed"] == done["slots"]["relaunched"] == ["s3"]
            assert slotd.snapshot("s3").draining

            async with trio.open_nursery() as nursery:
                waits = Later(nursery, lambda: content(http, "s3"))
                await trio.testing.wait_all_tasks_blocked()
                for engine in old_engines.values():
                    await engine.set(hang_after_tokens=None)
                for wire, body in wires.values():
                    async with wire:
                        assert words(body + await wire.rest()) == 12
                assert await waits.result() == "word0 word1"
            for name in slots:
                snapshot = slotd.snapshot(name)
                if name == "s3":
                    assert (snapshot.generation, snapshot.starts) == (2, 2)
                    assert snapshot.pid != pids[name]
                else:
                    assert (snapshot.generation, snapshot.pid) == (1, pids[name])


async def test_live_keys_change_without_a_relaunch(slotd_harness: Start) -> None:
    chat = held(6, max_parallel=1)
    with trio.fail_after(GUARD_S):
        async with slotd_harness({"chat": chat}) as slotd, client(slotd) as http:
            wire, body = await stream(slotd, "chat")
            changed = await reload(slotd, {"chat": {**chat, "max_queue": 0, "aliases": ["other"]}})
            assert changed["slots"]["relaunched"] == []
            full = await http.post(CHAT, json=ask("other"))
            assert (full.status_code, code(full)) == (429, "slot.queue_full")
            await slotd.fake("chat").set(hang_after_tokens=None)
            async with wire:
                assert words(body + await wire.rest()) == 6
            assert slotd.snapshot("chat").generation == 1


# --- slots that come and go ---------------------------------------------------------------------


async def test_an_added_slot_serves(slotd_harness: Start) -> None:
    chat, more = slot(Knobs(tokens=1)), slot(Knobs(tokens=2))
    with trio.fail_after(GUARD_S):
        async with slotd_harness({"chat": chat}) as slotd, client(slotd) as http:
            assert (await http.post(CHAT, json=ask("more"))).status_code == 404
            done = await reload(slotd, {"chat": chat, "more": more, "eager": {**more, "autoload": True}})
            assert done["slots"]["added"] == ["more", "eager"]
            assert await content(http, "more") == "word0 word1"
            assert "more" in (await http.get("/api/slots/more")).json()["name"]
            await slotd.wait_for("eager", "ready")


async def test_a_removed_slot_is_unknown_while_its_stream_finishes(slotd_harness: Start) -> None:
    chat = slot(Knobs(tokens=1))
    with trio.fail_after(GUARD_S):
        async with slotd_harness({"chat": chat, "old": held(9)}) as slotd, client(slotd) as http:
            wire, body = await stream(slotd, "old")
            pid, engine = slotd.snapshot("old").pid, slotd.fake("old")
            assert pid is not None
            assert (await reload(slotd, {"chat": chat}))["slots"]["removed"] == ["old"]
            gone = await http.post(CHAT, json=ask("old"))
            assert (gone.status_code, code(gone)) == (404, "dispatch.no_route")
            assert (await http.get("/api/slots/old")).status_code == 404
            assert alive(pid)
            await engine.set(hang_after_tokens=None)
            async with wire:
                assert words(body + await wire.rest()) == 9
            await eventually(lambda: not alive(pid), "the engine of the removed slot")


async def test_a_removed_name_comes_back_when_the_first_has_gone(slotd_harness: Start) -> None:
    chat, old = slot(Knobs(tokens=1)), held(9)
    with trio.fail_after(GUARD_S):
        async with slotd_harness({"chat": chat, "old": old}) as slotd, client(slotd) as http:
            wire, body = await stream(slotd, "old")
            engine = slotd.fake("old")
            await reload(slotd, {"chat": chat})
            async with trio.open_nursery() as nursery:
                back = {"chat": chat, "old": slot(Knobs(tokens=2))}
                again = Later(nursery, lambda: reload(slotd, back))
                await trio.testing.wait_all_tasks_blocked()
                await engine.set(hang_after_tokens=None)
                async with wire:
                    assert words(body + await wire.rest()) == 9
                assert (await again.result())["slots"]["added"] == ["old"]
            assert await content(http, "old") == "word0 word1"


async def test_a_name_that_moves_to_another_slot_always_has_one(slotd_harness: Start) -> None:
    """Requests without pause, while the slot behind their name goes and another takes it over."""
    a, b = (slot(Knobs(tokens=1), max_parallel=2) for _ in "ab")
    statuses: list[tuple[int, str]] = []
    with trio.fail_after(GUARD_S):
        async with slotd_harness({"a": {**a, "aliases": ["gpt"]}, "b": b}) as slotd, client(slotd) as http:
            await slotd.load("a")
            await slotd.load("b")
            enough = trio.Event()

            async def hammer() -> None:
                while not enough.is_set():
                    answer = await http.post(CHAT, json=ask("gpt"))
                    statuses.append((answer.status_code, answer.headers.get("x-slotd-route", "")))

            async with trio.open_nursery() as nursery:
                for _ in range(6):
                    nursery.start_soon(hammer)
                await eventually(lambda: len(statuses) > 20, "requests before")
                await reload(slotd, {"b": {**b, "aliases": ["gpt"]}})
                seen = len(statuses)
                await eventually(lambda: len(statuses) > seen + 20, "requests after")
                enough.set()
    assert {status for status, _ in statuses} == {200}
    assert statuses[0][1].startswith("slot:a")
    assert statuses[-1][1].startswith("slot:b")


# --- what is refused -------------------------------------------------------------------------------


async def test_a_faulty_file_changes_nothing_and_lists_every_fault(slotd_harness: Start) -> None:
    slots = {"chat": held(7)}
    with trio.fail_after(GUARD_S):
        async with slotd_harness(slots) as slotd, client(slotd) as http:
            wire, body = await stream(slotd, "chat")
            before = (await http.get("/api/routes")).json()
            bad = {"chat": {**slots["chat"], "max_quue": 1}, "b": {"type": "llm", "engine": "llama-cpp"}}
            slotd.rewrite(config_text(bad, server={"max_body_mb": 0}))
            answer = await http.post(RELOAD)
            assert (answer.status_code, code(answer)) == (400, "config.invalid")
            problems = answer.json()["error"]["details"]["problems"]
            assert [p.split(":")[0] for p in problems] == [
                "server.max_body_mb",
                "slots.chat.max_quue",
                "slots.b.model",
            ]
            assert (await http.get("/api/routes")).json() == before
            slotd.file.unlink()
            answer = await http.post(RELOAD)
            assert (answer.status_code, code(answer)) == (400, "config.invalid")
            assert "no such file" in answer.text
            await slotd.fake("chat").set(hang_after_tokens=None)
            async with wire:
                assert words(body + await wire.rest()) == 7
            assert (await reload(slotd, slots))["changed"] is False


async def test_what_needs_a_restart_is_told_and_stays(slotd_harness: Start) -> None:
    slots = {"chat": slot(Knobs(tokens=1))}
    with trio.fail_after(GUARD_S):
        async with slotd_harness(slots) as slotd, client(slotd) as http:
            done = await reload(slotd, slots, server={"event_buffer": 5})
            assert done["needs_restart"] == ["server.event_buffer"]
            assert (await reload(slotd, slots, server={"event_buffer": 5}))["changed"] is True
            assert slotd.slotd.config.server.event_buffer != 5
            assert await content(http, "chat") == "word0"


# --- at the same time as something else -------------------------------------------------------------


async def test_two_reloads_at_once(slotd_harness: Start) -> None:
    slots = {"chat": slot(Knobs(tokens=1))}
    with trio.fail_after(GUARD_S):
        async with slotd_harness(slots) as slotd, client(slotd) as http:
            slotd.rewrite(config_text({**slots, "more": slots["chat"]}))
            found: list[bool] = []

            async def again() -> None:
                found.append((await http.post(RELOAD)).json()["changed"])

            async with trio.open_nursery() as nursery:
                for _ in range(2):
                    nursery.start_soon(again)
            assert sorted(found) == [False, True]
            assert await content(http, "more") == "word0"


@pytest.mark.parametrize("changes", [True, False], ids=["the slot that loads", "another slot"])
async def test_a_reload_during_a_load_loses_no_request(slotd_harness: Start, changes: bool) -> None:
    slow = slot(Knobs(tokens=1, startup_delay_s=0.5))
    slots = {"chat": slow, "more": slot(Knobs(tokens=2))}
    with trio.fail_after(GUARD_S):
        async with slotd_harness(slots) as slotd, client(slotd) as http, trio.open_nursery() as nursery:
            waits = Later(nursery, lambda: content(http, "chat"))
            await slotd.wait_for("chat", "starting")
            changed = "chat" if changes else "more"
            done = await reload(slotd, {**slots, changed: slot(Knobs(tokens=3))})
            assert done["slots"]["relaunched"] == [changed]
            assert await waits.result() in ("word0", "word0 word1 word2")
            expected = "word0 word1 word2" if changes else "word0"
            assert await content(http, "chat") == expected


# --- what requests are served by --------------------------------------------------------------------


async def test_keys_are_exchanged_and_streams_go_on(slotd_harness: Start, tmp_path: Path) -> None:
    slots = {"chat": held(7)}
    keys = tmp_path / "keys"
    keys.write_text("old-key\n")
    keys.chmod(0o600)
    server = {"api_keys_file": "keys"}
    with trio.fail_after(GUARD_S):
        async with slotd_harness(slots, server=server) as slotd:
            wire = await dial(slotd)
            await wire.post(CHAT, ask("chat", stream=True), authorization="Bearer old-key")
            body = await wire.until(b"word2") if (await wire.head()).status == 200 else b""
            keys.write_text("new-key\n")
            async with client(slotd, authorization="Bearer old-key") as http:
                done = await http.post(RELOAD)
                assert done.json()["lines"] == ["~ server.api keys: changed"]
                assert (await http.get("/api/slots")).status_code == 403
                assert (await http.post(RELOAD)).status_code == 403
            async with client(slotd, authorization="Bearer new-key") as http:
                assert (await http.get("/api/slots")).status_code == 200
            await slotd.fake("chat").set(hang_after_tokens=None)
            async with wire:
                assert words(body + await wire.rest()) == 7


async def test_limits_apply_from_the_next_request_on(slotd_harness: Start) -> None:
    slots = {"chat": held(4)}
    with trio.fail_after(GUARD_S):
        async with slotd_harness(slots, server={"max_body_mb": 1}) as slotd, client(slotd) as http:
            big = ask("chat", stream=True, padding="x" * (3 << 19))
            async with await dial(slotd) as refused:
                head = f"POST {CHAT} HTTP/1.1\r\nhost: slotd\r\ncontent-length: {3 << 19}\r\n\r\n"
                await refused.stream.send_all(head.encode())
                assert (await refused.head()).status == 413
            wire, body = await stream(slotd, "chat")
            await reload(slotd, slots, server={"max_body_mb": 2, "idle_timeout_s": 0.2})
            late = await http.post(CHAT, json=big)
            assert late.status_code == 200
            assert "stream.stalled" in late.text or "slot.stalled" in late.text
            # The first one has the limits that it began with.
            assert slotd.snapshot("chat").leases == 1
            await slotd.fake("chat").set(hang_after_tokens=None)
            async with wire:
                assert words(body + await wire.rest()) == 4


async def test_an_upstreams_address_changes(slotd_harness: Start) -> None:
    slots = {"chat": slot(Knobs(tokens=1))}

    def upstream(server: FakeServer) -> str:
        return f'[upstreams.lab]\nurl = "{server.url}/v1"\n[[bindings]]\nmatch = "far"\nupstream = "lab"\n'

    with (
        trio.fail_after(GUARD_S),
        FakeServer(Knobs(tokens=8, hang_after_tokens=3)) as one,
        FakeServer(Knobs(tokens=2)) as two,
    ):
        async with slotd_harness(slots, more=upstream(one)) as slotd, client(slotd) as http:
            wire, body = await stream(slotd, "far")
            await reload(slotd, slots, more=upstream(two))
            assert await content(http, "far") == "word0 word1"
            await one.engine.set(hang_after_tokens=None)
            async with wire:
                assert words(body + await wire.rest()) == 8
            await reload(slotd, slots)
            assert (await http.post(CHAT, json=ask("far"))).status_code == 404


# --- by signal, as a process ----------------------------------------------------------------------------


def config_event(lines: Iterator[str]) -> tuple[str, str]:
    """The next event about the configuration: its kind and its data."""
    end = time.monotonic() + GUARD_S
    for line in lines:
        assert time.monotonic() < end, "no such event"  # comments come in any case
        if line.startswith("event: config."):
            return line.removeprefix("event: config."), next(lines)
    raise AssertionError("the events ended")


def test_a_hang_up_reloads(tmp_path: Path) -> None:
    file = tmp_path / "slotd.toml"
    slots = {"chat": slot(Knobs(tokens=1))}
    server = {"state_dir": str(tmp_path / "state")}
    file.write_text(config_text(slots, server=server))
    with (
        SlotdProcess(file) as slotd,
        httpx.Client(base_url=slotd.url, trust_env=False, timeout=GUARD_S) as http,
        http.stream("GET", "/api/events") as events,
    ):
        lines = events.iter_lines()
        assert next(lines) == "event: snapshot"
        file.write_text(config_text({**slots, "more": slots["chat"]}, server=server))
        slotd.send(signal.SIGHUP)
        kind, told = config_event(lines)
        assert kind == "reloaded"
        assert "+ slots.more" in told
        assert http.post(CHAT, json=ask("more")).status_code == 200
        file.write_text("[server]\nprot = 1\n[slots.x]\n")
        slotd.send(signal.SIGHUP)
        kind, told = config_event(lines)
        assert kind == "refused"
        assert "server.prot" in told
        assert "slots.x.type" in told
        assert http.post(CHAT, json=ask("chat")).status_code == 200
        slotd.send(signal.SIGTERM)
        assert slotd.wait(GUARD_S) == 0
    log = "".join(slotd.output)
    assert "config reloaded" in log
    assert "config refused" in log
