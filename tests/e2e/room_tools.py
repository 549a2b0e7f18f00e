"""What the tests of memory and of devices share: the story that the event bus tells."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import trio
from e2e_tools import GUARD_S

from slotd.events import Event, Gap
from slotd.testing import Harness

QUICK = {"max_wait_s": 10, "turn_hold_s": 0.05}
"""Nobody is driven out of what it uses, and whoever is quiet may go at once."""


def memory(budget_mb: int, **more: Any) -> str:
    """The ``[memory]`` of a config. Nothing is reserved: tests share their machine."""
    lines = [
        f"budget_mb = {budget_mb}",
        "reserve_mb = 0",
        *(f"{key} = {value}" for key, value in more.items()),
    ]
    return "[memory]\n" + "\n".join(lines) + "\n"


async def story(slotd: Harness, *kinds: str) -> list[Event]:
    """All that has happened so far, or what of it is of these kinds."""
    bus = slotd.slotd.bus
    last, told = bus.last_seq, []
    with bus.subscribe(after=0) as events:
        async for event in events:
            assert isinstance(event, Event), "the bus keeps too few events for this test"
            if not kinds or event.kind in kinds:
                told.append(event)
            if event.seq >= last:
                break
    return told


async def heard(slotd: Harness, matches: Callable[[Event], bool]) -> Event:
    """The first event that matches, past or future; give a deadline yourself."""
    with slotd.slotd.bus.subscribe(after=0, match=matches) as events:
        async for event in events:
            assert not isinstance(event, Gap)
            return event
    raise AssertionError("the bus was closed")


def moved(slot: str, to: str) -> Callable[[Event], bool]:
    """Whether an event says that the slot has come into this state."""
    return lambda event: event.kind == "slot.transition" and event.slot == slot and event.data["to"] == to


async def evicted(slotd: Harness) -> list[tuple[str | None, str | None]]:
    """Who was told to leave, and for whom, in order."""
    return [(event.slot, event.data["for"]) for event in await story(slotd, "arbiter.evicting")]


async def most_at_once(slotd: Harness) -> int:
    """The most engines that there were, or may have been, at any moment."""
    there: set[str | None] = set()
    most = 0
    for event in await story(slotd, "slot.transition", "slot.stopped"):
        if event.kind == "slot.stopped":
            there.discard(event.slot)
        elif event.data["to"] == "starting":
            there.add(event.slot)
        most = max(most, len(there))
    return most


def starts(slotd: Harness, *names: str) -> list[int]:
    """How many engines each of these slots has had."""
    return [slotd.snapshot(name).starts for name in names]


async def arbiter_crashed(slotd: Harness) -> None:
    """Have the arbiter's actor crash, by a bug on purpose, and the next one be at work."""
    arbiter, bus = slotd.slotd.arbiter, slotd.slotd.bus
    with trio.fail_after(GUARD_S), bus.subscribe(match=lambda e: e.kind == "actor.crashed") as crashes:
        arbiter.mailbox.post(object())  # type: ignore[arg-type] # that is the bug
        await anext(crashes)
        await arbiter.mailbox.wait_open()
