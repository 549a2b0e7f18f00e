"""Memory that does not suffice for all: who may load, who has to go, and what nobody notices of it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
from e2e_tools import CHAT, GUARD_S, Later, Start, alive, ask, client, code, dial, eventually, note
from room_tools import (
    QUICK,
    arbiter_crashed,
    evicted,
    heard,
    memory,
    most_at_once,
    moved,
    starts,
    story,
)
from structlog.testing import capture_logs

from slotd.testing import Harness, Knobs, fake_slot

ENDLESS = Knobs(tokens=100_000, token_delay_s=0.01)
BRIEF = Knobs(tokens=3, token_delay_s=0.01)
AT_ONCE = {"max_wait_s": 10, "turn_hold_s": 0}
HELD = {"max_wait_s": 10, "turn_hold_s": 10}
SLACK_S = 1.0
"""For two processors that many tests share."""


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Keeps what slotd logs to itself; structlog's own default takes long to draw a traceback."""
    with capture_logs():
        yield


def slot(knobs: Knobs = BRIEF, **settings: Any) -> dict[str, Any]:
    """A slot that says it takes 60 MiB, of which the fake engine takes less."""
    return fake_slot(knobs, **{"memory_mb": 60, **settings})


ONE, TWO, THREE = memory(100), memory(150), memory(200)
"""Room for so many of them."""


def why(slotd: Harness, name: str) -> str:
    """What a slot's load waits for."""
    return slotd.slotd.arbiter.waits_for(name)


async def chat(http: httpx.AsyncClient, model: str, **more: Any) -> httpx.Response:
    return await http.post(CHAT, json=ask(model, **more))


def spawned_at(pid: int) -> float:
    """When a process was spawned, on CLOCK_BOOTTIME; up to a clock tick (10 ms) later than it was."""
    with open(f"/proc/{pid}/stat") as file:
        ticks = int(file.read().rpartition(")")[2].split()[19])
    return (ticks + 1) / os.sysconf("SC_CLK_TCK")


# --- turns ----------------------------------------------------------------------------


async def test_alternating_clients_swap_once_per_max_wait(slotd_harness: Start) -> None:
    max_wait_s, for_s = 1.0, 4.0
    slots = {name: slot(max_parallel=2) for name in ("a", "b")}
    server = {"max_wait_s": max_wait_s, "turn_hold_s": 0.05}
    answers: list[int] = []

    async def insist(http: httpx.AsyncClient, model: str, until: float) -> None:
        while trio.current_time() < until:
            answers.append((await chat(http, model)).status_code)

    with trio.fail_after(GUARD_S):
        async with slotd_harness(slots, server=server, more=ONE) as slotd, client(slotd) as http:
            began = trio.current_time()
            async with trio.open_nursery() as nursery:
                for model in ("a", "b", "a", "b"):
                    nursery.start_soon(insist, http, model, began + for_s)
            took = trio.current_time() - began
            assert set(answers) == {200}
            loads = [e.data["load_s"] for e in await story(slotd, "slot.loaded")]
            waits = [r.wait_s or 0.0 for r in slotd.slotd.records.recent()]
            note(f"{len(answers)} answers, {len(loads)} loads in {took:.1f} s; the longest wait", max(waits))
            note("the longest load", max(loads))
            assert 3 <= sum(starts(slotd, "a", "b")) <= took / max_wait_s + 2
            assert max(waits) <= max_wait_s + max(loads) + SLACK_S
            assert await most_at_once(slotd) == 1


async def test_abcabc_is_three_loads(slotd_harness: Start) -> None:
    slots = {name: slot(max_parallel=1) for name in "abc"}
    with trio.fail_after(GUARD_S):
        async with (
            slotd_harness(slots, server=QUICK, more=ONE) as slotd,
            client(slotd) as http,
            trio.open_nursery() as nursery,
        ):
            answers = []
            for number, name in enumerate("abcabc"):
                answers.append(Later(nursery, partial(chat, http, name)))
                await eventually(lambda n=number: slotd.slotd.records.live_count > n)  # type: ignore[misc]
            assert [(await a.result()).status_code for a in answers] == [200] * 6
            loaded = [e.slot for e in await story(slotd, "slot.loaded")]
            assert loaded == ["a", "b", "c"]
            assert starts(slotd, *"abc") == [1, 1, 1]


async def test_the_next_engine_is_spawned_when_the_last_is_gone(slotd_harness: Start) -> None:
    """Its death takes half a second, and its memory is real."""
    stubborn = Knobs(tokens=1, refuse_sigterm=True, memory_mb=100)
    slots = {
        "a": slot(stubborn, stop_timeout_s=0.5, memory_mb=140),
        "b": slot(memory_mb=140),
    }
    died: list[float] = []

    async def watch_end(pid: int, *, task_status: trio.TaskStatus[None]) -> None:
        fd = os.pidfd_open(pid)
        try:
            task_status.started()
            await trio.lowlevel.wait_readable(fd)
            died.append(time.clock_gettime(time.CLOCK_BOOTTIME))
        finally:
            os.close(fd)

    with trio.fail_after(GUARD_S):
        async with (
            slotd_harness(slots, server=QUICK, more=memory(200)) as slotd,
            client(slotd) as http,
            trio.open_nursery() as nursery,
        ):
            first = (await slotd.load("a")).pid
            assert first is not None
            await nursery.start(watch_end, first)
            assert (await chat(http, "b")).status_code == 200
            second = slotd.snapshot("b").pid
            assert not alive(first)
            assert second is not None
            between = spawned_at(second) - died[0]
            note("the next engine was spawned after the last one's end", between)
            assert between >= 0
            told = await story(
                slotd, "slot.transition", "slot.stopped", "arbiter.evicting", "arbiter.released"
            )
            order = [
                (e.kind, e.slot)
                for e in told
                if e.kind != "slot.transition" or (e.slot == "b" and e.data["to"] == "starting")
            ]
            assert order == [
                ("arbiter.evicting", "a"),
                ("slot.stopped", "a"),
                ("arbiter.released", "a"),
                ("slot.transition", "b"),
            ]
            released = next(e.data for e in told if e.kind == "arbiter.released")
            assert (released["for"], released["seen"]) == ("b", True)
            assert released["ram_mb"] >= 100


# --- who goes -------------------------------------------------------------------------


async def test_who_goes_first_is_of_low_priority_then_longest_unused(slotd_harness: Start) -> None:
    slots = {
        name: slot(priority=10 if name == "low" else 50) for name in ("old", "new", "low", "next", "last")
    }
    with trio.fail_after(GUARD_S):
        async with slotd_harness(slots, server=AT_ONCE, more=THREE) as slotd, client(slotd) as http:
            # "old" is loaded last of them and used first.
            for name in ("new", "low", "old", "new", "low"):
                assert (await chat(http, name)).status_code == 200
                await slotd.wait_for(name, "ready")
            assert (await chat(http, "next")).status_code == 200
            assert await evicted(slotd) == [("low", "next")]
            assert (await chat(http, "last")).status_code == 200
            assert await evicted(slotd) == [("low", "next"), ("old", "last")]
            assert starts(slotd, "old", "new", "low", "next", "last") == [1] * 5


async def test_leased_and_pinned_stay(slotd_harness: Start) -> None:
    slots = {"kept": slot(pinned=True), "busy": slot(ENDLESS), "more": slot()}
    server = {**AT_ONCE, "max_wait_s": 0.3}
    with trio.fail_after(GUARD_S):
        async with (
            slotd_harness(slots, server=server, more=TWO) as slotd,
            client(slotd) as http,
            trio.open_nursery() as nursery,
        ):
            await slotd.load("kept")
            await slotd.load("busy")
            async with await dial(slotd) as wire:
                await wire.post(CHAT, ask("busy", stream=True))
                await wire.head()
                waits = Later(nursery, partial(chat, http, "more"))
                await eventually(lambda: why(slotd, "more").startswith("waits for memory: 'busy' is in use"))
                # It is told to take no more when the other has waited long enough. It is not cut.
                await heard(slotd, lambda e: e.kind == "arbiter.evicting")
                refused = Later(nursery, partial(chat, http, "busy", max_tokens=1))
                await eventually(lambda: slotd.snapshot("busy").queued == 1)
                for word in (b"word80", b"word120"):
                    await wire.until(word)
                assert slotd.snapshot("busy").leases == 1
                assert not waits.done
                assert slotd.snapshot("more").starts == 0
                row = (await http.get("/api/slots/more")).json()
                assert row["blocked"].startswith("waits")
                assert "'busy'" in row["blocked"], "the arbiter's words, which say for whom"
                [waiting] = (await http.get("/api/memory")).json()["waiting"]
                assert waiting["slot"] == "more"
                assert "'busy'" in waiting["why"]
            assert (await waits.result()).status_code == 200
            # Who waited at the one that had to leave was not forgotten.
            assert (await refused.result()).status_code == 200
            assert [slot for slot, _ in await evicted(slotd)] == ["busy", "more"]
            assert starts(slotd, "kept", "busy", "more") == [1, 2, 1]


# --- and comes back ---------------------------------------------------------------------


async def test_the_victim_of_a_load_that_fails_is_back(slotd_harness: Start) -> None:
    slots = {"good": slot(), "bad": slot(Knobs(crash_at_start=True, last_words="no such file"))}
    with trio.fail_after(GUARD_S):
        async with slotd_harness(slots, server=QUICK, more=ONE) as slotd, client(slotd) as http:
            assert (await chat(http, "good")).status_code == 200
            began = trio.current_time()
            answer = await chat(http, "bad")
            assert (answer.status_code, code(answer)) == (502, "slot.load_failed")
            await slotd.wait_for("good", "starting", "warming", "ready")
            await slotd.wait_for("good", "ready")
            note("the victim of a failed load is ready again", trio.current_time() - began)
            assert await evicted(slotd) == [("good", "bad")]
            assert starts(slotd, "good", "bad") == [2, 1]
            assert await most_at_once(slotd) == 1
            assert (await chat(http, "good")).status_code == 200
            assert starts(slotd, "good") == [2]


async def test_the_victim_of_a_load_that_nobody_wants_any_more_is_back(slotd_harness: Start) -> None:
    slots = {
        "good": slot(Knobs(tokens=1, refuse_sigterm=True), stop_timeout_s=0.5),
        "other": slot(),
    }
    with trio.fail_after(GUARD_S):
        async with slotd_harness(slots, server=QUICK, more=ONE) as slotd:
            await slotd.load("good")
            async with await dial(slotd) as wire:
                await wire.post(CHAT, ask("other"))
                await slotd.wait_for("good", "unloading")
            await heard(slotd, moved("good", "offline"))
            await slotd.wait_for("good", "ready")
            assert await evicted(slotd) == [("good", "other")]
            assert starts(slotd, "good", "other") == [2, 0]
            assert slotd.slotd.arbiter.snapshot.waiting == ()


async def test_what_never_fits_is_refused_at_once(slotd_harness: Start) -> None:
    slots = {
        "good": slot(),
        "huge": slot(memory_mb=0),
        "kept": slot(pinned=True),
        "half": slot(memory_mb=120),
    }
    with trio.fail_after(GUARD_S):
        async with slotd_harness(slots, server=QUICK, more=TWO) as slotd, client(slotd) as http:
            await slotd.load("good")
            await slotd.load("kept")
            began = trio.current_time()
            answer = await chat(http, "huge")  # nobody knows how large it is: 512 MiB
            note("507 for what never fits", trio.current_time() - began)
            assert trio.current_time() - began < SLACK_S
            assert (answer.status_code, code(answer)) == (507, "slot.out_of_memory")
            error = answer.json()["error"]
            assert "512 MiB" in error["message"]
            assert "150 MiB" in error["message"]
            assert error["details"]["need"] == {"ram_mb": 512, "gpu_mb": 0, "source": "unknown"}
            assert error["details"]["budget"]["ram_mb"] == 150
            assert error["details"]["short"]["ram_mb"] == 512 - 150 + 60  # what is pinned cannot be had
            assert "retry-after" not in answer.headers
            # This one would fit, were it not for the pinned one.
            answer = await chat(http, "half")
            assert (answer.status_code, code(answer)) == (507, "slot.out_of_memory")
            assert "'kept'" in answer.json()["error"]["message"]
            assert await evicted(slotd) == []
            assert starts(slotd, "good", "kept", "huge", "half") == [1, 1, 0, 0]


async def test_loads_that_fit_beside_one_another_run_so(slotd_harness: Start) -> None:
    slots = {name: slot(Knobs(tokens=1, load_delay_s=0.6)) for name in "abc"}
    with trio.fail_after(GUARD_S):
        async with (
            slotd_harness(slots, server=QUICK, more=TWO) as slotd,
            client(slotd) as http,
            trio.open_nursery() as nursery,
        ):
            answers = [Later(nursery, partial(chat, http, name)) for name in "ab"]
            await slotd.wait_for("a", "starting", "warming")
            answers.append(Later(nursery, partial(chat, http, "c")))
            await slotd.wait_for("a", "warming")
            await slotd.wait_for("b", "warming")
            assert slotd.snapshot("a").state == "warming"
            assert slotd.snapshot("c").state == "offline"
            assert slotd.snapshot("c").blocked
            assert [(await a.result()).status_code for a in answers] == [200] * 3
            assert await most_at_once(slotd) == 2
            assert len(await evicted(slotd)) == 1


# --- what is learned ---------------------------------------------------------------------


async def test_what_was_measured_replaces_the_estimate_and_is_kept(
    slotd_harness: Start, tmp_path: Path
) -> None:
    """Of these engines nothing is known at first, so that they are taken for larger than they are."""
    slots = {name: fake_slot(Knobs(tokens=1, memory_mb=80), memory_mb=0) for name in "ab"}
    room = memory(900)  # for one that is not known, and one that is

    def held(slotd: Harness, name: str) -> tuple[str, int]:
        found = next(h for h in slotd.slotd.arbiter.snapshot.held if h.slot == name)
        return found.need.source, found.need.ram_mb

    with trio.fail_after(GUARD_S):
        async with (
            slotd_harness(slots, server=HELD, more=room) as slotd,
            client(slotd) as http,
            trio.open_nursery() as nursery,
        ):
            await slotd.load("a")
            source, guessed = held(slotd, "a")
            assert (source, guessed > 450) == ("unknown", True)
            waits = Later(nursery, partial(chat, http, "b"))
            await eventually(lambda: why(slotd, "b") != "")
            await eventually(lambda: held(slotd, "a")[0] == "measured", within_s=5)
            learned = held(slotd, "a")[1]
            assert 80 <= learned < 200
            assert (await http.get("/api/slots/a")).json()["ram_mb"] == learned
            # Now there is room for both.
            assert (await waits.result()).status_code == 200
            assert await evicted(slotd) == []
        kept = json.loads((tmp_path / "state" / "footprints.json").read_text())
        assert [entry["ram_mb"] for entry in kept["footprints"].values()].count(learned) >= 1

        # The next slotd knows it before it has started any.
        async with slotd_harness(slots, server=QUICK, more=room) as slotd:
            await slotd.load("a")
            assert held(slotd, "a") == ("measured", learned)


# --- without an arbiter ------------------------------------------------------------------


async def test_a_crash_of_the_arbiter_costs_nobody_anything(slotd_harness: Start) -> None:
    slots = {name: slot(max_parallel=2) for name in "abc"}
    server = {"max_wait_s": 0.3, "turn_hold_s": 0.02}
    answers: list[int] = []

    async def insist(http: httpx.AsyncClient, model: str, times: int) -> None:
        for _ in range(times):
            answers.append((await chat(http, model)).status_code)

    with trio.fail_after(GUARD_S):
        async with slotd_harness(slots, server=server, more=TWO) as slotd, client(slotd) as http:
            over: list[str] = []

            async def watch_room() -> None:
                cell = slotd.slotd.arbiter.changes
                while True:
                    seen = cell.version
                    if cell.value.reserved.ram_mb > 150:
                        over.append(str(cell.value))
                    await cell.wait_change(seen)

            async with trio.open_nursery() as outer:
                outer.start_soon(watch_room)
                async with trio.open_nursery() as nursery:
                    for model in "abcabc":
                        nursery.start_soon(insist, http, model, 8)
                    await heard(slotd, moved("a", "serving"))
                    await arbiter_crashed(slotd)
                    await heard(slotd, moved("c", "starting"))
                    await arbiter_crashed(slotd)
                outer.cancel_scope.cancel()
            assert answers == [200] * 48
            assert over == []
            assert await most_at_once(slotd) <= 2
            # No engine was ended but by those who were told to make room.
            reasons = {e.data["reason"] for e in await story(slotd, "slot.fault")}
            assert reasons == set()


async def test_an_arbiter_that_crashes_leaves_engines_alone(slotd_harness: Start) -> None:
    slots = {"a": slot(ENDLESS), "b": slot()}
    with trio.fail_after(GUARD_S):
        async with (
            slotd_harness(slots, server=QUICK, more=ONE) as slotd,
            client(slotd) as http,
            trio.open_nursery() as nursery,
        ):
            pid = (await slotd.load("a")).pid
            async with await dial(slotd) as wire:
                await wire.post(CHAT, ask("a", stream=True))
                await wire.head()
                await wire.until(b"word3")
                waits = Later(nursery, partial(chat, http, "b"))
                await eventually(lambda: bool(slotd.snapshot("b").blocked))
                for _ in range(2):
                    await arbiter_crashed(slotd)
                    await eventually(lambda: not slotd.slotd.arbiter.snapshot.resyncing)
                snapshot = slotd.slotd.arbiter.snapshot
                assert [(h.slot, h.need.ram_mb) for h in snapshot.held] == [("a", 60)]
                assert [w.slot for w in snapshot.waiting] == ["b"]
                await wire.until(b"word9")
                assert slotd.snapshot("a").pid == pid
            assert (await waits.result()).status_code == 200
            assert starts(slotd, "a", "b") == [1, 1]
            assert await most_at_once(slotd) == 1
