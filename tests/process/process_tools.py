"""What the tests of the process room share: engines as short scripts, and ways to see their ends."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field

import trio

from slotd.process import hunt
from slotd.process.local import LocalLauncher
from slotd.process.logs import LogGap, LogRing
from slotd.process.plan import EngineHandle, ExitStatus, LaunchPlan, StopReport

PRELUDE = """
import os, signal, socket, sys
def wait():
    while True:
        signal.pause()
def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())
def grandchild(*, setsid, listen=None):
    reader, writer = os.pipe()
    if os.fork() == 0:
        if setsid:
            os.setsid()
            if os.fork():
                os._exit(0)
        server = listen and listening(listen)
        os.write(writer, str(os.getpid()).encode())
        wait()
    return int(os.read(reader, 20))
def listening(port):
    server = socket.socket()
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind(("127.0.0.1", port))
    server.listen()
    return server
"""


def plan(script: str, *args: str, slot: str = "test") -> LaunchPlan:
    """An engine that runs a few lines of Python after the prelude."""
    return LaunchPlan(slot, (sys.executable, "-I", "-S", "-c", PRELUDE + script, *args))


@dataclass
class Running:
    """A launcher's run as seen from outside."""

    handle: EngineHandle
    scope: trio.CancelScope
    exit: ExitStatus | None = None
    exited_at: float | None = None
    report: StopReport | None = None
    done: trio.Event = field(default_factory=trio.Event)

    async def line(self) -> str:
        """The first line of the engine's log, waited for."""
        with self.handle.logs.subscribe(100) as lines:
            line = await anext(lines)
        assert not isinstance(line, LogGap)
        return line

    async def stop(self, grace_s: float) -> StopReport:
        self.handle.request_stop(grace_s)
        return await self.ended()

    async def ended(self) -> StopReport:
        await self.done.wait()
        assert self.report is not None
        return self.report


async def run_engine(
    launcher: LocalLauncher, plan: LaunchPlan, *, task_status: trio.TaskStatus[Running]
) -> None:
    """Run a plan in a nursery: ``running = await nursery.start(run_engine, launcher, plan)``."""
    running: list[Running] = []
    scope = trio.CancelScope()

    def started(handle: EngineHandle) -> None:
        running.append(Running(handle, scope))
        task_status.started(running[0])

    def exited(status: ExitStatus) -> None:
        running[0].exit = status
        running[0].exited_at = trio.current_time()

    try:
        with scope:
            report = await launcher.run(plan, logs=LogRing(64 * 1024), started=started, exited=exited)
            running[0].report = report
    finally:
        for it in running:
            it.done.set()


def lives(pid: int) -> bool:
    """Whether the process runs; a zombie does not."""
    proc = hunt.read_proc(pid)
    return proc is not None and proc.alive


async def end_of(pid: int) -> None:
    """Wait until a process, ours or not, has ended."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        await trio.lowlevel.wait_readable(pidfd)
    finally:
        os.close(pidfd)


def carriers(marker: str) -> list[int]:
    """The living processes whose environment holds the marker."""
    return [proc.pid for proc in hunt.find(hunt.snapshot(), (), [marker])]


def status_field(pid: int, name: str) -> str:
    """A field of ``/proc/PID/status``, its first word."""
    with open(f"/proc/{pid}/status", encoding="ascii") as file:
        return next(line.split()[1] for line in file if line.startswith(f"{name}:"))


def note(measured: str) -> None:
    """Show a measurement under ``pytest -s`` or ``-rP``."""
    sys.stdout.write(f"\n{measured}\n")
