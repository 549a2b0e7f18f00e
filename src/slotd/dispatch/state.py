"""What the dispatcher remembers, and what it would say from that alone. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from slotd.capability.endpoints import endpoint_for
from slotd.dispatch.bindings import RouteTable
from slotd.dispatch.catalog import MAX_NAME, SavedCatalog, make_catalog
from slotd.dispatch.entries import DispatchLimits
from slotd.dispatch.flights import fresh
from slotd.dispatch.policy import Unknown, World, find_close, lookup, miss_error, serving
from slotd.dispatch.route import Cache, Explanation, Route
from slotd.errors import SlotdError

__all__ = ["Dispatch", "Query", "Remembered", "askable", "begin", "explain", "miss", "remembered"]


@dataclass(frozen=True, slots=True)
class Query:
    """A request that waits for catalogs.

    ``seq`` orders queries and what they asked for. ``hit_at``: since when a
    remote has been seen to list the name. ``until``: when to look again even
    if nothing happens.
    """

    id: int
    seq: int
    model: str
    path: str
    since: float
    deadline: float
    until: float
    hit_at: float | None = None


@dataclass(frozen=True, slots=True)
class Remembered:
    """A name that nobody had, and the names it was near to."""

    until: float
    close: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Dispatch:
    """The dispatcher's whole state. ``next_due``: when to send ``Due``, inf for never."""

    world: World
    queries: Mapping[int, Query] = field(default_factory=dict)
    misses: Mapping[str, Remembered] = field(default_factory=dict)
    seq: int = 0
    flights: int = 0
    next_due: float = math.inf

    @property
    def limits(self) -> DispatchLimits:
        return self.world.table.limits


def begin(table: RouteTable, saved: Mapping[str, SavedCatalog], now: float) -> Dispatch:
    """The state to start with. ``saved`` catalogs are warm but stale; those of another URL are dropped."""
    upstreams = {}
    for name, entry in table.upstreams.items():
        upstream = fresh(entry, table.limits)
        kept = saved.get(name)
        if not upstream.static and kept is not None and kept.url == entry.url:
            catalog = make_catalog(kept.models, now - kept.age_s, table.limits.max_catalog_models, kept=True)
            upstream = replace(upstream, catalog=catalog)
        upstreams[name] = upstream
    return Dispatch(World(table, {}, serving(table, {}), upstreams))


def explain(state: Dispatch, model: str | None, path: str, now: float) -> Explanation:
    """What a Resolve would come to now. Changes and asks nothing."""
    endpoint = endpoint_for(path)
    type = None if endpoint is None else endpoint.type
    found = lookup(state.world, model, path, now)
    if isinstance(found, Route):
        return Explanation(model, path, type, route=found, considered=found.considered)
    if isinstance(found, SlotdError):
        return Explanation(model, path, type, error=(found.code, found.message))
    assert model is not None  # without a name it is a route or an error
    known = remembered(state, model, now)
    asks = askable(state, model, now)
    if asks and known is None:
        return Explanation(model, path, type, would_ask=asks, considered=found.considered)
    error = miss(state, model, found, known, now)
    return Explanation(model, path, type, error=(error.code, error.message), considered=found.considered)


def askable(state: Dispatch, model: str, now: float) -> tuple[str, ...]:
    """The remotes whose word on the name would be news. No catalog holds an overlong name."""
    if len(model) > MAX_NAME:
        return ()
    ttl_s = state.limits.catalog_ttl_s
    return tuple(n for n, u in state.world.upstreams.items() if u.worth_asking(now, ttl_s))


def remembered(state: Dispatch, model: str, now: float) -> Remembered | None:
    """The miss of this name, if it is not too old."""
    found = state.misses.get(model)
    return found if found is not None and now < found.until else None


def miss(
    state: Dispatch,
    model: str,
    unknown: Unknown,
    known: Remembered | None,
    now: float,
    *,
    suggest: bool = True,
) -> SlotdError:
    """The error for a name that nothing has. ``known``: it is a repeated one."""
    close = known.close if known is not None else find_close(state.world, model) if suggest else ()
    cache: Cache = "none" if known is None else "negative"
    return miss_error(state.world, model, unknown, close=close, cache=cache, now=now)
