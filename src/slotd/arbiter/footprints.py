"""What engines were seen to take up, by launch plan, kept over restarts."""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Annotated

import msgspec
import structlog
import trio

from slotd.arbiter.tenant import Need

__all__ = ["Footprints"]

log = structlog.get_logger("slotd")

FORMAT = 1
HALF_LIFE_S = 86_400.0
MAX_FILE_BYTES = 4 << 20
MAX_MB = 1 << 32

_Mb = Annotated[int, msgspec.Meta(ge=0, le=MAX_MB)]


class _Entry(msgspec.Struct, frozen=True):
    """``at``: the wall clock when it was last measured, seconds since 1970."""

    ram_mb: _Mb
    gpu_mb: _Mb
    at: float


class _Kept(msgspec.Struct, frozen=True):
    """The file. The least recently used comes first."""

    format: int
    footprints: dict[str, _Entry]


class Footprints:
    """The most that each launch plan's engine was seen to take, a little forgetful.

    For each digest RAM and GPU are kept apart: a larger measure is taken as it
    is; of what an older one has above a smaller one, half is forgotten a day.
    So a quiet hour does not make an engine look small, and one odd peak does
    not stay for ever. At most ``limit`` plans are kept; the one asked for or
    measured longest ago goes.

    One owner, the event loop: :meth:`get` and :meth:`put` work on memory, and
    :meth:`run` writes what changed to ``path``, as a whole and atomically. A disk
    that cannot be written costs a warning, and after the next start another
    measurement. ``wall`` is the wall clock, which alone goes on over restarts.
    """

    def __init__(
        self,
        path: Path,
        *,
        limit: int = 256,
        write_every_s: float = 5.0,
        wall: Callable[[], float] = time.time,
    ) -> None:
        if limit < 1:
            raise ValueError("limit must be at least 1")
        self._path = path
        self._limit = limit
        self._write_every_s = write_every_s
        self._wall = wall
        self._entries: dict[str, _Entry] = {}  # the least recently used first
        self._changed = trio.Event()
        self._warned = False

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, digest: str) -> Need | None:
        """What an engine of this plan was seen to take; None if none was."""
        entry = self._entries.pop(digest, None)
        if entry is None:
            return None
        self._entries[digest] = entry
        return Need(entry.ram_mb, entry.gpu_mb, "measured")

    def put(self, digest: str, ram_mb: int, gpu_mb: int) -> None:
        """Note a measurement of a running engine of this plan, in MiB."""
        now = self._wall()
        old = self._entries.pop(digest, None)
        if old is None:
            new = _Entry(_in_range(ram_mb), _in_range(gpu_mb), now)
        else:
            kept = 0.5 ** (max(now - old.at, 0.0) / HALF_LIFE_S)
            new = _Entry(
                _aged(old.ram_mb, _in_range(ram_mb), kept), _aged(old.gpu_mb, _in_range(gpu_mb), kept), now
            )
        self._entries[digest] = new
        while len(self._entries) > self._limit:
            del self._entries[next(iter(self._entries))]
        self._changed.set()

    async def load(self) -> None:
        """Take up what was kept, under what has been measured since. Without a usable file: nothing.

        Reads in a thread that is left behind when the caller is cancelled.
        """
        try:
            kept = await trio.to_thread.run_sync(self._read, abandon_on_cancel=True)
        except FileNotFoundError:
            return
        except (OSError, ValueError) as error:
            log.warning("kept footprints cannot be used; engines are measured anew", error=str(error))
            return
        room = self._limit - len(self._entries)
        older = [(digest, entry) for digest, entry in kept if digest not in self._entries]
        self._entries = {**dict(older[max(len(older) - room, 0) :]), **self._entries}

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Write what changes, some seconds after, until cancelled.

        What changed in the last of them may be lost then.
        """
        task_status.started()
        while True:
            await self._changed.wait()
            await trio.sleep(self._write_every_s)
            await self.save()

    async def save(self) -> None:
        """Write now. Raises nothing of the disk's: the first of a row of failures is a warning.

        Writes in a thread that is left behind when the caller is cancelled.
        """
        self._changed = trio.Event()
        data = msgspec.json.encode(_Kept(FORMAT, dict(self._entries)))
        try:
            await trio.to_thread.run_sync(partial(_replace, self._path, data), abandon_on_cancel=True)
        except OSError as error:
            if not self._warned:
                log.warning("footprints cannot be kept", file=str(self._path), error=str(error))
            self._warned = True
        else:
            self._warned = False

    def _read(self) -> Iterable[tuple[str, _Entry]]:
        with self._path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
        if len(data) > MAX_FILE_BYTES:
            raise ValueError(f"{self._path} is longer than {MAX_FILE_BYTES >> 20} MiB")
        try:
            kept = msgspec.json.decode(data, type=_Kept)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise ValueError(f"{self._path}: {error}") from error
        if kept.format != FORMAT:
            raise ValueError(f"{self._path} has format {kept.format}, not {FORMAT}")
        return kept.footprints.items()


def _aged(old: int, new: int, kept: float) -> int:
    return new + math.ceil(max(old - new, 0) * kept)


def _in_range(mb: int) -> int:
    return min(max(mb, 0), MAX_MB)


def _replace(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # A name of its own: a writer that was left behind may still be at work.
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)  # not synced: a power cut may cost the file, and then another measurement
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
