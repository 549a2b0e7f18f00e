"""The reloader by itself: its order, what it leaves alone, and who waits for whom."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest
import trio
import trio.testing

from slotd.blueprint import touched_slots
from slotd.config import ConfigFile, LoadedConfig, SlotConfig, parse_config
from slotd.config.reread import Reading
from slotd.errors import ActorGone, ConfigInvalid, RequestInvalid, ServerBusy, ServerStopping
from slotd.events import EventBus
from slotd.reload import MAX_WAITING, Reach, Reloader

SLOT = '[slots.{name}]\ntype = "llm"\nengine = "command"\ncommand = ["{{port}}"]\n{more}\n'


def slots(*names: str, more: str = "", head: str = "") -> str:
    return head + "".join(SLOT.format(name=name, more=more) for name in names)


@dataclass
class World:
    """A slot manager, a dispatcher and a file, which remember what was done to them."""

    path: Path
    env: dict[str, str]
    there: list[str]
    done: list[str] = field(default_factory=list)
    drained: trio.Event = field(default_factory=trio.Event)
    adding: trio.Event = field(default_factory=trio.Event)
    opened: trio.Event = field(default_factory=trio.Event)
    unbuildable: str = ""
    stops: bool = False

    def __post_init__(self) -> None:
        self.opened.set()
        self.bus = EventBus(100)
        self.file = ConfigFile(self.path, env=self.env)
        self.reloader = Reloader(self.file.load(), self.file)
        self.reach = Reach(
            slots=cast(Any, self),
            dispatcher=cast(Any, self),
            arbiter=cast(Any, self),
            bus=self.bus,
            backend=cast(Any, self.build),
            autoload=self.autoload,
            stopping=lambda: self.stops,
        )

    def write(self, text: str) -> None:
        self.path.write_text(text)

    def build(self, loaded: LoadedConfig, slot: SlotConfig) -> str:
        if slot.name == self.unbuildable:
            raise RequestInvalid("no such engine")
        return f"backend of {slot.name}"

    async def autoload(self, name: str) -> None:
        self.done.append(f"autoload {name}")

    # slots
    def names(self) -> tuple[str, ...]:
        return tuple(self.there)

    def add(self, identity: Any, backend: str, *, log_kb: int) -> None:
        self.there.append(identity.spec.name)
        self.done.append(f"add {identity.spec.name}")

    def mailbox(self, name: str) -> World:
        return self

    async def wait_open(self) -> None:
        self.adding.set()
        await self.opened.wait()

    def reconfigure(self, name: Any, *more: Any) -> None:
        self.done.append(f"reconfigure {name if more else 'arbiter'}")

    def arrange(self, names: Any) -> None:
        self.order = list(names)

    async def remove(self, name: str) -> None:
        self.there.remove(name)
        self.done.append(f"remove {name}")
        await self.drained.wait()
        self.done.append(f"removed {name}")

    # dispatcher
    def replace(self, table: Any) -> None:
        self.done.append(f"table of {' '.join(table.slots)}")


@asynccontextmanager
async def world(tmp_path: Path, text: str, **env: str) -> AsyncIterator[World]:
    path = tmp_path / "slotd.toml"
    path.write_text(text)
    names = list(parse_config(text, "test", tmp_path, env={"HOME": "/"}).config.slots)
    w = World(path, {"HOME": "/", **env}, names)
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(w.reloader.run, w.reach)
            await trio.testing.wait_all_tasks_blocked()
            try:
                yield w
            finally:
                nursery.cancel_scope.cancel()


async def test_slots_come_before_the_table_and_go_after_it(tmp_path: Path) -> None:
    async with world(tmp_path, slots("a", "b")) as w:
        w.write(slots("b", more="max_queue = 1") + slots("c", more="autoload = true"))
        reading = await w.reloader.reload()
        assert reading.diff.slots("added") == ("c",)
        assert reading.diff.slots("removed") == ("a",)
        await trio.testing.wait_all_tasks_blocked()
        assert w.done[:4] == ["add c", "reconfigure b", "reconfigure arbiter", "table of b c"]
        assert sorted(w.done[4:]) == ["autoload c", "remove a"]
        w.drained.set()
        await trio.testing.wait_all_tasks_blocked()
        assert w.done[-1] == "removed a"


async def test_a_slot_that_drains_holds_up_only_who_wants_its_name(tmp_path: Path) -> None:
    async with world(tmp_path, slots("a", "b")) as w, trio.open_nursery() as nursery:
        w.write(slots("b"))
        await w.reloader.reload()
        w.write(slots("b", "c"))
        assert (await w.reloader.reload()).diff.slots("added") == ("c",)
        w.write(slots("a", "b", "c"))
        nursery.start_soon(w.reloader.reload)
        with w.bus.subscribe(match=lambda e: e.kind == "config.reloaded") as seen:
            w.drained.set()
            await anext(seen)
        assert w.done.index("removed a") < w.done.index("add a")


async def test_nothing_changed_means_nothing_done(tmp_path: Path) -> None:
    async with world(tmp_path, slots("a")) as w:
        before = w.reloader.settings.value
        assert not (await w.reloader.reload()).diff
        assert w.done == []
        assert w.reloader.settings.value is before


async def test_a_faulty_file_changes_nothing_and_lists_all_faults(tmp_path: Path) -> None:
    async with world(tmp_path, slots("a")) as w:
        before = w.reloader.loaded
        w.write(slots("a", "b", more="max_queue = -1\nprioritty = 3"))
        with pytest.raises(ConfigInvalid) as caught:
            await w.reloader.reload()
        assert len(caught.value.problems) == 4
        assert w.done == []
        assert w.reloader.loaded is before
        w.write(slots("a", "b"))
        assert (await w.reloader.reload()).diff


@pytest.mark.parametrize("name", ["a", "b"])
async def test_a_slot_that_cannot_be_built_is_a_fault_before_anything_changes(
    tmp_path: Path, name: str
) -> None:
    async with world(tmp_path, slots("a")) as w:
        w.unbuildable = name
        w.write(slots("a", "b", "c", more="max_queue = 1"))
        with pytest.raises(ConfigInvalid) as caught:
            await w.reloader.reload()
        assert caught.value.problems == [f"slots.{name}: no such engine"]
        assert w.done == []


async def test_the_file_vanished(tmp_path: Path) -> None:
    async with world(tmp_path, slots("a")) as w:
        w.path.unlink()
        with pytest.raises(ConfigInvalid, match="no such file"):
            await w.reloader.reload()
        w.write(slots("a", "b"))
        assert (await w.reloader.reload()).diff.slots("added") == ("b",)


async def test_keys_of_the_environment_are_read_again(tmp_path: Path) -> None:
    async with world(tmp_path, slots("a"), SLOTD_API_KEYS="old") as w:
        w.env["SLOTD_API_KEYS"] = "new"
        reading = await w.reloader.reload()
        assert reading.diff.lines() == ("~ server.api keys: changed",)
        assert w.reloader.settings.value.api_keys.keys() == {"new"}
        assert "reconfigure a" not in w.done


async def test_reloads_are_served_one_after_the_other(tmp_path: Path) -> None:
    async with world(tmp_path, slots("a")) as w:
        w.write(slots("a", "b"))
        found: list[Reading] = []

        async def ask() -> None:
            found.append(await w.reloader.reload())

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(ask)
        assert sorted(bool(r.diff) for r in found) == [False, False, True]
        assert w.done.count("add b") == 1


async def test_who_leaves_before_its_turn_has_no_reload_done(tmp_path: Path) -> None:
    async with world(tmp_path, slots("a")) as w, trio.open_nursery() as nursery:
        w.opened = trio.Event()
        w.write(slots("a", "b"))
        nursery.start_soon(w.reloader.reload)
        await w.adding.wait()
        with trio.move_on_after(0):
            await w.reloader.reload()
        w.write(slots("a", "b", "c"))
        w.opened.set()
        # It stood before us in the line; there would be nothing left to change.
        assert (await w.reloader.reload()).diff.slots("added") == ("c",)


async def test_more_askers_than_the_bound_are_refused(tmp_path: Path) -> None:
    async with world(tmp_path, slots("a")) as w:
        refused = 0

        async def ask() -> None:
            nonlocal refused
            try:
                await w.reloader.reload()
            except ServerBusy:
                refused += 1

        async with trio.open_nursery() as nursery:
            for _ in range(MAX_WAITING + 3):
                nursery.start_soon(ask)
        assert refused == 3


async def test_nudges_are_one_and_answer_nobody(tmp_path: Path) -> None:
    async with world(tmp_path, slots("a")) as w:
        w.write(slots("a", "b"))
        with w.bus.subscribe(match=lambda e: e.kind == "config.reloaded") as seen:
            for _ in range(5):
                w.reloader.nudge()
            await anext(seen)
        w.write("nonsense")
        with w.bus.subscribe(match=lambda e: e.kind.startswith("config.")) as seen:
            w.reloader.nudge()
            event: Any = await anext(seen)
        assert event.kind == "config.refused"
        assert event.data["problems"]
        w.write(slots("a"))
        assert (await w.reloader.reload()).diff.slots("removed") == ("b",)


async def test_a_nudge_that_comes_too_early_is_not_lost(tmp_path: Path) -> None:
    path = tmp_path / "slotd.toml"
    path.write_text(slots("a"))
    w = World(path, {"HOME": "/"}, ["a"])
    w.reloader.nudge()
    w.write(slots("a", "b"))
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            with w.bus.subscribe(match=lambda e: e.kind == "config.reloaded") as seen:
                nursery.start_soon(w.reloader.run, w.reach)
                await anext(seen)
            nursery.cancel_scope.cancel()
    assert "add b" in w.done


async def test_a_stopping_slotd_reloads_nothing(tmp_path: Path) -> None:
    async with world(tmp_path, slots("a")) as w:
        w.stops = True
        w.write(slots("a", "b"))
        with pytest.raises(ServerStopping):
            await w.reloader.reload()
        assert w.done == []


async def test_without_a_file_there_is_no_reload(tmp_path: Path) -> None:
    async with world(tmp_path, slots("a")) as w:
        reloader = Reloader(parse_config(slots("a"), "test", tmp_path, env={"HOME": "/"}))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(reloader.run, w.reach)
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(ConfigInvalid, match="no file"):
                await reloader.reload()
            nursery.cancel_scope.cancel()


async def test_after_a_crash_half_way_the_next_incarnation_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "slotd.toml"
    path.write_text(slots("a"))
    w = World(path, {"HOME": "/"}, ["a"])

    async def crash() -> None:
        with pytest.RaisesGroup(ZeroDivisionError):
            await w.reloader.run(w.reach)

    def fail(table: object) -> None:
        raise ZeroDivisionError

    with trio.fail_after(10):
        w.replace = fail  # type: ignore[method-assign] # a bug on purpose
        async with trio.open_nursery() as nursery:
            nursery.start_soon(crash)
            await trio.testing.wait_all_tasks_blocked()
            w.write(slots("b"))
            with pytest.raises(ActorGone):
                await w.reloader.reload()
        del w.replace
        assert w.there == ["a", "b"]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(w.reloader.run, w.reach)
            await trio.testing.wait_all_tasks_blocked()
            await w.reloader.reload()
            await trio.testing.wait_all_tasks_blocked()
            assert w.there == ["b"]
            assert w.done.count("add b") == 1
            nursery.cancel_scope.cancel()


def test_only_slots_that_are_made_of_something_else_are_touched(tmp_path: Path) -> None:
    model = '[models.m]\nsource = "file:m.gguf"\n'
    llama = '[slots.l]\ntype = "llm"\nengine = "llama-cpp"\nmodel = "m"\n'
    outside = '[slots.x]\ntype = "tts"\nengine = "external"\nurl = "http://127.0.0.1:9"\n'
    base = model + slots("a", "b") + llama + outside

    def touched(text: str) -> tuple[str, ...]:
        old, new = (parse_config(t, "test", tmp_path, env={"HOME": "/"}) for t in (base, text))
        return touched_slots(old, new)

    assert touched(base) == ()
    assert touched("[server]\nmax_body_mb = 1\n" + base) == ()
    assert touched(model + slots("a") + slots("b", more="priority = 1") + llama + outside) == ("b",)
    assert touched("[server]\nqueue_timeout_s = 1\n" + base) == ("a", "b", "l", "x")
    assert touched(base.replace("file:m.gguf", "file:n.gguf")) == ("a", "b", "l")
