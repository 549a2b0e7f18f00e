"""The local launcher with real processes: start, end, stop, sweep, cancel."""

from __future__ import annotations

import os
import signal
import statistics
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
from process_tools import Running, carriers, end_of, lives, note, plan, run_engine

from slotd.errors import SpawnFailed
from slotd.process import handle, hunt, local, logs
from slotd.process.identity import Ledger, ProcessIdentity, run_marker
from slotd.process.local import LocalLauncher
from slotd.process.plan import EngineHandle, ExitStatus, Launcher, LaunchPlan
from slotd.process.ports import PortPool


def test_is_a_launcher(launcher: LocalLauncher) -> None:
    typed: Launcher = launcher
    assert typed is launcher


async def test_exit_is_noticed_at_once(launcher: LocalLauncher) -> None:
    delays = []
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            for _ in range(7):
                running: Running = await nursery.start(run_engine, launcher, plan("say('up'); wait()"))
                await running.line()
                assert running.handle.pid is not None
                killed_at = trio.current_time()
                os.kill(running.handle.pid, signal.SIGKILL)
                report = await running.ended()
                assert running.exited_at is not None
                delays.append(running.exited_at - killed_at)
                assert report.exit == running.exit == ExitStatus(code=None, signal=signal.SIGKILL)
                assert not report.killed
    note(f"exit noticed after {statistics.median(delays) * 1000:.1f} ms (median)")
    assert statistics.median(delays) < 0.25


async def test_exit_code_and_last_words(launcher: LocalLauncher, ports: PortPool) -> None:
    handles: list[EngineHandle] = []
    statuses: list[ExitStatus] = []
    with trio.fail_after(10):
        report = await launcher.run(
            plan("say('first'); os.write(2, b'last words'); os._exit(3)"),
            logs=logs.LogRing(64 * 1024),
            started=handles.append,
            exited=statuses.append,
        )
    assert report.exit == ExitStatus(code=3)
    assert statuses == [report.exit]
    assert (report.killed, report.swept, report.survivors) == (False, 0, ())
    assert handles[0].logs.tail(5) == ("first", "last words")
    assert handles[0].logs.last_activity is not None
    assert not ports.taken
    handles[0].request_stop(0)  # the pid may be a stranger's by now: must do nothing
    assert not handles[0].owns_listener()


async def test_fills_in_the_address_and_marks_the_environment(launcher: LocalLauncher, run_id: str) -> None:
    script = "say(*sys.argv[1:], *(os.environ[n] for n in ('URL', 'SLOTD_RUN', 'SLOTD_SLOT', 'SLOTD_START')))"
    base = plan(script, '{"json": {port}}', slot="chat")
    both = []
    with trio.fail_after(10):
        for _ in range(2):
            handles: list[EngineHandle] = []
            await launcher.run(
                LaunchPlan("chat", base.argv, env={"URL": "http://{host}:{port}"}),
                logs=logs.LogRing(64 * 1024),
                started=handles.append,
                exited=lambda status: None,
            )
            port = handles[0].address.port
            words = handles[0].logs.tail(1)[0].split()
            assert words[:5] == ['{"json":', f"{port}}}", f"http://127.0.0.1:{port}", run_id, "chat"]
            both.append(words[5])
    assert both == [f"{run_id}:chat:1", f"{run_id}:chat:2"]


async def test_input_is_null_and_nothing_else_is_inherited(launcher: LocalLauncher) -> None:
    script = "say(os.readlink('/proc/self/fd/0'), sorted(map(int, os.listdir('/proc/self/fd')))[:-1])"
    handles: list[EngineHandle] = []
    reader, writer = os.pipe()
    real_input = os.dup(0)
    os.dup2(reader, 0)
    try:
        with trio.fail_after(10):
            await launcher.run(
                plan(script), logs=logs.LogRing(64 * 1024), started=handles.append, exited=lambda status: None
            )
    finally:
        os.dup2(real_input, 0)
        for fd in (reader, writer, real_input):
            os.close(fd)
    assert handles[0].logs.tail(1) == ("/dev/null [0, 1, 2]",)


async def test_what_is_in_the_pipe_at_the_end_is_read(
    launcher: LocalLauncher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "CHUNK", 16)  # so that the pump needs many turns after the end
    handles: list[EngineHandle] = []
    with trio.fail_after(10):
        await launcher.run(
            plan("os.write(1, b'x' * 60_000 + b'\\nlast words')"),
            logs=logs.LogRing(64 * 1024),
            started=handles.append,
            exited=lambda status: None,
        )
    assert handles[0].logs.tail(1) == ("last words",)


async def test_leader_is_not_reaped_before_the_sweep(launcher: LocalLauncher) -> None:
    """Its pid names its group: once reaped, both could be somebody else's."""
    leaders: list[int | None] = []
    seen: list[hunt.Proc | None] = []

    def exited(status: ExitStatus) -> None:
        assert leaders[0] is not None
        seen.append(hunt.read_proc(leaders[0]))

    with trio.fail_after(10):
        await launcher.run(
            plan(""),
            logs=logs.LogRing(64 * 1024),
            started=lambda engine: leaders.append(engine.pid),
            exited=exited,
        )
    assert seen[0] is not None
    assert not seen[0].alive
    assert leaders[0] is not None
    assert hunt.read_proc(leaders[0]) is None


@pytest.mark.parametrize(
    ("argv", "cwd", "advice"),
    [
        (("no-such-program-here",), None, "not found"),
        (("{tmp}/plain.txt",), None, "chmod"),
        (("{tmp}/garbage",), None, "does not run on this machine"),
        (("{tmp}/bad-interpreter",), None, "interpreter"),
        (("true",), "{tmp}/nowhere", "working directory"),
        (("true", "a\0b"), None, "null byte"),
        (("true", "x" * 200_000), None, "too long"),
        ((), None, "empty command"),
    ],
)
async def test_spawn_failure_is_typed_and_says_what_to_do(
    argv: tuple[str, ...],
    cwd: str | None,
    advice: str,
    tmp_path: Path,
    launcher: LocalLauncher,
    ports: PortPool,
    open_files: Callable[[], set[str]],
) -> None:
    (tmp_path / "plain.txt").write_text("text")
    for name, text in (("garbage", "\x7fELF?"), ("bad-interpreter", "#!/no/such/interpreter\n")):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    filled = tuple(arg.replace("{tmp}", str(tmp_path)) for arg in argv)
    directory = cwd and cwd.replace("{tmp}", str(tmp_path))
    before = open_files()

    def never(_: object) -> None:
        pytest.fail("nothing was started")

    with trio.fail_after(10), pytest.raises(SpawnFailed, match=advice) as caught:
        await launcher.run(
            LaunchPlan("test", filled, cwd=directory),
            logs=logs.LogRing(64 * 1024),
            started=never,
            exited=never,
        )
    assert caught.value.terminal
    assert not ports.taken
    assert open_files() == before


async def test_stop_within_grace(launcher: LocalLauncher) -> None:
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            running = await nursery.start(run_engine, launcher, plan("say('up'); wait()"))
            await running.line()
            running.handle.request_stop(30)
            report = await running.stop(30)
    assert report.exit == ExitStatus(code=None, signal=signal.SIGTERM)
    assert not report.killed


DEAF = "signal.signal(signal.SIGTERM, signal.SIG_IGN); say('up'); wait()"


async def test_ignored_sigterm_is_killed_after_grace(launcher: LocalLauncher) -> None:
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            running = await nursery.start(run_engine, launcher, plan(DEAF))
            await running.line()
            asked_at = trio.current_time()
            report = await running.stop(0.3)
            assert running.exited_at is not None
            assert 0.3 <= running.exited_at - asked_at < 1
    assert report.exit == ExitStatus(code=None, signal=signal.SIGKILL)
    assert report.killed


@pytest.mark.parametrize("second", [0.1, 0.0])
async def test_a_second_stop_can_only_shorten_the_wait(launcher: LocalLauncher, second: float) -> None:
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            running = await nursery.start(run_engine, launcher, plan(DEAF))
            await running.line()
            running.handle.request_stop(60)
            running.handle.request_stop(second)
            report = await running.stop(120)
    assert report.killed


async def test_second_request_sends_no_second_sigterm(launcher: LocalLauncher) -> None:
    script = """
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGURG})
say('up')
say(signal.sigwait({signal.SIGTERM}).name)
say(signal.sigwait({signal.SIGTERM, signal.SIGURG}).name)
"""
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            running = await nursery.start(run_engine, launcher, plan(script))
            with running.handle.logs.subscribe(10) as lines:
                assert await anext(lines) == "up"
                running.handle.request_stop(30)
                assert await anext(lines) == "SIGTERM"
                running.handle.request_stop(29)
                assert running.handle.pid is not None
                os.kill(running.handle.pid, signal.SIGURG)
                assert await anext(lines) == "SIGURG"
            assert (await running.ended()).exit == ExitStatus(code=0)


async def test_stopped_by_sigstop_it_still_ends_by_sigterm(launcher: LocalLauncher) -> None:
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            script = "signal.signal(signal.SIGTERM, lambda *_: os._exit(5)); say('up'); wait()"
            running = await nursery.start(run_engine, launcher, plan(script))
            await running.line()
            assert running.handle.pid is not None
            os.kill(running.handle.pid, signal.SIGSTOP)
            report = await running.stop(30)
    assert report.exit == ExitStatus(code=5)


async def test_grandchild_that_holds_the_pipe_does_not_delay_the_end(launcher: LocalLauncher) -> None:
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            running = await nursery.start(run_engine, launcher, plan("say(grandchild(setsid=False))"))
            grandchild = int(await running.line())
            report = await running.ended()
            assert running.exited_at is not None
            assert trio.current_time() - running.exited_at < 1
    assert not lives(grandchild)
    assert report.exit == ExitStatus(code=0)
    assert report.swept == 1
    assert not report.killed


@pytest.mark.parametrize("end", ["stop", "exit", "cancel"])
async def test_orphan_in_its_own_session_is_swept(
    launcher: LocalLauncher, bystander: Callable[..., int], end: str
) -> None:
    stranger = bystander()
    script = "say(grandchild(setsid=True))" + ("" if end == "exit" else "; wait()")
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            running = await nursery.start(run_engine, launcher, plan(script))
            orphan = int(await running.line())
            if end == "stop":
                running.handle.request_stop(30)
            elif end == "cancel":
                running.scope.cancel()
            await running.done.wait()
            assert not lives(orphan)
            assert running.report is None or running.report.swept == 1
            assert (running.report is None) is (end == "cancel")
    assert lives(stranger)


async def test_sweep_of_one_start_spares_another(launcher: LocalLauncher) -> None:
    script = "say(grandchild(setsid=True)); wait()"
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            one = await nursery.start(run_engine, launcher, plan(script, slot="same"))
            two = await nursery.start(run_engine, launcher, plan(script, slot="same"))
            orphans = [int(await running.line()) for running in (one, two)]
            await one.stop(30)
            assert [lives(pid) for pid in orphans] == [False, True]
            assert lives(two.handle.pid)
            await two.stop(30)


async def test_cancelled_at_any_moment_leaves_nothing(
    launcher: LocalLauncher, run_id: str, ports: PortPool, open_files: Callable[[], set[str]]
) -> None:
    # What trio opens for its first thread and descriptor is not ours.
    with trio.fail_after(10):
        await launcher.run(
            plan(""), logs=logs.LogRing(64 * 1024), started=lambda engine: None, exited=lambda status: None
        )
    before = open_files()
    with trio.fail_after(30):
        for step in range(12):
            with trio.move_on_after(step * 0.004):
                await launcher.run(
                    plan("grandchild(setsid=True); wait()"),
                    logs=logs.LogRing(64 * 1024),
                    started=lambda engine: None,
                    exited=lambda status: None,
                )
            assert carriers(run_marker(run_id)) == []
            assert not ports.taken
    assert open_files() == before


async def test_callback_that_raises_kills_the_engine(
    launcher: LocalLauncher, run_id: str, ports: PortPool
) -> None:
    def started(engine: EngineHandle) -> None:
        raise LookupError("a bug above")

    with trio.fail_after(10), pytest.RaisesGroup(LookupError):
        await launcher.run(
            plan("wait()"), logs=logs.LogRing(64 * 1024), started=started, exited=lambda status: None
        )
    assert carriers(run_marker(run_id)) == []
    assert not ports.taken


async def test_log_flood_is_bounded_and_the_engine_stops(launcher: LocalLauncher) -> None:
    script = "while True: os.write(1, b'y\\n' * 4096)"
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            running = await nursery.start(run_engine, launcher, plan(script))
            with running.handle.logs.subscribe(100) as lines:
                gaps = 0
                async for line in lines:
                    assert running.handle.logs.size <= 64 * 1024
                    gaps += line != "y"
                    if gaps == 5:
                        break
            report = await running.stop(30)
    assert report.exit == ExitStatus(code=None, signal=signal.SIGTERM)


async def test_a_process_that_cannot_be_killed_is_reported(
    launcher: LocalLauncher, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = hunt.kill_exact
    monkeypatch.setattr(local, "SWEEP_S", 0.2)
    monkeypatch.setattr(hunt, "kill_exact", lambda proc, signum: None)
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            running = await nursery.start(run_engine, launcher, plan("say(grandchild(setsid=True))"))
            undead = int(await running.line())
            report = await running.ended()
            assert report.survivors == (undead,)
            assert report.swept == 0
    proc = hunt.read_proc(undead)
    assert proc is not None
    pidfd = real(proc, signal.SIGKILL)
    assert pidfd is not None
    os.close(pidfd)
    with trio.fail_after(5):
        await end_of(undead)


async def test_a_leader_that_cannot_be_killed_stays_in_the_ledger(
    ports: PortPool, run_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger(tmp_path / "ledger.json", report=pytest.fail)
    launcher = LocalLauncher(ports, run_id=run_id, guardian=None, ledger=ledger)
    monkeypatch.setattr(local, "SWEEP_S", 0.1)
    monkeypatch.setattr(handle, "KILL_WAIT_S", 0.1)
    monkeypatch.setattr(hunt, "signal_group", lambda leader, signum: None)
    monkeypatch.setattr(hunt, "kill_exact", lambda proc, signum: None)
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            running = await nursery.start(run_engine, launcher, plan("wait()"))
            report = await running.stop(0.05)
            assert isinstance(running.handle, handle.LocalEngine)
            process = running.handle._child.process
    assert report.survivors == (process.pid,)
    assert report.exit == ExitStatus(code=None)
    assert running.exit is None
    assert [entry.leader.pid for entry in ledger.live] == [process.pid]
    assert ledger.read_file() == ledger.live
    assert not ports.taken
    process.kill()
    process.wait()


async def test_an_engine_is_in_the_ledger_while_it_lives(
    ports: PortPool, run_id: str, tmp_path: Path
) -> None:
    ledger = Ledger(tmp_path / "ledger.json", report=pytest.fail)
    launcher = LocalLauncher(ports, run_id=run_id, guardian=None, ledger=ledger)
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            running = await nursery.start(run_engine, launcher, plan("say('up'); wait()", slot="chat"))
            await running.line()
            await ledger.flush()
            (entry,) = ledger.read_file()
            assert entry.leader == ProcessIdentity.of(running.handle.pid)
            assert (entry.run_id, entry.slot) == (run_id, "chat")
            await running.stop(30)
    assert ledger.read_file() == ()
