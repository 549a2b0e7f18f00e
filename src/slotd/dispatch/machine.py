"""The dispatcher's state machine: ``step(state, event, now) -> (state, effects)``. Pure.

Tiers 1 and 2 are answered within the step. For tier 3 a query waits in the
state while remotes are asked; each later event looks whether its race is
decided. A step that changes nothing returns the same state object, which is
what keeps the common case cheap.

**Who is asked.** A query that neither the registry nor a warm catalog knows
asks the remotes whose catalogs are cold, and those whose catalogs are stale: a
stale catalog is good enough for a hit, but a name that it lacks may be new.
One flight per remote serves all queries; :mod:`slotd.dispatch.flights` says how
many there may be at once.

**What a query leaves behind.** Fetches under way go on when their query is
answered, late or withdrawn, bounded by ``fetch_timeout_s``, and warm the
catalog. Those that still wait for their turn are dropped with the last query
that wanted them.

**Misses.** A name that missed is refused at once for ``negative_ttl_s``, or
until a catalog changes. A refused request waits for nothing, but lets remotes
whose back-off has ended be asked, so what it asked for can come back.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, assert_never

from slotd.dispatch import messages as ev
from slotd.dispatch.bindings import RouteTable
from slotd.dispatch.catalog import MAX_NAME, Upstream, make_catalog
from slotd.dispatch.flights import Upstreams, ask, carry_over, next_due, overdue, pump
from slotd.dispatch.policy import SlotView, Unknown, World, lookup, serving
from slotd.dispatch.race import Standing, Wait, race_verdict
from slotd.dispatch.route import Cache, Route, UpstreamTarget
from slotd.dispatch.state import Dispatch, Query, Remembered, askable, miss, remembered
from slotd.errors import SlotdError, SlotQueueFull

__all__ = ["step"]

CLOSE_SEARCHES = 8
"""Misses of one step that are told which names are near (about 2 ms each)."""


def step(state: Dispatch, event: ev.Event, now: float) -> tuple[Dispatch, tuple[ev.Effect, ...]]:
    """Take one event. Total: events of queries, flights or remotes that are gone do nothing."""
    work = _Step(state, now)
    work.take(event)
    return work.state, tuple(work.effects)


@dataclass(slots=True)
class _Step:
    """One step under way: the state so far, and the effects."""

    state: Dispatch
    now: float
    effects: list[ev.Effect] = field(default_factory=list)
    searches: int = 0

    def take(self, event: ev.Event) -> None:
        before = self.state
        match event:
            case ev.Resolve():
                self._resolve(event)
            case ev.Withdraw(id):
                self._end(id)
            case ev.Fetched(upstream, flight, models):
                self._fetched(upstream, flight, models)
            case ev.FetchFailed(upstream, flight, reason):
                self._fetch_failed(upstream, flight, reason)
            case ev.ReportFailure(upstream, reason):
                self._reported(upstream, reason)
            case ev.SlotsChanged(slots):
                self._slots_changed(slots)
            case ev.TableReplaced(table):
                self._table_replaced(table)
            case ev.Refresh():
                self._ask(askable(self.state, "", self.now), background=True)
            case ev.Due():
                self._due()
            case _:
                assert_never(event)
        # A Due may only mean that a flight has become slow and freed its place.
        if self.state is not before or isinstance(event, ev.Due):
            self._pump()
            due = next_due(self.state.world.upstreams, self.now, self.state.limits)
            self._set(next_due=min([due, *(q.until for q in self.state.queries.values())]))

    def _set(self, **changes: Any) -> None:
        self.state = replace(self.state, **changes)

    # --- queries ---

    def _resolve(self, event: ev.Resolve) -> None:
        found = lookup(self.state.world, event.model, event.path, self.now)
        if not isinstance(found, Unknown):
            self._settle(event, found, self.now)
            return
        model = event.model
        assert model is not None  # without a name it is a route or an error
        known = remembered(self.state, model, self.now)
        asks = askable(self.state, model, self.now)
        if known is not None or not asks:
            self._ask(asks, background=True)
            self._refuse_miss(event, found, known, self.now)
        elif len(self.state.queries) >= self.state.limits.max_waiting:
            error = SlotQueueFull(
                f"{len(self.state.queries)} requests wait for the catalogs of upstreams already",
                details={"queue": "dispatcher"},
                retry_after_s=1.0,
            )
            self._settle(event, error, self.now)
        else:
            seq = self.state.seq + 1
            deadline = self.now + self.state.limits.prefetch_timeout_s
            query = Query(event.id, seq, model, event.path, self.now, deadline, deadline)
            self._ask(asks, background=False)
            self._set(seq=seq, queries={**self.state.queries, event.id: query})

    def _end(self, id: int) -> None:
        """Forget a query, answered or not."""
        if id in self.state.queries:
            self._set(queries={k: q for k, q in self.state.queries.items() if k != id})

    def _settle(self, query: Query | ev.Resolve, outcome: Route | SlotdError, since: float) -> None:
        """Answer once, and say so."""
        self._end(query.id)
        waited = self.now - since
        if isinstance(outcome, SlotdError):
            cache: Cache = outcome.details.get("cache", "none")
            info = ev.DecisionInfo(query.model, query.path, "", None, "", cache, outcome.code, waited)
            self.effects += [ev.Refuse(query.id, outcome), ev.Publish(info)]
            return
        target, rule = str(outcome.target), outcome.rule
        info = ev.DecisionInfo(
            query.model, query.path, target, outcome.tier, rule, outcome.cache, None, waited
        )
        self.effects += [ev.Answer(query.id, outcome), ev.Publish(info)]
        if isinstance(outcome.target, UpstreamTarget):
            self._freshen(outcome.target.name)

    def _freshen(self, name: str) -> None:
        """A remote is used: learn in the background what it lists now, if its catalog is stale
        or a failure made slotd forget it."""
        upstream = self.state.world.upstreams[name]
        known = upstream.catalog is not None or upstream.failures > 0
        if known and upstream.worth_asking(self.now, self.state.limits.catalog_ttl_s):
            self._ask((name,), background=True)

    def _refuse_miss(
        self, query: Query | ev.Resolve, unknown: Unknown, known: Remembered | None, since: float
    ) -> None:
        assert query.model is not None
        # One catalog may end the wait of a thousand queries, within one step.
        self.searches += 1
        suggest = self.searches <= CLOSE_SEARCHES
        error = miss(self.state, query.model, unknown, known, self.now, suggest=suggest)
        if known is None and len(query.model) <= MAX_NAME and self.state.limits.negative_ttl_s > 0:
            misses = dict(self.state.misses)
            misses.pop(query.model, None)  # so that it becomes the newest
            while len(misses) >= self.state.limits.max_misses:
                del misses[next(iter(misses))]
            close = tuple(error.details.get("close", ()))
            misses[query.model] = Remembered(self.now + self.state.limits.negative_ttl_s, close)
            self._set(misses=misses)
        self._settle(query, error, since)

    def _race(self, news: frozenset[str] | None) -> None:
        """Look at every query whose race may be decided now.

        ``news``: names that have just become known; None if anything may have
        changed. A query without a hit that still waits for somebody cannot be
        decided by a catalog that lacks its name, and is not looked at.
        """
        asked = [u.asked for u in self.state.world.upstreams.values() if u.asked is not None]
        oldest = min(asked, default=math.inf)
        for query in tuple(self.state.queries.values()):
            silent = oldest <= query.seq
            hopeless = news is not None and query.hit_at is None and query.model not in news
            if not (hopeless and silent and self.now < query.deadline):
                self._judge(query)

    def _judge(self, query: Query) -> None:
        standings = [self._standing(u, query) for u in self.state.world.upstreams.values()]
        hit_at = query.hit_at
        if Standing.LISTS not in standings:
            hit_at = None  # who listed it may have failed since
        elif hit_at is None:
            hit_at = self.now
        grace_s = self.state.limits.prefetch_grace_s
        verdict = race_verdict(standings, self.now, hit_at=hit_at, grace_s=grace_s, deadline=query.deadline)
        if isinstance(verdict, Wait):
            waiting = replace(query, hit_at=hit_at, until=verdict.until)
            if waiting != query:
                self._set(queries={**self.state.queries, query.id: waiting})
            return
        found = lookup(self.state.world, query.model, query.path, self.now)
        if isinstance(found, Unknown):
            self._refuse_miss(query, found, None, query.since)
        else:
            self._conclude(query, found)

    def _standing(self, upstream: Upstream, query: Query) -> Standing:
        catalog = upstream.catalog
        if catalog is not None and query.model in catalog.names and not upstream.offline(self.now):
            return Standing.LISTS
        asked = upstream.asked is not None and upstream.asked <= query.seq
        return Standing.SILENT if asked else Standing.LACKS

    def _conclude(self, query: Query, found: Route | SlotdError) -> None:
        if isinstance(found, Route) and found.tier == 2 and isinstance(found.target, UpstreamTarget):
            found = replace(found, tier=3, cache="fetched")
        self._settle(query, found, query.since)

    def _look_again(self) -> None:
        """The registry or the slots have changed: tiers 1 and 2 may know more than before."""
        for query in tuple(self.state.queries.values()):
            found = lookup(self.state.world, query.model, query.path, self.now)
            if not isinstance(found, Unknown):
                self._settle(query, found, query.since)

    # --- remotes ---

    def _set_upstreams(self, upstreams: Upstreams) -> None:
        if upstreams is not self.state.world.upstreams:
            self._set(world=replace(self.state.world, upstreams=upstreams))

    def _put(self, upstream: Upstream) -> None:
        self._set_upstreams({**self.state.world.upstreams, upstream.entry.name: upstream})

    def _ask(self, names: Iterable[str], *, background: bool) -> None:
        """Let remotes be asked on behalf of the next query, or of nobody in particular."""
        seq = self.state.seq + 1
        self._set_upstreams(ask(self.state.world.upstreams, names, seq=seq, background=background))

    def _flying(self, name: str, flight: int) -> Upstream | None:
        """The remote, if this flight is the one under way there."""
        upstream = self.state.world.upstreams.get(name)
        if upstream is None or upstream.flight is None or upstream.flight.id != flight:
            return None
        return upstream

    def _fetched(self, name: str, flight: int, models: tuple[str, ...]) -> None:
        upstream = self._flying(name, flight)
        if upstream is None:
            return
        catalog = make_catalog(models, self.now, self.state.limits.max_catalog_models)
        changed = upstream.catalog is None or upstream.catalog.models != catalog.models
        self._put(upstream.answered(catalog))
        if changed:
            self._set(misses={})
            self.effects.append(ev.Persist(self.state.world.upstreams))
        self._race(catalog.names)

    def _fetch_failed(self, name: str, flight: int, reason: str) -> None:
        upstream = self._flying(name, flight)
        if upstream is None:
            return
        ended = replace(upstream, flight=None, asked=None, background=False)
        self._put(ended.failed(reason, self.now, self.state.limits))
        # A query may have counted on the catalog that is forgotten now.
        self._race(frozenset() if upstream.catalog is None else None)

    def _reported(self, name: str, reason: str) -> None:
        upstream = self.state.world.upstreams.get(name)
        if upstream is None or upstream.offline(self.now):
            return  # a hundred requests that fail together are one failure
        failed = upstream.failed(reason, self.now, self.state.limits)
        if failed.flight is None:
            failed = replace(failed, asked=None, background=False)
        self._put(failed)
        self._race(None)

    def _due(self) -> None:
        limits = self.state.limits
        for name, flight in overdue(self.state.world.upstreams, self.now, limits):
            self.effects.append(ev.CancelFetch(name, flight.id))
            self._fetch_failed(name, flight.id, f"no answer within {limits.fetch_timeout_s:g} s")
        self._race(None)

    def _pump(self) -> None:
        state = self.state
        last = max((q.seq for q in state.queries.values()), default=-1)
        upstreams, started = pump(
            state.world.upstreams, last=last, flights=state.flights, now=self.now, limits=state.limits
        )
        self._set_upstreams(upstreams)
        for name, flight in started:
            self._set(flights=flight.id)
            self.effects.append(ev.Fetch(name, flight.id))

    # --- slots and configuration ---

    def _slots_changed(self, slots: Mapping[str, SlotView]) -> None:
        world = self.state.world
        known = {name: slots[name] for name in world.table.slots if name in slots}
        if known == world.slots:
            return
        self._set(world=replace(world, slots=known, serving=serving(world.table, known)))
        self._look_again()

    def _table_replaced(self, table: RouteTable) -> None:
        old = self.state.world
        upstreams = carry_over(old.upstreams, table)
        for name, u in old.upstreams.items():
            if u.flight is not None and (name not in upstreams or upstreams[name].flight is None):
                self.effects.append(ev.CancelFetch(name, u.flight.id))
        slots = {name: old.slots[name] for name in table.slots if name in old.slots}
        self._set(world=World(table, slots, serving(table, slots), upstreams), misses={})
        self.effects.append(ev.Persist(upstreams))
        self._look_again()
        # Whoever still waits waits for the new remotes too.
        self._ask(askable(self.state, "", self.now) if self.state.queries else (), background=False)
        seq = self.state.seq + 1
        self._set(seq=seq, queries={k: replace(q, seq=seq) for k, q in self.state.queries.items()})
        self._race(None)
