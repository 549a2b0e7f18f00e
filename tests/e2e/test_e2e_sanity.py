"""An engine that is up and well and writes no words is taken out of service, and says why."""

from __future__ import annotations

import pytest
import trio
from e2e_tools import CHAT, GUARD_S, Start, ask, client, code, eventually

from slotd.slot.state import SlotState
from slotd.testing import Knobs, fake_slot


@pytest.mark.parametrize(
    ("garbage", "why"), [("text", "one character over and over"), ("empty", "no text at all")]
)
async def test_garbage_is_an_error_until_somebody_tries_again(
    slotd_harness: Start, garbage: str, why: str
) -> None:
    slot = fake_slot(Knobs(garbage=garbage), default=True, check_output=True)  # type: ignore[arg-type] # a parameter
    with trio.fail_after(GUARD_S):
        async with slotd_harness({"chat": slot}) as slotd, client(slotd) as http:
            for starts in (1, 2):
                await http.post("/api/slots/chat/load")
                snapshot = await slotd.wait_for("chat", SlotState.ERROR)
                assert snapshot.fault is not None
                assert snapshot.fault.reason == "output_sanity_failed"
                assert f"the engine writes no words: {why}" in snapshot.fault.message
                answer = await http.post(CHAT, json=ask())
                assert (answer.status_code, code(answer)) == (500, "slot.output_sanity_failed")
                assert why in answer.json()["error"]["message"]
                assert snapshot.starts == starts, "only a load by hand starts it again"
                row = (await http.get("/api/slots/chat")).json()
                assert row["checked"].startswith("failed")


async def test_words_are_found_good_by_one_request(slotd_harness: Start) -> None:
    slot = fake_slot(Knobs(tokens=16), default=True, check_output=True)
    with trio.fail_after(GUARD_S):
        async with slotd_harness({"chat": slot}) as slotd, client(slotd) as http:
            await slotd.load("chat")
            await eventually(lambda: slotd.snapshot("chat").checked == "ok")
            stats = await slotd.fake("chat").stats()
            assert stats["started"] == 1
            assert (await http.get("/api/slots/chat")).json()["checked"] == "ok"
            assert not slotd.slotd.records.recent(), "the check is nobody's request"


@pytest.mark.parametrize("knobs", [Knobs(garbage="sse"), Knobs(garbage="http"), Knobs(error_status=500)])
async def test_what_tells_nothing_condemns_nobody(slotd_harness: Start, knobs: Knobs) -> None:
    with trio.fail_after(GUARD_S):
        async with slotd_harness({"chat": fake_slot(knobs, check_output=True)}) as slotd:
            await slotd.load("chat")
            await eventually(lambda: slotd.snapshot("chat").checked == "unknown")
            assert slotd.snapshot("chat").state is SlotState.READY


async def test_a_slot_that_is_not_checked_is_not_asked(slotd_harness: Start) -> None:
    with trio.fail_after(GUARD_S):
        async with slotd_harness({"chat": fake_slot(default=True)}) as slotd, client(slotd) as http:
            await slotd.load("chat")
            assert (await http.post(CHAT, json=ask())).status_code == 200
            assert (await slotd.fake("chat").stats())["started"] == 1
            assert slotd.snapshot("chat").checked == ""
