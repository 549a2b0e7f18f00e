"""Which slots were up, kept so that a restart, however it came about, brings them back."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated

import msgspec
import structlog
import trio

from slotd.events import Event, EventBus, types

__all__ = ["DesiredState"]

log = structlog.get_logger("slotd")

FORMAT = 1
MAX_FILE_BYTES = 1 << 20
RETRY_S = 1.0
"""When a writing that failed is tried again, if nothing has changed before."""
FINAL_S = 1.0
"""Longest that the last writing may hold up the end of slotd."""

WATCHED = frozenset({types.SLOT_LOADED, types.SLOT_TRANSITION, types.SERVER_STOPPING})


NARROWED = {types.SLOT_TRANSITION: lambda event: event.data.get("to") == "offline"}
"""Not how a slot comes and goes between busy and idle: it does so with every request."""


_Name = Annotated[str, msgspec.Meta(max_length=1000)]


class _Kept(msgspec.Struct, frozen=True):
    """The file. ``slots``: name → the model it was swapped to, "" for the one in its config."""

    format: int
    slots: dict[_Name, _Name]


class DesiredState:
    """The slots that are wanted up: those that were loaded and have not been unloaded since.

    A slot that fails stays wanted. Once a stop has begun nothing changes any
    more: what it takes down is to come back. All from events; nobody reports
    to this. The file is replaced as a whole as soon as something changes, so
    that it is there after a SIGKILL; a disk that refuses costs a warning, and
    is asked again.

    ``configured`` gives the model in a slot's config, to tell a swap by.
    """

    def __init__(self, path: Path, bus: EventBus, configured: Callable[[str], str | None]) -> None:
        self._path = path
        self._bus = bus
        self._configured = configured
        self._slots: dict[str, str] = {}
        self._written: dict[str, str] | None = None
        self._changed = trio.Event()
        self._changed.set()  # the file is to say what this run knows, also if that is nothing
        self._warned = False
        self._one = trio.CapacityLimiter(1)  # a writer that was left behind ends before the next begins

    @property
    def slots(self) -> Mapping[str, str]:
        """Slot → the model it was swapped to, "" if it was not, in the order they were loaded."""
        return dict(self._slots)

    async def load(self, known: Collection[str]) -> None:
        """Take up what an earlier run left, of the slots that there are. Without a usable file: nothing.

        Reads in a thread that is left behind when the caller is cancelled.
        """
        try:
            kept = await trio.to_thread.run_sync(self._read, abandon_on_cancel=True)
            self._slots = {name: model for name, model in kept.items() if name in known}
        except FileNotFoundError:
            pass
        except (OSError, ValueError) as error:
            log.warning("what was loaded before cannot be read; nothing is restored", error=str(error))

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Follow the events until the bus is closed, and write what changes, until cancelled."""
        # The reader never waits for the disk, so its buffer only has to hold one turn of the loop.
        with self._bus.subscribe(max_buffered=4096, kinds=WATCHED, match=NARROWED) as events:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._write_changes)
                task_status.started()
                async for item in events:
                    if isinstance(item, Event):
                        if item.kind == types.SERVER_STOPPING:
                            break
                        self.note(item)

    def note(self, event: Event) -> None:
        """Take an event into account."""
        before, name = dict(self._slots), event.slot or ""
        match event.kind:
            case types.SLOT_LOADED:
                self._slots.pop(name, None)
                model = str(event.data.get("model") or "")
                self._slots[name] = "" if model == self._configured(name) else model
            case types.SLOT_TRANSITION if event.data.get("to") == "offline":
                self._slots.pop(name, None)
        if self._slots != before:
            self._changed.set()

    async def _write_changes(self) -> None:
        try:
            while True:
                # What a disk has refused it may take later.
                with trio.move_on_after(math.inf if self._written == self._slots else RETRY_S):
                    await self._changed.wait()
                await self._write()
        finally:
            if self._written != self._slots:  # also if a writer was left behind
                with trio.move_on_after(FINAL_S, shield=True):
                    await self._write()

    async def _write(self) -> None:
        self._changed = trio.Event()
        slots = dict(self._slots)
        data = msgspec.json.format(msgspec.json.encode(_Kept(FORMAT, slots)))
        try:
            await trio.to_thread.run_sync(
                partial(_replace, self._path, data), abandon_on_cancel=True, limiter=self._one
            )
        except OSError as error:
            if not self._warned:
                log.warning("which slots are up cannot be kept", file=str(self._path), error=str(error))
            self._warned = True
        else:
            self._written, self._warned = slots, False

    def _read(self) -> dict[str, str]:
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
        return kept.slots


def _replace(path: Path, data: bytes) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)  # not synced: that is for a power cut, and would be late for a SIGKILL
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
