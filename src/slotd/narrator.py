"""What happens, told in the log for whoever watches the console."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import NoReturn

import structlog
import trio

from slotd.events import Event, EventBus, Gap, types
from slotd.logs import says

__all__ = ["Narrator"]

log = structlog.get_logger("slotd")

NARRATED = frozenset(
    {
        types.SLOT_LOADED,
        types.SLOT_FAULT,
        types.SLOT_STOPPED,
        types.SERVER_STOPPING,
        types.REQUEST_FINISHED,
    }
)
"""What the log tells."""

NARRATE_S = 0.05
"""What happens within this time is told together: waking up for each costs as much as telling it."""

REQUESTS_AT_ONCE = 20
"""So many that went well, and so many that did not. Of more that end within that time the log says how
many they were: nobody reads 400 lines a second, and writing one costs a tenth of a small request. The
journal has them all."""

GAPS_EVERY_S = 1.0
"""How often, at most, the log says that it could not keep up."""

_NARROWED = {types.REQUEST_FINISHED: lambda event: says("info")}
"""Which of them take room: none that the log would leave out anyway."""

_SHOWN = ("id", "path", "model", "target", "status", "outcome", "error", "tokens_out")
"""What of a request's record."""


class Narrator:
    """Reads the bus, at most ``room`` events behind. ``live``: how many requests are under way."""

    def __init__(self, bus: EventBus, room: int, live: Callable[[], int]) -> None:
        self._bus = bus
        self._room = room
        self._live = live
        self._missed = 0
        self._missed_told_at = -math.inf

    async def run(self) -> NoReturn:
        """Tell what happens until cancelled; then what is left is told, without waiting."""
        with self._bus.subscribe(
            max_buffered=self._room, kinds=NARRATED, match=_NARROWED, lasting=True
        ) as events:
            try:
                while True:
                    # What has been left out is told, even if nothing more happens.
                    with trio.move_on_at(self._missed_told_at + GAPS_EVERY_S if self._missed else math.inf):
                        self._tell_all(await events.gather(self._room, NARRATE_S))
                    self._tell_missed(trio.current_time())
            finally:
                self._tell_all(events.drain(self._room))
                self._tell_missed(math.inf)

    def _tell_all(self, items: Iterable[Event | Gap]) -> None:
        requests = {True: 0, False: 0}
        for item in items:
            if isinstance(item, Gap):
                self._missed += item.missed
                continue
            if item.kind == types.REQUEST_FINISHED:
                ok = item.data["outcome"] == "ok"
                requests[ok] += 1
                if requests[ok] > REQUESTS_AT_ONCE:
                    self._missed += 1
                    continue
            self._tell(item)

    def _tell_missed(self, now: float) -> None:
        if self._missed and now - self._missed_told_at >= GAPS_EVERY_S:
            log.warning("more happened than the log could tell", missed=self._missed)
            self._missed, self._missed_told_at = 0, now

    def _tell(self, event: Event) -> None:
        data, slot = event.data, event.slot
        match event.kind:
            case types.SLOT_LOADED:
                log.info("loaded", slot=slot, model=data["model"], load_s=round(data["load_s"], 2))
            case types.SLOT_FAULT:
                log.warning("fault", slot=slot, reason=data["reason"], message=data["message"])
            case types.SLOT_STOPPED:
                log.info("engine ended", slot=slot, exit=data["exit"])
            case types.SERVER_STOPPING:
                log.info("stopping: requests may finish; a second signal stops now", live=self._live())
            case types.REQUEST_FINISHED:
                fields = {key: data[key] for key in _SHOWN if data[key] is not None}
                log.info("request", **fields, total_s=round(data["total_s"], 3))
            case _:
                pass
