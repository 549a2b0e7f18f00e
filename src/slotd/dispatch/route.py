"""The dispatcher's answer, and the rules it may come from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

__all__ = ["Cache", "Considered", "Explanation", "Route", "Rule", "SlotTarget", "Target", "UpstreamTarget"]


@dataclass(frozen=True, slots=True)
class SlotTarget:
    """A slot of this slotd."""

    name: str

    def __str__(self) -> str:
        return f"slot:{self.name}"


@dataclass(frozen=True, slots=True)
class UpstreamTarget:
    """A remote that slotd does not own."""

    name: str

    def __str__(self) -> str:
        return f"upstream:{self.name}"


Target: TypeAlias = SlotTarget | UpstreamTarget

Cache: TypeAlias = Literal["none", "warm", "stale", "fetched", "negative"]
"""What a decision rests on: no catalog, one in its time, one past it, one just
fetched for this request, or a remembered miss."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One row of the registry.

    ``match``: the name or glob; for a default, empty for requests that name
    no model and ``*`` for names that no other rule knows. ``endpoint``: the
    path that a default is for. ``model``: what the name is rewritten to.
    ``variant``: of the slot, by which requests are changed.
    """

    kind: Literal["slot", "model", "alias", "variant", "binding", "default"]
    match: str
    targets: tuple[Target, ...]
    model: str | None = None
    endpoint: str | None = None
    variant: str = ""

    def __str__(self) -> str:
        if self.kind != "default":
            return f'{self.kind} "{self.match}"'
        return f"default of {self.endpoint}" + (" for any name" if self.match else "")

    def as_dict(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "match": self.match,
            "targets": [str(t) for t in self.targets],
            "model": self.model,
            "endpoint": self.endpoint,
        }


class Considered(NamedTuple):
    """A target that was looked at. ``rank``: its health (0 is best), None if it was ruled out."""

    target: Target
    rank: int | None
    why: str


@dataclass(frozen=True, slots=True)
class Route:
    """Where a request goes, and why.

    ``model``: the name as the target expects it. ``asked``: the name that the
    request bore. ``slot_model``: for a slot, the model it was to serve when
    the route was found; the lease refuses if it has been swapped since.
    ``generation``: for a route that rests on what a running engine listed,
    that engine's generation; None where any generation will do. ``variant``: of
    the slot, by which the request is changed.
    """

    target: Target
    model: str
    asked: str | None
    tier: Literal[1, 2, 3]
    rule: str
    cache: Cache = "none"
    slot_model: str = ""
    generation: int | None = None
    variant: str = ""
    considered: tuple[Considered, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        return {
            "target": str(self.target),
            "model": self.model,
            "asked": self.asked,
            "tier": self.tier,
            "rule": self.rule,
            "cache": self.cache,
            "slot_model": self.slot_model,
            "generation": self.generation,
            "considered": considered_list(self.considered),
        }


@dataclass(frozen=True, slots=True)
class Explanation:
    """What :meth:`Dispatcher.resolve` would do now, without doing it.

    Exactly one holds: there is a ``route``; there is an ``error`` (code and
    message); or the remotes in ``would_ask`` would be asked first.
    """

    model: str | None
    path: str
    type: str | None
    route: Route | None = None
    error: tuple[str, str] | None = None
    would_ask: tuple[str, ...] = ()
    considered: tuple[Considered, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        error = None if self.error is None else {"code": self.error[0], "message": self.error[1]}
        return {
            "model": self.model,
            "path": self.path,
            "type": self.type,
            "route": None if self.route is None else self.route.as_dict(),
            "error": error,
            "would_ask": list(self.would_ask),
            "considered": considered_list(self.considered),
        }


def considered_list(considered: tuple[Considered, ...]) -> list[dict[str, Any]]:
    return [{"target": str(c.target), "rank": c.rank, "why": c.why} for c in considered]
