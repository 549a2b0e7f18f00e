"""What the journal holds, and how it becomes bounded text. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from slotd.events import Event, types

__all__ = ["GAP", "LOST", "NARROWED", "Entry", "KeptRequest", "encode"]

LOST = "lost"
"""Outcome of a request that was under way when slotd ended without a word."""

GAP = "journal.gap"
"""Kind of an entry that stands for events which came too fast to be kept: ``missed`` of them."""

MAX_DATA_BYTES = 16 << 10
"""Longer fields are shortened: clients and engines write some of what is in them."""

_SHORT_CHARS = 400
_SHORT_ITEMS = 30
_UP = frozenset({"ready", "serving", "idle"})


class Entry(msgspec.Struct, frozen=True):
    """An event as it is kept. ``run``: the run of slotd that it is from; ``seq``: its number there."""

    run: str
    seq: int
    time: float
    kind: str
    slot: str | None
    data: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """As ``/api/events`` shows events, and with kind and run."""
        own = {"run": self.run, "seq": self.seq, "time": self.time, "kind": self.kind, "slot": self.slot}
        return {**self.data, **own}


@dataclass(frozen=True, slots=True)
class KeptRequest:
    """A decision record, and what happened around its slot while the request lived, oldest first."""

    run: str
    record: dict[str, Any]
    events: tuple[Entry, ...]


def _is_news(transition: Event) -> bool:
    """Not that a slot that is up has something to do or nothing: the requests tell that."""
    return not (transition.data.get("from") in _UP and transition.data.get("to") in _UP)


NARROWED: Mapping[str, Callable[[Event], bool]] = {
    types.SLOT_TRANSITION: _is_news,
    types.SLOT_PULL_PROGRESS: lambda event: False,
}
"""What of some kinds belongs into the journal; the others do as a whole.

Of how far a download is there is too much: it would drive out what matters.
"""


def _plain(value: Any) -> Any:
    return dict(value) if isinstance(value, Mapping) else str(value)


_encode = msgspec.json.Encoder(enc_hook=_plain).encode


def encode(data: Mapping[str, Any]) -> str:
    """JSON of ``data``, at most about :data:`MAX_DATA_BYTES` long. Never fails."""
    try:
        text = _encode(data)
        if len(text) > MAX_DATA_BYTES:
            text = _encode(_shortened(data))
        if len(text) <= MAX_DATA_BYTES:
            return text.decode()
        why = f"{len(text)} bytes"
    except (TypeError, ValueError, RecursionError) as error:
        why = ascii(error)[:_SHORT_CHARS]
    return _encode({"not_kept": why}).decode()


def _shortened(value: Any) -> Any:
    if isinstance(value, str):
        return value if len(value) <= _SHORT_CHARS else value[:_SHORT_CHARS] + "…"
    if isinstance(value, Mapping):
        return {key: _shortened(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_shortened(inner) for inner in value[-_SHORT_ITEMS:]]
    return value
