"""slotd's side of the guardian: start it, keep it alive, tell it what lives."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import trio

from slotd.errors import SpawnStarved
from slotd.process import guardian_main, hunt
from slotd.process.identity import ProcessIdentity, run_marker

__all__ = ["Guardian"]

RESTART_FIRST_S = 0.05
RESTART_MAX_S = 5.0
STEADY_S = 10.0
"""A guardian that lived this long has earned a quick restart again."""
CLOSE_S = guardian_main.LIMIT_S + 1.0
"""How long a closed guardian may take: its own hunt, and a little."""
KILL_S = 1.0

# The guardian imports two modules of this package without the package: empty
# stand-ins keep slotd/__init__.py, and trio with it, out of a process that
# should stay at the size of a bare interpreter.
_BOOT = (
    "import sys\n"
    "for name, path in (('slotd', sys.argv[1]), ('slotd.process', sys.argv[2])):\n"
    "    package = type(sys)(name)\n"
    "    package.__path__ = [path]\n"
    "    sys.modules[name] = package\n"
    "from slotd.process.guardian_main import main\n"
    "sys.exit(main(sys.argv[3:]))\n"
)


class Guardian:
    """Kills all engines of this run if slotd dies, by SIGKILL too.

    A separate process holds the reading end of a pipe to slotd. When slotd is
    gone the kernel closes the pipe, and the guardian kills every group that it
    was told of and every process that carries the run's marker. PDEATHSIG
    would not do: it follows the thread that forked, and spares grandchildren.

    One owner, the event loop. :meth:`tell_started` and :meth:`tell_ended`
    never block and may be called at any time; :meth:`run` must outlive every
    launcher that tells. ``report`` gets a line for each fault.
    """

    def __init__(self, run_id: str, *, report: Callable[[str], None]) -> None:
        self._marker = run_marker(run_id)
        self._report = report
        self._groups: dict[int, int] = {}
        self._process: _Process | None = None

    @property
    def pid(self) -> int | None:
        """The guardian's pid; None while it is not running."""
        return None if self._process is None else self._process.popen.pid

    def tell_started(self, leader: ProcessIdentity) -> None:
        """A process group has started."""
        self._groups[leader.pid] = leader.start_ticks
        self._send(f"+{leader.pid} {leader.start_ticks}\n")

    def tell_ended(self, leader: ProcessIdentity) -> None:
        """Nothing of the group is left. Call before its leader is reaped, while its pid is still its own."""
        if self._groups.get(leader.pid) == leader.start_ticks:
            del self._groups[leader.pid]
            self._send(f"-{leader.pid}\n")

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep a guardian alive until cancelled; ``started`` once the first one runs.

        Raises :class:`SpawnFailed` if the first start fails; later ones are
        tried again with a growing pause. Cancelled: closes the pipe, so that
        the guardian clears what is left and ends, waits for that within
        ``CLOSE_S`` seconds, and reaps it.
        """
        try:
            await self._start()
        except OSError as error:
            raise SpawnStarved(
                f"cannot start the guardian process ({error}); without it engines would outlive a killed "
                f"slotd. Check the limits on processes and open files (ulimit -u, ulimit -n).",
            ) from error
        task_status.started()
        pause_s = RESTART_FIRST_S
        while True:
            since = trio.current_time()
            await self._live_and_reap()
            if trio.current_time() - since >= STEADY_S:
                pause_s = RESTART_FIRST_S
            self._report("the guardian process ended; starting it again")
            while True:
                await trio.sleep(pause_s)
                pause_s = min(pause_s * 2, RESTART_MAX_S)
                try:
                    await self._start()
                except OSError as error:
                    self._report(f"cannot start the guardian process again ({error}); trying on")
                else:
                    break

    async def _start(self) -> None:
        me = ProcessIdentity.of(os.getpid())
        assert me is not None, "a running process is in /proc"
        package = Path(hunt.__file__).parent
        argv = [sys.executable, "-I", "-S", "-c", _BOOT, str(package.parent), str(package)]
        argv += [self._marker, str(me.start_ticks)]
        # In a thread, and safe there: the thread's end means nothing to the
        # guardian, and the call is not abandoned, so no process gets lost.
        self._process = await trio.to_thread.run_sync(_spawn, argv)
        for leader, ticks in self._groups.items():
            self._send(f"+{leader} {ticks}\n")

    async def _live_and_reap(self) -> None:
        process = self._process
        assert process is not None
        try:
            await trio.lowlevel.wait_readable(process.pidfd)
        finally:
            self._process = None
            os.close(process.pipe)
            with trio.CancelScope(shield=True, deadline=trio.current_time() + CLOSE_S):
                await trio.lowlevel.wait_readable(process.pidfd)
            if process.popen.poll() is None:
                process.popen.kill()
                with trio.CancelScope(shield=True, deadline=trio.current_time() + KILL_S):
                    await trio.lowlevel.wait_readable(process.pidfd)
                process.popen.poll()
            os.close(process.pidfd)

    def _send(self, order: str) -> None:
        if self._process is None:
            return  # between two guardians: the next one is told all
        try:
            os.write(self._process.pipe, order.encode())  # shorter than PIPE_BUF: whole or not at all
        except BrokenPipeError:
            return  # it has just ended: the next one is told all
        except BlockingIOError:
            self._report("the guardian process does not read its orders; replacing it")
            self._process.popen.kill()


@dataclass(frozen=True, slots=True)
class _Process:
    """A started guardian: ``pidfd`` tells its end, closing ``pipe`` asks for it."""

    popen: subprocess.Popen[bytes]
    pidfd: int
    pipe: int


def _spawn(argv: list[str]) -> _Process:
    """Blocking. The writing end is close-on-exec, so that no engine inherits it and keeps the pipe open."""
    reader, writer = os.pipe()
    try:
        os.set_blocking(writer, False)
        popen = subprocess.Popen(
            argv,
            stdin=reader,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,  # not slotd's: nobody who reads it to the end should wait for us
            cwd="/",
            start_new_session=True,
        )
        try:
            pidfd = os.pidfd_open(popen.pid)  # not reaped, so the pid is its own
        except OSError:
            popen.kill()
            popen.wait()
            raise
    except OSError:
        os.close(writer)
        raise
    finally:
        os.close(reader)
    return _Process(popen, pidfd, writer)
