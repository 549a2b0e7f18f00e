"""Out of file descriptors: a start fails as an answer, and "cannot see" is never taken for "is not there"."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from typing import Any, NoReturn

import pytest
import trio
from process_tools import Running, plan, run_engine

from slotd.errors import SpawnFailed
from slotd.process import hunt, listener, ports
from slotd.process.local import LocalLauncher
from slotd.process.logs import LogRing
from slotd.process.ports import PortPool


def none_left(*args: Any, **kwargs: Any) -> NoReturn:
    raise OSError(errno.EMFILE, "Too many open files")


@pytest.mark.parametrize(("module", "name"), [(os, "pipe"), (socket, "socket")])
async def test_a_start_fails_with_advice(
    launcher: LocalLauncher, monkeypatch: pytest.MonkeyPatch, module: Any, name: str
) -> None:
    with monkeypatch.context() as patch, trio.fail_after(10):
        patch.setattr(module, name, none_left)
        with pytest.raises(SpawnFailed, match="ulimit") as caught:
            await launcher.run(
                plan("wait()"),
                logs=LogRing(16 * 1024),
                started=lambda _: None,
                exited=lambda _: None,
            )
        assert not caught.value.terminal


def test_no_port_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = PortPool(20_990, 20_999)
    with monkeypatch.context() as patch:
        patch.setattr(ports, "can_bind", none_left)
        with pytest.raises(SpawnFailed) as caught:
            pool.take()
        assert not caught.value.terminal
    assert len({pool.take() for _ in range(10)}) == 10


def test_a_process_that_cannot_be_looked_at_is_not_taken_for_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hunt, "open", none_left, raising=False)
    with pytest.raises(OSError, match="Too many"):
        hunt.read_proc(os.getpid())
    monkeypatch.setattr(os, "scandir", none_left)
    monkeypatch.setattr(listener, "listening_inodes", lambda _: frozenset({1}))
    with pytest.raises(OSError, match="Too many"):
        listener.holder_of(1, os.getpid(), list)


def flaky(times: int) -> Callable[[], dict[int, hunt.Proc]]:
    left, real = times, hunt.snapshot

    def snapshot() -> dict[int, hunt.Proc]:
        nonlocal left
        left -= 1
        return none_left() if left >= 0 else real()

    return snapshot


async def test_a_sweep_waits_until_it_can_see(
    launcher: LocalLauncher, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = "child = grandchild(setsid=True); say(child); wait()"
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            running: Running = await nursery.start(run_engine, launcher, plan(script))
            child = int(await running.line())
            monkeypatch.setattr(hunt, "snapshot", flaky(3))
            report = await running.stop(0)
            assert (report.swept, report.survivors) == (1, ())
            assert hunt.read_proc(child) is None or not hunt.snapshot()[child].alive


def test_a_sweep_that_never_sees_names_the_leaders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hunt, "snapshot", none_left)
    swept = hunt.sweep({12345: 1}, [], limit_s=0.1, trusted=True)
    assert swept.survivors == (12345,)


def test_serve_takes_the_descriptors_that_it_may_have() -> None:
    script = (
        "import resource as r; r.setrlimit(r.RLIMIT_NOFILE, (256, 4096))\n"
        "from slotd.cli.serve import _raise_file_limit\n"
        "_raise_file_limit(); print(r.getrlimit(r.RLIMIT_NOFILE))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "(4096, 4096)"
