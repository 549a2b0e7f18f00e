"""What is seen of an engine's processes from outside, with real ones."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Collection
from pathlib import Path

import pytest
import trio
from process_tools import Running, plan, run_engine

from slotd.engine.attach import AttachLauncher
from slotd.process import handle, vitals
from slotd.process.identity import ProcessIdentity
from slotd.process.local import LocalLauncher
from slotd.process.logs import LogRing
from slotd.process.plan import Address, EngineHandle
from slotd.process.vitals import Footprint, Vitals, oom_kills, read_vitals

BUSY = "say('up')\nwhile True: pass"
HOG_MB = 64
HOG = f"""
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
say('up')
signal.sigwait([signal.SIGUSR1])
hog = bytearray(os.urandom(1)) * ({HOG_MB} << 20)
"""


async def look(handle: EngineHandle) -> Vitals:
    seen = await handle.vitals()
    assert seen is not None
    return seen


async def weigh(handle: EngineHandle) -> Footprint:
    seen = await handle.footprint()
    assert seen is not None
    return seen


async def grown(handle: EngineHandle, cpu_s: float) -> Vitals:
    """Look until the engine has used so much more of the CPU."""
    first = seen = await look(handle)
    while seen.cpu_s < first.cpu_s + cpu_s:
        seen = await look(handle)
    return seen


async def until_lines(handle: EngineHandle, count: int) -> tuple[str, ...]:
    with handle.logs.subscribe(100) as lines:
        while len(said := handle.logs.tail(100)) < count:
            await anext(lines)
    return said


async def test_a_busy_engine_uses_the_cpu_and_a_stopped_one_does_not(launcher: LocalLauncher) -> None:
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            busy: Running = await nursery.start(run_engine, launcher, plan(BUSY))
            frozen: Running = await nursery.start(run_engine, launcher, plan(BUSY))
            await grown(frozen.handle, 0.05)
            assert frozen.handle.pid is not None
            os.kill(frozen.handle.pid, signal.SIGSTOP)
            while not (before := await look(frozen.handle)).stopped:
                pass
            seen = await grown(busy.handle, 0.2)
            assert not seen.stopped
            after = await look(frozen.handle)
            assert after.stopped
            assert after.cpu_s == before.cpu_s
            os.kill(frozen.handle.pid, signal.SIGCONT)
            while (await look(frozen.handle)).stopped:
                pass
            await grown(frozen.handle, 0.05)
            await busy.stop(0)
            await frozen.stop(0)


async def test_an_idle_engine_uses_nothing(launcher: LocalLauncher) -> None:
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            idle: Running = await nursery.start(run_engine, launcher, plan("say('up'); wait()"))
            busy: Running = await nursery.start(run_engine, launcher, plan(BUSY))
            await idle.line()
            before = await look(idle.handle)
            await grown(busy.handle, 0.2)
            after = await look(idle.handle)
            assert after.cpu_s - before.cpu_s <= 0.02
            assert not after.stopped
            await idle.stop(0)
            await busy.stop(0)


async def test_the_whole_tree_counts_wherever_it_went(launcher: LocalLauncher) -> None:
    script = "grandchild(setsid=True) and say('up')\nif os.fork() == 0:\n    while True: pass\nwait()"
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            running: Running = await nursery.start(run_engine, launcher, plan(script))
            await running.line()
            seen = await grown(running.handle, 0.1)
            assert seen.processes == 3  # the leader, a daemon of its own session, a busy child
            await running.stop(0)


async def test_what_a_child_has_used_stays_counted_after_its_end(launcher: LocalLauncher) -> None:
    script = """
import time
if os.fork() == 0:
    while time.process_time() < 0.3: pass
    os._exit(0)
os.wait()
say('reaped')
wait()
"""
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            running: Running = await nursery.start(run_engine, launcher, plan(script))
            assert await running.line() == "reaped"
            seen = await look(running.handle)
            assert seen.processes == 1
            assert seen.cpu_s >= 0.25
            await running.stop(0)


async def test_memory_is_seen_to_grow(launcher: LocalLauncher) -> None:
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            running: Running = await nursery.start(run_engine, launcher, plan(HOG + "say('full'); wait()"))
            await running.line()
            before = await weigh(running.handle)
            assert running.handle.pid is not None
            os.kill(running.handle.pid, signal.SIGUSR1)
            await until_lines(running.handle, 2)
            after = await weigh(running.handle)
            assert HOG_MB <= after.ram_mb - before.ram_mb <= HOG_MB + 8
            await running.stop(0)


SHARED = HOG + "for _ in range(3): grandchild(setsid=False)\nsay('full'); wait()"


async def test_memory_that_processes_share_counts_once(
    launcher: LocalLauncher, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = vitals._read

    def without_shares(path: str | Path) -> bytes:
        return b"" if str(path).endswith("smaps_rollup") else real(path)

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            running: Running = await nursery.start(run_engine, launcher, plan(SHARED))
            await running.line()
            assert running.handle.pid is not None
            os.kill(running.handle.pid, signal.SIGUSR1)
            await until_lines(running.handle, 2)
            seen = await weigh(running.handle)
            assert (await look(running.handle)).processes == 4
            assert HOG_MB <= seen.ram_mb <= 1.6 * HOG_MB
            monkeypatch.setattr(vitals, "_read", without_shares)
            assert (
                await weigh(running.handle)
            ).ram_mb >= 4 * HOG_MB  # all that is resident, for want of better
            await running.stop(0)


async def test_gpu_memory_is_asked_of_the_whole_tree(
    launcher: LocalLauncher, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: set[int] = set()

    def gpu_mb_of(pids: Collection[int]) -> int:
        asked.update(pids)
        return 4096

    monkeypatch.setattr(vitals, "gpu_mb_of", gpu_mb_of)
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            script = "say(grandchild(setsid=True)); wait()"
            running: Running = await nursery.start(run_engine, launcher, plan(script))
            daemon = int(await running.line())
            assert (await weigh(running.handle)).gpu_mb == 4096
            assert asked == {running.handle.pid, daemon}
            await running.stop(0)


async def test_nothing_is_seen_of_who_has_ended(launcher: LocalLauncher) -> None:
    seen: list[Vitals | None] = []
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            running: Running = await nursery.start(run_engine, launcher, plan("say('up'); wait()"))
            await running.line()
            identity = ProcessIdentity.of(running.handle.pid or 0)
            assert identity is not None
            marker = "SLOTD_START=nobody"
            seen.append(read_vitals(identity.pid, identity.start_ticks, marker))
            seen.append(
                read_vitals(identity.pid, identity.start_ticks + 1, marker)
            )  # a later owner of the pid
            await running.stop(0)
            seen.append(read_vitals(identity.pid, identity.start_ticks, marker))
    assert seen[0] is not None
    assert seen[1:] == [None, None]
    assert await running.handle.vitals() is None
    assert await running.handle.footprint() is None


async def test_a_reading_that_hangs_harms_nobody_else(
    launcher: LocalLauncher, monkeypatch: pytest.MonkeyPatch
) -> None:
    began, let_go = trio.Event(), threading.Event()
    token = trio.lowlevel.current_trio_token()
    real = vitals.read_vitals

    def hang_first(leader: int, start_ticks: int, marker: str) -> Vitals | None:
        if not began.is_set():
            token.run_sync_soon(began.set)
            let_go.wait(20)
        return real(leader, start_ticks, marker)

    monkeypatch.setattr(handle, "read_vitals", hang_first)
    try:
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                stuck: Running = await nursery.start(run_engine, launcher, plan("say('up'); wait()"))
                other: Running = await nursery.start(run_engine, launcher, plan("say('up'); wait()"))
                async with trio.open_nursery() as reading:
                    reading.start_soon(stuck.handle.vitals)
                    await began.wait()
                    assert (await look(other.handle)).processes == 1
                    with trio.move_on_after(0.05) as second:  # waits for the first, takes no thread
                        await stuck.handle.vitals()
                    assert second.cancelled_caught
                    reading.cancel_scope.cancel()
                report = await stuck.stop(30)
                assert not report.killed
                await other.stop(30)
    finally:
        let_go.set()


async def test_of_a_server_that_somebody_else_runs_nothing_is_known() -> None:
    handles: list[EngineHandle] = []

    def started(handle: EngineHandle) -> None:
        handles.append(handle)
        handle.request_stop(0)

    launcher = AttachLauncher(Address("127.0.0.1", 9))
    with trio.fail_after(5):
        await launcher.run(plan(""), logs=LogRing(64 * 1024), started=started, exited=lambda status: None)
        assert await handles[0].vitals() is None
        assert await handles[0].footprint() is None


# --- the out-of-memory killer ------------------------------------------------------


def test_kills_for_want_of_memory_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {
        "/proc/vmstat": b"nr_free_pages 12\noom_kill 3\noom_kill_x 9\n",
        "/proc/self/cgroup": b"4:memory:/old\n0::/user.slice/slotd.service\n",
        "/sys/fs/cgroup/user.slice/slotd.service/memory.events": b"low 0\noom 5\noom_kill 2\n",
    }
    monkeypatch.setattr(vitals, "_read", lambda path: files.get(str(path), b""))
    assert oom_kills() == 5
    del files["/sys/fs/cgroup/user.slice/slotd.service/memory.events"]
    assert oom_kills() == 3
    files.clear()
    assert oom_kills() == 0


def test_the_real_counter_can_be_read() -> None:
    assert oom_kills() >= 0
