"""``slotd events``: what is in the journal, and then what comes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from slotd.cli.api import Api
from slotd.cli.output import err, warn
from slotd.cli.tables import events_line

__all__ = ["show_events"]

NOISE = frozenset({"slot.pull_progress", "request.started"})
"""Told only to those who ask for it by name."""


def show_events(
    api: Api,
    since: str | None,
    slot: str | None,
    kind: str | None,
    number: int,
    *,
    follow: bool,
    as_json: bool,
) -> None:
    """Print the last ``number`` that match, one a line; then, to ``follow``, each that comes, for ever."""
    past = api.get("/api/events/history", since=since, slot=slot, kind=kind, limit=str(number))
    for event in past["events"]:
        _print(event["kind"], event, as_json)
    if not past["events"]:
        _tell_nothing(api, slot, kind)
    if not follow:
        return
    with api.stream("/api/events", after=str(past["last_seq"])) as lines:
        for name, data in _sse(lines):
            if name == "snapshot" or (slot is not None and data.get("slot") != slot):
                continue
            if name not in NOISE if kind is None else (name == kind or name.startswith(f"{kind}.")):
                _print(name, {**data, "kind": name}, as_json)


def _tell_nothing(api: Api, slot: str | None, kind: str | None) -> None:
    """Say so, and whether it may be for a name that there is not."""
    # Here, not above: they bring trio along, which other commands do not wait for.
    from slotd.events.types import KINDS
    from slotd.names import close_names

    err.print("nothing is kept that matches", style="dim")
    if kind is not None and not any(known == kind or known.startswith(f"{kind}.") for known in KINDS):
        close = close_names(kind, KINDS) or sorted(KINDS)
        warn([f"no kind of event is called {kind!r}; there are {', '.join(close)}"])
    if slot is not None:
        names = [each["name"] for each in api.get("/api/slots")["slots"]]
        if slot not in names:
            warn([f"there is no slot {slot!r} now; slots: {', '.join(close_names(slot, names) or names)}"])


def _print(kind: str, event: dict[str, Any], as_json: bool) -> None:
    print(msgspec.json.encode(event).decode() if as_json else events_line(kind, event), flush=True)


def _sse(lines: Iterable[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    kind = "message"
    for line in lines:
        if line.startswith("event: "):
            kind = line[7:]
        elif line.startswith("data: "):
            yield kind, msgspec.json.decode(line[6:])
