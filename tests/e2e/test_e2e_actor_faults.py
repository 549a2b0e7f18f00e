"""Bugs in slotd's own actors: what they own ends, what they do not own never notices."""

from __future__ import annotations

import json
from collections.abc import Iterator, MutableMapping
from typing import Any

import pytest
import trio
from e2e_tools import (
    CHAT,
    GUARD_S,
    IDLE_S,
    Later,
    Start,
    alive,
    ask,
    client,
    code,
    dial,
    eventually,
    frames,
    note,
)
from structlog.testing import capture_logs

from slotd.engine.backend import EngineBackend
from slotd.testing import Harness, Knobs, fake_slot

ENDLESS = Knobs(tokens=100_000, token_delay_s=0.01)


@pytest.fixture(autouse=True)
def logged() -> Iterator[list[MutableMapping[str, Any]]]:
    """What slotd logs. structlog's own default would take a tenth of a second to draw each traceback."""
    with capture_logs() as entries:
        yield entries


async def crashes(slotd: Harness, count: int) -> list[str]:
    """The actors that crashed, once so many have."""
    names: list[str] = []
    with slotd.slotd.bus.subscribe(after=0, match=lambda e: e.kind == "actor.crashed") as seen:
        while len(names) < count:
            event = await anext(seen)
            names.append(str(getattr(event, "data", {})["actor"]))
    return names


async def test_a_slots_crash_is_its_own(slotd_harness: Start, logged: list[MutableMapping[str, Any]]) -> None:
    slots = {
        "a": fake_slot(ENDLESS, max_parallel=1, aliases=["one"]),
        "b": fake_slot(Knobs(tokens=60, token_delay_s=0.01)),
    }
    with trio.fail_after(GUARD_S):
        async with (
            slotd_harness(slots) as slotd,
            client(slotd) as http,
            trio.open_nursery() as nursery,
            await dial(slotd) as on_a,
        ):
            pid = (await slotd.load("a")).pid
            await slotd.load("b")
            beside = Later(nursery, lambda: http.post(CHAT, json=ask("b", stream=True)))
            await slotd.fake("b").wait_active(1)
            await on_a.post(CHAT, ask("a", stream=True))
            await on_a.head()
            await on_a.until(b"word2")
            waits = Later(nursery, lambda: http.post(CHAT, json=ask("a")))
            await eventually(lambda: slotd.snapshot("a").queued == 1)

            began = trio.current_time()
            slotd.crash_actor("a")
            refused = await waits.result()
            note("503 to a waiter of a crashed actor", trio.current_time() - began)
            assert (refused.status_code, code(refused)) == (503, "internal.actor_gone")
            assert "retry-after" in refused.headers
            last = frames(await on_a.rest())[-1]
            note("stream over a crashed actor's engine ended", trio.current_time() - began)
            assert trio.current_time() - began < IDLE_S
            assert (last.event, last.error["code"]) == ("error", "slot.engine_lost")
            assert pid is not None
            await eventually(lambda: not alive(pid))
            note("engine of a crashed actor gone", trio.current_time() - began)
            assert await crashes(slotd, 1) == ["slot a"]
            assert [e["actor"] for e in logged if e["event"] == "actor crashed"] == ["slot a"]

            whole = await beside.result()
            assert whole.content.count(b'"content":" word') == 59
            assert whole.content.endswith(b"data: [DONE]\n\n")
            assert slotd.snapshot("b").starts == 1

            again = await http.post(CHAT, json=ask("a", max_tokens=1))
            assert again.status_code == 200
            assert slotd.snapshot("a").starts == 2


async def test_a_crash_while_it_loads(slotd_harness: Start) -> None:
    with trio.fail_after(GUARD_S):
        async with (
            slotd_harness({"a": fake_slot(Knobs(load_delay_s=60))}) as slotd,
            client(slotd) as http,
            trio.open_nursery() as nursery,
        ):
            waiters = [Later(nursery, lambda: http.post(CHAT, json=ask("a", stream=True))) for _ in range(3)]
            await eventually(lambda: slotd.snapshot("a").queued == 3)
            pid = (await slotd.wait_for("a", "warming")).pid
            slotd.crash_actor("a")
            for waiter in waiters:
                assert code(await waiter.result()) == "internal.actor_gone"
            assert pid is not None
            await eventually(lambda: not alive(pid))
            shown = (await http.get("/api/slots/a")).json()
            assert (shown["state"], shown["fault"]["reason"]) == ("error", "actor_crashed")


@pytest.mark.parametrize("child", ["await_ready", "plan"])
async def test_a_bug_in_a_child_is_the_actors(
    slotd_harness: Start, monkeypatch: pytest.MonkeyPatch, child: str
) -> None:
    def bug(*args: object, **kwargs: object) -> None:
        raise RuntimeError("a bug on purpose")

    with trio.fail_after(GUARD_S):
        async with (
            slotd_harness({"a": fake_slot(), "b": fake_slot()}) as slotd,
            client(slotd) as http,
        ):
            with monkeypatch.context() as patched:
                patched.setattr(EngineBackend, child, bug)
                refused = await http.post(CHAT, json=ask("a"))
                assert (refused.status_code, code(refused)) == (503, "internal.actor_gone")
            assert (await http.post(CHAT, json=ask("b"))).status_code == 200
            await eventually(lambda: slotd.slotd.slots.mailbox("a").is_open)
            assert (await http.post(CHAT, json=ask("a"))).status_code == 200


async def test_a_slot_whose_actor_keeps_crashing_is_parked_alone(slotd_harness: Start) -> None:
    with trio.fail_after(GUARD_S):
        async with slotd_harness({"a": fake_slot(), "b": fake_slot()}) as slotd, client(slotd) as http:
            for number in range(1, 7):
                await slotd.slotd.slots.mailbox("a").wait_open()
                slotd.crash_actor("a")
                await crashes(slotd, number)
            began = trio.current_time()
            answer = await http.post(CHAT, json=ask("a"))
            note("503 of a slot whose actor is parked", trio.current_time() - began)
            assert (answer.status_code, code(answer)) == (503, "internal.actor_gone")
            assert code(await http.post("/api/slots/a/load")) == "internal.actor_gone"
            assert (await http.get("/api/slots/a")).json()["state"] == "error"
            assert (await http.post(CHAT, json=ask("b"))).status_code == 200


async def test_the_dispatchers_crash_ends_no_stream(slotd_harness: Start) -> None:
    with trio.fail_after(GUARD_S):
        async with (
            slotd_harness({"a": fake_slot(ENDLESS, default=True)}) as slotd,
            client(slotd) as http,
            await dial(slotd) as wire,
        ):
            await wire.post(CHAT, ask(stream=True))
            await wire.head()
            await wire.until(b"word1")
            slotd.crash_dispatcher()
            assert await crashes(slotd, 1) == ["dispatcher"]
            await slotd.slotd.dispatcher.mailbox.wait_open()
            again = await http.post(CHAT, json=ask("slotd/a", max_tokens=1))
            assert again.status_code == 200
            await wire.until(b"word20")
            assert slotd.snapshot("a").starts == 1
            rules = json.loads((await http.get("/api/routes")).content)["routes"]
            assert rules


async def test_requests_at_the_moment_of_the_dispatchers_crash_are_answered(slotd_harness: Start) -> None:
    with trio.fail_after(GUARD_S):
        async with (
            slotd_harness({"a": fake_slot(Knobs(tokens=1), default=True)}) as slotd,
            client(slotd) as http,
            trio.open_nursery() as nursery,
        ):
            await slotd.load("a")
            answers = []
            for _ in range(12):
                answers.append(Later(nursery, lambda: http.post(CHAT, json=ask())))
                await trio.lowlevel.checkpoint()
            slotd.crash_dispatcher()
            for answer in answers:
                got = await answer.result()
                assert got.status_code == 200 or code(got) == "internal.actor_gone"
