"""Catalogs kept on disk, so that a restart begins warm."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import trio

from slotd.dispatch.catalog import SavedCatalog, decode_catalogs, encode_catalogs

__all__ = ["CatalogStore", "FileStore", "StoreTrouble"]

MAX_FILE_BYTES = 64 << 20


class StoreTrouble(Exception):
    """Catalogs could not be read or kept. The message says which file and why.

    Never fatal: without them slotd asks the remotes again.
    """


class CatalogStore(Protocol):
    async def load(self) -> Mapping[str, SavedCatalog]:
        """What was kept; empty if nothing was. Raises :class:`StoreTrouble`."""

    async def save(self, saved: Mapping[str, SavedCatalog]) -> None:
        """Replace what was kept. Raises :class:`StoreTrouble`."""


class FileStore:
    """One JSON file, replaced as a whole: a crash leaves the old one or the new one.

    Reading and writing happen in a worker thread that is left behind when the
    caller is cancelled: a stop must not wait for a slow disk.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    async def load(self) -> Mapping[str, SavedCatalog]:
        return await trio.to_thread.run_sync(self._read, abandon_on_cancel=True)

    async def save(self, saved: Mapping[str, SavedCatalog]) -> None:
        await trio.to_thread.run_sync(self._write, dict(saved), abandon_on_cancel=True)

    def _read(self) -> dict[str, SavedCatalog]:
        try:
            with self._path.open("rb") as file:
                data = file.read(MAX_FILE_BYTES + 1)
            if len(data) > MAX_FILE_BYTES:
                raise ValueError(f"it is longer than {MAX_FILE_BYTES >> 20} MiB")
            return decode_catalogs(data, time.time())
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as exc:
            raise StoreTrouble(f"{self._path}: kept catalogs cannot be used: {exc}") from exc

    def _write(self, saved: dict[str, SavedCatalog]) -> None:
        try:
            self._replace(encode_catalogs(saved, time.time()))
        except OSError as exc:
            raise StoreTrouble(f"{self._path}: catalogs cannot be kept: {exc}") from exc

    def _replace(self, data: bytes) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        # A name of its own: a writer that was left behind may still be at work.
        handle, name = tempfile.mkstemp(dir=self._path.parent, prefix=f".{self._path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(name, self._path)
        except BaseException:
            os.unlink(name)
            raise
