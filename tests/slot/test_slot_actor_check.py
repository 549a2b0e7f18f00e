"""The slot's actor and the check of its engine's output: what is found, and what it gives way to."""

from __future__ import annotations

import dataclasses

import pytest
import trio
from slot_fakes import SPEC, FakeBackend, House, in_house
from trio.testing import MockClock, wait_all_tasks_blocked

from slotd.errors import OutputSanityFailed
from slotd.slot.backend import Finding
from slotd.slot.state import SlotState

S = SlotState
CHECKED = dataclasses.replace(SPEC, check_output=True, idle_after_s=0, ttl_s=0)
WORDS = Finding(True, "Rome")
GARBAGE = Finding(False, "!!!!!!!!", "one character over and over ('!!!!!!!!')")


def finds(*findings: Finding, check_s: float = 1.0) -> FakeBackend:
    backend = FakeBackend()
    backend.findings = list(findings)
    backend.check_s = check_s
    return backend


@pytest.mark.parametrize(
    ("backend", "checked"),
    [
        (finds(WORDS), "ok"),
        (finds(Finding(None, why="status 500")), "unknown"),
        (finds(), "unknown"),
        (finds(WORDS, check_s=1e6), "unknown"),
    ],
    ids=["words", "cannot tell", "not looked at", "for ever"],
)
async def test_only_garbage_condemns(autojump_clock: MockClock, backend: FakeBackend, checked: str) -> None:
    async def test(house: House) -> None:
        await house.slots.load("chat")
        await trio.sleep(100)
        assert house.now().checked == checked
        assert house.now().state in (S.READY, S.IDLE)
        assert house.backend.checks == 1

    await in_house(test, backend, spec=CHECKED)


async def test_garbage_takes_the_slot_out_and_says_why(autojump_clock: MockClock) -> None:
    async def test(house: House) -> None:
        await house.slots.load("chat")
        snapshot = await house.wait_state(S.ERROR)
        assert snapshot.fault is not None
        assert snapshot.fault.reason == "output_sanity_failed"
        assert GARBAGE.why is not None
        assert GARBAGE.why in snapshot.fault.message
        refused = await house.use("r")
        assert isinstance(refused, OutputSanityFailed)
        assert len(house.backend.engines) == 1, "a request does not start it again"

    await in_house(test, finds(GARBAGE), spec=CHECKED)


async def test_a_request_is_not_kept_waiting_by_the_check_and_the_check_comes_back(
    autojump_clock: MockClock,
) -> None:
    async def test(house: House) -> None:
        await house.slots.load("chat")
        await trio.sleep(5)
        assert house.backend.checks == 1
        began = trio.current_time()
        await house.slots.acquire("chat", "r")
        assert trio.current_time() - began < 0.1
        await wait_all_tasks_blocked()
        assert not house.backend.checking, "an engine has better things to do than what nobody waits for"
        await trio.sleep(20)
        assert house.now().checked == "due", "what was cut short says nothing"
        house.slots.release("chat", "r")
        await trio.sleep(15)
        assert house.backend.checks == 2
        assert house.now().checked == "ok"

    await in_house(test, finds(WORDS, WORDS, check_s=10), spec=CHECKED)


async def test_an_engine_that_goes_ends_the_check(autojump_clock: MockClock) -> None:
    async def test(house: House) -> None:
        await house.slots.load("chat")
        await trio.sleep(5)
        await house.slots.unload("chat")
        assert house.now().state is S.OFFLINE
        await trio.sleep(100)
        assert house.now().checked == ""
        assert house.backend.checks == 1

    await in_house(test, finds(GARBAGE, check_s=10), spec=CHECKED)
