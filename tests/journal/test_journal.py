"""The journal on a real file: what it keeps, how much, and that no disk can hurt slotd."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Awaitable, Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from slotd.errors import JournalUnavailable
from slotd.events import Event, EventBus, Subscription, types
from slotd.journal import journal as journal_module
from slotd.journal.entries import GAP, MAX_DATA_BYTES, NARROWED, encode
from slotd.journal.journal import Journal
from slotd.journal.store import Store

GUARD_S = 20


def record(id: str, began: float = 0.0, **more: Any) -> dict[str, Any]:
    return {"id": id, "began_unix": began, "total_s": 1.0, "target": "slot:chat", "outcome": "ok", **more}


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


async def with_journal(
    path: Path,
    test: Callable[[Journal, EventBus], Awaitable[None]],
    *,
    max_events: int = 1000,
    max_requests: int = 1000,
    queue: int = 1000,
    run: str = "run",
    clock: Clock | None = None,
) -> None:
    bus = EventBus(10, clock=clock or Clock())
    with trio.fail_after(GUARD_S):
        async with trio.open_nursery() as nursery:
            journal = Journal(path, max_events, max_requests, queue, bus, run)
            await nursery.start(journal.run)
            await test(journal, bus)
            nursery.cancel_scope.cancel()


async def test_events_and_requests_outlive_the_run(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite3"

    async def first(journal: Journal, bus: EventBus) -> None:
        bus.publish(types.SLOT_LOADED, {"model": "m", "generation": 1}, slot="chat")
        bus.publish(types.REQUEST_FINISHED, record("a", 1000.0))

    async def second(journal: Journal, bus: EventBus) -> None:
        bus.publish(types.REQUEST_FINISHED, record("b", 1000.0))
        told = await journal.events()
        assert [(e.run, e.seq, e.kind, e.slot) for e in told] == [
            ("one", 1, types.SLOT_LOADED, "chat"),
            ("one", 2, types.REQUEST_FINISHED, "chat"),
            ("two", 1, types.REQUEST_FINISHED, "chat"),
        ]
        (found,) = await journal.request("a")
        assert found.record["outcome"] == "ok"
        assert [e.kind for e in found.events] == [types.SLOT_LOADED]
        assert await journal.request("nobody") == []
        assert await journal.horizon() == 1000.0

    # The end of a run is its last writing: nothing was asked in the first.
    await with_journal(path, first, run="one")
    await with_journal(path, second, run="two")


async def test_what_has_just_happened_is_told(tmp_path: Path) -> None:
    async def test(journal: Journal, bus: EventBus) -> None:
        for n in range(20):
            bus.publish(types.SLOT_FAULT, {"n": n}, slot="chat")
            assert [e.data["n"] for e in await journal.events(limit=1)] == [n]

    await with_journal(tmp_path / "j", test)


async def test_a_question_is_narrowed(tmp_path: Path) -> None:
    clock = Clock()

    async def test(journal: Journal, bus: EventBus) -> None:
        for n, (slot, kind) in enumerate(
            [("a", "slot.fault"), ("b", "slot.fault"), ("a", "slot.stopped"), ("a", "slots.not")]
        ):
            clock.now = 1000.0 + n
            bus.publish(kind, {"n": n}, slot=slot)

        async def told(**which: Any) -> list[int]:
            return [e.data["n"] for e in await journal.events(**which)]

        assert await told() == [0, 1, 2, 3]
        assert await told(slot="a") == [0, 2, 3]
        assert await told(kind="slot.fault") == [0, 1]
        assert await told(kind="slot") == [0, 1, 2]
        assert await told(since=1001.0, until=1002.0) == [1, 2]
        assert await told(limit=2) == [2, 3]
        assert await told(slot="a' OR 1 --") == []

    await with_journal(tmp_path / "j", test, clock=clock)


async def test_the_oldest_go_and_the_file_stays_bounded(tmp_path: Path) -> None:
    async def fill(journal: Journal, bus: EventBus) -> None:
        for n in range(600):
            bus.publish(types.SLOT_FAULT, {"n": n}, slot="chat")
            bus.publish(types.REQUEST_FINISHED, record(f"r{n}", float(n)))
        told = await journal.events(kind="slot.fault", limit=10_000)
        while not told or told[-1].data["n"] != 599:
            told = await journal.events(kind="slot.fault", limit=10_000)
        assert [e.data["n"] for e in told] == list(range(590, 600))
        assert await journal.request("r579") == []
        assert len(await journal.request("r580")) == 1
        assert await journal.horizon() == 580.0

    await with_journal(tmp_path / "j", fill, max_events=10, max_requests=20, queue=5000)

    async def lowered(journal: Journal, bus: EventBus) -> None:
        bus.publish(types.SLOT_FAULT, {"n": -1}, slot="chat")
        assert [e.data["n"] for e in await journal.events(kind="slot.fault")] == [598, 599, -1]

    await with_journal(tmp_path / "j", lowered, max_events=3, run="two")


async def test_none_are_kept_where_none_are_wanted(tmp_path: Path) -> None:
    async def test(journal: Journal, bus: EventBus) -> None:
        bus.publish(types.SLOT_FAULT, {}, slot="chat")
        bus.publish(types.REQUEST_FINISHED, record("a"))
        assert [e.kind for e in await journal.events()] == [types.REQUEST_FINISHED]

    await with_journal(tmp_path / "j", test, max_events=0)


async def test_a_repeated_id_is_told_newest_first(tmp_path: Path) -> None:
    async def test(journal: Journal, bus: EventBus) -> None:
        for began in (1.0, 2.0, 3.0):
            bus.publish(types.REQUEST_FINISHED, record("same", began))
        assert [k.record["began_unix"] for k in await journal.request("same")] == [3.0, 2.0, 1.0]

    await with_journal(tmp_path / "j", test)


async def test_a_request_comes_with_what_happened_around_it(tmp_path: Path) -> None:
    clock = Clock()

    async def test(journal: Journal, bus: EventBus) -> None:
        def say(at: float, kind: str, slot: str | None, **data: Any) -> None:
            clock.now = at
            bus.publish(kind, {"n": at, **data}, slot=slot)

        say(1, types.SLOT_FAULT, "chat")  # before it
        say(10, types.SLOT_FAULT, "chat")
        say(11, types.SLOT_FAULT, "other")
        say(12, types.ARBITER_EVICTING, "other")
        say(13, types.REQUEST_REPLAYED, "third", id="a")
        say(14, types.REQUEST_REPLAYED, "third", id="b")
        say(15, types.SLOT_FAULT, "first")
        say(30, types.SLOT_FAULT, "chat")  # after it
        bus.publish(types.REQUEST_FINISHED, record("a", 9.5, total_s=10.0, fallback_from="first"))
        (found,) = await journal.request("a")
        assert [e.data["n"] for e in found.events] == [10, 12, 13, 15]

    await with_journal(tmp_path / "j", test, clock=clock)


async def test_what_comes_too_fast_is_counted_and_noted(tmp_path: Path) -> None:
    async def test(journal: Journal, bus: EventBus) -> None:
        for n in range(50):  # without a checkpoint
            bus.publish(types.SLOT_FAULT, {"n": n}, slot="chat")
        told = await journal.events()
        assert journal.dropped == 40
        assert [(e.kind, e.seq) for e in told][:2] == [(GAP, 40), (types.SLOT_FAULT, 41)]
        assert told[0].data == {"missed": 40}
        assert len(told) == 11

    await with_journal(tmp_path / "j", test, queue=10)


async def test_progress_and_coming_and_going_of_requests_are_left_out(tmp_path: Path) -> None:
    left_out = ("ready", "serving"), ("serving", "ready"), ("ready", "idle"), ("idle", "serving")
    kept = ("warming", "ready"), ("serving", "error")

    async def test(journal: Journal, bus: EventBus) -> None:
        bus.publish(types.SLOT_PULL_PROGRESS, {"done_bytes": 1}, slot="chat")
        for pair in (*left_out, *kept):
            bus.publish(types.SLOT_TRANSITION, dict(zip(("from", "to"), pair, strict=True)), slot="chat")
        bus.publish(types.SLOT_STOPPED, {}, slot="chat")
        told = await journal.events()
        assert [(e.data["from"], e.data["to"]) for e in told[:-1]] == list(kept)
        assert told[-1].kind == types.SLOT_STOPPED

    await with_journal(tmp_path / "j", test)


async def test_the_end_is_kept_after_the_bus_has_closed(tmp_path: Path) -> None:
    async def end(journal: Journal, bus: EventBus) -> None:
        bus.close()
        bus.publish(types.SLOT_STOPPED, {"exit": "exit code 0"}, slot="chat")

    async def told(journal: Journal, bus: EventBus) -> None:
        assert [e.kind for e in await journal.events()] == [types.SLOT_STOPPED]

    await with_journal(tmp_path / "j", end)
    await with_journal(tmp_path / "j", told, run="two")


# --- files and disks ------------------------------------------------------------------------


def newer(path: Path) -> None:
    db = sqlite3.connect(path)
    db.executescript("CREATE TABLE events (x); PRAGMA user_version = 99;")
    db.close()


def foreign(path: Path) -> None:
    db = sqlite3.connect(path)
    db.executescript("CREATE TABLE other (x);")
    db.close()


def garbage(path: Path) -> None:
    path.write_bytes(b"not a database at all, but long enough to be taken for one" * 100)


def torn(path: Path) -> None:
    """The head of a good one and rubbish after it."""
    db = sqlite3.connect(path)
    db.executescript("PRAGMA page_size = 512; CREATE TABLE events (x); PRAGMA user_version = 1;")
    db.close()
    data = path.read_bytes()
    path.write_bytes(data[:100] + b"\xff" * (len(data) - 100))


@pytest.mark.parametrize("spoil", [newer, foreign, garbage, torn])
async def test_a_file_that_cannot_be_used_is_moved_aside(
    tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    path = tmp_path / "journal.sqlite3"
    spoil(path)
    before = path.read_bytes()

    async def test(journal: Journal, bus: EventBus) -> None:
        bus.publish(types.SLOT_FAULT, {"n": 1}, slot="chat")
        assert [e.data["n"] for e in await journal.events()] == [1]

    await with_journal(path, test)
    assert (tmp_path / "journal.sqlite3.aside").read_bytes() == before


async def test_a_file_spoilt_while_it_is_used_is_begun_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "RETRY_S", (0.01, 0.01))
    path = tmp_path / "j"

    async def test(journal: Journal, bus: EventBus) -> None:
        for n in range(100):
            bus.publish(types.SLOT_FAULT, {"n": n, "filler": "x" * 300}, slot="chat")
        assert len(await journal.events()) == 100
        journal._store.close()
        with path.open("r+b") as file:
            file.seek(4096)
            file.write(b"\xff" * 30_000)
        bus.publish(types.SLOT_FAULT, {"n": "after"}, slot="chat")
        told = None
        while told != ["after"]:
            try:
                told = [e.data["n"] for e in await journal.events()]
            except JournalUnavailable:
                await trio.lowlevel.checkpoint()

    await with_journal(path, test)
    assert (tmp_path / "j.aside").exists()


async def test_a_disk_that_refuses_hurts_nobody_and_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "RETRY_S", (0.01, 0.02))
    place = tmp_path / "place"
    place.write_text("a file where a directory should be")

    async def test(journal: Journal, bus: EventBus) -> None:
        bus.publish(types.SLOT_FAULT, {"n": 0}, slot="chat")
        with pytest.raises(JournalUnavailable):
            await journal.events()
        for n in range(1, 500):
            bus.publish(types.SLOT_FAULT, {"n": n}, slot="chat")
        place.unlink()
        place.mkdir()
        told: list[Any] = []
        while not told or told[-1] != 499:
            try:
                told = [e.data.get("n") for e in await journal.events()]
            except JournalUnavailable:
                await trio.lowlevel.checkpoint()
        assert told[0] == 0  # what was in hand is not lost
        assert told[1] is None  # what was too much is noted
        assert journal.dropped == 489

    await with_journal(place / "j", test, queue=10)


async def test_a_full_disk_loses_no_batch_that_was_in_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "RETRY_S", (0.01, 0.02))

    async def test(journal: Journal, bus: EventBus) -> None:
        bus.publish(types.SLOT_FAULT, {"n": 0}, slot="chat")
        await journal.events()
        refused = trio.Event()
        told = journal._refused

        async def note(error: Exception) -> None:
            refused.set()
            await told(error)

        monkeypatch.setattr(journal, "_refused", note)
        db = journal._store._db
        assert db is not None
        db.execute("PRAGMA max_page_count = 1")  # what SQLite meets on a full disk: SQLITE_FULL
        for n in range(1, 200):
            bus.publish(types.SLOT_FAULT, {"n": n, "filler": "x" * 1000}, slot="chat")
        await refused.wait()
        found: list[Any] = []
        while len(found) < 200:
            found = [e.data["n"] for e in await journal.events(limit=1000)]
        assert found == list(range(200))

    await with_journal(tmp_path / "j", test)


# --- entries ----------------------------------------------------------------------------------


def test_long_fields_are_shortened() -> None:
    text = encode({"model": "m" * 100_000, "log": ["line"] * 10_000, "n": 1})
    assert len(text) < MAX_DATA_BYTES
    assert '"n":1' in text


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.text(), _json | st.binary() | st.builds(object), max_size=5))
def test_anything_can_be_kept(data: dict[str, Any]) -> None:
    assert len(encode(data)) <= MAX_DATA_BYTES


def test_an_event_without_a_shape_does_no_harm() -> None:
    assert NARROWED[types.SLOT_TRANSITION](Event(1, 0.0, types.SLOT_TRANSITION, None, {}))


# --- requests that were under way when a run ended without a word -------------------------------


def begun(id: str, began: float = 1000.0) -> dict[str, Any]:
    return {"id": id, "path": "/v1/x", "client": "", "began_unix": began, "bytes_in": 1}


async def killed(path: Path, *batches: list[Event], max_requests: int = 10) -> None:
    """A run that wrote these batches and then was no more."""
    store = Store(path, 10, max_requests, "one")
    for batch in batches:
        store.append(batch)
    store.close()


def event(seq: int, kind: str, data: dict[str, Any], time: float = 1000.0) -> Event:
    return Event(seq, time, kind, None, data)


async def test_what_was_under_way_when_a_run_was_killed_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "j"
    await killed(
        path,
        [
            event(1, types.REQUEST_STARTED, begun("quick")),
            event(2, types.REQUEST_FINISHED, record("quick", 1000.0)),
            event(3, types.REQUEST_STARTED, begun("long")),
            event(4, types.REQUEST_STARTED, begun("slow")),
        ],
        [event(5, types.REQUEST_FINISHED, record("slow", 1000.0), 1007.0)],
    )

    async def next_run(journal: Journal, bus: EventBus) -> None:
        bus.publish(types.SERVER_STARTED, {})
        (lost,) = await journal.request("long")
        assert (lost.run, lost.record["outcome"], lost.record["total_s"]) == ("one", "lost", 7.0)
        for id in ("quick", "slow"):
            (over,) = await journal.request(id)
            assert over.record["outcome"] == "ok"
        told = await journal.events(kind="request")
        assert sorted(e.data["id"] for e in told) == ["long", "quick", "slow"]
        # Of this run nothing is lost, however long it lasts, and it is told once only.
        bus.publish(types.REQUEST_STARTED, begun("now"))
        assert await journal.request("now") == []

    await with_journal(path, next_run, run="two")

    async def third(journal: Journal, bus: EventBus) -> None:
        bus.publish(types.SERVER_STARTED, {})
        assert [k.record["outcome"] for k in await journal.request("now")] == ["lost"]
        assert len(await journal.request("long")) == 1

    await with_journal(path, third, run="three")


async def test_after_a_gap_nothing_is_said_of_what_may_have_ended_in_it(tmp_path: Path) -> None:
    path = tmp_path / "j"
    await killed(
        path,
        [event(1, types.REQUEST_STARTED, begun("a"))],
        [
            event(2, types.REQUEST_STARTED, begun("b")),
            event(6, GAP, {"missed": 4}),
            event(7, types.REQUEST_STARTED, begun("c")),
        ],
    )
    store = Store(path, 10, 10, "two")
    store.append([event(1, types.SERVER_STARTED, {})])
    assert store.requests("a", 10) == store.requests("b", 10) == []
    assert [k.record["outcome"] for k in store.requests("c", 10)] == ["lost"]
    store.close()


async def test_a_request_that_begins_and_ends_at_once_is_written_once(tmp_path: Path) -> None:
    path = tmp_path / "j"
    pair = [event(1, types.REQUEST_STARTED, begun("a")), event(2, types.REQUEST_FINISHED, record("a"))]
    await killed(path, pair)
    with closing(sqlite3.connect(path)) as db:
        counts = [
            db.execute(f"SELECT count(*) FROM {t}").fetchone()[0] for t in ("events", "requests", "live")
        ]
    assert counts == [0, 1, 0]


async def test_what_is_written_once_more_is_kept_once(tmp_path: Path) -> None:
    path = tmp_path / "j"
    first = [
        event(1, types.REQUEST_STARTED, begun("over")),
        event(2, types.REQUEST_FINISHED, record("over", 1000.0)),
        event(3, types.SLOT_FAULT, {"n": 3}),
        event(4, types.REQUEST_STARTED, begun("long")),
    ]
    later = [*first, event(5, types.SLOT_FAULT, {"n": 5}), event(6, types.REQUEST_FINISHED, record("long"))]
    # By who is not told how it went, and then by who has to open the file anew.
    await killed(path, first, first, later)
    await killed(path, later)
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT seq FROM events ORDER BY n").fetchall() == [(3,), (5,)]
        assert db.execute("SELECT seq FROM requests ORDER BY n").fetchall() == [(2,), (6,)]
        assert db.execute("SELECT count(*) FROM live").fetchone() == (0,)


async def test_what_is_being_written_at_the_end_is_kept_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written, ended = threading.Event(), threading.Event()

    async def test(journal: Journal, bus: EventBus) -> None:
        append, finish = journal._store.append, journal._finish

        def slow(events: Sequence[Event]) -> None:
            append(events)
            written.set()
            ended.wait(GUARD_S)

        async def last(events: Subscription) -> None:
            bus.publish(types.SLOT_STOPPED, {}, slot="chat")
            ended.set()  # the one that was left behind
            await finish(events)

        monkeypatch.setattr(journal._store, "append", slow)
        monkeypatch.setattr(journal, "_finish", last)
        bus.publish(types.SLOT_FAULT, {}, slot="chat")
        await trio.to_thread.run_sync(written.wait, GUARD_S)

    await with_journal(tmp_path / "j", test)
    with closing(sqlite3.connect(tmp_path / "j")) as db:
        kinds = db.execute("SELECT kind FROM events ORDER BY n").fetchall()
    assert kinds == [(types.SLOT_FAULT,), (types.SLOT_STOPPED,)]


@pytest.mark.parametrize("count", [1, 7, 8, 63, 64, 65, 200])
async def test_every_one_of_a_batch_is_kept_in_its_order(tmp_path: Path, count: int) -> None:
    path = tmp_path / "j"
    finished = [event(n, types.REQUEST_FINISHED, record(f"r{n}", float(n))) for n in range(1, count + 1)]
    faults = [event(count + n, types.SLOT_FAULT, {"n": n}) for n in range(1, count + 1)]
    store = Store(path, 1000, 1000, "one")
    store.append([*finished, *faults])
    told = store.events(limit=1000)
    assert [e.seq for e in told] == list(range(1, 2 * count + 1))
    assert [e.data.get("id", e.data.get("n")) for e in told] == [
        *(f"r{n}" for n in range(1, count + 1)),
        *range(1, count + 1),
    ]
    store.close()


async def test_without_requests_none_is_noted(tmp_path: Path) -> None:
    path = tmp_path / "j"
    await killed(path, [event(1, types.REQUEST_STARTED, begun("a"))], max_requests=0)
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT count(*) FROM live").fetchone()[0] == 0


async def test_a_file_of_before_gets_what_it_lacks(tmp_path: Path) -> None:
    path = tmp_path / "j"
    await killed(path, [event(1, types.REQUEST_FINISHED, record("a"))])
    with closing(sqlite3.connect(path)) as db:
        db.execute("DROP TABLE live")
    store = Store(path, 10, 10, "two")
    store.append([event(1, types.REQUEST_STARTED, begun("b"))])
    assert len(store.requests("a", 10)) == 1
    store.close()
