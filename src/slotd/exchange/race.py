"""Several ways to an end, of which the first to get there counts."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import outcome
import trio

T = TypeVar("T")

__all__ = ["first_of"]


async def first_of(*contenders: Callable[[], Awaitable[T]]) -> T:
    """Run them beside each other; return or raise what the first to end does.

    The others are cancelled and have ended when this returns. One that ended
    in the same instant is not heard: what it got must be given back by who
    knows of it (see :class:`slotd.exchange.claims.Claims`). An exception comes
    as it is, not in a group. Each runs in one task of its own, so it may open
    and close what it likes. Cancelled: so are all.
    """
    ends: list[outcome.Outcome[T]] = []
    async with trio.open_nursery() as nursery:

        async def run(contender: Callable[[], Awaitable[T]]) -> None:
            try:
                ends.append(outcome.Value(await contender()))
            except Exception as exc:
                ends.append(outcome.Error(exc))
            nursery.cancel_scope.cancel()

        for contender in contenders:
            nursery.start_soon(run, contender)
    first = ends[0]
    ends.clear()
    try:
        return first.unwrap()
    finally:
        del first  # the traceback of what it raises leads here
