"""The fake engine as a process: how it dies, forks, hoards memory and fills its log."""

from __future__ import annotations

import math
import os
import signal
from pathlib import Path
from typing import NoReturn

import trio

from slotd.testing.fake_desk import Panel
from slotd.testing.fake_knobs import Knobs

__all__ = ["STDERR", "STDOUT", "Crasher", "burn", "die", "flood", "fork_grandchild", "hoard", "log"]

STDOUT, STDERR = 1, 2
GRANDCHILD_LIFE_S = 600
BURN_LIFE_S = 60
FLOOD_TICK_S = 0.02
_LINE = "a line of a log that nobody wants to read, and many more of them"


def log(text: str, fd: int = STDOUT) -> None:
    """Write to the log. A reader that has gone is ignored.

    So an engine does not die just because its supervisor did: whether somebody
    ends it is what a test wants to know. A pipe that nobody empties stops the
    engine, as it stops a real one.
    """
    try:
        os.write(fd, text.encode() + b"\n")
    except OSError:
        return


def die(code: int) -> NoReturn:
    """End now, without any clean-up: with an exit code, or by signal ``-code``."""
    if code < 0:
        if -code not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
        code = 128 - code  # a signal that does not end a process
    os._exit(code)


class Crasher:
    """Carries out crashes: all of them, or with ``crash_once`` the first in the life of its file."""

    def __init__(self, panel: Panel) -> None:
        self._panel = panel
        once = panel.knobs.crash_once
        self._marker = Path(once) if once else None
        self._armed = self._marker is None or not self._marker.exists()

    def crash_if(self, wanted: bool) -> None:
        """Do not return if a crash is wanted and due."""
        if wanted and self._armed:
            if self._marker is not None:
                self._marker.touch()
            self.crash(self._panel.knobs.exit_code)

    def crash(self, code: int) -> NoReturn:
        """Crash now; ``code`` as in the knob ``exit_code``."""
        if words := self._panel.knobs.last_words:
            log(words, STDERR)
        die(code)

    async def watch(self) -> None:
        """Crash when ``crash_after_s`` is over, counted from now or from when it was turned."""
        while True:
            after = self._panel.knobs.crash_after_s
            with trio.move_on_after(math.inf if after is None else after) as scope:
                while self._panel.knobs.crash_after_s == after:
                    await self._panel.changed()
            if scope.cancelled_caught:
                self.crash_if(True)
                return


def fork_grandchild(knobs: Knobs) -> int:
    """Fork a child that sleeps, holding our pipes, and return its pid.

    It ignores SIGTERM, so that only a sweep ends it; left alone it ends after
    ten minutes. Call it while this process has one thread and no event loop.
    """
    ready, done = os.pipe()
    pid = os.fork()
    if pid:
        os.close(done)
        os.read(ready, 1)  # the child's end closes once it is as promised
        os.close(ready)
        log(f"grandchild pid {pid}")
        return pid
    try:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if knobs.grandchild_setsid:
            os.setsid()
        signal.alarm(GRANDCHILD_LIFE_S)
        os.close(ready)
        os.close(done)
        signal.pause()
    finally:
        os._exit(0)


def burn() -> None:
    """Fork a child that computes nothing in particular, as hard as it can. When to call it: as above."""
    if os.fork():
        return
    try:
        signal.alarm(BURN_LIFE_S)
        while True:
            sum(range(10_000))
    finally:
        os._exit(0)


async def hoard(mib: int) -> list[bytearray]:
    """So much memory, filled and so resident. Keep it to keep it."""
    held = []
    for _ in range(mib):
        held.append(bytearray(1 << 20))
        await trio.lowlevel.checkpoint()
    return held


async def flood(panel: Panel) -> None:
    """Write ``log_flood`` lines a second for as long as it is not 0."""
    written = 0.0
    while True:
        await panel.until(lambda knobs: knobs.log_flood > 0)
        written += panel.knobs.log_flood * FLOOD_TICK_S
        if lines := int(written):
            written -= lines
            log("\n".join([_LINE] * lines))
        await trio.sleep(FLOOD_TICK_S)
