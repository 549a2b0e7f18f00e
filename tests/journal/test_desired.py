"""Desired state: followed from events, on disk at once, back after a restart."""

from __future__ import annotations

import errno
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
import trio.testing

from slotd.events import EventBus, types
from slotd.journal import desired as desired_module
from slotd.journal.desired import DesiredState
from slotd.testing import Harness, Knobs, config_text, fake_slot
from slotd.testing.harness import run_harness

GUARD_S = 20


def loaded(bus: EventBus, slot: str, model: str = "own") -> None:
    bus.publish(types.SLOT_LOADED, {"model": model, "generation": 1, "load_s": 1.0}, slot=slot)


def moved(bus: EventBus, slot: str, to: str) -> None:
    bus.publish(types.SLOT_TRANSITION, {"from": "ready", "to": to, "why": "", "generation": 1}, slot=slot)


def kept(path: Path) -> Any:
    """What the file says, None as long as that is nothing."""
    try:
        return json.loads(path.read_bytes())["slots"]
    except (OSError, ValueError):
        return None


async def on_disk(path: Path, slots: dict[str, str]) -> None:
    """Wait until the file says so."""
    while kept(path) != slots:  # noqa: ASYNC110 # a file tells nobody when it changes
        await trio.sleep(0.002)


async def with_desired(
    path: Path, test: Callable[[DesiredState, EventBus], Awaitable[None]], *known: str
) -> None:
    bus = EventBus(10)
    with trio.fail_after(GUARD_S):
        async with trio.open_nursery() as nursery:
            desired = DesiredState(path, bus, lambda name: "own")
            await desired.load(known)
            await nursery.start(desired.run)
            await test(desired, bus)
            nursery.cancel_scope.cancel()


async def test_what_is_loaded_is_wanted_until_it_is_offline(tmp_path: Path) -> None:
    path = tmp_path / "desired.json"

    async def test(desired: DesiredState, bus: EventBus) -> None:
        loaded(bus, "a")
        loaded(bus, "b", "another")
        await on_disk(path, {"a": "", "b": "another"})
        moved(bus, "a", "unloading")
        moved(bus, "b", "error")
        loaded(bus, "c")
        await on_disk(path, {"a": "", "b": "another", "c": ""})
        moved(bus, "a", "offline")
        await on_disk(path, {"b": "another", "c": ""})
        bus.publish(types.SERVER_STOPPING, {})
        moved(bus, "b", "offline")
        moved(bus, "c", "offline")
        await trio.testing.wait_all_tasks_blocked()
        assert desired.slots == {"b": "another", "c": ""}

    await with_desired(path, test)
    assert kept(path) == {"b": "another", "c": ""}

    async def again(desired: DesiredState, bus: EventBus) -> None:
        assert desired.slots == {"b": "another"}  # there is no c any more
        await on_disk(path, {"b": "another"})

    await with_desired(path, again, "b", "x")


async def test_it_is_on_disk_within_100_ms(tmp_path: Path) -> None:
    path = tmp_path / "desired.json"

    async def test(desired: DesiredState, bus: EventBus) -> None:
        took = []
        for n in range(20):
            slots = {"a": str(n)}
            began = trio.current_time()
            loaded(bus, "a", str(n))
            await on_disk(path, slots)
            took.append(trio.current_time() - began)
        assert sorted(took)[10] < 0.1

    await with_desired(path, test)


async def test_the_last_change_is_written_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "desired.json"

    async def test(desired: DesiredState, bus: EventBus) -> None:
        await on_disk(path, {})
        loaded(bus, "a")
        while not desired.slots:
            await trio.lowlevel.checkpoint()

    await with_desired(path, test)
    assert kept(path) == {"a": ""}


@pytest.mark.parametrize(
    "content", [b"", b"{", b'{"format": 2, "slots": {}}', b'{"format": 1, "slots": {"a": 3}}', b"\xff"]
)
async def test_a_file_that_cannot_be_read_restores_nothing(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "desired.json"
    path.write_bytes(content)

    async def test(desired: DesiredState, bus: EventBus) -> None:
        assert desired.slots == {}
        await on_disk(path, {})

    await with_desired(path, test, "a")


async def test_a_disk_that_refuses_hurts_nobody(tmp_path: Path) -> None:
    async def test(desired: DesiredState, bus: EventBus) -> None:
        loaded(bus, "a")
        while not desired.slots:
            await trio.lowlevel.checkpoint()

    await with_desired(tmp_path / "nowhere" / "desired.json", test)


async def test_what_a_full_disk_refused_is_written_when_there_is_room_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "desired.json"
    write, refused = desired_module._replace, 0

    def full(path: Path, data: bytes) -> None:
        nonlocal refused
        if b'"a"' in data and refused < 3:
            refused += 1
            raise OSError(errno.ENOSPC, "full")
        write(path, data)

    monkeypatch.setattr(desired_module, "RETRY_S", 0.01)
    monkeypatch.setattr(desired_module, "_replace", full)

    async def test(desired: DesiredState, bus: EventBus) -> None:
        loaded(bus, "a")
        await on_disk(path, {"a": ""})
        assert refused == 3

    await with_desired(path, test)


# --- with slotd ------------------------------------------------------------------------------


def config(**server: Any) -> str:
    slots = {
        "a": fake_slot(Knobs()),
        "b": fake_slot(Knobs()),
        "broken": fake_slot(Knobs(crash_at_start=True)),
    }
    return config_text(slots, server=server, more='[models.other]\nsource = "file:other.gguf"\n')


def keep(base: Path, **slots: str) -> None:
    (base / "state").mkdir(exist_ok=True)
    (base / "state" / "desired.json").write_bytes(msgspec.json.encode({"format": 1, "slots": slots}))


async def test_what_was_up_is_loaded_again_each_on_its_own(tmp_path: Path) -> None:
    keep(tmp_path, a="", broken="", gone="")
    with trio.fail_after(GUARD_S):
        async with run_harness(config(), tmp_path) as slotd:
            await slotd.wait_for("a", "ready")
            await slotd.wait_for("broken", "error")
            assert await slotd.state("b") == "offline"
    # The stop took it down, and changed nothing.
    assert set(kept(tmp_path / "state" / "desired.json")) == {"a", "broken"}


async def test_a_swapped_model_is_swapped_to_again_if_there_is_one(tmp_path: Path) -> None:
    (tmp_path / "other.gguf").write_bytes(b"GGUF")
    keep(tmp_path, a="other", b="no such model")

    async def model(slotd: Harness, name: str) -> str:
        return (await slotd.wait_for(name, "ready")).model

    with trio.fail_after(GUARD_S):
        async with run_harness(config(), tmp_path) as slotd:
            assert await model(slotd, "a") == "other"
            assert await model(slotd, "b") == ""
    assert kept(tmp_path / "state" / "desired.json") == {"a": "other", "b": ""}


async def test_nothing_is_restored_if_it_is_not_wanted(tmp_path: Path) -> None:
    keep(tmp_path, a="")
    with trio.fail_after(GUARD_S):
        async with run_harness(config(restore=False), tmp_path) as slotd:
            await slotd.load("b")
            assert await slotd.state("a") == "offline"
            await on_disk(tmp_path / "state" / "desired.json", {"b": ""})
