"""Clients that leave while they are being answered: seen, at little cost for answers that are short.

Somebody must read from a client's socket to see it close, and the task of its
request is busy elsewhere. A reader for each request would cost more than many
a request; so one is started only for those that are still under way after two
ticks of ``TICK_S``. A client that leaves earlier than that is seen then.
"""

from __future__ import annotations

from typing import NoReturn

import trio

from slotd.gateway.express.client import AHEAD_MAX, ClientSocket

__all__ = ["Guest", "Hangups"]

TICK_S = 0.01


class Guest:
    """One request under way: its client, and the scope that ends with it."""

    __slots__ = ("client", "gone", "over", "reader", "scope")

    def __init__(self, client: ClientSocket, scope: trio.CancelScope) -> None:
        self.client = client
        self.scope = scope
        self.gone = False
        """Whether the client has left."""
        self.reader: trio.CancelScope | None = None
        self.over: trio.Event | None = None


class Hangups:
    """Watches the guests of one server. :meth:`run` must run while there are any."""

    def __init__(self) -> None:
        self._new: dict[Guest, None] = {}
        self._ripe: dict[Guest, None] = {}
        self._some = trio.Event()

    def begin(self, client: ClientSocket, scope: trio.CancelScope) -> Guest:
        """Cancel ``scope`` if ``client`` leaves before :meth:`end`. What it sends ahead is kept."""
        guest = Guest(client, scope)
        self._new[guest] = None
        self._some.set()
        return guest

    async def end(self, guest: Guest) -> None:
        """The request is over. Mostly it does not wait; returns when nobody else reads from the client."""
        self._new.pop(guest, None)
        self._ripe.pop(guest, None)
        if guest.reader is not None and guest.over is not None:
            guest.reader.cancel()
            # The reader ends in its next step, whatever happens to us.
            with trio.CancelScope(shield=True):
                await guest.over.wait()

    async def run(self) -> NoReturn:
        """Start readers for those who stay, until cancelled."""
        async with trio.open_nursery() as readers:
            while True:
                if not self._new and not self._ripe:
                    self._some = trio.Event()
                    await self._some.wait()
                await trio.sleep(TICK_S)
                for guest in self._ripe:
                    guest.reader, guest.over = trio.CancelScope(), trio.Event()
                    readers.start_soon(_read, guest, guest.reader, guest.over)
                self._ripe, self._new = self._new, {}
        raise AssertionError("the loop does not end")


async def _read(guest: Guest, scope: trio.CancelScope, over: trio.Event) -> None:
    try:
        with scope:
            while len(guest.client.received) < AHEAD_MAX:
                try:
                    here = await guest.client.receive()
                except (OSError, trio.ClosedResourceError):
                    here = False
                if not here:
                    guest.gone = True
                    guest.scope.cancel()
                    return
    finally:
        over.set()
