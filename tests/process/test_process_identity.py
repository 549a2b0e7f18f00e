"""Identities, the ledger, and the sweep of an earlier run's leftovers."""

from __future__ import annotations

import dataclasses
import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
from process_tools import lives

from slotd.process.identity import Ledger, LedgerEntry, ProcessIdentity, sweep_leftovers


@pytest.fixture
def faults() -> list[str]:
    return []


@pytest.fixture
def ledger(tmp_path: Path, faults: list[str]) -> Ledger:
    return Ledger(tmp_path / "state" / "ledger.json", report=faults.append)


def identity(pid: int) -> ProcessIdentity:
    found = ProcessIdentity.of(pid)
    assert found is not None
    return found


def test_identity_tells_a_process_from_a_later_owner_of_its_pid() -> None:
    me = identity(os.getpid())
    assert me.is_current()
    assert not dataclasses.replace(me, start_ticks=me.start_ticks + 1).is_current()
    assert not dataclasses.replace(me, boot_id="another").is_current()
    assert ProcessIdentity.of(2**22 + 1) is None


async def test_what_is_written_is_read(ledger: Ledger, faults: list[str]) -> None:
    assert ledger.read_file() == ()
    one = LedgerEntry(ProcessIdentity(11, 1, "boot"), "run", "chat")
    two = LedgerEntry(ProcessIdentity(12, 2, "boot"), "run", "caf\u00e9")
    ledger.add(one)
    ledger.add(two)
    await ledger.flush()
    assert ledger.read_file() == ledger.live
    assert list(ledger.live) == [one, two]
    ledger.remove(dataclasses.replace(two.leader, start_ticks=9))
    ledger.remove(one.leader)
    await ledger.flush()
    assert ledger.read_file() == ledger.live
    assert list(ledger.live) == [two]
    assert faults == []


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff\x00", b"{", b"[]", b"{}", b'{"version": 2, "groups": []}', b'{"version": 1, "groups": [{}]}',
     b'{"version": 1, "groups": 3}', b'{"version": 1, "groups": [{"leader": null}]}', b"[" * 100_000],
)  # fmt: skip
async def test_a_broken_ledger_is_reported_and_replaced(
    ledger: Ledger, faults: list[str], tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "state" / "ledger.json"
    path.parent.mkdir()
    path.write_bytes(content)
    assert await sweep_leftovers(ledger, own_run_id="new") == []
    assert len(faults) == 1
    assert str(path) in faults[0]


async def test_a_full_disk_is_reported_once_and_kills_nothing(
    ledger: Ledger, faults: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = LedgerEntry(ProcessIdentity(11, 1, "boot"), "run", "chat")
    with monkeypatch.context() as patch:

        def full(self: Path, data: bytes) -> int:
            self.touch()
            raise OSError(errno.ENOSPC, "No space left on device")

        patch.setattr(Path, "write_bytes", full)
        ledger.add(entry)
        await ledger.flush()
        await ledger.flush()
        assert list((tmp_path / "state").iterdir()) == []
    assert len(faults) == 1
    assert "No space left" in faults[0]
    await ledger.flush()
    assert ledger.read_file() == (entry,)
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["ledger.json"]


async def test_concurrent_flushes_end_with_the_newest(ledger: Ledger) -> None:
    async with trio.open_nursery() as nursery:
        for n in range(20):
            ledger.add(LedgerEntry(ProcessIdentity(n, n, "boot"), "run", "chat"))
            nursery.start_soon(ledger.flush)
            await trio.lowlevel.checkpoint()
    assert ledger.read_file() == ledger.live


async def test_sweep_kills_only_what_is_still_the_same(ledger: Ledger, bystander: Callable[..., int]) -> None:
    same, recycled, before_boot = (identity(bystander()) for _ in range(3))
    marked, unmarked = bystander({"SLOTD_RUN": "old"}), bystander({"SLOTD_RUN": "older"})
    entries = (
        LedgerEntry(same, "old", "chat"),
        LedgerEntry(dataclasses.replace(recycled, start_ticks=recycled.start_ticks - 1), "old", "voice"),
        LedgerEntry(dataclasses.replace(before_boot, boot_id="another"), "old", "image"),
    )
    for entry in entries:
        ledger.add(entry)
    await ledger.flush()
    fresh = Ledger(ledger.path, report=pytest.fail)
    with trio.fail_after(10):
        (leftover,) = await sweep_leftovers(fresh, own_run_id="new")
    assert not lives(same.pid)
    assert not lives(marked)
    assert all(map(lives, (recycled.pid, before_boot.pid, unmarked)))
    assert leftover.run_id == "old"
    assert leftover.slots == ("chat", "voice")
    assert set(leftover.killed) == {same.pid, marked}
    assert leftover.survivors == ()
    assert fresh.read_file() == ()


async def test_sweep_spares_its_own_run(ledger: Ledger, bystander: Callable[..., int]) -> None:
    mine = identity(bystander({"SLOTD_RUN": "this"}))
    ledger.add(LedgerEntry(mine, "this", "chat"))
    await ledger.flush()
    with trio.fail_after(10):
        assert await sweep_leftovers(ledger, own_run_id="this") == []
    assert lives(mine.pid)
