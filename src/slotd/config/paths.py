"""Where slotd keeps what must survive a restart."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

__all__ = ["default_state_dir", "expand"]


def default_state_dir(
    env: Mapping[str, str] = os.environ, *, platform: str = sys.platform, home: Path | None = None
) -> Path:
    """The platform's state directory for slotd; it need not exist.

    Linux and other Unix: ``$XDG_STATE_HOME/slotd`` or ``~/.local/state/slotd``.
    macOS: ``~/Library/Application Support/slotd``. Windows:
    ``%LOCALAPPDATA%\\slotd``. As its specification asks, a relative
    ``XDG_STATE_HOME`` is ignored. Raises :class:`RuntimeError` if a home
    directory is needed and none is known.
    """
    if platform == "win32":
        local = env.get("LOCALAPPDATA")
        return (Path(local) if local else _home(home) / "AppData" / "Local") / "slotd"
    if platform == "darwin":
        return _home(home) / "Library" / "Application Support" / "slotd"
    xdg = env.get("XDG_STATE_HOME", "")
    base = Path(xdg) if os.path.isabs(xdg) else _home(home) / ".local" / "state"
    return base / "slotd"


def expand(text: str) -> Path:
    """A path with its leading ``~`` expanded; as it stands where there is no such home."""
    path = Path(text)
    try:
        return path.expanduser()
    except RuntimeError:
        return path


def _home(home: Path | None) -> Path:
    return Path.home() if home is None else home
