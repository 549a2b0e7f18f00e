"""The latest state an actor has published: anyone reads, nobody waits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

import trio

T = TypeVar("T")

__all__ = ["Snapshot"]


class Snapshot(Generic[T]):
    """A cell that holds the owner's last published value.

    Values are frozen. Readers see the newest one; one that changes twice
    between two looks is seen once (the event bus carries every change). An
    advisory read is fine; a read that decides belongs into the owner.
    """

    def __init__(self, value: T) -> None:
        self._value = value
        self._version = 0
        self._changed: trio.Event | None = None
        self._draw: Callable[[], T] | None = None  # there while nobody has looked

    @property
    def value(self) -> T:
        if self._draw is not None:
            self._develop()
        return self._value

    @property
    def version(self) -> int:
        if self._draw is not None:
            self._develop()
        return self._version

    def publish(self, value: T) -> None:
        """Replace the value and wake those who wait. Only the owner calls this."""
        self._draw = None
        if value == self._value:
            return
        self._value = value
        self._version += 1
        if self._changed is not None:
            self._changed.set()
            self._changed = None

    def publish_later(self, draw: Callable[[], T]) -> None:
        """Publish what ``draw`` gives, once somebody looks; at once if somebody waits.

        For an owner that changes far more often than anyone looks. ``draw`` is
        bound to the state of this call; it must not raise.
        """
        self._draw = draw
        if self._changed is not None:
            self._develop()

    def _develop(self) -> None:
        if self._draw is not None:
            self.publish(self._draw())

    async def wait_change(self, seen_version: int) -> int:
        """Wait until the version differs from ``seen_version``; returns the new one.

        Always a checkpoint; cancelling it loses nothing.
        """
        if self.version != seen_version:
            await trio.lowlevel.checkpoint()
        while self._version == seen_version:
            if self._changed is None:
                self._changed = trio.Event()
            await self._changed.wait()
        return self._version
