"""Leases that are taken and given back without a message, at a live actor."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio
from slot_fakes import FakeBackend, House, Script, in_house
from trio.testing import MockClock, wait_all_tasks_blocked

from slotd.errors import ServerStopping
from slotd.slot.lease import Lease
from slotd.slot.machine import SlotSpec
from slotd.slot.state import SlotState

S = SlotState
WIDE = SlotSpec("chat", max_parallel=3, abandon_after_s=4, idle_after_s=15)


async def serving(test: Callable[[House, Lease], Awaitable[None]], *scripts: Script) -> None:
    """With one lease, "first", held by message: so the turnstile is open."""

    async def begin(house: House) -> None:
        first = await house.slots.acquire("chat", "first")
        await wait_all_tasks_blocked()  # till then its actor has something to do
        try:
            await test(house, first)
        finally:
            house.slots.release("chat", "first")

    await in_house(begin, FakeBackend(*scripts), spec=WIDE)


def leases(house: House) -> int:
    return house.slots.snapshot("chat").leases


async def test_what_passes_is_seen_and_nobody_is_asked(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(house: House, first: Lease) -> None:
        monkeypatch.setattr(house.slots.mailbox("chat"), "post", lambda message: pytest.fail(f"{message}"))
        second = house.slots.take("chat", "second")
        assert second is not None
        assert (second.id, second.generation, second.http) == ("second", first.generation, first.http)
        assert leases(house) == 2
        assert house.slots.take("chat", "third", "m") is not None
        assert leases(house) == 3
        assert house.slots.take("chat", "fourth") is None, "it is full"
        house.slots.release("chat", "first")
        house.slots.release("chat", "third")
        assert leases(house) == 1
        assert house.slots.snapshot("chat").state is S.SERVING
        monkeypatch.undo()
        await trio.sleep(2)
        house.slots.release("chat", "second")
        shown = house.slots.snapshot("chat")
        assert (shown.state, shown.leases) == (S.READY, 0)
        assert shown.last_used == trio.current_time()

    await serving(test)


async def test_who_watches_the_slot_is_woken(autojump_clock: MockClock) -> None:
    async def test(house: House, first: Lease) -> None:
        cell = house.slots.cell("chat")
        seen: list[int] = []

        async def watch() -> None:
            version = cell.version
            while True:
                version = await cell.wait_change(version)
                seen.append(cell.value.leases)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            for id in ("second", "third"):
                await wait_all_tasks_blocked()
                assert house.slots.take("chat", id) is not None
            await wait_all_tasks_blocked()
            house.slots.release("chat", "third")
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        assert seen == [2, 3, 2]
        house.slots.release("chat", "second")

    await serving(test)


async def test_an_unload_waits_for_who_has_passed_and_lets_nobody_after_it(autojump_clock: MockClock) -> None:
    async def test(house: House, first: Lease) -> None:
        assert house.slots.take("chat", "second") is not None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(house.slots.unload, "chat")
            await wait_all_tasks_blocked()
            assert house.slots.take("chat", "late") is None
            house.slots.release("chat", "first")
            await trio.sleep(1)
            assert house.slots.snapshot("chat").state is S.SERVING
            house.slots.release("chat", "second")
        assert house.slots.snapshot("chat").state is S.OFFLINE

    await serving(test)


@pytest.mark.parametrize("end", ["dies", "crash", "close_doors", "stalls"])
async def test_it_closes_with_what_it_rests_on(autojump_clock: MockClock, end: str) -> None:
    async def test(house: House, first: Lease) -> None:
        assert house.slots.take("chat", "second") is not None
        match end:
            case "dies":
                await first.fate.wait()
            case "crash":
                house.crash()
            case "close_doors":
                house.slots.close_doors()
            case _:
                house.slots.stalled("chat", "second")
        assert house.slots.take("chat", "late") is None
        if end == "close_doors":
            with pytest.raises(ServerStopping):
                await house.slots.acquire("chat", "late")
        house.slots.release("chat", "second")
        if end == "stalls":
            house.slots.release("chat", "first")
            assert house.slots.snapshot("chat").leases == 0

    scripts = [Script(exits_s=3.0)] if end == "dies" else [Script()]
    await serving(test, *scripts)


async def test_another_model_than_the_slot_serves_is_for_its_actor_to_refuse(
    autojump_clock: MockClock,
) -> None:
    async def test(house: House, first: Lease) -> None:
        assert first.model == "m"
        assert house.slots.take("chat", "second", "other") is None
        assert house.slots.take("chat", "second", "m") is not None
        house.slots.release("chat", "second")

    await serving(test)


async def test_who_waits_is_before_who_comes(autojump_clock: MockClock) -> None:
    async def test(house: House, first: Lease) -> None:
        for id in ("second", "third"):
            assert house.slots.take("chat", id) is not None
        got: list[str] = []

        async def wait() -> None:
            await house.slots.acquire("chat", "waits")
            got.append("waits")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await wait_all_tasks_blocked()
            house.slots.release("chat", "second")
            assert house.slots.take("chat", "comes") is None
            await wait_all_tasks_blocked()
            assert got == ["waits"]
        for id in ("third", "waits"):
            house.slots.release("chat", id)

    await serving(test)


async def test_words_that_wait_for_the_actor_come_before_those_who_pass(autojump_clock: MockClock) -> None:
    async def test(house: House, first: Lease) -> None:
        assert house.slots.take("chat", "second") is not None
        actor = house.slots._entries["chat"].actor
        assert actor is not None
        actor._armed = trio.current_time()  # as if a deadline had just come
        house.slots.stalled("chat", "second")
        assert house.slots.take("chat", "late") is None
        house.slots.release("chat", "second")
        await wait_all_tasks_blocked()
        assert actor.slot.stalls == 1, "it was told before the release"

    await serving(test)


async def test_a_name_that_is_given_back_may_be_used_again(autojump_clock: MockClock) -> None:
    """As by a request whose route was stale: its first words still wait for the actor."""

    async def test(house: House, first: Lease) -> None:
        assert house.slots.take("chat", "again") is not None
        actor = house.slots._entries["chat"].actor
        assert actor is not None
        actor._armed = trio.current_time()
        house.slots.stalled("chat", "again")
        house.slots.release("chat", "again")
        await house.slots.acquire("chat", "again")
        await wait_all_tasks_blocked()
        assert house.slots.snapshot("chat").leases == 2
        house.slots.release("chat", "again")

    await serving(test)


async def test_a_lease_that_cannot_be_made_is_not_held(autojump_clock: MockClock) -> None:
    def fails(id: str) -> Lease:
        raise RuntimeError(id)

    async def test(house: House, first: Lease) -> None:
        turnstile = house.slots._entries["chat"].turnstile
        turnstile._grant = fails
        with pytest.raises(RuntimeError):
            house.slots.take("chat", "second")
        assert house.slots.snapshot("chat").leases == 1

    await serving(test)
