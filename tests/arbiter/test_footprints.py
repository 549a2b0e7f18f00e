"""What engines were seen to take up: remembered, bounded, and kept on disk as far as that goes."""

from __future__ import annotations

import errno
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import structlog
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from slotd.arbiter import footprints
from slotd.arbiter.footprints import HALF_LIFE_S, Footprints
from slotd.arbiter.tenant import Need


class Wall:
    """A wall clock that stands still."""

    def __init__(self) -> None:
        self.now = 1e9

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def wall() -> Wall:
    return Wall()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "footprints.json"


def read(path: Path) -> bytes:
    return path.read_bytes()


def write(path: Path, data: bytes) -> None:
    path.parent.mkdir()
    path.write_bytes(data)


def test_nothing_is_known_of_a_plan_that_never_ran(path: Path) -> None:
    assert Footprints(path).get("x") is None


def test_the_larger_measure_stays(path: Path, wall: Wall) -> None:
    kept = Footprints(path, wall=wall)
    kept.put("x", 100, 10)
    assert kept.get("x") == Need(100, 10, "measured")
    kept.put("x", 90, 20)
    assert kept.get("x") == Need(100, 20, "measured"), "RAM and GPU each by itself"


def test_half_of_what_is_above_is_forgotten_a_day(path: Path, wall: Wall) -> None:
    kept = Footprints(path, wall=wall)
    kept.put("x", 1100, 0)
    wall.now += HALF_LIFE_S
    kept.put("x", 100, 0)
    assert kept.get("x") == Need(600, 0, "measured")
    for _ in range(48):
        wall.now += HALF_LIFE_S / 48
        kept.put("x", 100, 0)
    found = kept.get("x")
    assert found is not None
    assert 350 <= found.ram_mb <= 400, "however often it is measured"


def test_a_clock_set_back_forgets_nothing(path: Path, wall: Wall) -> None:
    kept = Footprints(path, wall=wall)
    kept.put("x", 1000, 0)
    wall.now -= 1e6
    kept.put("x", 1, 0)
    assert kept.get("x") == Need(1000, 0, "measured")


@given(measures=st.lists(st.tuples(st.floats(0, 1e6), st.integers(-5, 1 << 40), st.integers(-5, 1 << 40))))
def test_never_less_than_the_last_nor_more_than_the_most(measures: list[tuple[float, int, int]]) -> None:
    wall = Wall()
    kept = Footprints(Path("unused"), wall=wall)
    for i, (passed, ram, gpu) in enumerate(measures):
        wall.now += passed
        kept.put("x", ram, gpu)
        found = kept.get("x")
        assert found is not None
        for value, last, most in (
            (found.ram_mb, ram, max(m[1] for m in measures[: i + 1])),
            (found.gpu_mb, gpu, max(m[2] for m in measures[: i + 1])),
        ):
            assert min(max(last, 0), footprints.MAX_MB) <= value <= min(max(most, 0), footprints.MAX_MB)


def test_the_least_recently_used_goes(path: Path) -> None:
    kept = Footprints(path, limit=3)
    for digest in "abc":
        kept.put(digest, 1, 0)
    kept.get("a")
    kept.put("b", 1, 0)
    kept.put("d", 1, 0)
    assert len(kept) == 3
    assert [kept.get(d) is not None for d in "abcd"] == [True, True, False, True]


# --- on disk ------------------------------------------------------------------------


async def test_what_was_saved_is_there_after_a_restart(path: Path, wall: Wall) -> None:
    kept = Footprints(path, wall=wall)
    await kept.load()
    kept.put("a", 100, 10)
    kept.put("b", 200, 0)
    kept.get("a")
    await kept.save()
    assert os.listdir(path.parent) == [path.name], "no draft is left"

    wall.now += HALF_LIFE_S
    again = Footprints(path, wall=wall, limit=2)
    await again.load()
    assert (again.get("a"), again.get("b")) == (Need(100, 10, "measured"), Need(200, 0, "measured"))
    again.put("b", 100, 0)
    assert again.get("b") == Need(150, 0, "measured"), "its age is kept as well"

    third = Footprints(path, limit=1)
    await third.load()
    assert (third.get("a"), third.get("b")) == (Need(100, 10, "measured"), None), "b was not used since a"


async def test_what_was_measured_before_the_file_was_read_stays(path: Path) -> None:
    old = Footprints(path)
    old.put("a", 1, 1)
    old.put("b", 1, 1)
    await old.save()
    new = Footprints(path, limit=2)
    new.put("a", 5, 5)
    await new.load()
    assert (new.get("a"), new.get("b")) == (Need(5, 5, "measured"), Need(1, 1, "measured"))


BROKEN = [
    b"",
    b"{",
    b"[]",
    b"\xff\xfe",
    b'{"format": 2, "footprints": {}}',
    b'{"format": 1, "footprints": {"a": {"ram_mb": -1, "gpu_mb": 0, "at": 0}}}',
    b'{"format": 1, "footprints": {"a": {"ram_mb": 1}}}',
    b'{"format": 1, "footprints": ' + b"[" * 100_000,
]


@pytest.mark.parametrize("data", BROKEN, ids=range(len(BROKEN)))
async def test_a_broken_file_is_as_none_and_a_warning(path: Path, data: bytes) -> None:
    write(path, data)
    kept = Footprints(path)
    kept.put("b", 1, 1)
    with structlog.testing.capture_logs() as logs:
        await kept.load()
    assert [(e["log_level"], str(path) in e["error"]) for e in logs] == [("warning", True)]
    assert len(kept) == 1
    await kept.save()
    fresh = Footprints(path)
    await fresh.load()
    assert len(fresh) == 1


async def test_a_file_of_any_length_is_not_taken_up(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(footprints, "MAX_FILE_BYTES", 10)
    kept = Footprints(path)
    kept.put("a", 1, 1)
    await kept.save()
    with structlog.testing.capture_logs() as logs:
        await Footprints(path).load()
    assert "longer than" in logs[0]["error"]


async def test_a_full_disk_hurts_nobody_and_is_told_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Footprints(path)
    kept.put("a", 1, 1)
    await kept.save()
    before = read(path)
    full = True
    really = os.replace

    def replace(*args: Any) -> None:
        if full:
            raise OSError(errno.ENOSPC, "No space left on device")
        really(*args)

    monkeypatch.setattr(os, "replace", replace)
    kept.put("b", 2, 2)
    with structlog.testing.capture_logs() as logs:
        await kept.save()
        await kept.save()
        assert [e["log_level"] for e in logs] == ["warning"]
        assert read(path) == before, "what was kept is whole"
        assert os.listdir(path.parent) == [path.name]
        full = False
        await kept.save()
        full = True
        await kept.save()
    assert len(logs) == 2, "a new trouble is told again"
    assert b'"b"' in read(path)


async def test_a_folder_that_cannot_be_is_a_warning_too(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    kept = Footprints(tmp_path / "file" / "footprints.json")
    with structlog.testing.capture_logs() as logs:
        await kept.load()
        kept.put("a", 1, 1)
        await kept.save()
    assert [e["log_level"] for e in logs] == ["warning"] * 2
    assert kept.get("a") is not None


async def test_changes_are_written_together_and_only_changes(
    path: Path, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes: list[float] = []
    written = trio.Event()

    async def run_sync(call: Callable[[], None], **_: Any) -> None:
        """A thread of no duration: the clock must not jump while one works."""
        nonlocal written
        call()
        writes.append(trio.current_time() - began)
        written.set()
        written = trio.Event()
        await trio.lowlevel.checkpoint()

    monkeypatch.setattr(trio.to_thread, "run_sync", run_sync)
    kept = Footprints(path, write_every_s=5)
    began = trio.current_time()
    with trio.fail_after(1000):
        async with trio.open_nursery() as nursery:
            await nursery.start(kept.run)
            kept.put("a", 1, 1)
            await trio.sleep(2)
            kept.put("b", 1, 1)
            await written.wait()
            await trio.sleep(100)
            kept.get("a")
            await trio.sleep(100)
            kept.put("c", 1, 1)
            await written.wait()
            nursery.cancel_scope.cancel()
    assert writes == [pytest.approx(5), pytest.approx(210)]
    assert b'"b"' in read(path)


@pytest.mark.parametrize("what", [Footprints.load, Footprints.save])
async def test_a_slow_disk_holds_up_no_stop(
    path: Path, monkeypatch: pytest.MonkeyPatch, what: Callable[[Footprints], Awaitable[None]]
) -> None:
    path.parent.mkdir()
    os.mkfifo(path)  # nobody writes into it: reading it hangs
    stuck = trio.Event()
    token = trio.lowlevel.current_trio_token()
    really = os.replace

    def replace(source: Any, target: Any) -> None:
        token.run_sync_soon(stuck.set)
        with open(path, "rb"):
            really(source, target)

    monkeypatch.setattr(os, "replace", replace)
    kept = Footprints(path)
    if what is Footprints.load:
        token.run_sync_soon(stuck.set)
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(what, kept)
            await stuck.wait()
            nursery.cancel_scope.cancel()
    descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK)  # lets the thread go
    os.close(descriptor)
