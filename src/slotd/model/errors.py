"""The one way in which fetching a model fails."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from slotd.errors import SlotLoadFailed

__all__ = ["ModelFetchFailed", "disk_trouble"]

_TERMINAL = frozenset(
    {
        "bad_source",
        "not_found",
        "insecure",
        "sha256_mismatch",
        "not_a_model",
        "member_missing",
        "tool_missing",
    }
)
"""Reasons that stay until a person changes something. A network, a disk or a login may come back."""


class ModelFetchFailed(SlotLoadFailed):
    """The model's file cannot be had. The message says why and what to do.

    ``reason`` is a stable word for the condition: ``bad_source``, ``not_found``,
    ``refused``, ``unreachable``, ``insecure``, ``sha256_mismatch``,
    ``not_a_model``, ``corrupt``, ``member_missing``, ``tool_missing``,
    ``tool_failed``, ``disk_full``, ``disk_error`` or ``internal``. It is in
    ``details`` too.
    """

    def __init__(self, message: str, *, reason: str, details: Mapping[str, Any] | None = None) -> None:
        super().__init__(message, details={"reason": reason, **(details or {})})
        self.reason = reason
        self.terminal = reason in _TERMINAL

    def again(self) -> ModelFetchFailed:
        """An equal error. Each asker raises one of its own, so that tracebacks do not mix."""
        return ModelFetchFailed(self.message, reason=self.reason, details=self.details)


def disk_trouble(error: OSError, where: Path) -> ModelFetchFailed:
    """What an OSError on the store's own files means to a user."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ModelFetchFailed(
            f"the disk is full: no room for the model under {where}; free some space and load it again",
            reason="disk_full",
        )
    return ModelFetchFailed(
        f"cannot keep the model under {where}: {error.strerror or error}; "
        f"check the folder and its permissions",
        reason="disk_error",
    )
