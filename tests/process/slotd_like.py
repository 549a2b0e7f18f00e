"""A process that does what slotd does, to be killed by a test: guardian, launcher, engines.

Arguments: run id, first port, ledger, and optionally ``leak`` to let a child
inherit the guardian's pipe. Prints the pid of that child (or 0) and its
guardian's, then twice an engine's and its orphaned grandchild's, and lives on.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import trio
from process_tools import plan, run_engine

from slotd.process.guardian import Guardian
from slotd.process.identity import Ledger
from slotd.process.local import LocalLauncher
from slotd.process.ports import PortPool


def fault(line: str) -> None:
    sys.stderr.write(f"{line}\n")


def inherits_all() -> int:
    """Start a child that keeps every descriptor open; its pid."""
    for fd in map(int, os.listdir("/proc/self/fd")):
        if fd > 2 and os.path.exists(f"/proc/self/fd/{fd}"):
            os.set_inheritable(fd, True)
    return subprocess.Popen(["sleep", "60"], close_fds=False, stdout=subprocess.DEVNULL).pid


async def main(run_id: str, first_port: int, path: Path, leak: bool) -> None:
    ledger = Ledger(path, report=fault)
    guardian = Guardian(run_id, report=fault)
    ports = PortPool(first_port, first_port + 9)
    launcher = LocalLauncher(ports, run_id=run_id, guardian=guardian, ledger=ledger)
    async with trio.open_nursery() as nursery:
        await nursery.start(guardian.run)
        sys.stdout.write(f"{inherits_all() if leak else 0} {guardian.pid}\n")
        script = "signal.signal(signal.SIGTERM, signal.SIG_IGN); say(grandchild(setsid=True)); wait()"
        for _ in range(2):
            running = await nursery.start(run_engine, launcher, plan(script))
            sys.stdout.write(f"{running.handle.pid} {await running.line()}\n")
        await ledger.flush()
        sys.stdout.flush()


if __name__ == "__main__":
    trio.run(main, sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), "leak" in sys.argv)
