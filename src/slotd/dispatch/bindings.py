"""Tier 1: every explicit rule, compiled into one table that can be printed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from slotd.capability.choice import choose
from slotd.capability.endpoints import ENDPOINTS, Endpoint
from slotd.dispatch.entries import BindingEntry, DispatchLimits, SlotEntry, UpstreamEntry
from slotd.dispatch.globs import GlobIndex
from slotd.dispatch.route import Rule, SlotTarget, Target, UpstreamTarget

__all__ = ["RouteTable", "compile_table"]


@dataclass(frozen=True, slots=True, eq=False)
class RouteTable:
    """The registry. Rules are tried in the order of :meth:`rows`; the first that knows the name decides.

    1. Slot names, and ``slotd/<slot>``.
    2. Model ids. The rows show what is configured; a slot that has been
       swapped answers to its present model and no longer to its former one.
    3. Aliases. A name of these three kinds with ``:VARIANT`` means the slots that have
       such a variant, unless it is one of those names itself.
    4. Bindings in declared order, as globs on the whole name, with case.
    5. Defaults of endpoints. A request without a model goes to the slot that the
       capability axis chooses: its type's ``default = true`` slot, else the type's
       first (where the endpoint prefers a label, among those that have it). A
       *name* that no rule above knows goes there too if the type has a
       ``default = true`` slot, and never on an ``llm`` endpoint.

    Rule 5 comes before all catalogs. Where an embedding slot is the default,
    no name on ``/v1/embeddings`` reaches a remote unless a binding sends it
    there: which machine answers must not depend on which catalogs are warm.
    """

    slots: Mapping[str, SlotEntry]
    upstreams: Mapping[str, UpstreamEntry]
    limits: DispatchLimits
    by_slot: Mapping[str, Rule]
    by_model: Mapping[str, Rule]
    by_alias: Mapping[str, Rule]
    bindings: tuple[Rule, ...]
    unnamed: Mapping[str, Rule]
    unbound: Mapping[str, Rule]
    _globs: GlobIndex = field(repr=False)

    def rows(self) -> list[Rule]:
        """Every rule, in the order in which they are tried."""
        return [
            *self.by_slot.values(),
            *self.by_model.values(),
            *self.by_alias.values(),
            *self.variants(),
            *self.bindings,
            *self.unnamed.values(),
            *self.unbound.values(),
        ]

    def variants(self) -> Iterable[Rule]:
        """The rows of ``NAME:VARIANT``, as configured."""
        for name, rule in {**self.by_slot, **self.by_model, **self.by_alias}.items():
            for variant in dict.fromkeys(v for t in rule.targets for v in self.slots[t.name].variants):
                if (found := self.variant_of(rule, f"{name}:{variant}", variant)) is not None:
                    yield found

    def variant_of(self, rule: Rule, match: str, variant: str) -> Rule | None:
        """The rule for those of ``rule``'s slots that have the variant."""
        targets = tuple(t for t in rule.targets if variant in self.slots[t.name].variants)
        return Rule("variant", match, targets, variant=variant) if targets else None

    def bound(self, name: str) -> Iterable[Rule]:
        """The bindings that match the name, in declared order."""
        return (self.bindings[at] for at in self._globs.matching(name))

    def exists(self, target: Target) -> bool:
        known = self.slots if isinstance(target, SlotTarget) else self.upstreams
        return target.name in known

    def names(self) -> Iterable[str]:
        """Names a user may have meant: slots, models, aliases, bindings without wildcards, variants."""
        yield from (n for n in self.by_slot if not n.startswith("slotd/"))
        yield from self.by_model
        yield from self.by_alias
        yield from self._globs.exact()
        yield from (rule.match for rule in self.variants() if not rule.match.startswith("slotd/"))


def compile_table(
    slots: Iterable[SlotEntry],
    upstreams: Iterable[UpstreamEntry] = (),
    bindings: Iterable[BindingEntry] = (),
    limits: DispatchLimits | None = None,
) -> RouteTable:
    """Compile the table. Pure; declared order is the order given.

    It accepts a binding to a target that does not exist: that is a typed
    error of the requests that it matches, and of nothing else.
    """
    slots, bindings = tuple(slots), tuple(bindings)
    by_slot = {s.name: Rule("slot", s.name, (SlotTarget(s.name),)) for s in slots}
    by_slot |= {f"slotd/{s.name}": Rule("slot", f"slotd/{s.name}", (SlotTarget(s.name),)) for s in slots}
    models = _group((s.model, s.name) for s in slots if s.model)
    aliases = _group((alias, s.name) for s in slots for alias in s.aliases)
    unnamed: dict[str, Rule] = {}
    unbound: dict[str, Rule] = {}
    for path, endpoint in ENDPOINTS.items():
        chosen = choose(slots, endpoint.type, endpoint.prefers) or choose(slots, endpoint.type)
        if chosen is None:
            continue
        unnamed[path] = Rule("default", "", (SlotTarget(chosen.name),), endpoint=path)
        declared = any(s.default for s in slots if s.type == endpoint.type)
        if declared and _takes_any_name(endpoint):
            unbound[path] = Rule("default", "*", (SlotTarget(chosen.name),), endpoint=path)
    return RouteTable(
        slots={s.name: s for s in slots},
        upstreams={u.name: u for u in upstreams},
        limits=limits or DispatchLimits(),
        by_slot=by_slot,
        by_model={m: Rule("model", m, t) for m, t in models.items()},
        by_alias={a: Rule("alias", a, t) for a, t in aliases.items()},
        bindings=tuple(Rule("binding", b.match, (_target(b),), b.model) for b in bindings),
        unnamed=unnamed,
        unbound=unbound,
        _globs=GlobIndex(b.match for b in bindings),
    )


def _takes_any_name(endpoint: Endpoint) -> bool:
    return not endpoint.chat and endpoint.type != "llm"


def _target(binding: BindingEntry) -> Target:
    if binding.slot is not None:
        return SlotTarget(binding.slot)
    assert binding.upstream is not None
    return UpstreamTarget(binding.upstream)


def _group(pairs: Iterable[tuple[str, str]]) -> dict[str, tuple[Target, ...]]:
    """Name → the slots that bear it, each once, in declared order."""
    found: dict[str, dict[Target, None]] = {}
    for name, slot in pairs:
        found.setdefault(name, {})[SlotTarget(slot)] = None
    return {name: tuple(targets) for name, targets in found.items()}
