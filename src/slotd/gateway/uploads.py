"""Request bodies that are still coming: what takes memory before anything has been decided."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from slotd.errors import SlotdError

__all__ = ["Uploads"]


class Uploads:
    """Who sends a body now. Has no say in how many they may be: :attr:`count` is for who has."""

    def __init__(self) -> None:
        self._receiving: dict[trio.CancelScope, None] = {}
        self._cause: SlotdError | None = None

    @property
    def count(self) -> int:
        return len(self._receiving)

    async def receive(self, read: Callable[[], Awaitable[bytes]]) -> bytes:
        """What ``read`` returns, unless :meth:`end_all` comes first: then its cause is raised."""
        self._refuse()
        scope = trio.CancelScope()
        self._receiving[scope] = None
        try:
            with scope:
                return await read()
        finally:
            del self._receiving[scope]
        self._refuse()
        raise AssertionError("nobody else cancels it")

    def _refuse(self) -> None:
        if self._cause is not None:
            raise self._cause

    def end_all(self, cause: SlotdError) -> int:
        """Wait for no more of any, now or later; returns how many there were."""
        self._cause = cause
        for scope in self._receiving:
            scope.cancel()
        return len(self._receiving)
