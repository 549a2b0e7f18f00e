"""What a slot's actor needs from the world, in one place, so that tests can fake it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from slotd.engine.base import Abilities, Readiness
from slotd.process.plan import EngineHandle, Launcher, LaunchPlan

__all__ = ["Backend"]


class Backend(Protocol):
    """An engine bound to one configured slot."""

    @property
    def launcher(self) -> Launcher: ...

    @property
    def readiness(self) -> Readiness: ...

    @property
    def abilities(self) -> Abilities: ...

    def present(self, model: str) -> bool:
        """Whether the model's file is here, or none is needed. Quick; no I/O but a stat."""

    def plan(self, model: str) -> LaunchPlan:
        """The launch plan. Raises :class:`slotd.errors.SlotdError` if there can be none."""

    async def fetch(self, model: str, progress: Callable[[str, int, int | None], None]) -> Path:
        """Fetch the model's file; ``progress(phase, done_bytes, total_bytes)``."""
        ...

    async def await_ready(
        self,
        handle: EngineHandle,
        *,
        port_opened: Callable[[], None],
        stranger: Callable[[], None],
    ) -> tuple[str, ...]:
        """Probe until the engine is ready; returns the models it lists."""
        ...
