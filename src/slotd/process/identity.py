"""Who a process is beyond its pid, and the ledger of the engines that live now."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import trio

from slotd.process import hunt

__all__ = ["Ledger", "LedgerEntry", "Leftover", "ProcessIdentity", "run_marker", "sweep_leftovers"]

LEFTOVER_SWEEP_S = 5.0
LEDGER_VERSION = 1

_boot_id = functools.cache(hunt.boot_id)


def run_marker(run_id: str) -> str:
    """The environment entry that every engine process of one slotd run carries."""
    return f"SLOTD_RUN={run_id}"


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """A pid made unique: with its start time in ticks since boot, and the boot."""

    pid: int
    start_ticks: int
    boot_id: str

    @classmethod
    def of(cls, pid: int) -> ProcessIdentity | None:
        """The identity of the process that has ``pid`` now, zombies included; None if there is none."""
        proc = hunt.read_proc(pid)
        return None if proc is None else cls(pid, proc.start_ticks, _boot_id())

    def is_current(self) -> bool:
        """Whether this very process, and not a later owner of its pid, is alive."""
        if self.boot_id != _boot_id():
            return False
        proc = hunt.read_proc(self.pid)
        return proc is not None and proc.alive and proc.start_ticks == self.start_ticks


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """One engine's process group: its leader, the slotd run and the slot that it serves."""

    leader: ProcessIdentity
    run_id: str
    slot: str


class Ledger:
    """The live engine groups, mirrored to a small JSON file for the next start of slotd.

    One owner: the event loop of this run. :meth:`add` and :meth:`remove` change
    the memory; :meth:`flush` writes. A failed write, as on a full disk, goes to
    ``report`` and nothing else: the ledger is a second line of defence behind
    the guardian, and no engine is worth losing over it.
    """

    def __init__(self, path: Path, *, report: Callable[[str], None]) -> None:
        self._path = path
        self._report = report
        self._live: dict[int, LedgerEntry] = {}
        self._changes = 0
        self._written = 0
        self._failing = False
        self._pen = trio.CapacityLimiter(1)

    @property
    def path(self) -> Path:
        return self._path

    @property
    def live(self) -> tuple[LedgerEntry, ...]:
        return tuple(self._live.values())

    def add(self, entry: LedgerEntry) -> None:
        """Note a started engine; :meth:`flush` makes it last."""
        self._live[entry.leader.pid] = entry
        self._changes += 1

    def remove(self, leader: ProcessIdentity) -> None:
        """Note that nothing of an engine is left. Unknown identities are ignored."""
        entry = self._live.get(leader.pid)
        if entry is not None and entry.leader == leader:
            del self._live[leader.pid]
            self._changes += 1

    def mark_stale(self) -> None:
        """Make the next :meth:`flush` write even if nothing has changed."""
        self._changes += 1

    async def flush(self) -> None:
        """Write the memory to the file, if it has changed since the last write.

        In a thread, since a disk under load can block for seconds. Cancellation
        abandons the thread at once; the limiter of one keeps a write that was
        abandoned half-way from overtaking a later one.
        """
        if self._written == self._changes:
            return
        changes, doc = self._changes, _encode(self._live.values())
        try:
            await trio.to_thread.run_sync(
                self._replace_file, doc, limiter=self._pen, abandon_on_cancel=True, thread_name="slotd-ledger"
            )
        except OSError as error:
            if not self._failing:  # once per outage, not once per engine
                self._report(
                    f"cannot write {self._path}: {error}; engines stay under watch, but if slotd and its "
                    f"guardian were killed together the next start would not find what they left"
                )
            self._failing = True
        else:
            self._failing = False
            self._written = max(self._written, changes)

    def read_file(self) -> tuple[LedgerEntry, ...]:
        """What the file says, an earlier run's truth at start. Blocking.

        No file is an empty ledger. One that cannot be read or makes no sense
        is reported and treated as empty.
        """
        try:
            return _decode(self._path.read_bytes())
        except FileNotFoundError:
            return ()
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            self._report(
                f"cannot use the ledger {self._path} ({error!r}); processes of an earlier run may be left"
            )
            return ()

    def _replace_file(self, doc: bytes) -> None:
        # No fsync: the file outlives slotd in the page cache, and after a crash
        # of the machine the boot id voids it anyway.
        self._path.parent.mkdir(parents=True, exist_ok=True)
        draft = self._path.with_name(f"{self._path.name}.{os.getpid()}.new")
        try:
            draft.write_bytes(doc)
            draft.replace(self._path)
        except OSError:
            draft.unlink(missing_ok=True)
            raise


@dataclass(frozen=True, slots=True)
class Leftover:
    """What one earlier run had left: how many processes were killed, and which would not die."""

    run_id: str
    slots: tuple[str, ...]
    killed: tuple[int, ...]
    survivors: tuple[int, ...]


async def sweep_leftovers(ledger: Ledger, *, own_run_id: str) -> list[Leftover]:
    """Kill what earlier runs left of their engines, then empty the ledger's file.

    Call once at start, before any engine runs, and with a lock on the state
    directory: the ledger cannot tell a dead slotd from one that still runs.
    A group is killed only if its leader is still the process that the ledger
    names (pid, start time and boot); beyond that, every process that carries
    an earlier run's marker. Entries of ``own_run_id`` and of an earlier boot
    are void. At most ``LEFTOVER_SWEEP_S`` seconds for each earlier run;
    cancellation waits for the run in hand.
    """
    entries = await trio.to_thread.run_sync(ledger.read_file)
    runs: dict[str, list[LedgerEntry]] = {}
    for entry in entries:
        if entry.leader.boot_id == _boot_id() and entry.run_id != own_run_id:
            runs.setdefault(entry.run_id, []).append(entry)
    leftovers: list[Leftover] = []
    for run_id, group in runs.items():
        hunt_run = functools.partial(
            hunt.sweep,
            {entry.leader.pid: entry.leader.start_ticks for entry in group},
            [run_marker(run_id)],
            limit_s=LEFTOVER_SWEEP_S,
            trusted=False,
        )
        swept = await trio.to_thread.run_sync(hunt_run)
        if swept.killed or swept.survivors:
            slots = tuple(sorted({entry.slot for entry in group}))
            leftovers.append(Leftover(run_id, slots, tuple(sorted(swept.killed)), swept.survivors))
    if entries:
        ledger.mark_stale()
        await ledger.flush()
    return leftovers


def _encode(entries: Iterable[LedgerEntry]) -> bytes:
    groups = [dataclasses.asdict(entry) for entry in entries]
    return json.dumps({"version": LEDGER_VERSION, "groups": groups}, indent=1).encode()


def _decode(raw: bytes) -> tuple[LedgerEntry, ...]:
    """Raises ValueError, KeyError, TypeError or RecursionError for what slotd did not write."""
    doc = json.loads(raw)
    if doc["version"] != LEDGER_VERSION:
        raise ValueError(f"ledger version {doc['version']!r}, expected {LEDGER_VERSION}")
    return tuple(
        LedgerEntry(
            ProcessIdentity(
                int(group["leader"]["pid"]),
                int(group["leader"]["start_ticks"]),
                str(group["leader"]["boot_id"]),
            ),
            str(group["run_id"]),
            str(group["slot"]),
        )
        for group in doc["groups"]
    )
