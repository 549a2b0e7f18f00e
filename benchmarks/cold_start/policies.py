"""The two policies that are compared. Both use slotd's own fetcher over the same HTTP client."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import TypeAlias

import trio

from slotd.dispatch import (
    CatalogUnavailable,
    Dispatcher,
    DispatchLimits,
    Outside,
    UpstreamEntry,
    compile_table,
)
from slotd.dispatch.actor import Fetch
from slotd.errors import NoRouteFound

__all__ = ["BASELINE_PARALLEL", "Resolve", "WaitForAll", "slotd_resolver"]

BASELINE_PARALLEL = 4
CHAT = "/v1/chat/completions"

Resolve: TypeAlias = Callable[[str], Awaitable[str | None]]
"""Model name → the remote to use, or None for a miss."""


class WaitForAll:
    """The common policy: ask all remotes, look when all have answered or time is up.

    Every request asks for itself: at most ``BASELINE_PARALLEL`` remotes at a
    time, in declared order, each one's place taken by the next when it has
    answered or failed; after ``timeout_s`` overall it makes do with what has
    come. There is no hit before the end, and nothing is shared between
    requests. (A cache that is filled by the first of them would not help the
    others here: all have arrived before it can be filled.)
    """

    def __init__(self, remotes: Sequence[UpstreamEntry], fetch: Fetch, timeout_s: float) -> None:
        self._remotes = remotes
        self._fetch = fetch
        self._timeout_s = timeout_s

    async def resolve(self, model: str) -> str | None:
        listed: dict[str, tuple[str, ...]] = {}
        pending = iter(self._remotes)
        with trio.move_on_after(self._timeout_s):
            async with trio.open_nursery() as nursery:
                for _ in range(BASELINE_PARALLEL):
                    nursery.start_soon(self._work, pending, listed)
        return next((r.name for r in self._remotes if model in listed.get(r.name, ())), None)

    async def _work(self, pending: Iterator[UpstreamEntry], listed: dict[str, tuple[str, ...]]) -> None:
        for remote in pending:
            try:
                listed[remote.name] = await self._fetch(remote)
            except CatalogUnavailable:
                listed[remote.name] = ()


async def slotd_resolver(
    nursery: trio.Nursery, remotes: Sequence[UpstreamEntry], fetch: Fetch, limits: DispatchLimits
) -> Resolve:
    """A dispatcher that knows nothing yet, running in ``nursery``. No slots, no kept catalogs."""
    dispatcher = Dispatcher(compile_table([], remotes, [], limits), Outside(fetch, dict))
    nursery.start_soon(dispatcher.run)
    await dispatcher.mailbox.wait_open()

    async def resolve(model: str) -> str | None:
        try:
            route = await dispatcher.resolve(model, CHAT)
        except NoRouteFound:
            return None
        return str(route.target).removeprefix("upstream:")

    return resolve
