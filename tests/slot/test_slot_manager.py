"""The manager: names, reads that wait for nobody, and watching a slot."""

from __future__ import annotations

import pytest
import trio
from slot_fakes import FakeBackend, House, Script, in_house
from trio.testing import MockClock

from slotd.errors import ActorGone, SlotNotFound
from slotd.events import Event, EventBus
from slotd.slot.actor import SlotIdentity
from slotd.slot.lease import Lease
from slotd.slot.machine import SlotSpec
from slotd.slot.manager import SlotManager
from slotd.slot.state import SlotState

S = SlotState


async def test_observe_sees_every_transition_in_order(autojump_clock: MockClock) -> None:
    seen: list[tuple[str, str]] = []

    async def test(house: House) -> None:
        with house.slots.observe("chat") as transitions:
            await house.use("r")
            await house.wait_state(S.READY)
            await house.slots.unload("chat")
            await house.use("r", name="embed")  # another slot's are not among them
            with trio.move_on_after(0.001):
                async for event in transitions:
                    assert isinstance(event, Event)
                    seen.append((event.data["from"], event.data["to"]))

    await in_house(test, FakeBackend(), FakeBackend())
    assert seen == [
        ("offline", "starting"),
        ("starting", "warming"),
        ("warming", "ready"),
        ("ready", "serving"),
        ("serving", "ready"),
        ("ready", "unloading"),
        ("unloading", "offline"),
    ]


async def test_wait_for_returns_at_once_or_when_it_comes(autojump_clock: MockClock) -> None:
    async def test(house: House) -> None:
        assert (await house.slots.wait_for("chat", [S.OFFLINE, S.READY])).state is S.OFFLINE
        async with trio.open_nursery() as nursery:
            nursery.start_soon(house.slots.load, "chat")
            s = await house.slots.wait_for("chat", [S.READY])
            assert trio.current_time() == pytest.approx(1.1)
            assert s.models == ("m",)
        with trio.move_on_after(5) as scope:
            await house.slots.wait_for("chat", [S.PULLING])
        assert scope.cancelled_caught

    await in_house(test)


async def test_the_owner_answers_for_its_state(autojump_clock: MockClock) -> None:
    async def test(house: House) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(house.slots.load, "chat")
            await trio.sleep(0.3)
            assert await house.slots.state("chat") is S.STARTING
            await trio.sleep(0.5)
            assert await house.slots.state("chat") is S.WARMING

    await in_house(test)


async def test_slots_load_side_by_side(autojump_clock: MockClock) -> None:
    async def test(house: House) -> None:
        async with trio.open_nursery() as nursery:
            for name in house.backends:
                nursery.start_soon(house.slots.load, name)
        assert trio.current_time() == pytest.approx(20.1)
        assert house.slots.names() == ("chat", "embed", "image")
        assert list(house.slots.snapshots()) == ["chat", "embed", "image"]

    await in_house(test, *(FakeBackend(Script(ready_s=20)) for _ in range(3)))


async def test_a_crowd_is_served_by_one_start(autojump_clock: MockClock) -> None:
    async def test(house: House) -> None:
        answers: list[object] = []

        async def use(n: int) -> None:
            answers.append(await house.use(f"r{n}", hold_s=0.1))

        async with trio.open_nursery() as nursery:
            for n in range(8):
                nursery.start_soon(use, n)
        assert all(isinstance(a, Lease) for a in answers)
        assert len(answers) == 8
        assert house.now().starts == 1

    await in_house(test)


async def test_unknown_names_and_a_manager_that_does_not_run() -> None:
    bus = EventBus(10)
    slots = SlotManager(bus)
    slots.add(SlotIdentity(SlotSpec("chat"), "llm", "fake", "m"), FakeBackend())
    assert slots.snapshot("chat").state is S.OFFLINE, "reads need no actor"
    with pytest.raises(ActorGone):
        await slots.load("chat")
    for ask in (slots.load, slots.unload, slots.restart, slots.kill, slots.state):
        with pytest.raises(SlotNotFound) as caught:
            await ask("tchat")
        assert caught.value.details["slots"] == ["chat"]
        assert "did you mean 'chat'?" in caught.value.message
    for name, told in (("m", "slot 'chat' answers to that name"), ("nobody", "; slots: chat")):
        with pytest.raises(SlotNotFound, match=told):
            slots.snapshot(name)
    for read in (slots.snapshot, slots.logs, slots.observe, slots.mailbox):
        with pytest.raises(SlotNotFound):
            read("tchat")
    slots.release("tchat", "r")
