"""Publish to many readers, each at its own pace, without ever waiting for one."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Mapping
from types import TracebackType
from typing import Any

import trio

from slotd.events.types import Event, Gap

__all__ = ["EventBus", "Subscription"]

Match = Callable[[Event], bool]

_Readers = tuple[tuple["Subscription", Match | None], ...]


class EventBus:
    """What happened, numbered, the newest ``buffer`` events kept for latecomers.

    For one trio thread: any actor in it publishes, any task in it subscribes.
    ``clock`` gives the wall time that events are stamped with.
    """

    def __init__(self, buffer: int, *, clock: Callable[[], float] = time.time) -> None:
        if buffer < 1:
            raise ValueError("an event bus needs room for an event")
        self._ring: deque[Event] = deque(maxlen=buffer)
        self._clock = clock
        self._last_seq = 0
        self._closed = False
        self._subscriptions: dict[Subscription, None] = {}  # a set that keeps its order
        self._readers: dict[str, _Readers] = {}  # by kind, as far as known

    @property
    def last_seq(self) -> int:
        """The number of the newest event; 0 before the first."""
        return self._last_seq

    def publish(self, kind: str, data: Mapping[str, Any], *, slot: str | None = None) -> Event:
        """Tell everyone. Synchronous; no reader can delay it or make it fail.

        ``data`` is the event's from now on: nobody changes it any more. After
        :meth:`close` the event is still numbered and kept, so that actors may
        report their own end; only lasting readers are left to see it.
        """
        self._last_seq = seq = self._last_seq + 1
        event = Event(seq, self._clock(), kind, slot, data)
        self._ring.append(event)
        readers = self._readers.get(kind)
        if readers is None:
            readers = self._readers[kind] = tuple(
                (s, s._match_of(kind)) for s in self._subscriptions if s._reads(kind)
            )
        for subscription, match in readers:
            if match is None or subscription._wants(match, event):
                subscription._offer(event)
        return event

    def subscribe(
        self,
        *,
        after: int | None = None,
        max_buffered: int = 256,
        kinds: Collection[str] | None = None,
        match: Match | Mapping[str, Match] | None = None,
        lasting: bool = False,
    ) -> Subscription:
        """Read events from now on, or those after number ``after``, as far as they are kept.

        It counts from this call. What the ring still holds after ``after`` is
        replayed whole; what it no longer holds is announced by a :class:`Gap`.
        A number that this run has not given out comes from an earlier run, of
        which nothing is left: it counts as 0.

        Beside its replay a reader has room for ``max_buffered`` events; one
        that falls further behind loses the oldest and gets a :class:`Gap` in
        their place. ``kinds`` and ``match`` select what is read, and only that
        takes room; ``match`` must be quick and pure, and ``kinds`` cost nothing
        when others are published. A mapping has a match for each kind that is
        not read whole, and costs nothing for the others. What left the ring before this call can no
        longer be matched and is counted whole. A ``lasting`` one goes on after
        :meth:`close`: it is for who records the end, and whoever reads it must
        know when to leave.
        """
        if max_buffered < 1:
            raise ValueError("a subscription needs room for an event")
        replay: list[Event] = []
        missed = 0
        if after is not None:
            seen = after if 0 <= after <= self._last_seq else 0
            oldest = self._last_seq - len(self._ring) + 1
            missed = max(0, oldest - seen - 1)
            replay = [e for e in self._ring if e.seq > seen]
        subscription = Subscription(self, replay, missed, max_buffered, kinds, match, lasting)
        if self._closed and not lasting:
            subscription._end()
        else:
            self._subscriptions[subscription] = None
            self._readers.clear()
        return subscription

    def close(self) -> None:
        """End every subscription that is not lasting after what it has buffered. Synchronous, idempotent."""
        self._closed = True
        for subscription in tuple(self._subscriptions):
            if not subscription.lasting:
                subscription._end()


class Subscription:
    """An async iterator of :class:`Event` and :class:`Gap`; see :meth:`EventBus.subscribe`.

    Events come in the order of their numbers, and every hole in what was
    selected is announced, before the event that follows it. For one reading
    task at a time (another gets ``trio.BusyResourceError``). Cancelling the
    wait loses nothing. A context manager that closes; whoever subscribes
    closes.
    """

    def __init__(
        self,
        bus: EventBus,
        replay: list[Event],
        missed: int,
        max_buffered: int,
        kinds: Collection[str] | None,
        match: Match | Mapping[str, Match] | None,
        lasting: bool = False,
    ) -> None:
        self.lasting = lasting
        self._bus = bus
        self._kinds = kinds
        self._match = match
        self._buffer = deque(e for e in replay if self._selects(e))
        # The replay, which the ring bounds, must not be lost to what comes
        # while it is being read.
        self._room = len(self._buffer) + max_buffered
        self._missed = missed
        self._ended = False
        self._error: Exception | None = None
        self._waiting: trio.Event | None = None
        self._alert = self._room + 1  # with so many buffered there is something to do

    def close(self) -> None:
        """End the iteration now and drop what is buffered. Synchronous, idempotent."""
        self._buffer.clear()
        self._missed = 0
        self._error = None
        self._end()

    def __enter__(self) -> Subscription:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __aiter__(self) -> Subscription:
        return self

    async def __anext__(self) -> Event | Gap:
        """The next event, or the hole before it.

        Ends when the subscription or the bus is closed; raises what ``match``
        raised, after the events before that. Always a checkpoint.
        """
        # Before anything is taken, so that cancellation finds it all in place;
        # from _take to return there is no other.
        await trio.lowlevel.checkpoint()
        while True:
            item = self._take()
            if item is not None:
                return item
            if self._error is not None:
                raise self._error
            if self._ended:
                raise StopAsyncIteration
            await self._wait()

    async def gather(self, limit: int, within_s: float) -> list[Event | Gap]:
        """Wait for one, and then at most ``within_s`` for others; ``limit`` at most, which must be positive.

        Its reader is woken for the first and at the end, not for each. Ends
        and raises as iteration does. Cancelled, it has taken nothing.
        """
        await trio.lowlevel.checkpoint()
        await self._wait_for(1)
        with trio.move_on_after(within_s):
            await self._wait_for(limit)
        found = self.drain(limit)
        if not found:
            if self._error is not None:
                raise self._error
            raise StopAsyncIteration
        return found

    async def _wait_for(self, number: int) -> None:
        """Until so many are there, or no more will come."""
        while not (self._ended or self._missed or len(self._buffer) >= number):
            await self._wait(number)

    def drain(self, limit: int) -> list[Event | Gap]:
        """What is there now, oldest first, ``limit`` at most. Synchronous."""
        found: list[Event | Gap] = []
        if self._missed and limit > 0 and (gap := self._take()) is not None:
            found.append(gap)
        buffer, room = self._buffer, limit - len(found)
        if len(buffer) <= room:
            found += buffer
            buffer.clear()
        else:
            found += [buffer.popleft() for _ in range(room)]
        return found

    def _take(self) -> Event | Gap | None:
        if self._missed:
            # With nothing buffered, nothing published so far is still to come.
            following = self._buffer[0].seq if self._buffer else self._bus.last_seq + 1
            gap, self._missed = Gap(self._missed, following), 0
            return gap
        return self._buffer.popleft() if self._buffer else None

    async def _wait(self, enough: int = 1) -> None:
        """Until ``enough`` are buffered, the oldest had to make room, or no more will come."""
        if self._waiting is not None:
            raise trio.BusyResourceError("another task is reading this subscription")
        self._waiting = trio.Event()
        self._alert = min(self._alert, enough)
        try:
            await self._waiting.wait()
        finally:
            self._waiting = None
            self._alert = self._room + 1

    def _reads(self, kind: str) -> bool:
        """Whether it reads events of this kind, if they match."""
        return self._kinds is None or kind in self._kinds

    def _match_of(self, kind: str) -> Match | None:
        """What an event of this kind has to pass, if it has to."""
        return self._match.get(kind) if isinstance(self._match, Mapping) else self._match

    def _selects(self, event: Event) -> bool:
        match = self._match_of(event.kind)
        return self._reads(event.kind) and (match is None or match(event))

    def _wants(self, match: Match, event: Event) -> bool:
        try:
            return match(event)
        except Exception as exc:
            # A reader's mistake is the reader's: the publisher is an actor
            # that would crash of it.
            self._error = exc
            self._end()
            return False

    def _offer(self, event: Event) -> None:
        buffer = self._buffer
        buffer.append(event)
        if len(buffer) >= self._alert:
            if len(buffer) > self._room:
                buffer.popleft()
                self._missed += 1
            self._wake()

    def _end(self) -> None:
        """Nothing more will come; what is buffered may still be read."""
        self._ended = True
        self._bus._subscriptions.pop(self, None)
        self._bus._readers.clear()
        self._wake()

    def _wake(self) -> None:
        if self._waiting is not None:
            self._waiting.set()
