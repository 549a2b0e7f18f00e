"""``slotd serve``: the server in this process, and its signals."""

from __future__ import annotations

import resource
import signal
from pathlib import Path

import trio

from slotd.app import Slotd
from slotd.cli.check import program_warnings, socket_warning
from slotd.cli.output import out, warn
from slotd.config import ConfigFile
from slotd.errors import SlotdError
from slotd.logs import configure

__all__ = ["run"]

FILES = 65_536
"""How many open files slotd wants to be allowed."""


def run(config: Path, port: int | None) -> int:
    """Serve until a signal; returns the exit code. Raises typed errors before it listens."""
    file = ConfigFile(config, overrides={} if port is None else {"server": {"port": port}})
    loaded = file.load()
    configure(loaded.config.server.log_level)
    files = _raise_file_limit()
    warn((*loaded.warnings, *program_warnings(loaded), *socket_warning(loaded, files)))
    try:
        stuck = trio.run(_serve, Slotd(loaded, file))
    except BaseExceptionGroup as group:
        # Nurseries wrap what ends them; a lone typed error is for the user.
        leaf: BaseException = group
        while isinstance(leaf, BaseExceptionGroup) and len(leaf.exceptions) == 1:
            leaf = leaf.exceptions[0]
        if isinstance(leaf, SlotdError):
            raise leaf from None
        raise
    return 1 if stuck else 0


def _raise_file_limit() -> int | None:
    """Take the file descriptors that we may have; returns how many, None for any number.

    The usual soft limit, 1024, is meant for programs that use ``select``; each
    request takes a socket on either side.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES if hard == resource.RLIM_INFINITY else min(FILES, hard)
    if soft == resource.RLIM_INFINITY:
        return None
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return max(soft, wanted)


async def _serve(slotd: Slotd) -> tuple[str, ...]:
    """Serve; returns the slots that would not stop."""
    stuck: tuple[str, ...] = ()
    async with trio.open_nursery() as nursery:
        await nursery.start(_signals, slotd)

        async def run(*, task_status: trio.TaskStatus[None]) -> None:
            nonlocal stuck
            stuck = (await slotd.run(task_status=task_status)).stuck_slots
            nursery.cancel_scope.cancel()

        await nursery.start(run)
        slots = slotd.slots.snapshots().values()
        lines = [f"  {s.name}: {s.type}, {s.model or s.engine}" for s in slots]
        # In one go: it is being served already, and each print of rich takes 0.1 ms.
        out.print("\n".join((f"slotd listens on {slotd.url}", *lines)), markup=False)
    return stuck


async def _signals(slotd: Slotd, *, task_status: trio.TaskStatus[None]) -> None:
    """First signal to end: stop gracefully. Second: now. A hang-up: read the configuration again."""
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as received:
        task_status.started()
        async for number in received:
            if number == signal.SIGHUP:
                slotd.reload()
            else:
                slotd.stop()
