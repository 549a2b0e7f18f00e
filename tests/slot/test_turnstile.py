"""Leases that are taken and given back without a message, at a live actor."""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable

import pytest
import trio
from slot_fakes import FakeBackend, House, Script, _Cell, in_house
from trio.testing import MockClock, wait_all_tasks_blocked

from slotd.actor import Snapshot
from slotd.arbiter import tenant
from slotd.errors import ServerStopping
from slotd.events import Event
from slotd.slot.actor import SlotIdentity
from slotd.slot.lease import Lease
from slotd.slot.machine import SlotSpec
from slotd.slot.state import SlotSnapshot, SlotState

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


# --- a slot that rests: the first lease and the last pass as well ---------------------------


async def resting(test: Callable[[House], Awaitable[None]], *scripts: Script, spec: SlotSpec = WIDE) -> House:
    """Loaded, and used by nobody."""

    async def begin(house: House) -> None:
        await house.slots.load("chat")
        await wait_all_tasks_blocked()
        await test(house)

    return await in_house(begin, FakeBackend(*scripts), spec=spec)


@pytest.mark.parametrize("places", [1, 3])
async def test_a_lone_request_asks_nobody_and_all_is_told(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, places: int
) -> None:
    async def test(house: House) -> None:
        monkeypatch.setattr(house.slots.mailbox("chat"), "post", lambda message: pytest.fail(f"{message}"))
        told = len(house.states())
        for n in range(3):
            await trio.sleep(1)
            began = trio.current_time()
            assert house.slots.take("chat", f"lone{n}") is not None
            shown = house.now()
            assert (shown.state, shown.leases) == (S.SERVING, 1)
            assert (shown.since, shown.last_used, shown.quiet_since) == (began, began, None)
            await trio.sleep(0.1)
            house.slots.release("chat", f"lone{n}")
            shown, ended = house.now(), trio.current_time()
            assert (shown.state, shown.leases) == (S.READY, 0)
            assert (shown.since, shown.last_used, shown.quiet_since) == (ended, ended, ended)
        assert house.states()[told:] == [S.SERVING, S.READY] * 3
        whys = [e.data["why"] for e in house.journal if isinstance(e, Event) and "why" in e.data]
        assert whys[-2:] == ["leased", "last lease released"]
        monkeypatch.undo()

    await resting(test, spec=dataclasses.replace(WIDE, max_parallel=places))


async def test_who_watches_sees_it_begin_to_serve_and_rest(autojump_clock: MockClock) -> None:
    async def test(house: House) -> None:
        async with trio.open_nursery() as nursery:
            for id in ("first", "second"):
                nursery.start_soon(house.wait_state, S.SERVING)
                await wait_all_tasks_blocked()
                assert house.slots.take("chat", id) is not None
                await wait_all_tasks_blocked()
                assert not nursery.child_tasks
                nursery.start_soon(house.wait_state, S.READY)
                await wait_all_tasks_blocked()
                house.slots.release("chat", id)
                await wait_all_tasks_blocked()
                assert not nursery.child_tasks

    await resting(test)


async def test_its_owner_knows_that_it_serves(autojump_clock: MockClock) -> None:
    async def test(house: House) -> None:
        assert house.slots.take("chat", "lone") is not None
        assert await house.slots.state("chat") is S.SERVING
        house.slots.release("chat", "lone")
        assert await house.slots.state("chat") is S.READY

    await resting(test)


@pytest.mark.parametrize("hold_s", [1.0, 15.0, 40.0])
async def test_it_is_idle_when_it_has_rested_so_long_since_the_last(
    autojump_clock: MockClock, hold_s: float
) -> None:
    async def test(house: House) -> None:
        for n in range(3):
            await trio.sleep(4)
            assert isinstance(await house.use(f"lone{n}", hold_s=hold_s), Lease)
        ended = trio.current_time()
        assert S.IDLE not in house.states()
        await house.wait_state(S.IDLE)
        assert trio.current_time() == ended + 15

    await resting(test)


async def test_a_rest_that_is_shorter_from_now_on_ends_in_time(autojump_clock: MockClock) -> None:
    async def test(house: House) -> None:
        await trio.sleep(1)
        spec = dataclasses.replace(WIDE, idle_after_s=3)
        house.slots.reconfigure("chat", SlotIdentity(spec, "llm", "fake", "m"), house.backend)
        await house.use("lone")
        ended = trio.current_time()
        await house.wait_state(S.IDLE)
        assert trio.current_time() == ended + 3

    await resting(test)


async def test_a_deadline_that_has_come_is_before_who_comes(autojump_clock: MockClock) -> None:
    async def test(house: House) -> None:
        house.slots.take("chat", "lone")
        await trio.sleep(3)
        house.slots.release("chat", "lone")
        autojump_clock.jump(15)  # as if the loop had been late
        assert isinstance(await house.use("late"), Lease)
        assert house.states()[-3:] == [S.IDLE, S.SERVING, S.READY]

    await resting(test)


async def test_nobody_passes_while_a_message_is_on_its_way(autojump_clock: MockClock) -> None:
    async def test(house: House) -> None:
        house.backend.flags = ("--other",)
        await trio.sleep(6)
        assert house.slots.take("chat", "first") is not None
        house.slots.release("chat", "first")  # by which the actor finds the change, and tells itself
        assert house.slots.take("chat", "late") is None
        await house.wait_state(S.UNLOADING)
        assert isinstance(await house.use("next"), Lease)
        assert house.slots.take("chat", "after") is not None, "it is open again"

    await resting(test)


async def test_and_one_that_the_loop_has_handled_is_on_its_way_no_more(autojump_clock: MockClock) -> None:
    async def test(house: House) -> None:
        actor = house.slots._entries["chat"].actor
        assert actor is not None
        actor._armed = trio.current_time()  # as if a deadline had just come
        house.slots.release("chat", "nobody's")
        assert house.slots.take("chat", "early") is None
        await wait_all_tasks_blocked()
        assert house.slots.take("chat", "lone") is not None
        house.slots.release("chat", "lone")

    await resting(test)


async def test_what_is_started_otherwise_now_is_found_though_nobody_asks(autojump_clock: MockClock) -> None:
    async def test(house: House) -> None:
        house.backend.flags = ("--other",)
        for n in range(4):
            await trio.sleep(1)
            assert house.slots.take("chat", f"soon{n}") is not None
            house.slots.release("chat", f"soon{n}")
        assert house.now().state is S.READY, "it is not looked for after every request"
        await trio.sleep(1)
        assert house.slots.take("chat", "then") is not None
        house.slots.release("chat", "then")
        then = trio.current_time()
        await house.wait_state(S.UNLOADING)
        assert trio.current_time() == then
        moves = [
            e.data["why"] for e in house.journal if isinstance(e, Event) and e.data.get("to") == "unloading"
        ]
        assert moves == ["what is configured has changed"]

    await resting(test)


async def test_an_unload_waits_for_the_one_that_has_passed(autojump_clock: MockClock) -> None:
    async def test(house: House) -> None:
        assert house.slots.take("chat", "lone") is not None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(house.slots.unload, "chat")
            await wait_all_tasks_blocked()
            assert (house.now().state, house.now().draining) == (S.SERVING, True)
            house.slots.release("chat", "lone")
        assert house.now().state is S.OFFLINE

    await resting(test)


async def test_whom_a_step_tells_of_it_sees_who_has_passed_before(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the arbiter: it looks at a slot while that reports to it."""
    monkeypatch.setattr(_Cell, "publish_later", Snapshot.publish_later)

    async def test(house: House) -> None:
        actor = house.slots._entries["chat"].actor
        assert actor is not None
        seen: list[tuple[SlotState, int]] = []

        def report(report: tenant.Report) -> None:
            seen.append((house.now().state, house.now().leases))

        actor._report = report
        assert house.slots.take("chat", "lone") is not None
        house.slots.mailbox("chat").post(tenant.Leave(actor.slot.ticket, "others need it", False))
        assert seen == [(S.SERVING, 1)], "it stays, as it is in use"
        house.slots.release("chat", "lone")

    await resting(test)


async def test_what_passed_at_a_crashed_actor_is_shown_to_the_end_and_not_its_successors(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_Cell, "publish_later", Snapshot.publish_later)

    async def test(house: House) -> None:
        await trio.sleep(1)
        assert house.slots.take("chat", "lone") is not None
        actor, used = house.slots._entries["chat"].actor, trio.current_time()
        assert actor is not None
        shown: list[SlotSnapshot] = []
        actor._on_routed = lambda: shown.append(house.now())
        await trio.sleep(10)
        assert [(s.state, s.leases, s.last_used) for s in shown] == [(S.ERROR, 0, used)]
        await wait_all_tasks_blocked()
        assert await house.slots.state("chat") is S.ERROR
        await house.slots.load("chat")
        assert (house.now().state, house.now().leases, house.now().last_used) == (S.READY, 0, None)
        house.slots.release("chat", "lone")

    await resting(test, Script(run_bug_s=5.0))


async def test_nothing_passes_at_an_actor_that_is_ending(autojump_clock: MockClock) -> None:
    async def test(house: House) -> None:
        actor = house.slots._entries["chat"].actor
        assert actor is not None
        assert house.slots.take("chat", "lone") is not None
        actor._on_routed = lambda: house.slots.release("chat", "lone")  # while its engine is being ended
        await house.wait_state(S.ERROR)
        await house.slots.mailbox("chat").wait_open()
        assert house.states()[-1] == S.SERVING

    await resting(test, Script(run_bug_s=5.0))


async def test_nothing_is_told_of_a_slot_whose_actor_has_ended(autojump_clock: MockClock) -> None:
    async def test(house: House) -> None:
        assert house.slots.take("chat", "lone") is not None

    for _ in range(8):  # who of actor and children is cancelled first, is chance
        house = await resting(test)
        house.slots.release("chat", "lone")
        assert house.states()[-1] == S.SERVING
