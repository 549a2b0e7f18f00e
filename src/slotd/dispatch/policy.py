"""Where a request goes, given what is known: tiers 1 and 2, and the words of a miss. Pure."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from slotd.capability.endpoints import Endpoint, endpoint_for
from slotd.dispatch.bindings import RouteTable
from slotd.dispatch.catalog import MAX_NAME, Upstream
from slotd.dispatch.route import Cache, Considered, Route, Rule, SlotTarget, Target, UpstreamTarget
from slotd.errors import (
    CapabilityMismatch,
    ModelMissing,
    NoRouteFound,
    SlotdError,
    UnknownUpstream,
    UpstreamUnavailable,
)
from slotd.names import close_names
from slotd.slot.state import LOADING, UP, SlotSnapshot, SlotState

__all__ = [
    "SlotView",
    "Unknown",
    "World",
    "find_close",
    "lookup",
    "miss_error",
    "serving",
]

CLOSE_POOL = 1000
CLOSE_LIKELY = 20
"""For near misses: names looked at, and those of them that are really compared.
A comparison takes up to 50 µs, which for all names would hold up the loop."""

ABLE, COMING, OFF, BROKEN = 0, 1, 2, 3
"""Ranks of health: can answer now, loading, off, in error."""


# --- what is known -----------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SlotView:
    """What routing needs of a slot's snapshot. ``models``: what its running engine lists."""

    name: str
    rank: int
    why: str
    model: str
    models: tuple[str, ...]
    generation: int

    @classmethod
    def of(cls, snapshot: SlotSnapshot) -> SlotView:
        state = snapshot.state
        if state is SlotState.ERROR:
            rank = BROKEN
        elif snapshot.draining:
            rank = OFF
        elif state in UP:
            rank = ABLE
        else:
            rank = COMING if state in LOADING else OFF
        return cls(
            name=snapshot.name,
            rank=rank,
            why="up" if rank == ABLE else "draining" if snapshot.draining and rank == OFF else str(state),
            model=snapshot.model,
            models=snapshot.models if rank == ABLE else (),
            generation=snapshot.generation,
        )


@dataclass(frozen=True, slots=True)
class World:
    """Everything a decision rests on. ``serving``: see :func:`serving`, kept here as an index."""

    table: RouteTable
    slots: Mapping[str, SlotView]
    serving: Mapping[str, tuple[Target, ...]]
    upstreams: Mapping[str, Upstream]


def serving(table: RouteTable, slots: Mapping[str, SlotView]) -> dict[str, tuple[Target, ...]]:
    """Model id → the slots that are to serve it now, in declared order.

    A slot of which nothing was heard yet counts with its configured model.
    """
    found: dict[str, tuple[Target, ...]] = {}
    for entry in table.slots.values():
        view = slots.get(entry.name)
        model = entry.model if view is None else view.model
        if model:
            found[model] = (*found.get(model, ()), SlotTarget(entry.name))
    return found


@dataclass(frozen=True, slots=True)
class Unknown:
    """Neither the registry nor a warm catalog knows the name.

    ``blocked``: remotes that a binding would have sent it to, but they are offline.
    """

    considered: tuple[Considered, ...] = ()
    blocked: tuple[str, ...] = ()


# --- tiers 1 and 2 -----------------------------------------------------------


def lookup(world: World, model: str | None, path: str, now: float) -> Route | SlotdError | Unknown:
    """Tiers 1 and 2. Errors are returned, not raised: who asked may not be waiting here.

    A path that is not relayed has no type: nothing is checked against it and
    it has no defaults.
    """
    return _Search(world, model, path, endpoint_for(path), now).run()


@dataclass(slots=True)
class _Search:
    world: World
    model: str | None
    path: str
    endpoint: Endpoint | None
    now: float
    considered: list[Considered] = field(default_factory=list)
    blocked: list[str] = field(default_factory=list)

    def run(self) -> Route | SlotdError | Unknown:
        table, model = self.world.table, self.model
        if model is None:
            default = table.unnamed.get(self.path)
            return self._registry(default) if default is not None else self._missing()
        rule = self._named(model) or self._variant(model)
        if rule is not None:
            return self._registry(rule)
        for rule in table.bound(model):
            (target,) = rule.targets
            if not table.exists(target):
                return _unknown_target(world=self.world, rule=rule, target=target)
            if isinstance(target, SlotTarget):
                return self._registry(rule)
            if self._online(target):
                return self._route(target, 1, str(rule), rule.model or model)
            self.blocked.append(target.name)
        rule = table.unbound.get(self.path)
        if rule is not None:
            return self._registry(rule)
        return self._catalogs(model) or Unknown(tuple(self.considered), tuple(self.blocked))

    def _missing(self) -> ModelMissing:
        needs = f"; no {self.endpoint.type} slot is configured" if self.endpoint is not None else ""
        return ModelMissing(
            f"the request names no model, and {self.path} has no default{needs}; name a model",
            param="model",
            details={"endpoint": self.path},
        )

    def _named(self, name: str) -> Rule | None:
        table = self.world.table
        return table.by_slot.get(name) or self._serving(name) or table.by_alias.get(name)

    def _variant(self, name: str) -> Rule | None:
        base, _, variant = name.rpartition(":")
        rule = self._named(base) if base else None
        return None if rule is None else self.world.table.variant_of(rule, name, variant)

    def _serving(self, model: str) -> Rule | None:
        targets = self.world.serving.get(model)
        return None if targets is None else Rule("model", model, targets)

    def _registry(self, rule: Rule) -> Route | SlotdError:
        """A rule whose targets are slots: the healthiest that fits the endpoint."""
        fitting = [t for t in rule.targets if self._fits(t)]
        if not fitting:
            return self._mismatch(str(rule), rule.targets)
        target = min(fitting, key=self._weigh)  # min takes the first of equals
        slot_model = self._slot_model(target)
        return self._route(
            target, 1, str(rule), rule.model or slot_model, slot_model=slot_model, variant=rule.variant
        )

    def _catalogs(self, model: str) -> Route | SlotdError | None:
        """Tier 2. Slots come before remotes: both are in declared order, and a slot is nearer."""
        world = self.world
        listing: list[Target] = [SlotTarget(v.name) for v in world.slots.values() if model in v.models]
        fitting = [t for t in listing if self._fits(t)]
        fitting += [
            UpstreamTarget(name)
            for name, u in world.upstreams.items()
            if u.catalog is not None and model in u.catalog.names
        ]
        online = [t for t in fitting if isinstance(t, SlotTarget) or self._online(t)]
        if online:
            target = min(online, key=self._weigh)
            if isinstance(target, SlotTarget):
                view = world.slots[target.name]
                rule = f'list of slot "{target.name}"'
                return self._route(
                    target, 2, rule, model, "warm", slot_model=view.model, generation=view.generation
                )
            stale = world.upstreams[target.name].stale(self.now, world.table.limits.catalog_ttl_s)
            rule = f'catalog of upstream "{target.name}"'
            return self._route(target, 2, rule, model, "stale" if stale else "warm")
        return self._mismatch("the list of its engine", tuple(listing)) if listing and not fitting else None

    # --- judging a target ---

    def _fits(self, target: Target) -> bool:
        if self.endpoint is None or isinstance(target, UpstreamTarget):
            return True
        type = self.world.table.slots[target.name].type
        if type == self.endpoint.type:
            return True
        self.considered.append(Considered(target, None, f"is of type {type}"))
        return False

    def _online(self, target: Target) -> bool:
        upstream = self.world.upstreams[target.name]
        if not upstream.offline(self.now):
            return True
        again = upstream.retry_at - self.now
        why = f"offline ({upstream.reason}), asked again in {again:.1f} s"
        self.considered.append(Considered(target, None, why))
        return False

    def _weigh(self, target: Target) -> int:
        if isinstance(target, UpstreamTarget):
            rank, why = ABLE, "remote, not known to be down"
        else:
            view = self.world.slots.get(target.name)
            rank, why = (OFF, "not heard of yet") if view is None else (view.rank, view.why)
        self.considered.append(Considered(target, rank, why))
        return rank

    def _slot_model(self, target: Target) -> str:
        view = self.world.slots.get(target.name)
        return self.world.table.slots[target.name].model if view is None else view.model

    # --- results ---

    def _route(
        self,
        target: Target,
        tier: int,
        rule: str,
        model: str,
        cache: Cache = "none",
        *,
        slot_model: str = "",
        generation: int | None = None,
        variant: str = "",
    ) -> Route:
        considered = tuple(self.considered) or (Considered(target, ABLE, "remote, not known to be down"),)
        return Route(
            target=target,
            model=model,
            asked=self.model,
            tier=1 if tier == 1 else 2,
            rule=rule,
            cache=cache,
            slot_model=slot_model,
            generation=generation,
            variant=variant,
            considered=considered,
        )

    def _mismatch(self, rule: str, targets: Sequence[Target]) -> CapabilityMismatch:
        assert self.endpoint is not None
        slots, needs = self.world.table.slots, self.endpoint.type
        first = slots[targets[0].name]
        fitting = [s.name for s in slots.values() if s.type == needs]
        hint = f"; slots that do: {', '.join(fitting)}" if fitting else f"; no {needs} slot is configured"
        what = f"{self.model!r} ({rule})" if self.model is not None else rule
        return CapabilityMismatch(
            f"{what} is slot {first.name!r} of type {first.type}, which does not serve {self.path}{hint}",
            param="model",
            details={
                "slot": first.name,
                "slots": [t.name for t in targets],
                "type": first.type,
                "endpoint": self.path,
                "needs": needs,
                "fitting": fitting,
            },
        )


def _unknown_target(*, world: World, rule: Rule, target: Target) -> UnknownUpstream:
    kind = "slot" if isinstance(target, SlotTarget) else "upstream"
    known = list(world.table.slots if kind == "slot" else world.table.upstreams)
    return UnknownUpstream(
        f"{rule} leads to {kind} {target.name!r}, which is not configured",
        param="model",
        details={"binding": rule.match, kind: target.name, "known": known},
    )


# --- misses ------------------------------------------------------------------


def find_close(world: World, name: str) -> tuple[str, ...]:
    """Known names like ``name``, at most 5: of the registry first, then of the catalogs."""
    if len(name) > MAX_NAME:
        return ()
    listed = (n for u in world.upstreams.values() if u.catalog is not None for n in u.catalog.models)
    known = itertools.chain(world.table.names(), world.serving, listed)
    folded = name.casefold()
    pairs = {folded[i : i + 2] for i in range(min(len(folded), 64) - 1)}

    def likeness(other: str) -> float:
        text = other.casefold()
        return sum(pair in text for pair in pairs) / (len(text) + len(folded))

    pool = dict.fromkeys(itertools.islice(known, CLOSE_POOL))
    return close_names(name, heapq.nlargest(CLOSE_LIKELY, pool, key=likeness), limit=5)


def miss_error(
    world: World,
    model: str,
    unknown: Unknown,
    *,
    close: Iterable[str],
    cache: Cache,
    now: float,
) -> SlotdError:
    """Nothing has the name: 404; or 502 if a binding has it whose remote is offline.

    The latter is no miss: the name is known, and a client that was told 404
    would not come back.
    """
    shown = model if len(model) <= MAX_NAME else model[:MAX_NAME] + "…"
    offline = {n: u for n, u in world.upstreams.items() if u.offline(now)}
    if unknown.blocked:
        name = unknown.blocked[0]
        upstream = world.upstreams[name]
        return UpstreamUnavailable(
            f"{shown!r} is bound to upstream {name!r}, which is offline ({upstream.reason}); "
            f"it is tried again in {upstream.retry_at - now:.0f} s",
            param="model",
            details={"upstream": name, "reason": upstream.reason, "retry_in_s": upstream.retry_at - now},
        )
    close = list(close)
    hints = [f"did you mean {' or '.join(repr(c) for c in close[:3])}?"] if close else []
    if offline:
        hints.append(f"these upstreams are offline and might have it: {', '.join(offline)}")
    hints.append("`slotd routes` shows what is known; an alias or a [[bindings]] entry makes a name known")
    return NoRouteFound(
        f"no slot, binding or upstream has a model {shown!r}; {'; '.join(hints)}",
        param="model",
        details={"close": close, "tiers": [1, 2, 3], "cache": cache, "offline": list(offline)},
    )
