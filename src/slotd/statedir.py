"""slotd's directory for what outlives a run: one running slotd at a time."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from types import TracebackType

from slotd.errors import SlotdError

__all__ = ["StateDir", "StateDirBusy", "StateDirUnusable"]


class StateDirUnusable(SlotdError):
    """The state directory cannot be made or written."""

    code = "server.state_dir"


class StateDirBusy(StateDirUnusable):
    """Another slotd runs on this state directory.

    Two on one directory would each take the other's engines for leftovers.
    """

    code = "server.state_dir_busy"


class StateDir:
    """The directory, held by an advisory lock while the block lasts.

    The lock ends with the process, however that ends.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd: int | None = None

    def __enter__(self) -> StateDir:
        try:
            self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._fd = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as exc:
            raise StateDirUnusable(
                f"the state directory {self.path} cannot be used: {exc.strerror}; set server.state_dir"
            ) from exc
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            os.close(self._fd)
            self._fd = None
            raise StateDirBusy(
                f"another slotd runs on the state directory {self.path}; "
                "stop it, or set server.state_dir to another directory"
            ) from exc
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
