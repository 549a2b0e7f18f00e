"""The guardian: nothing survives slotd, and the guardian survives everything else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
from process_tools import carriers, end_of, lives, note, plan, run_engine, status_field

from slotd.process import hunt
from slotd.process.guardian import Guardian
from slotd.process.identity import Ledger, ProcessIdentity, run_marker, sweep_leftovers
from slotd.process.local import LocalLauncher
from slotd.process.ports import PortPool


@pytest.fixture
def faults() -> list[str]:
    return []


@pytest.fixture
def guardian(run_id: str, faults: list[str]) -> Guardian:
    return Guardian(run_id, report=faults.append)


def identity(pid: int) -> ProcessIdentity:
    found = ProcessIdentity.of(pid)
    assert found is not None
    return found


async def replaced(guardian: Guardian, old: int) -> int:
    """Wait until another guardian process runs; there is no event for it but the pid."""
    while guardian.pid in (None, old):  # noqa: ASYNC110 - one field of another task's work
        await trio.sleep(0.005)
    assert guardian.pid is not None
    return guardian.pid


@pytest.fixture
def slotd_like(run_id: str, tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """Starts a small slotd of its own, in its own range of ports."""
    script = Path(__file__).with_name("slotd_like.py")
    first_port = 30_000 + os.getpid() * 10 % 2_000

    def start(*options: str) -> subprocess.Popen[str]:
        argv = [sys.executable, str(script), run_id, str(first_port), str(tmp_path / "ledger.json"), *options]
        return subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)

    return start


async def pids_of(slotd: subprocess.Popen[str]) -> tuple[int, int, list[int]]:
    """The child that inherited all, the guardian, and the engines with their grandchildren."""
    assert slotd.stdout is not None
    lines = [await trio.to_thread.run_sync(slotd.stdout.readline) for _ in range(3)]
    (leaker, guardian), *engines = [[int(word) for word in line.split()] for line in lines]
    return leaker, guardian, [pid for row in engines for pid in row]


@pytest.mark.parametrize("options", [(), ("leak",)])
async def test_nothing_survives_a_killed_slotd(
    slotd_like: Callable[..., subprocess.Popen[str]], run_id: str, options: tuple[str, ...]
) -> None:
    with slotd_like(*options) as slotd, trio.fail_after(20):
        leaker, guardian, engines = await pids_of(slotd)
        assert len(engines) == 4
        assert all(map(lives, engines))
        killed_at = trio.current_time()
        slotd.kill()
        with trio.fail_after(2):
            for pid in engines:
                await end_of(pid)
        note(f"engines gone after {(trio.current_time() - killed_at) * 1000:.0f} ms")
        if leaker:
            os.kill(leaker, signal.SIGKILL)
        with trio.fail_after(2):
            await end_of(guardian)
    assert carriers(run_marker(run_id)) == []


async def test_what_survives_slotd_and_guardian_is_swept_at_the_next_start(
    slotd_like: Callable[..., subprocess.Popen[str]], run_id: str, tmp_path: Path
) -> None:
    ledger = Ledger(tmp_path / "ledger.json", report=pytest.fail)
    with slotd_like() as slotd, trio.fail_after(20):
        _, guardian, engines = await pids_of(slotd)
        os.kill(slotd.pid, signal.SIGSTOP)
        os.kill(guardian, signal.SIGKILL)
        slotd.kill()
        await end_of(guardian)
        assert all(map(lives, engines))
        (leftover,) = await sweep_leftovers(ledger, own_run_id="next")
    assert set(leftover.killed) == set(engines)
    assert carriers(run_marker(run_id)) == []
    assert ledger.read_file() == ()


async def test_closes_with_slotd_kills_the_told_and_leaves_no_zombie(
    guardian: Guardian, bystander: Callable[..., int], open_files: Callable[[], set[str]], faults: list[str]
) -> None:
    told, ended, stranger = bystander(), bystander(), bystander()
    before: set[str] = set()
    with trio.fail_after(10):
        await trio.to_thread.run_sync(lambda: None)
        before = open_files()
        guardian.tell_started(identity(told))  # before there is a guardian
        async with trio.open_nursery() as nursery:
            await nursery.start(guardian.run)
            pid = guardian.pid
            assert pid is not None
            guardian.tell_started(identity(ended))
            guardian.tell_ended(identity(ended))
            nursery.cancel_scope.cancel()
    assert [lives(pid) for pid in (told, ended, stranger)] == [False, True, True]
    assert hunt.read_proc(pid) is None
    assert guardian.pid is None
    assert open_files() == before
    assert faults == []


async def test_a_killed_guardian_is_replaced_and_told_all(
    guardian: Guardian, bystander: Callable[..., int], faults: list[str]
) -> None:
    told = bystander()
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            await nursery.start(guardian.run)
            guardian.tell_started(identity(told))
            first = guardian.pid
            assert first is not None
            os.kill(first, signal.SIGKILL)
            await replaced(guardian, first)
            assert hunt.read_proc(first) is None, "reaped"
            assert lives(told)
            nursery.cancel_scope.cancel()
    assert not lives(told)
    assert len(faults) == 1


async def test_signals_that_stop_slotd_do_not_stop_its_guardian(
    guardian: Guardian, bystander: Callable[..., int], faults: list[str]
) -> None:
    told = bystander()
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            await nursery.start(guardian.run)
            pid = guardian.pid
            assert pid is not None
            assert os.getsid(pid) == pid
            await ignores_signals(pid)
            for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                os.kill(pid, signum)
            guardian.tell_started(identity(told))
            nursery.cancel_scope.cancel()
    assert not lives(told)
    assert faults == []


async def ignores_signals(pid: int) -> None:
    """Wait until the process has set up its signal handling."""
    want = sum(1 << (signum - 1) for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
    while int(status_field(pid, "SigIgn"), 16) & want != want:  # noqa: ASYNC110 - another process's state
        await trio.sleep(0.001)


async def test_a_guardian_that_does_not_read_is_replaced(guardian: Guardian, faults: list[str]) -> None:
    me = identity(os.getpid())
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            await nursery.start(guardian.run)
            first = guardian.pid
            assert first is not None
            os.kill(first, signal.SIGSTOP)
            while not faults:
                guardian.tell_started(me)
                guardian.tell_ended(me)
            await replaced(guardian, first)
            nursery.cancel_scope.cancel()
    assert "does not read" in faults[0]


async def test_is_small_quick_and_its_pipe_is_not_inherited(
    guardian: Guardian, ports: PortPool, run_id: str
) -> None:
    launcher = LocalLauncher(ports, run_id=run_id, guardian=guardian, ledger=None)
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            before = trio.current_time()
            await nursery.start(guardian.run)
            assert guardian.pid is not None
            await ignores_signals(guardian.pid)
            took_ms = (trio.current_time() - before) * 1000
            running = await nursery.start(run_engine, launcher, plan("say('up'); wait()"))
            await running.line()
            pipe = os.readlink(f"/proc/{guardian.pid}/fd/0")
            held = [os.readlink(f"/proc/{running.handle.pid}/fd/{fd}") for fd in (0, 1, 2)]
            assert os.listdir(f"/proc/{running.handle.pid}/fd") == ["0", "1", "2"]
            assert pipe not in held
            rss_kb = int(status_field(guardian.pid, "VmRSS"))
            await running.stop(30)
            nursery.cancel_scope.cancel()
    note(f"guardian: ready after {took_ms:.0f} ms, {rss_kb} kB")
    assert rss_kb < 12_000
    assert took_ms < 500
