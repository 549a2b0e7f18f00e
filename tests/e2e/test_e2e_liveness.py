"""Engines that freeze, engines that are merely busy, and engines that come back in time."""

from __future__ import annotations

import signal

import pytest
import trio
from e2e_tools import CHAT, GUARD_S, Later, Start, ask, client, eventually, note

from slotd.events import Event
from slotd.slot.state import SlotState
from slotd.testing import Knobs, fake_slot
from slotd.testing.harness import FakeServer

TIMEOUT_S = 1
DOWN = [s for s in SlotState if s not in (SlotState.READY, SlotState.SERVING, SlotState.IDLE)]


async def test_a_frozen_engine_is_found_and_its_request_answered_by_the_next(slotd_harness: Start) -> None:
    slot = fake_slot(
        Knobs(first_token_delay_s=0.3), default=True, nonstream_cancel="close", liveness_timeout_s=TIMEOUT_S
    )
    with trio.fail_after(GUARD_S):
        async with (
            slotd_harness({"chat": slot}) as slotd,
            client(slotd) as http,
            trio.open_nursery() as nursery,
        ):
            await slotd.load("chat")
            waits = Later(nursery, lambda: http.post(CHAT, json=ask(max_tokens=2)))
            await slotd.fake("chat").wait_active(1)
            began = trio.current_time()
            with slotd.slotd.bus.subscribe(after=0, match=lambda e: e.kind == "slot.fault") as seen:
                slotd.freeze("chat")
                event = await anext(seen)
            took = trio.current_time() - began
            note("frozen engine found", took)
            assert took < TIMEOUT_S + 1
            assert isinstance(event, Event)
            assert event.data["message"] == (
                "no CPU used, no output and no health answer for 1 s (the process is stopped)"
            )
            assert (await waits.result()).status_code == 200
            assert slotd.slotd.records.recent()[0].replays == 1
            assert slotd.snapshot("chat").starts == 2


async def test_a_busy_engine_that_answers_no_health_is_left_alone(slotd_harness: Start) -> None:
    slot = fake_slot(Knobs(burn_cpu=True), liveness_timeout_s=TIMEOUT_S)
    with trio.fail_after(GUARD_S):
        async with slotd_harness({"chat": slot}) as slotd:
            await slotd.load("chat")
            await slotd.fake("chat").set(hang_health=True)
            with trio.move_on_after(3 * TIMEOUT_S) as lived:
                await slotd.wait_for("chat", *DOWN)
            assert lived.cancelled_caught
            assert slotd.snapshot("chat").starts == 1


async def test_the_same_engine_without_work_is_not(slotd_harness: Start) -> None:
    """So that the test above tells something."""
    slot = fake_slot(liveness_timeout_s=TIMEOUT_S)
    with trio.fail_after(GUARD_S):
        async with slotd_harness({"chat": slot}) as slotd:
            await slotd.load("chat")
            await slotd.fake("chat").set(hang_health=True)
            await slotd.wait_for("chat", SlotState.ERROR)
            fault = slotd.snapshot("chat").fault
            assert fault is not None
            assert fault.reason == "hung"
            assert "stopped" not in fault.message


async def test_an_idle_engine_that_answers_lives(slotd_harness: Start) -> None:
    with trio.fail_after(GUARD_S):
        async with slotd_harness({"chat": fake_slot(liveness_timeout_s=0.5)}) as slotd:
            await slotd.load("chat")
            with trio.move_on_after(2) as lived:
                await slotd.wait_for("chat", *DOWN)
            assert lived.cancelled_caught


async def test_one_that_goes_on_in_time_is_forgiven(slotd_harness: Start) -> None:
    slot = fake_slot(Knobs(first_token_delay_s=0.3), default=True, liveness_timeout_s=TIMEOUT_S)
    with trio.fail_after(GUARD_S):
        async with (
            slotd_harness({"chat": slot}) as slotd,
            client(slotd) as http,
            trio.open_nursery() as nursery,
        ):
            await slotd.load("chat")
            waits = Later(nursery, lambda: http.post(CHAT, json=ask(max_tokens=2)))
            await slotd.fake("chat").wait_active(1)
            pid = slotd.freeze("chat")
            with trio.move_on_after(0.7 * TIMEOUT_S) as lived:
                await slotd.wait_for("chat", *DOWN)
            assert lived.cancelled_caught
            slotd.thaw("chat")
            assert (await waits.result()).status_code == 200
            with trio.move_on_after(1.5 * TIMEOUT_S) as lived:
                await slotd.wait_for("chat", *DOWN)
            assert lived.cancelled_caught
            assert slotd.snapshot("chat").pid == pid


@pytest.mark.parametrize("frozen", [True, False])
async def test_an_external_engine_is_judged_by_what_it_answers(slotd_harness: Start, frozen: bool) -> None:
    with FakeServer() as server, trio.fail_after(GUARD_S):
        slot = {
            "type": "llm",
            "engine": "external",
            "url": f"http://{server.engine.host}:{server.engine.port}",
            "health_path": "/health",
            "liveness_timeout_s": TIMEOUT_S,
        }
        async with slotd_harness({"far": slot}) as slotd:
            await slotd.load("far")
            if frozen:
                assert server._process is not None
                server._process.send_signal(signal.SIGSTOP)
                await slotd.wait_for("far", SlotState.ERROR)
                fault = slotd.snapshot("far").fault
                assert fault is not None
                assert fault.message.startswith("no bytes and no health answer for 1 s")
            else:
                with trio.move_on_after(2 * TIMEOUT_S) as lived:
                    await slotd.wait_for("far", *DOWN)
                assert lived.cancelled_caught


async def test_zero_means_never(slotd_harness: Start) -> None:
    with trio.fail_after(GUARD_S):
        async with slotd_harness({"chat": fake_slot(liveness_timeout_s=0)}) as slotd:
            await slotd.load("chat")
            slotd.freeze("chat")
            with trio.move_on_after(1.5) as lived:
                await slotd.wait_for("chat", *DOWN)
            slotd.thaw("chat")
            assert lived.cancelled_caught
            await eventually(lambda: slotd.snapshot("chat").state is SlotState.READY)
