"""One task that serves another and ends with it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

__all__ = ["beside"]

T = TypeVar("T")


async def beside(helper: Callable[[], Awaitable[object]], work: Callable[[], Awaitable[T]]) -> T:
    """Do ``work`` while ``helper`` runs, which is cancelled when the work has ended.

    What either raises cancels the other and comes out as it is, not in a group.
    """
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:

        async def help_along() -> None:
            nonlocal failure
            try:
                await helper()
            except Exception as exc:
                failure = exc
                nursery.cancel_scope.cancel()

        nursery.start_soon(help_along)
        try:
            result = await work()
        except Exception as exc:
            failure = exc
        nursery.cancel_scope.cancel()
    if failure is not None:
        try:
            raise failure
        finally:
            failure = None  # whose traceback leads back here
    return result
