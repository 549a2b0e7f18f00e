"""Many askers, one download; and what happens when they leave, or the store does."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
import trio.testing
from model_server import FileServer, find

from slotd.errors import ActorGone
from slotd.model.errors import ModelFetchFailed
from slotd.model.fetch_http import Patience
from slotd.model.files import Staged, try_flock
from slotd.model.progress import Progress
from slotd.model.source import HttpSource, ModelRef
from slotd.model.store import ModelStore

BODY = os.urandom(400_000)
HALF = 200_000


@pytest.fixture
async def server(nursery: trio.Nursery) -> FileServer:
    server = FileServer(BODY, hold_after=HALF)
    await nursery.start(server.run)
    return server


@pytest.fixture
async def store(tmp_path: Path, nursery: trio.Nursery) -> ModelStore:
    store = ModelStore(tmp_path / "models", parallel=1, patience=Patience(attempts=1))
    await nursery.start(store.run)
    return store


class Asker:
    """Fetches in a task of its own and keeps what happened."""

    def __init__(self, store: ModelStore, ref: ModelRef) -> None:
        self.store, self.ref = store, ref
        self.scope = trio.CancelScope()
        self.seen: list[Progress] = []
        self.path: Path | None = None
        self.error: Exception | None = None
        self.done = trio.Event()

    async def run(self) -> None:
        try:
            with self.scope:
                self.path = await self.store.fetch(self.ref, self.seen.append)
        except Exception as error:
            self.error = error
        self.done.set()


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(10):
        while not condition():
            await trio.testing.wait_all_tasks_blocked(0.005)


def arrived(asker: Asker) -> Callable[[], bool]:
    return lambda: any(p.phase == "downloading" and p.done_bytes == HALF for p in asker.seen)


async def test_two_askers_share_one_download(
    store: ModelStore, server: FileServer, nursery: trio.Nursery
) -> None:
    first = Asker(store, ModelRef("one", server.url))
    second = Asker(store, ModelRef("other-name", server.url))
    nursery.start_soon(first.run)
    await until(arrived(first))
    nursery.start_soon(second.run)
    await until(arrived(second))  # who joins late hears at once where it stands
    server.go_on.set()
    with trio.fail_after(10):
        await first.done.wait()
        await second.done.wait()
    assert first.path == second.path
    assert first.path is not None
    assert len(server.requests) == 1
    assert first.seen[-1] == second.seen[-1] == Progress("downloading", len(BODY), len(BODY))


async def test_one_of_two_leaves_and_the_other_is_served(
    store: ModelStore, server: FileServer, nursery: trio.Nursery
) -> None:
    first, second = (Asker(store, ModelRef("m", server.url)) for _ in range(2))
    nursery.start_soon(first.run)
    nursery.start_soon(second.run)
    await until(arrived(second))
    first.scope.cancel()
    await first.done.wait()
    server.go_on.set()
    with trio.fail_after(10):
        await second.done.wait()
    assert second.path is not None
    assert first.path is None
    assert len(server.requests) == 1


async def test_the_last_asker_ends_the_download(
    store: ModelStore, server: FileServer, nursery: trio.Nursery
) -> None:
    first, second = (Asker(store, ModelRef("m", server.url)) for _ in range(2))
    nursery.start_soon(first.run)
    nursery.start_soon(second.run)
    await until(arrived(second))
    first.scope.cancel()
    second.scope.cancel()
    with trio.fail_after(5):
        await server.gone.wait()
    server.hold_after = None
    third = Asker(store, ModelRef("m", server.url))
    await third.run()
    assert third.path is not None
    assert server.requests[-1]["range"] == f"bytes={HALF}-"


async def test_leaving_and_asking_in_one_breath(
    store: ModelStore, server: FileServer, nursery: trio.Nursery
) -> None:
    """The new flight must not touch the part before the old one has let go of it."""
    first, second = (Asker(store, ModelRef("m", server.url)) for _ in range(2))
    nursery.start_soon(first.run)
    await until(arrived(first))
    server.hold_after = None
    first.scope.cancel()
    await first.done.wait()  # it has left; its download is still unwinding
    assert not server.gone.is_set()
    nursery.start_soon(second.run)
    with trio.fail_after(10):
        await second.done.wait()
    assert second.path is not None
    assert second.path.read_bytes() == BODY
    assert server.requests[-1]["range"] == f"bytes={HALF}-"


async def test_every_asker_gets_an_error_of_its_own(
    store: ModelStore, server: FileServer, nursery: trio.Nursery
) -> None:
    server.status = [404]
    first, second = (Asker(store, ModelRef("m", server.url)) for _ in range(2))
    nursery.start_soon(first.run)
    nursery.start_soon(second.run)
    with trio.fail_after(10):
        await first.done.wait()
        await second.done.wait()
    assert isinstance(first.error, ModelFetchFailed)
    assert isinstance(second.error, ModelFetchFailed)
    assert first.error is not second.error
    assert first.error.message == second.error.message
    assert first.error.details == second.error.details


async def test_a_broken_callback_hurts_its_own_asker_only(
    store: ModelStore, server: FileServer, nursery: trio.Nursery
) -> None:
    good = Asker(store, ModelRef("m", server.url))
    nursery.start_soon(good.run)
    await until(arrived(good))

    def broken(_progress: Progress) -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        await store.fetch(good.ref, broken)
    server.go_on.set()
    with trio.fail_after(10):
        await good.done.wait()
    assert good.path is not None


@pytest.mark.parametrize("parallel", [1, 2])
async def test_downloads_at_a_time_are_bounded(
    tmp_path: Path, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch, parallel: int
) -> None:
    """Each stand-in download stays until nothing else can move: unbounded, all three would meet."""
    inside: set[str] = set()
    peaks: list[int] = []
    waiting: list[bool] = []

    async def meet(source: HttpSource, staging: Path, *_: object, **__: object) -> Staged:
        inside.add(source.url)
        await trio.testing.wait_all_tasks_blocked()
        peaks.append(len(inside))
        waiting.append(any(asker.seen[-1].phase == "waiting" for asker in askers if asker.seen))
        inside.remove(source.url)
        staged = staging / "staged"
        await trio.Path(staged).write_bytes(b"x")
        return Staged(staged, "0" * 64)

    monkeypatch.setattr("slotd.model.store.fetch_http", meet)
    store = ModelStore(tmp_path / "models", parallel=parallel)
    await nursery.start(store.run)
    askers = [Asker(store, ModelRef("m", f"http://127.0.0.1:1/{n}.bin")) for n in range(3)]
    for asker in askers:
        nursery.start_soon(asker.run)
    with trio.fail_after(10):
        for asker in askers:
            await asker.done.wait()
    assert all(asker.path is not None for asker in askers)
    assert max(peaks) == parallel
    assert waiting[0]


async def test_another_process_s_download_is_waited_for(
    store: ModelStore, server: FileServer, nursery: trio.Nursery, tmp_path: Path
) -> None:
    asker = Asker(store, ModelRef("m", server.url))
    nursery.start_soon(asker.run)
    await until(arrived(asker))
    asker.scope.cancel()
    await server.gone.wait()
    server.hold_after = None
    with try_flock(find(tmp_path, "models/*/lock")[0]) as attempt:
        await until(attempt)
        late = Asker(store, ModelRef("m", server.url))
        nursery.start_soon(late.run)
        await until(lambda: Progress("waiting", 0) not in late.seen[-1:] and bool(late.seen))
        assert late.seen[-1].phase == "waiting"
        assert late.seen[-1].done_bytes >= HALF  # what lies on disk
        assert len(server.requests) == 1
    with trio.fail_after(10):
        await late.done.wait()
    assert late.path is not None


async def test_a_store_that_stops_answers_everybody(
    server: FileServer, tmp_path: Path, nursery: trio.Nursery
) -> None:
    store = ModelStore(tmp_path / "models")
    asker = Asker(store, ModelRef("m", server.url))
    async with trio.open_nursery() as owner:
        await owner.start(store.run)
        nursery.start_soon(asker.run)
        await until(arrived(asker))
        owner.cancel_scope.cancel()
    with trio.fail_after(5):
        await asker.done.wait()
    assert isinstance(asker.error, ActorGone)
    with pytest.raises(ActorGone):
        await store.fetch(asker.ref, asker.seen.append)


async def test_a_bug_in_one_fetch_is_that_model_s_failure(
    store: ModelStore, server: FileServer, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def bug(*_: object, **__: object) -> None:
        raise ZeroDivisionError("oops")

    with monkeypatch.context() as patch:
        patch.setattr("slotd.model.store.fetch_http", bug)
        with pytest.raises(ModelFetchFailed, match="oops") as caught:
            await store.fetch(ModelRef("m", server.url), print)
    assert caught.value.reason == "internal"
    server.hold_after = None
    await store.fetch(ModelRef("m", server.url), lambda _progress: None)
