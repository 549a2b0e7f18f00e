"""Running a helper program: bounded output, and nothing of it left behind."""

from __future__ import annotations

import os
import signal
import subprocess
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

import trio

from slotd.model.files import bytes_on_disk

__all__ = ["ToolFailed", "run_tool", "watch_folder"]

LINES_MAX = 40
LINE_MAX = 4096
DRAIN_S = 1.0
REAP_S = 5.0
WATCH_EVERY_S = 0.25


class ToolFailed(Exception):
    """The program ended with an error. ``words``: its last lines."""

    def __init__(self, status: int, words: Sequence[str]) -> None:
        super().__init__(f"exit status {status}")
        self.status = status
        self.words = tuple(words)

    def summary(self, lines: int = 3) -> str:
        return " / ".join(self.words[-lines:]) or str(self)


async def run_tool(
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    heard: Callable[[str], bool],
    beside: Callable[[], Awaitable[None]] | None = None,
) -> None:
    """Run a program to its end, in a process group of its own.

    ``heard`` is called for each line of its output and returns True for a line
    that is no news (progress); the others make up an error's last words.
    ``beside`` runs as long as the program does, and is then cancelled.
    Raises :class:`ToolFailed` if it cannot start, or for an exit status but 0.
    Cancelled, it kills the whole group and waits for the leader's end
    at most ``REAP_S`` seconds.
    """
    try:
        process = await trio.lowlevel.open_process(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=dict(env),
            start_new_session=True,
        )
    except OSError as error:
        raise ToolFailed(-1, [f"cannot start {argv[0]}: {error.strerror or error}"]) from error
    assert process.stdout is not None
    last: deque[str] = deque(maxlen=LINES_MAX)
    pidfd = os.pidfd_open(process.pid)  # ours and not reaped, so the pid is its own
    try:
        async with trio.open_nursery() as company:
            if beside is not None:
                company.start_soon(beside)
            async with trio.open_nursery() as listener:
                listener.start_soon(_listen, process.stdout, heard, last)
                await trio.lowlevel.wait_readable(pidfd)
                _kill_group(process.pid)  # a grandchild would hold the pipe
                listener.cancel_scope.deadline = trio.current_time() + DRAIN_S
            company.cancel_scope.cancel()
    finally:
        # The leader is not reaped before this point: its group's id is still its own.
        _kill_group(process.pid)
        os.close(pidfd)
        with trio.CancelScope(shield=True, deadline=trio.current_time() + REAP_S):
            await process.stdout.aclose()
            await process.wait()
    if process.returncode != 0:
        raise ToolFailed(process.returncode if process.returncode is not None else -1, last)


async def watch_folder(folder: Path, tell: Callable[[int], None]) -> None:
    """Tell the bytes under ``folder`` four times a second, until cancelled."""
    while True:
        tell(await trio.to_thread.run_sync(bytes_on_disk, folder))
        await trio.sleep(WATCH_EVERY_S)


async def _listen(stream: trio.abc.ReceiveStream, heard: Callable[[str], bool], last: deque[str]) -> None:
    rest = b""
    async for chunk in stream:
        *lines, rest = (rest + chunk).replace(b"\r", b"\n").split(b"\n")
        rest = rest[:LINE_MAX]
        for raw in lines:
            _hear(raw, heard, last)
    _hear(rest, heard, last)


def _hear(raw: bytes, heard: Callable[[str], bool], last: deque[str]) -> None:
    line = raw[:LINE_MAX].decode(errors="replace").strip()
    if line and not heard(line):
        last.append(line)


def _kill_group(leader: int) -> None:
    try:
        os.killpg(leader, signal.SIGKILL)
    except ProcessLookupError:
        return  # all of it has ended
