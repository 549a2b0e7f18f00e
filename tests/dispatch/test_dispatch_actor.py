"""The dispatcher as an actor, on virtual time, with fake remotes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace

import pytest
import trio
import trio.testing

from slotd.actor import ChildCrashed, ChildSpec, Reply, Supervisor
from slotd.dispatch import (
    CatalogUnavailable,
    DecisionInfo,
    Dispatcher,
    DispatchLimits,
    Outside,
    Route,
    RouteTable,
    SlotEntry,
    StoreTrouble,
    UpstreamEntry,
    compile_table,
)
from slotd.dispatch.catalog import SavedCatalog
from slotd.dispatch.messages import Asked, Resolve
from slotd.errors import ActorGone, NoRouteFound, RegistryBroken
from slotd.slot.state import SlotSnapshot, SlotState

CHAT = "/v1/chat/completions"


class Remotes:
    """Fake remotes: name → (delay, models); None for models fails, an infinite delay never answers."""

    def __init__(self, **remotes: tuple[float, tuple[str, ...] | None]) -> None:
        self.remotes = remotes
        self.calls: Counter[str] = Counter()
        self.cancelled: Counter[str] = Counter()

    async def __call__(self, entry: UpstreamEntry) -> tuple[str, ...]:
        self.calls[entry.name] += 1
        delay, models = self.remotes[entry.name]
        try:
            await trio.sleep(delay)
        except trio.Cancelled:
            self.cancelled[entry.name] += 1
            raise
        if models is None:
            raise CatalogUnavailable("refused")
        return models

    def table(self, *slots: SlotEntry, limits: DispatchLimits | None = None) -> RouteTable:
        return compile_table(slots, [UpstreamEntry(n, f"http://{n}/v1") for n in self.remotes], (), limits)


class Kept:
    """A store in memory, which may be slow or broken."""

    def __init__(self, saved: Mapping[str, SavedCatalog] | None = None, delay: float = 0.0) -> None:
        self.saved = dict(saved or {})
        self.delay = delay
        self.writes = 0
        self.broken = False

    async def load(self) -> Mapping[str, SavedCatalog]:
        if self.broken:
            raise StoreTrouble("unreadable")
        return self.saved

    async def save(self, saved: Mapping[str, SavedCatalog]) -> None:
        self.writes += 1
        await trio.sleep(self.delay)
        if self.broken:
            raise StoreTrouble("disk full")
        self.saved = dict(saved)


def no_slots() -> Mapping[str, SlotSnapshot]:
    return {}


async def started(nursery: trio.Nursery, table: RouteTable, outside: Outside) -> Dispatcher:
    dispatcher = Dispatcher(table, outside)
    nursery.start_soon(dispatcher.run)
    await trio.testing.wait_all_tasks_blocked()
    return dispatcher


def scenario(
    body: Callable[[trio.Nursery], Awaitable[None]],
) -> Callable[[trio.testing.MockClock], Awaitable[None]]:
    """Run a test inside a nursery on an autojumping clock, with a hang guard."""

    async def test(autojump_clock: trio.testing.MockClock) -> None:
        with trio.fail_after(10_000):
            async with trio.open_nursery() as nursery:
                await body(nursery)
                nursery.cancel_scope.cancel()

    test.__name__ = body.__name__
    return test


async def _refused(dispatcher: Dispatcher, model: str | None, path: str = CHAT) -> Exception:
    with pytest.raises(Exception) as caught:  # noqa: PT011 # any refusal; the caller looks at it
        await dispatcher.resolve(model, path)
    return caught.value


@scenario
async def test_a_hundred_identical_cold_queries_are_one_fetch_per_remote(nursery: trio.Nursery) -> None:
    remotes = Remotes(a=(1.0, ()), b=(2.0, ("m",)), c=(0.5, ()))
    dispatcher = await started(nursery, remotes.table(), Outside(remotes, no_slots))
    routes: list[Route] = []

    async def ask() -> None:
        routes.append(await dispatcher.resolve("m", CHAT))

    async with trio.open_nursery() as askers:
        for _ in range(100):
            askers.start_soon(ask)
    assert trio.current_time() == 2.0
    assert [str(r.target) for r in routes] == ["upstream:b"] * 100
    assert remotes.calls == {"a": 1, "b": 1, "c": 1}
    assert dispatcher.waiting() == 0


@scenario
async def test_one_blackholed_remote_of_eight_costs_at_most_the_grace(nursery: trio.Nursery) -> None:
    live: dict[str, tuple[float, tuple[str, ...] | None]] = {f"r{i}": (0.2, ("m",)) for i in range(7)}
    for place, expected in ((0, 0.25), (7, 0.2)):
        items = list(live.items())
        items.insert(place, ("hole", (float("inf"), ())))
        remotes = Remotes(**dict(items))
        dispatcher = await started(nursery, remotes.table(), Outside(remotes, no_slots))
        began = trio.current_time()
        route = await dispatcher.resolve("m", CHAT)
        assert str(route.target) == "upstream:r0"
        assert trio.current_time() - began == pytest.approx(expected)


@scenario
async def test_an_asker_that_leaves_withdraws_its_query(nursery: trio.Nursery) -> None:
    remotes = Remotes(a=(5.0, ("m",)))
    dispatcher = await started(nursery, remotes.table(), Outside(remotes, no_slots))
    with trio.move_on_after(1.0) as scope:
        await dispatcher.resolve("m", CHAT)
    assert scope.cancelled_caught
    await trio.testing.wait_all_tasks_blocked()
    assert dispatcher.waiting() == 0
    await trio.sleep(5.0)  # the fetch that it began goes on and warms the catalog
    assert dispatcher.listed() == {"a": ("m",)}
    assert (await dispatcher.resolve("m", CHAT)).tier == 2


@scenario
async def test_a_question_whose_asker_has_left_already_is_not_looked_into(nursery: trio.Nursery) -> None:
    remotes = Remotes(a=(5.0, ("m",)))
    dispatcher = await started(nursery, remotes.table(), Outside(remotes, no_slots))
    reply: Reply[Route] = Reply()
    reply.abandon()
    dispatcher.mailbox.post(Asked(Resolve(1, "m", CHAT), reply))
    await trio.testing.wait_all_tasks_blocked()
    assert not remotes.calls


@scenario
async def test_a_fetch_that_takes_too_long_is_cancelled(nursery: trio.Nursery) -> None:
    remotes = Remotes(a=(float("inf"), ()))
    limits = DispatchLimits(fetch_timeout_s=20.0)
    dispatcher = await started(nursery, remotes.table(limits=limits), Outside(remotes, no_slots))
    assert isinstance(await _refused(dispatcher, "m"), NoRouteFound)
    assert trio.current_time() == 8.0
    await trio.sleep(12.0)
    await trio.testing.wait_all_tasks_blocked()
    assert remotes.cancelled == {"a": 1}
    assert [u.status for u in dispatcher.upstreams()] == ["offline"]


@scenario
async def test_a_crash_answers_every_open_question_and_the_next_actor_works(nursery: trio.Nursery) -> None:
    remotes = Remotes(a=(5.0, ("m",)))
    broken = [True]

    async def fetch(entry: UpstreamEntry) -> tuple[str, ...]:
        models = await remotes(entry)
        if broken.pop() if broken else False:
            raise ZeroDivisionError("a bug in the fetcher")
        return models

    crashes: list[ChildCrashed] = []
    supervisor = Supervisor(crashes.append)
    await nursery.start(supervisor.run)
    dispatcher = Dispatcher(remotes.table(), Outside(fetch, no_slots))
    supervisor.start(ChildSpec("dispatcher", dispatcher.run))
    await trio.testing.wait_all_tasks_blocked()
    gone: list[ActorGone] = []

    async def ask() -> None:
        with pytest.raises(ActorGone) as caught:
            await dispatcher.resolve("m", CHAT)
        gone.append(caught.value)

    async with trio.open_nursery() as askers:
        for _ in range(10):
            askers.start_soon(ask)
    assert len(gone) == 10
    assert trio.current_time() == 5.0
    await trio.testing.wait_all_tasks_blocked()
    assert len(crashes) == 1
    assert (await dispatcher.resolve("m", CHAT)).tier == 3


@scenario
async def test_slots_are_seen_as_they_are_when_the_question_comes(nursery: trio.Nursery) -> None:
    def snapshot(name: str, state: SlotState) -> SlotSnapshot:
        return SlotSnapshot(name, "llm", "command", state, model="m", models=("m",), generation=4)

    slots = {n: snapshot(n, SlotState.OFFLINE) for n in ("a", "b")}
    table = compile_table([SlotEntry(n, "llm", "m") for n in slots])
    dispatcher = await started(nursery, table, Outside(Remotes(), lambda: dict(slots)))
    expected = {
        SlotState.READY: "slot:b",
        SlotState.SERVING: "slot:b",
        SlotState.IDLE: "slot:b",
        SlotState.PULLING: "slot:b",
        SlotState.STARTING: "slot:b",
        SlotState.WARMING: "slot:b",
        SlotState.OFFLINE: "slot:a",
        SlotState.UNLOADING: "slot:a",
        SlotState.ERROR: "slot:a",
    }
    for state, target in expected.items():
        slots["b"] = snapshot("b", state)
        assert str((await dispatcher.resolve("m", CHAT)).target) == target, state
    slots["b"] = replace(snapshot("b", SlotState.READY), draining=True)
    assert str((await dispatcher.resolve("m", CHAT)).target) == "slot:a"
    slots["a"] = snapshot("a", SlotState.ERROR)
    assert str((await dispatcher.resolve("m", CHAT)).target) == "slot:b"
    considered = (await dispatcher.explain("m", CHAT)).considered
    assert [(str(c.target), c.rank, c.why) for c in considered] == [
        ("slot:a", 3, "error"),
        ("slot:b", 2, "draining"),
    ]


@scenario
async def test_only_an_engine_that_is_up_lists_anything(nursery: trio.Nursery) -> None:
    slot = SlotSnapshot("a", "llm", "command", SlotState.READY, model="m", models=("x",), generation=4)
    slots = {"a": slot}
    table = compile_table([SlotEntry("a", "llm", "m")])
    dispatcher = await started(nursery, table, Outside(Remotes(), lambda: dict(slots)))
    assert (await dispatcher.resolve("x", CHAT)).generation == 4
    for changes in ({"state": SlotState.WARMING}, {"state": SlotState.ERROR}, {"draining": True}):
        slots["a"] = replace(slot, **changes)
        assert isinstance(await _refused(dispatcher, "x"), NoRouteFound)


@scenario
async def test_a_registry_that_cannot_be_read_is_an_error_and_no_miss(nursery: trio.Nursery) -> None:
    trouble = [True]

    def slots() -> Mapping[str, SlotSnapshot]:
        if trouble:
            raise KeyError("gone")
        return {}

    dispatcher = await started(nursery, compile_table([SlotEntry("a", "llm")]), Outside(Remotes(), slots))
    error = await _refused(dispatcher, "a")
    assert isinstance(error, RegistryBroken)
    assert error.status == 503
    assert isinstance(error.__cause__, KeyError)
    trouble.clear()
    assert str((await dispatcher.resolve("a", CHAT)).target) == "slot:a"


@scenario
async def test_hits_of_tiers_1_and_2_start_no_tasks(nursery: trio.Nursery) -> None:
    remotes = Remotes(a=(1.0, ("m",)))
    table = remotes.table(SlotEntry("chat", "llm", "q"))
    dispatcher = await started(nursery, table, Outside(remotes, no_slots))
    await dispatcher.resolve("m", CHAT)
    await trio.testing.wait_all_tasks_blocked()
    spawned: list[str] = []

    class Watch(trio.abc.Instrument):
        def task_spawned(self, task: trio.lowlevel.Task) -> None:
            spawned.append(task.name)

    watch = Watch()
    trio.lowlevel.add_instrument(watch)
    try:
        for name in ("chat", "q", "m", "slotd/chat", None):
            await dispatcher.resolve(name, CHAT)
    finally:
        trio.lowlevel.remove_instrument(watch)
    assert spawned == []


@scenario
async def test_every_question_is_one_decision(nursery: trio.Nursery) -> None:
    decisions: list[DecisionInfo] = []
    remotes = Remotes(a=(1.0, ("m",)))
    dispatcher = await started(
        nursery, remotes.table(), Outside(remotes, no_slots, on_decision=decisions.append)
    )
    await dispatcher.resolve("m", CHAT)
    await _refused(dispatcher, "x")
    await _refused(dispatcher, "x")
    assert [(d.model, d.target, d.tier, d.cache, d.code, d.waited_s) for d in decisions] == [
        ("m", "upstream:a", 3, "fetched", None, 1.0),
        ("x", "", None, "none", "dispatch.no_route", 0.0),
        ("x", "", None, "negative", "dispatch.no_route", 0.0),
    ]


@scenario
async def test_an_empty_name_is_no_name(nursery: trio.Nursery) -> None:
    dispatcher = await started(nursery, compile_table([SlotEntry("a", "llm")]), Outside(Remotes(), no_slots))
    assert (await dispatcher.resolve("", CHAT)).asked is None
    assert (await dispatcher.explain("", CHAT)).route is not None


@scenario
async def test_catalogs_are_kept_and_a_burst_of_changes_is_written_together(nursery: trio.Nursery) -> None:
    remotes = Remotes(**{f"r{i}": (1.0 + i / 100, ("m",)) for i in range(10)})
    kept = Kept(delay=5.0)
    dispatcher = await started(nursery, remotes.table(), Outside(remotes, no_slots, kept))
    dispatcher.refresh()
    await trio.sleep(20.0)
    assert set(kept.saved) == set(remotes.remotes)
    assert kept.writes == 2
    again = await started(nursery, remotes.table(), Outside(remotes, no_slots, kept))
    route = await again.resolve("m", CHAT)
    assert (route.tier, route.cache) == (2, "stale")


@scenario
async def test_a_store_that_does_not_work_is_reported_and_costs_nothing_else(nursery: trio.Nursery) -> None:
    troubles: list[str] = []
    kept = Kept()
    kept.broken = True
    remotes = Remotes(a=(1.0, ("m",)))
    outside = Outside(remotes, no_slots, kept, on_trouble=troubles.append)
    dispatcher = await started(nursery, remotes.table(), outside)
    assert (await dispatcher.resolve("m", CHAT)).tier == 3
    await trio.testing.wait_all_tasks_blocked()
    assert troubles == ["unreadable", "disk full"]


@scenario
async def test_reads_come_from_what_was_published(nursery: trio.Nursery) -> None:
    remotes = Remotes(a=(1.0, ("m", "n")), b=(1.0, None))
    dispatcher = Dispatcher(remotes.table(), Outside(remotes, no_slots))
    assert [u.status for u in dispatcher.upstreams()] == ["cold", "cold"]  # before the actor runs
    nursery.start_soon(dispatcher.run)
    await trio.testing.wait_all_tasks_blocked()
    dispatcher.refresh()
    await trio.sleep(3.0)
    first, second = (u.as_dict() for u in dispatcher.upstreams())
    assert first == {
        "name": "a",
        "url": "http://a/v1",
        "status": "warm",
        "models": ["m", "n"],
        "age_s": 2.0,
        "asking": False,
        "failures": 0,
        "retry_in_s": None,
        "reason": "",
    }
    assert (second["status"], second["failures"], second["retry_in_s"]) == ("offline", 1, 3.0)
    dispatcher.report_failure("a")
    await trio.testing.wait_all_tasks_blocked()
    assert dispatcher.listed() == {}


@scenario
async def test_a_replaced_table_is_in_force_even_if_the_actor_was_down(nursery: trio.Nursery) -> None:
    dispatcher = Dispatcher(compile_table([SlotEntry("a", "llm")]), Outside(Remotes(), no_slots))
    new = compile_table([SlotEntry("b", "llm")])
    dispatcher.replace(new)
    nursery.start_soon(dispatcher.run)
    await trio.testing.wait_all_tasks_blocked()
    assert dispatcher.routes() is new
    newer = compile_table([SlotEntry("c", "llm")])
    dispatcher.replace(newer)
    assert str((await dispatcher.resolve("c", CHAT)).target) == "slot:c"
    assert dispatcher.routes() is newer


@scenario
async def test_a_slot_that_a_new_table_adds_is_seen_at_once(nursery: trio.Nursery) -> None:
    snapshots = {
        n: SlotSnapshot(n, "llm", "command", SlotState.READY, model="m", models=("m", n), generation=1)
        for n in ("a", "b")
    }
    table = compile_table([SlotEntry("a", "llm", "m")])
    dispatcher = await started(nursery, table, Outside(Remotes(), lambda: snapshots))
    await dispatcher.resolve("a", CHAT)
    dispatcher.replace(compile_table([SlotEntry("b", "llm", "m")]))
    considered = (await dispatcher.resolve("m", CHAT)).considered
    assert [(str(c.target), c.rank) for c in considered] == [("slot:b", 0)]
