"""What a batch of events comes to in the journal's tables. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from slotd.events import Event, types
from slotd.journal.entries import GAP, encode

__all__ = ["EVENT_COLUMNS", "REQUEST_COLUMNS", "Rows", "request_row", "slot_of"]

EVENT_COLUMNS = 7
REQUEST_COLUMNS = 9


class Rows:
    """A batch of events of one run, in their order, sorted in one pass.

    Those with a ``seq`` of ``after`` or less are there already and left out;
    ``first`` is the number (``n``) that the first of the others gets.

    ``events`` and ``requests`` are rows, value after value. ``begun``: the
    requests that have begun and are not over, by id; ``over``: those that are
    and had begun before. One that begins and ends here is a row and nothing
    else. ``holed``: among what was missed may be the ends of any that had
    begun before; those in ``begun`` came after. ``next`` and
    ``newest``: the next ``n``, and the ``seq`` that all this goes up to.
    """

    __slots__ = ("begun", "events", "holed", "newest", "next", "over", "requests")

    def __init__(self, run: str, events: Sequence[Event], first: int, *, after: int = 0) -> None:
        self.events: list[Any] = []
        self.requests: list[Any] = []
        self.begun: dict[str, Event] = {}
        self.over: list[str] = []
        self.holed = False
        self.newest = max(after, events[-1].seq) if events else after
        n = first
        for event in events:
            if event.seq <= after:
                continue
            seq, data = event.seq, event.data
            match event.kind:
                case types.REQUEST_STARTED:
                    self.begun[str(data.get("id"))] = event
                    continue
                case types.REQUEST_FINISHED:
                    row = request_row(run, seq, event.time, data)
                    if self.begun.pop(row[3], None) is None:
                        self.over.append(row[3])
                    self.requests += (n, *row)
                case kind:
                    if kind == GAP:
                        self.begun.clear()
                        self.holed = True
                    self.events += (n, run, seq, event.time, kind, event.slot, encode(data))
            n += 1
        self.next = n


def request_row(run: str, seq: int, time: float, record: Mapping[str, Any]) -> tuple[Any, ...]:
    """A request that is over, without its number."""
    get = record.get
    began, slot = get("began_unix") or time, slot_of(record)
    return (run, seq, time, str(get("id")), began, slot, str(get("outcome")), encode(record))


def slot_of(record: Mapping[str, Any]) -> str | None:
    """The slot that a request was carried to."""
    target = str(record.get("target") or "")
    return target.removeprefix("slot:") if target.startswith("slot:") else None
