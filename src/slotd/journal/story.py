"""What happened to a request, in words and in order. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from slotd.events import types
from slotd.journal.entries import Entry
from slotd.journal.words import duration, tell

__all__ = ["Line", "story"]

SHORT_S = 0.01
"""A wait below this is none that anybody would ask about."""

_MOVES = frozenset({types.SLOT_TRANSITION, types.SLOT_LOADED, types.ARBITER_WAITING, types.ARBITER_EVICTING})

TIERS = {
    1: "tier 1: an explicit binding",
    2: "tier 2: known here",
    3: "tier 3: the upstreams were asked",
}


@dataclass(frozen=True, slots=True)
class Line:
    """``after_s``: seconds after the request came in. ``last``: comes after others of the same moment."""

    after_s: float
    text: str
    last: bool = False

    def as_dict(self) -> dict[str, Any]:
        return {"after_s": round(self.after_s, 6), "text": self.text}


def story(record: Mapping[str, Any], events: Iterable[Entry]) -> list[Line]:
    """The lines of a request, live or over, from its record and what happened around it meanwhile.

    The record's times are exact. Events are placed by the wall clock, so next
    to a step of it they may be off.
    """
    began, total = record.get("began_unix") or 0.0, record.get("total_s") or 0.0
    events = tuple(events)
    lines = [
        Line(0.0, _arrival(record)),
        *_decided(record, _loaded_after(record, events), _queued(record, events)),
    ]
    for event in events:
        if (line := _event(record, event)) is not None:
            lines.append(Line(min(max(event.time - began, 0.0), total), line))
    # What happened at the same moment keeps its order, but who takes a request takes it last.
    lines.sort(key=lambda line: (line.after_s, line.last))
    lines.append(Line(total, _end(record)))
    return lines


def _arrival(r: Mapping[str, Any]) -> str:
    model = f", model {r['model']!r}" if r.get("model") else ", no model in particular"
    if "model" not in r:  # it was not over when slotd ended, and no more is known
        model = ""
    stream = ", as a stream" if r.get("stream") else ""
    weight = f", priority {r['priority']:+d}" if r.get("priority") else ""
    return f"{r['path']} from {r.get('client') or 'a client'}{model}{stream}{weight}, {r['bytes_in']} bytes"


def _loaded_after(r: Mapping[str, Any], events: Iterable[Entry]) -> float:
    """When the engine that took it was up, if it was loaded meanwhile: it cannot have taken it before."""
    for e in events:
        same = e.slot == _slot(r.get("target")) and e.data.get("generation") == r.get("generation")
        if e.kind == types.SLOT_LOADED and same:
            bounds = (r.get("first_byte_s"), r.get("total_s"))
            latest = min((b for b in bounds if b is not None), default=0.0)
            return min(max(e.time - (r.get("began_unix") or 0.0), 0.0), latest)
    return 0.0


def _queued(r: Mapping[str, Any], events: Iterable[Entry]) -> bool:
    """Whether its engine was up all the while, so that it can have waited for nothing but a place."""
    slot = _slot(r.get("target"))
    untouched = not any(e.slot == slot and e.kind in _MOVES for e in events)
    return untouched and r.get("generation") is not None and not r.get("replays")


def _decided(r: Mapping[str, Any], loaded_after: float, queued: bool) -> list[Line]:
    """What the record itself tells, between arrival and end."""
    lines = []
    resolve_s, wait_s = r.get("resolve_s"), r.get("wait_s")
    at = resolve_s or 0.0
    target = _shown(r.get("target"))
    if target and r.get("fallback_from"):
        lines.append(Line(at, f"routed to slot {r['fallback_from']} ({_why(r)})"))
    elif target:
        name = f" as {r['target_model']!r}" if r.get("target_model") else ""
        lines.append(Line(at, f"routed to {target}{name} ({_why(r)})"))
    slot = _slot(r.get("target"))
    if slot is not None and resolve_s is not None:
        lines += _waited(r, at, wait_s, slot, loaded_after, queued)
    if r.get("first_byte_s") is not None:
        lines.append(Line(r["first_byte_s"], "first byte of the answer"))
    return lines


def _waited(
    r: Mapping[str, Any], at: float, wait_s: float | None, slot: str, loaded_after: float, queued: bool
) -> list[Line]:
    if wait_s is None:
        waiting = f"waits for slot {slot}" if r.get("phase") == "waiting" else ""
        return [Line(at, waiting)] if waiting else []
    who, taken = r.get("fallback_from") or slot, max(at + wait_s, loaded_after)
    lines = []
    if wait_s >= SHORT_S:
        total = "in all " if r.get("replays") else ""
        place = ", until others have been served" if queued and who == slot else ""
        lines.append(Line(at, f"waits for slot {who}: {total}{duration(wait_s)}{place}"))
    if r.get("fallback_from"):
        refused = f", which refused ({r['fallback_error']})" if r.get("fallback_error") else ""
        lines.append(Line(taken, f"slot {slot} answers in the place of {who}{refused}", last=True))
    elif r.get("generation") is not None and not r.get("replays"):
        # With replays the waits are told together, and the events show where they were.
        lines.append(Line(taken, f"slot {slot} takes it (generation {r['generation']})", last=True))
    return lines


def _why(r: Mapping[str, Any]) -> str:
    parts = [TIERS.get(r.get("tier") or 0, f"tier {r.get('tier')}")]
    parts += [f"rule {r['rule']}"] if r.get("rule") else []
    parts += [f"catalog {r['cache']}"] if r.get("cache") not in (None, "", "none") else []
    return ", ".join(parts)


def _event(r: Mapping[str, Any], event: Entry) -> str | None:
    words = tell(event.kind, event.data)
    match event.kind:
        case types.ARBITER_WAITING if event.slot not in (_slot(r.get("target")), r.get("fallback_from")):
            return None
        case types.REQUEST_REPLAYED:
            if event.data.get("id") != r.get("id"):
                return None
            return (
                f"lost its engine and is sent again (replay {event.data['replays']}): {event.data['message']}"
            )
        case types.SLOT_FAULT:
            return f"slot {event.slot} fails: {words}"
        case types.SLOT_TRANSITION if event.data.get("to") == "error":
            return None  # the fault says it, and says more
        case _ if event.slot is None:
            return words
        case _:
            return f"slot {event.slot}: {words}"


def _end(r: Mapping[str, Any]) -> str:
    outcome = r.get("outcome")
    tokens = ", ".join(
        f"{r[key]} tokens {word}"
        for key, word in (("tokens_in", "in"), ("tokens_out", "out"))
        if r.get(key) is not None
    )
    size = ", ".join(filter(None, (tokens, f"{r.get('bytes_out', 0)} bytes")))
    after = duration(r.get("total_s") or 0.0)
    match outcome:
        case "live":
            return f"still {r.get('phase') or 'under way'}, {after} after it came"
        case "ok":
            return f"answered with {r.get('status')} after {after}: {size}"
        case "client_gone":
            return f"the client left after {after}, while {_doing(r)}: {size}"
        case "lost":
            return "was under way when slotd ended without a word; nothing later is known"
        case _ if r.get("error") and (r.get("status") or 500) < 400:
            return f"broke off after {after}, when the answer had begun (status {r['status']}): {r['error']}"
        case _:
            code = r.get("error") or "as its engine answered"
            return f"failed with {r.get('status')} after {after}: {code}"


def _doing(r: Mapping[str, Any]) -> str:
    if r.get("first_byte_s") is not None:
        return "the answer came"
    return "it was being worked on" if r.get("generation") is not None else "it waited"


def _slot(target: Any) -> str | None:
    kind, _, name = str(target or "").partition(":")
    return name if kind == "slot" else None


def _shown(target: Any) -> str:
    return str(target or "").replace(":", " ", 1)
