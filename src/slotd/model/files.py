"""The store's work on files: writing, hashing, landing, and remembering what was verified."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from io import FileIO
from pathlib import Path
from typing import BinaryIO

import trio

from slotd.model.errors import ModelFetchFailed
from slotd.model.progress import Progress, Report

__all__ = [
    "PartFile",
    "Receipt",
    "Staged",
    "bytes_on_disk",
    "hash_file",
    "human",
    "land",
    "look_like_gguf",
    "need_room",
    "stat_key",
    "try_flock",
]

STEP = 4 << 20
"""Bytes hashed or copied in one visit to a thread: some 10 ms, the bound on a cancellation's wait."""
BUFFER = 1 << 20
ROOM_SPARE = 16 << 20


@dataclass(frozen=True, slots=True)
class Receipt:
    """What was verified: the file's identity on disk then, and its digest.

    A file whose size or modification time has changed since has no receipt.
    """

    size: int
    mtime_ns: int
    sha256: str

    def covers(self, file: Path) -> bool:
        """Whether ``file`` is there and unchanged. A stat, no reading."""
        return stat_key(file) == (self.size, self.mtime_ns)

    @staticmethod
    def load(path: Path) -> Receipt | None:
        """The receipt in ``path``; None if there is none that makes sense."""
        try:
            doc = json.loads(path.read_bytes())
            return Receipt(int(doc["size"]), int(doc["mtime_ns"]), str(doc["sha256"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def save(self, path: Path) -> None:
        doc = {"size": self.size, "mtime_ns": self.mtime_ns, "sha256": self.sha256}
        draft = path.with_name(f"{path.name}.{os.getpid()}.new")
        draft.write_text(json.dumps(doc) + "\n", encoding="utf-8")
        draft.replace(path)


def stat_key(file: Path) -> tuple[int, int] | None:
    """Size and modification time of a regular file, links followed; None if it is not one."""
    try:
        info = file.stat()
    except (OSError, ValueError):
        return None
    if not os.path.isfile(file):
        return None
    return info.st_size, info.st_mtime_ns


@dataclass(frozen=True, slots=True)
class Staged:
    """A complete file that is not in its place yet, and its digest."""

    path: Path
    sha256: str


class PartFile:
    """A file that grows by downloaded pieces, hashed on the way.

    Bytes are gathered in memory and written from a thread, a megabyte at a
    time. :meth:`close` writes what is left without waiting: also a cancelled
    download keeps every byte that came. Used as a context manager.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: FileIO | None = None
        self._pending: list[bytes] = []
        self._pending_bytes = 0
        self._hash = hashlib.sha256()
        self._written = 0

    @property
    def size(self) -> int:
        """Bytes so far, those not yet on disk included."""
        return self._written + self._pending_bytes

    @property
    def hexdigest(self) -> str:
        """The digest of what has been written; call after :meth:`flush`."""
        return self._hash.hexdigest()

    def __enter__(self) -> PartFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def adopt(self, report: Report) -> None:
        """Go on from what an earlier run left; reads it once, for the digest."""
        self.close()
        self._hash = await hash_file(self._path, report)
        self._file = open(self._path, "ab", buffering=0)  # noqa: SIM115, ASYNC230 # held until close()
        self._written = self._file.tell()

    def restart(self) -> None:
        """Begin anew, empty."""
        self._pending.clear()
        self._pending_bytes = 0
        self.close()
        self._hash = hashlib.sha256()
        self._file = open(self._path, "wb", buffering=0)  # noqa: SIM115 # held until close()
        self._written = 0

    async def add(self, piece: bytes) -> None:
        self._pending.append(piece)
        self._pending_bytes += len(piece)
        if self._pending_bytes >= BUFFER:
            await self.flush()

    async def flush(self, *, durable: bool = False) -> None:
        """Write what is gathered; ``durable``: and wait until the disk has it."""
        await trio.to_thread.run_sync(partial(self._write, durable=durable))

    def close(self) -> None:
        if self._file is None:
            return
        try:
            self._write(durable=False)
        finally:
            self._file.close()
            self._file = None

    def _write(self, *, durable: bool) -> None:
        assert self._file is not None, "adopt() or restart() comes first"
        # Pieces leave the list before they are written: after a failed write
        # (a full disk) close() must not fail the same way once more.
        block = memoryview(b"".join(self._pending))
        self._pending.clear()
        self._pending_bytes = 0
        while block:
            count = self._file.write(block)  # unbuffered, so it may take a part only
            self._hash.update(block[:count])
            self._written += count
            block = block[count:]
        if durable:
            os.fsync(self._file.fileno())


async def hash_file(path: Path, report: Report) -> hashlib._Hash:
    """SHA-256 over a file, in a thread. Raises OSError. Cancellation takes effect between steps."""
    digest = hashlib.sha256()

    def step(file: BinaryIO) -> int:
        block = file.read(STEP)
        digest.update(block)
        return len(block)

    with open(path, "rb") as file:  # noqa: ASYNC230 # opening does not wait; the reads are in a thread
        total, done = os.fstat(file.fileno()).st_size, 0
        while read := await trio.to_thread.run_sync(step, file):
            done += read
            report(Progress("verifying", done, max(total, done)))
    return digest


def need_room(folder: Path, wanted: int) -> None:
    """Refuse early what cannot fit. Raises :class:`ModelFetchFailed`."""
    free = shutil.disk_usage(folder).free
    if wanted + ROOM_SPARE > free:
        raise ModelFetchFailed(
            f"the disk is too full: the model needs {human(wanted)} more under {folder}, "
            f"and {human(free)} are free",
            reason="disk_full",
            details={"needed_bytes": wanted, "free_bytes": free},
        )


def look_like_gguf(file: Path, came_from: str) -> None:
    """Refuse a download named .gguf that is none, such as a login page. Raises :class:`ModelFetchFailed`."""
    if file.suffix.lower() != ".gguf" and not file.name.lower().endswith(".gguf.part"):
        return
    with open(file, "rb") as stream:
        head = stream.read(24)
    if not head.startswith(b"GGUF"):
        raise ModelFetchFailed(
            f"what {came_from} sent is no GGUF file: it begins with {head!r}; check the address in a browser",
            reason="not_a_model",
        )


def land(staged: Path, target: Path, receipt_path: Path, sha256: str) -> None:
    """Put a verified file in its place, atomically, and note that it was verified. Blocking."""
    with open(staged, "rb") as file:
        os.fsync(file.fileno())
    staged.replace(target)
    key = stat_key(target)
    assert key is not None, "it has just been put there"
    Receipt(*key, sha256).save(receipt_path)


def bytes_on_disk(folder: Path) -> int:
    """Bytes of the files under ``folder``, as far as they take room: a sparse file counts what is written.

    Files may come and go meanwhile. Meant for a handful of files.
    """
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                info = os.lstat(os.path.join(parent, name))
            except OSError:
                continue
            total += min(info.st_size, info.st_blocks * 512)
    return total


@contextmanager
def try_flock(path: Path) -> Iterator[Callable[[], bool]]:
    """An advisory lock between processes; yields ``attempt``, which says whether it is held now.

    The lock belongs to the open file: the kernel frees it when this process
    dies, and two holders inside one process exclude each other too.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)

    def attempt() -> bool:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EINTR):
                return False
            raise
        return True

    try:
        yield attempt
    finally:
        os.close(descriptor)


def human(size: float) -> str:
    """A size for a message: ``93 MB``."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            return f"{size:.0f} {unit}" if unit in ("bytes", "kB", "MB") else f"{size:.1f} {unit}"
        size /= 1000
    raise AssertionError("unreachable")
