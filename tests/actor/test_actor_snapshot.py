from __future__ import annotations

import pytest
import trio
import trio.testing

from slotd.actor import Snapshot


def test_readers_see_the_newest_value() -> None:
    cell = Snapshot("offline")
    assert (cell.value, cell.version) == ("offline", 0)
    cell.publish("starting")
    cell.publish("ready")
    assert (cell.value, cell.version) == ("ready", 2)


def test_an_equal_value_is_no_change() -> None:
    cell = Snapshot((1, 2))
    cell.publish((1, 2))
    assert cell.version == 0


async def test_all_who_wait_are_woken() -> None:
    cell = Snapshot(0)
    woken: list[int] = []

    async def watch() -> None:
        woken.append(await cell.wait_change(0))

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            nursery.start_soon(watch)
            await trio.testing.wait_all_tasks_blocked()
            cell.publish(0)  # equal: nobody is woken for it
            await trio.testing.wait_all_tasks_blocked()
            assert woken == []
            cell.publish(1)
    assert woken == [1, 1]


async def test_a_change_between_look_and_wait_is_not_slept_through() -> None:
    cell = Snapshot(0)
    seen = cell.version
    cell.publish(1)
    cell.publish(2)
    with trio.fail_after(5):
        assert await cell.wait_change(seen) == 2


async def test_a_watcher_sees_the_last_of_several_changes() -> None:
    cell = Snapshot(0)
    seen: list[int] = []

    async def watch() -> None:
        version = cell.version
        while cell.value < 5:
            version = await cell.wait_change(version)
            seen.append(cell.value)

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            for batch in ((1, 2), (3,), (4, 5)):
                await trio.testing.wait_all_tasks_blocked()
                for value in batch:
                    cell.publish(value)
    assert seen == [2, 3, 5]


async def test_a_cancelled_watcher_takes_nobody_with_it() -> None:
    cell = Snapshot(0)
    scope = trio.CancelScope()
    woken: list[int] = []

    async def watch(scope: trio.CancelScope) -> None:
        with scope:
            woken.append(await cell.wait_change(0))

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch, scope)
            nursery.start_soon(watch, trio.CancelScope())
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()
            await trio.testing.wait_all_tasks_blocked()
            cell.publish(1)
    assert woken == [1]


async def test_waiting_is_a_checkpoint_also_when_the_change_has_been() -> None:
    cell = Snapshot(0)
    cell.publish(1)
    with trio.testing.assert_checkpoints():
        await cell.wait_change(0)
    with trio.CancelScope() as scope:
        scope.cancel()
        await cell.wait_change(0)
        pytest.fail("a cancelled watcher went on")
