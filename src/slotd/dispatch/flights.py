"""Which remotes are asked, and when: the bookkeeping of fetches. Pure.

One flight per remote serves all queries. ``prefetch_parallel`` bounds the
flights that are younger than ``slow_flight_s``. An older one goes on, but
frees its place: a remote that swallows packets must not hold the place of a
live one until its time-out. So besides those that answer, at most
``prefetch_parallel`` fetches start per ``slow_flight_s``, and 128 remotes, all
dead, are all asked within 0.8 s at the defaults. What is open at once is
bounded by the number of remotes, and each by ``fetch_timeout_s``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from slotd.dispatch.bindings import RouteTable
from slotd.dispatch.catalog import Flight, Upstream, make_catalog
from slotd.dispatch.entries import DispatchLimits, UpstreamEntry

__all__ = ["Upstreams", "ask", "carry_over", "fresh", "next_due", "overdue", "pump"]

Upstreams = Mapping[str, Upstream]


def fresh(entry: UpstreamEntry, limits: DispatchLimits) -> Upstream:
    """A remote of which nothing is known but its configuration."""
    if not entry.models:
        return Upstream(entry)
    return Upstream(entry, make_catalog(entry.models, math.inf, limits.max_catalog_models))


def carry_over(old: Upstreams, table: RouteTable) -> dict[str, Upstream]:
    """The remotes of a new table. Of one that is the same server as before, nothing is forgotten."""
    found: dict[str, Upstream] = {}
    for name, entry in table.upstreams.items():
        known = old.get(name)
        same = known is not None and known.entry.same_server(entry)
        found[name] = replace(known, entry=entry) if known and same else fresh(entry, table.limits)
    return found


def ask(upstreams: Upstreams, names: Iterable[str], *, seq: int, background: bool) -> Upstreams:
    """Let remotes be asked, on behalf of the query ``seq`` and those after it.

    One that is being asked already goes on being asked on behalf of the
    earlier one. ``background``: it stays wanted if all of them leave.
    """
    changed: dict[str, Upstream] = {}
    for name in names:
        u = upstreams[name]
        if u.asked is None:
            changed[name] = replace(u, asked=seq, background=background)
        elif background and not u.background:
            changed[name] = replace(u, background=True)
    return {**upstreams, **changed} if changed else upstreams


def pump(
    upstreams: Upstreams, *, last: int, flights: int, now: float, limits: DispatchLimits
) -> tuple[Upstreams, list[tuple[str, Flight]]]:
    """Drop what nobody wants any more, and start as many fetches as may start now.

    ``last``: the youngest open query's number, -1 if none is open.
    ``flights``: the number of the last flight that was started.
    """
    changed: dict[str, Upstream] = {}
    urgent: list[Upstream] = []
    idle: list[Upstream] = []
    for name, u in upstreams.items():
        if u.asked is None or u.flight is not None:
            continue
        if u.asked <= last:
            urgent.append(u)
        elif u.background:
            idle.append(u)
        else:
            changed[name] = replace(u, asked=None)
    room = max(0, limits.prefetch_parallel - sum(1 for _ in _counting(upstreams, now, limits)))
    started: list[tuple[str, Flight]] = []
    for id, u in enumerate((urgent + idle)[:room], start=flights + 1):
        flight = Flight(id, now)
        changed[u.entry.name] = replace(u, flight=flight)
        started.append((u.entry.name, flight))
    return ({**upstreams, **changed} if changed else upstreams), started


def overdue(upstreams: Upstreams, now: float, limits: DispatchLimits) -> list[tuple[str, Flight]]:
    """The flights that have lasted ``fetch_timeout_s``."""
    return [
        (name, u.flight)
        for name, u in upstreams.items()
        if u.flight is not None and now >= u.flight.started + limits.fetch_timeout_s
    ]


def next_due(upstreams: Upstreams, now: float, limits: DispatchLimits) -> float:
    """When a flight is overdue, or a place becomes free for a fetch that waits for one."""
    times = [u.flight.started + limits.fetch_timeout_s for u in upstreams.values() if u.flight is not None]
    if any(u.asked is not None and u.flight is None for u in upstreams.values()):
        times += [f.started + limits.slow_flight_s for f in _counting(upstreams, now, limits)]
    return min(times, default=math.inf)


def _counting(upstreams: Upstreams, now: float, limits: DispatchLimits) -> Iterator[Flight]:
    for u in upstreams.values():
        if u.flight is not None and now < u.flight.started + limits.slow_flight_s:
            yield u.flight
