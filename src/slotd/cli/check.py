"""What this machine lacks of what a configuration asks for.

The configuration may be meant for another machine, and a program may be
installed later: these are warnings. ``check`` looks for all of them, ``serve``
for those that cost nothing.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from functools import cache

from slotd.arbiter.meter import Meter
from slotd.arbiter.room import Reading
from slotd.config import LoadedConfig, SlotConfig
from slotd.config.problems import dotted
from slotd.engine.command import at_home
from slotd.engine.llama_cpp import program
from slotd.errors import SpawnFailed

__all__ = ["machine_warnings", "program_warnings", "socket_warning"]

OWN_FILES = 64
"""Open files that slotd needs beside its connections, about."""


def program_warnings(loaded: LoadedConfig) -> tuple[str, ...]:
    """One line for each slot whose program is not here. Blocks on the disk."""
    which = cache(shutil.which)  # many slots run the same few programs
    return tuple(line for slot in loaded.config.slots.values() for line in _program(slot, which))


def socket_warning(loaded: LoadedConfig, files: int | None) -> tuple[str, ...]:
    """A line if more clients may connect than there are file descriptors.

    ``files``: how many this process may have open; None: any number.
    """
    wanted = loaded.config.server.max_sockets
    if files is None or wanted + OWN_FILES <= files:
        return ()
    return (
        f"server.max_sockets: {wanted} clients may connect, but this process may open only {files} files "
        "(a connection takes one, a request that is being answered another); raise that "
        "(ulimit -n, or LimitNOFILE= in a systemd unit), or lower server.max_sockets",
    )


def machine_warnings(loaded: LoadedConfig, machine: Reading | None = None) -> tuple[str, ...]:
    """One line each. ``machine``: what it has; None = look. Blocks on the disk and on a GPU's driver."""
    reading = machine or Meter().look()
    memory = loaded.config.memory
    kinds = (
        ("memory_mb", reading.ram_total_mb, memory.reserve_mb, ""),
        ("gpu_memory_mb", reading.gpu_total_mb, memory.gpu_reserve_mb, " of GPU memory"),
    )
    found = [*program_warnings(loaded)]
    for slot in loaded.config.slots.values():
        for key, total_mb, reserve_mb, what in kinds:
            need = getattr(slot, key)
            if need and total_mb is not None and need > total_mb - reserve_mb:
                found.append(
                    f"{_at(slot, key)}: {need} is more than this machine can give{what}: "
                    f"{total_mb} MiB, of which {reserve_mb} stay free"
                )
    return tuple(found)


def _program(slot: SlotConfig, which: Callable[..., str | None]) -> Iterator[str]:
    if slot.engine == "llama-cpp":
        try:
            program()
        except SpawnFailed as error:
            yield f"{_at(slot, 'engine')}: {error.message}"
    elif slot.command and "{" not in (name := slot.command[0]):
        # As it will be started: a path begins in the slot's directory, a name is looked up in its PATH.
        where = os.path.join(at_home(slot.cwd), at_home(name)) if "/" in name else name
        if which(where, path=slot.env.get("PATH")) is None:
            yield f"{_at(slot, 'command')}: there is no program {name!r} here that may be run"


def _at(slot: SlotConfig, key: str) -> str:
    return dotted(("slots", slot.name, key))
