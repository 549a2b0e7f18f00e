"""What the log tells of what happens."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import structlog
import trio
from structlog.testing import capture_logs
from trio.testing import MockClock, wait_all_tasks_blocked

from slotd import logs
from slotd.events import EventBus, types
from slotd.narrator import GAPS_EVERY_S, NARRATE_S, REQUESTS_AT_ONCE, Narrator

DONE = {
    "id": "req-1",
    "path": "/v1/completions",
    "model": "m",
    "target": "slot:chat",
    "status": 200,
    "outcome": "ok",
    "error": None,
    "tokens_out": None,
    "total_s": 0.12345,
}


@pytest.fixture(autouse=True)
def _everything_is_said() -> Iterator[None]:
    """Whatever other tests have made of it."""
    before = structlog.get_config()
    logs.set_level("info")
    yield
    structlog.configure(**before)
    logs.set_level("info")


async def test_what_happens_together_is_told_together(autojump_clock: MockClock) -> None:
    bus = EventBus(100)
    with capture_logs() as lines:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Narrator(bus, 10, lambda: 3).run)
            await wait_all_tasks_blocked()
            bus.publish(types.SLOT_LOADED, {"model": "m", "load_s": 1.234}, slot="chat")
            bus.publish(types.REQUEST_STARTED, {"id": "req-1"})
            bus.publish(types.REQUEST_FINISHED, DONE)
            assert lines == []
            await trio.sleep(2 * NARRATE_S)
            assert [line["event"] for line in lines] == ["loaded", "request"]
            assert lines[1]["total_s"] == 0.123
            assert "error" not in lines[1]
            bus.publish(types.SERVER_STOPPING, {})
            nursery.cancel_scope.cancel()
        assert lines[2]["live"] == 3, "what happened last is told too"


async def test_who_cannot_keep_up_says_so(autojump_clock: MockClock) -> None:
    bus = EventBus(100)
    with capture_logs() as lines:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Narrator(bus, 4, lambda: 0).run)
            await wait_all_tasks_blocked()
            for _ in range(10):
                bus.publish(types.REQUEST_FINISHED, DONE)
            await trio.sleep(2 * NARRATE_S)
            nursery.cancel_scope.cancel()
    assert [line["event"] for line in lines].count("request") == 4
    assert [line["missed"] for line in lines if "missed" in line] == [6]


async def test_of_a_burst_some_are_told_and_how_many_were_not(autojump_clock: MockClock) -> None:
    bus, failed = EventBus(1000), {**DONE, "outcome": "error", "error": "slot.queue_full"}
    with capture_logs() as lines:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Narrator(bus, 1000, lambda: 0).run)
            await wait_all_tasks_blocked()
            for burst in (80, 30):
                for _ in range(burst):
                    bus.publish(types.REQUEST_FINISHED, DONE)
                bus.publish(types.REQUEST_FINISHED, failed)
                await trio.sleep(2 * NARRATE_S)
            assert [line["outcome"] for line in lines if line["event"] == "request"].count("error") == 2
            await trio.sleep(GAPS_EVERY_S)
            missed = [line["missed"] for line in lines if "missed" in line]
            assert missed == [80 - REQUESTS_AT_ONCE, 30 - REQUESTS_AT_ONCE], "though nothing more happens"
            for _ in range(REQUESTS_AT_ONCE + 1):
                bus.publish(types.REQUEST_FINISHED, DONE)
            nursery.cancel_scope.cancel()
    assert lines[-1]["missed"] == 1, "at the end, too"


async def test_below_the_level_requests_take_no_room(autojump_clock: MockClock) -> None:
    bus = EventBus(100)
    logs.set_level("warning")
    with capture_logs() as lines:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Narrator(bus, 1, lambda: 0).run)
            await wait_all_tasks_blocked()
            bus.publish(types.SLOT_FAULT, {"reason": "oom", "message": "no memory"}, slot="chat")
            bus.publish(types.REQUEST_FINISHED, DONE)
            await trio.sleep(2 * NARRATE_S)
            nursery.cancel_scope.cancel()
    assert [line["event"] for line in lines] == ["fault"]


def test_any_line_can_be_written_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info")
    log = structlog.get_logger("slotd")
    log.info("said", text="\udcff", value=float("nan"), thing=object)
    log.info("said", text="ü")
    first, second = capsys.readouterr().err.splitlines()
    assert "\\udcff" in first
    assert '"text": "\\u00fc"' in second
