"""pytest fixtures for tests that run slotd; registered as a plugin when slotd is installed.

Kept light: the kit is imported when a fixture is first used, so that other
test suites in the same environment pay nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from slotd.testing.harness import Harness

__all__ = ["slotd_harness", "slotd_server"]


@pytest.fixture
def slotd_server() -> Mapping[str, Any]:
    """Keys of ``[server]`` for every slotd of a test; a test's own come before them.

    Override it, or parametrise it, to run tests on slotds of other settings.
    """
    return {}


@pytest.fixture
def slotd_harness(
    tmp_path: Path, slotd_server: Mapping[str, Any]
) -> Callable[..., AbstractAsyncContextManager[Harness]]:
    """Starts slotd in this process: ``async with slotd_harness({"chat": fake_slot()}) as slotd: ...``.

    Takes the slots' tables, and ``server`` and ``more`` as
    :func:`slotd.testing.config_text` does.
    """
    from slotd.testing.harness import config_text, run_harness

    def start(
        slots: Mapping[str, Mapping[str, Any]],
        *,
        server: Mapping[str, Any] | None = None,
        more: str = "",
        env: Mapping[str, str] | None = None,
    ) -> AbstractAsyncContextManager[Harness]:
        return run_harness(
            config_text(slots, server={**slotd_server, **(server or {})}, more=more), tmp_path, env
        )

    return start
