"""The bus, one promise a test."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from slotd.events import Event, EventBus, Gap, Subscription


def bus(buffer: int = 8) -> EventBus:
    return EventBus(buffer, clock=lambda: 1_700_000_000.5)


def publish(events: EventBus, n: int) -> None:
    for _ in range(n):
        events.publish("tick", {})


async def rest(subscription: Subscription) -> list[int | Gap]:
    """What comes until the end, events as their numbers."""
    with trio.fail_after(5):
        return [item.seq if isinstance(item, Event) else item async for item in subscription]


# --- publishing ----------------------------------------------------------------------


def test_an_event_is_numbered_stamped_and_frozen() -> None:
    events = bus()
    first = events.publish("slot.transition", {"to": "ready"}, slot="chat")
    assert first == Event(1, 1_700_000_000.5, "slot.transition", "chat", {"to": "ready"})
    assert events.publish("tick", {}).seq == 2
    assert events.last_seq == 2
    with pytest.raises(AttributeError):
        first.seq = 7  # type: ignore[misc] # that it cannot be done is the test
    assert len({first, first}) == 1


async def test_a_reader_gets_what_is_published_in_order() -> None:
    events = bus()
    publish(events, 2)
    with events.subscribe() as reader:
        publish(events, 3)
        events.close()
        assert await rest(reader) == [3, 4, 5]


async def test_a_waiting_reader_is_woken() -> None:
    events = bus()
    with events.subscribe() as reader:
        async with trio.open_nursery() as nursery:

            async def read() -> None:
                with trio.fail_after(5):
                    item = await anext(reader)
                assert isinstance(item, Event)
                assert item.kind == "late"

            nursery.start_soon(read)
            await wait_all_tasks_blocked()
            events.publish("late", {})


async def test_reading_is_a_checkpoint_also_when_much_is_buffered() -> None:
    events = bus()
    with events.subscribe() as reader:
        publish(events, 1)
        with trio.testing.assert_checkpoints():
            await anext(reader)


# --- latecomers ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        (None, []),
        (10, []),
        (8, [9, 10]),
        (6, [7, 8, 9, 10]),  # the last that the ring can serve whole
        (5, [Gap(1, 7), 7, 8, 9, 10]),
        (0, [Gap(6, 7), 7, 8, 9, 10]),
        (11, [Gap(6, 7), 7, 8, 9, 10]),  # a number of an earlier run
        (-3, [Gap(6, 7), 7, 8, 9, 10]),
    ],
)
async def test_a_latecomer_gets_what_the_ring_holds_and_a_gap_for_the_rest(
    after: int | None, expected: list[int | Gap]
) -> None:
    events = bus(4)
    publish(events, 10)
    with events.subscribe(after=after) as reader:
        events.close()
        assert await rest(reader) == expected


async def test_before_the_first_event_there_is_nothing_to_miss() -> None:
    events = bus()
    for after in (0, 99):
        with events.subscribe(after=after) as reader:
            events.close()
            assert await rest(reader) == []


@pytest.mark.parametrize(("live", "expected"), [(0, []), (2, []), (3, [Gap(1, 2)])])
async def test_a_replay_takes_none_of_the_readers_room(live: int, expected: list[int | Gap]) -> None:
    events = bus(100)
    publish(events, 100)
    with events.subscribe(after=0, max_buffered=2) as reader:
        publish(events, live)
        events.close()
        assert await rest(reader) == [*expected, *range(1 + len(expected), 101 + live)]


async def test_replay_and_live_events_follow_without_a_seam() -> None:
    events = bus(3)
    publish(events, 3)
    with events.subscribe(after=1) as reader:
        publish(events, 2)
        events.close()
        assert await rest(reader) == [2, 3, 4, 5]


# --- slow readers --------------------------------------------------------------------


async def test_a_slow_reader_loses_the_oldest_and_is_told() -> None:
    events = bus()
    with events.subscribe(max_buffered=3) as reader:
        publish(events, 10)
        assert await anext(reader) == Gap(7, 8)
        publish(events, 2)  # between the gap and what follows it
        events.close()
        assert await rest(reader) == [Gap(2, 10), 10, 11, 12]


async def test_gaps_not_yet_read_become_one() -> None:
    events = bus(2)
    publish(events, 5)
    with events.subscribe(after=0, max_buffered=2) as reader:
        publish(events, 4)
        events.close()
        assert await rest(reader) == [Gap(5, 6), 6, 7, 8, 9]


async def test_a_slow_reader_does_not_affect_another() -> None:
    events = bus(2)
    quick_saw: list[int | Gap] = []
    with events.subscribe(max_buffered=1) as slow, events.subscribe(max_buffered=1) as quick:
        for _ in range(20):
            publish(events, 1)
            item = await anext(quick)
            quick_saw.append(item.seq if isinstance(item, Event) else item)
        events.close()
        assert quick_saw == [*range(1, 21)]
        assert await rest(slow) == [Gap(19, 20), 20]


def test_there_must_be_room_for_an_event() -> None:
    with pytest.raises(ValueError, match="room"):
        EventBus(0)
    with pytest.raises(ValueError, match="room"):
        bus().subscribe(max_buffered=0)


# --- selection -----------------------------------------------------------------------


async def test_a_match_selects_in_the_replay_and_live() -> None:
    events = bus()
    for slot in ("a", "b", "a"):
        events.publish("tick", {}, slot=slot)
    with events.subscribe(after=0, match=lambda e: e.slot == "a") as reader:
        for slot in ("b", "a"):
            events.publish("tick", {}, slot=slot)
        events.close()
        assert await rest(reader) == [1, 3, 5]


async def test_what_is_not_selected_takes_no_room_and_is_not_missed() -> None:
    events = bus()
    with events.subscribe(max_buffered=2, match=lambda e: e.slot == "a") as reader:
        for n in range(30):
            events.publish("tick", {}, slot="a" if n % 10 == 0 else "b")  # 1, 11, 21
        events.close()
        assert await rest(reader) == [Gap(1, 11), 11, 21]


async def test_kinds_select_in_the_replay_and_live() -> None:
    events = bus()
    for kind in ("a", "b", "a"):
        events.publish(kind, {})
    with events.subscribe(after=0, kinds={"a"}) as some, events.subscribe(kinds={"b", "c"}) as others:
        for kind in ("b", "a", "c"):
            events.publish(kind, {})
        events.subscribe(kinds={"b"}).close()
        with events.subscribe(kinds={"a"}) as late:
            events.publish("a", {})
            events.close()
            assert await rest(some) == [1, 3, 5, 7]
            assert await rest(others) == [4, 6]
            assert await rest(late) == [7]


async def test_a_mapping_has_a_match_for_some_kinds_and_the_others_are_read_whole() -> None:
    events = bus()
    only_a = {"tick": lambda e: e.slot == "a", "noise": lambda e: False}

    def say() -> None:
        events.publish("tick", {}, slot="a")
        events.publish("tick", {}, slot="b")
        events.publish("noise", {})
        events.publish("other", {})

    say()
    with (
        events.subscribe(after=0, match=only_a) as all_kinds,
        events.subscribe(kinds={"tick"}, match=only_a) as ticks,
    ):
        say()
        events.close()
        assert await rest(all_kinds) == [1, 4, 5, 8]
        assert await rest(ticks) == [5]


async def test_a_replay_that_is_narrowed_takes_no_more_room_than_it_needs() -> None:
    events = bus()
    for slot in ("a", "b", "b"):
        events.publish("tick", {}, slot=slot)
    with events.subscribe(after=0, max_buffered=1, match=lambda e: e.slot == "a") as reader:
        for _ in range(2):
            events.publish("tick", {}, slot="a")
        events.publish("tick", {}, slot="a")
        events.close()
        assert await rest(reader) == [Gap(2, 5), 5, 6]


# --- many at once ----------------------------------------------------------------------


async def test_what_comes_within_a_while_is_gathered_and_wakes_once(autojump_clock: MockClock) -> None:
    events, gathered = bus(100), list[list[Event | Gap]]()

    async def reader() -> None:
        with events.subscribe() as mine:
            task_steps.clear()
            gathered.append(await mine.gather(100, 2.0))
            gathered.append(await mine.gather(3, 2.0))
            gathered.append(await mine.gather(3, 2.0))
            with pytest.raises(StopAsyncIteration):
                await mine.gather(3, 2.0)

    class Steps(trio.abc.Instrument):
        def before_task_step(self, task: trio.lowlevel.Task) -> None:
            if task.name.endswith("reader"):
                task_steps.append(trio.current_time())

    task_steps: list[float] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reader)
        await wait_all_tasks_blocked()
        trio.lowlevel.add_instrument(steps := Steps())
        for _ in range(10):
            events.publish("tick", {})
            await trio.sleep(0.1)
        await trio.sleep(1.5)
        assert len(gathered) == 1
        assert len(task_steps) <= 4, "it was woken for each"
        publish(events, 4)  # more than it wants: at once
        await wait_all_tasks_blocked()
        trio.lowlevel.remove_instrument(steps)
        assert [len(items) for items in gathered] == [10, 3]
        events.close()
    assert [len(items) for items in gathered] == [10, 3, 1]


async def test_gathering_that_is_cancelled_has_taken_nothing(autojump_clock: MockClock) -> None:
    events = bus()
    with events.subscribe(max_buffered=2) as mine:
        publish(events, 2)
        with trio.move_on_after(1):
            await mine.gather(10, 5.0)
        publish(events, 1)
        assert await mine.gather(10, 5.0) == [Gap(1, 2), *mine_after(events, 1)]
        events.close()


def mine_after(events: EventBus, seq: int) -> list[Event | Gap]:
    with events.subscribe(after=seq) as again:
        return again.drain(100)


async def test_a_gap_with_nothing_selected_behind_it_says_where_the_reader_stands() -> None:
    events = bus(2)
    publish(events, 5)
    with events.subscribe(after=0, match=lambda e: False) as reader:
        assert await anext(reader) == Gap(3, 6)


async def test_a_match_that_raises_is_its_readers_trouble() -> None:
    events = bus()

    def match(event: Event) -> bool:
        return bool(event.data["wanted"])

    with events.subscribe(match=match) as broken, events.subscribe() as sound:
        events.publish("tick", {"wanted": True})
        events.publish("tick", {})
        events.publish("tick", {"wanted": True})
        events.close()
        assert await rest(sound) == [1, 2, 3]
        first = await anext(broken)
        assert isinstance(first, Event)
        assert first.seq == 1
        with pytest.raises(KeyError, match="wanted"):
            await anext(broken)


# --- the end -------------------------------------------------------------------------


async def test_closing_the_bus_ends_a_waiting_reader() -> None:
    events = bus()
    with events.subscribe() as reader:
        async with trio.open_nursery() as nursery:

            async def read() -> None:
                assert await rest(reader) == []

            nursery.start_soon(read)
            await wait_all_tasks_blocked()
            events.close()
            events.close()


async def test_a_closed_bus_still_takes_events_and_serves_its_ring() -> None:
    events = bus(2)
    publish(events, 2)
    with events.subscribe() as reader:
        events.close()
        assert events.publish("server.stopping", {}).seq == 3
        assert await rest(reader) == []
    with events.subscribe(after=0) as late:
        assert await rest(late) == [Gap(1, 2), 2, 3]


async def test_closing_a_subscription_drops_what_it_holds_and_wakes_its_reader() -> None:
    events = bus()
    with events.subscribe(max_buffered=1) as reader:
        publish(events, 3)
        reader.close()
        publish(events, 1)
        assert await rest(reader) == []
    reader = events.subscribe()
    async with trio.open_nursery() as nursery:

        async def read() -> None:
            assert await rest(reader) == []

        nursery.start_soon(read)
        await wait_all_tasks_blocked()
        with reader:
            pass


async def test_only_one_task_may_wait() -> None:
    events = bus()
    with events.subscribe() as reader:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rest, reader)
            await wait_all_tasks_blocked()
            with pytest.raises(trio.BusyResourceError):
                await anext(reader)
            events.close()


# --- cancellation --------------------------------------------------------------------


async def test_cancelling_a_read_loses_nothing(autojump_clock: MockClock) -> None:
    events = bus()
    with events.subscribe() as reader:
        with trio.move_on_after(15) as quiet:
            await anext(reader)
        assert quiet.cancelled_caught
        publish(events, 1)
        with trio.CancelScope() as before:
            before.cancel()
            await anext(reader)
        assert before.cancelled_caught
        events.close()
        assert await rest(reader) == [1]


async def test_an_event_and_a_cancellation_at_once_lose_nothing() -> None:
    events = bus()
    seen: list[int | Gap] = []
    with events.subscribe() as reader:
        for cancel_first in (False, True):
            scope = trio.CancelScope()

            async def read(scope: trio.CancelScope) -> None:
                with scope:
                    item = await anext(reader)
                    seen.append(item.seq if isinstance(item, Event) else item)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(read, scope)
                await wait_all_tasks_blocked()
                if cancel_first:
                    scope.cancel()
                publish(events, 1)
                scope.cancel()
        events.close()
        assert seen + await rest(reader) == [1, 2]


async def test_a_cancelled_reader_leaves_nothing_behind(autojump_clock: MockClock) -> None:
    events = bus()
    with trio.move_on_after(1), events.subscribe() as reader:
        await rest(reader)
    publish(events, 3)
    assert await rest(reader) == []
    assert not events._subscriptions
