"""``file:`` sources: checked, hashed if a digest is pinned, never copied."""

from __future__ import annotations

import os
from pathlib import Path

from slotd.model.errors import ModelFetchFailed
from slotd.model.files import Receipt, hash_file, stat_key
from slotd.model.progress import Report
from slotd.names import close_names

__all__ = ["check_file", "locate_file"]

LISTED_MAX = 1000


def locate_file(path: Path) -> Path:
    """``path`` itself if it is a readable file. Raises :class:`ModelFetchFailed`."""
    if stat_key(path) is None:
        what = "is a folder, not a file" if path.is_dir() else "does not exist"
        near = "" if path.is_dir() else _near(path)
        raise ModelFetchFailed(f"the model file {path} {what}{near}", reason="not_found")
    if not os.access(path, os.R_OK):
        raise ModelFetchFailed(
            f"slotd may not read the model file {path}; check its permissions", reason="refused"
        )
    return path


async def check_file(path: Path, sha256: str, report: Report) -> Receipt:
    """Hash the file and compare. Raises :class:`ModelFetchFailed`; the file stays as it is."""
    before = stat_key(locate_file(path))
    try:
        got = (await hash_file(path, report)).hexdigest()
    except OSError as error:
        raise ModelFetchFailed(
            f"cannot read the model file {path}: {error.strerror or error}", reason="disk_error"
        ) from error
    if got != sha256:
        raise ModelFetchFailed(
            f"the model file {path} has sha256 {got}, but {sha256} is configured; "
            f"it is damaged, or the configuration means another file",
            reason="sha256_mismatch",
            details={"expected": sha256, "got": got},
        )
    if before is None or before != stat_key(path):
        raise ModelFetchFailed(
            f"the model file {path} changed while it was read; try again", reason="corrupt"
        )
    return Receipt(*before, got)


def _near(path: Path) -> str:
    try:
        with os.scandir(path.parent) as entries:
            names = [entry.name for entry, _ in zip(entries, range(LISTED_MAX), strict=False)]
    except OSError:
        return f"; nor can its folder be read: {path.parent}"
    close = close_names(path.name, names, limit=3)
    return f"; close names there: {', '.join(close)}" if close else ""
