"""What the dispatcher is told (events), what it has done (effects), and asks around them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from slotd.actor import Reply
from slotd.dispatch.bindings import RouteTable
from slotd.dispatch.catalog import Upstream
from slotd.dispatch.policy import SlotView
from slotd.dispatch.route import Cache, Explanation, Route
from slotd.errors import SlotdError

__all__ = [
    "Answer",
    "Asked",
    "AskedToExplain",
    "CancelFetch",
    "DecisionInfo",
    "Due",
    "Effect",
    "Event",
    "Fetch",
    "FetchFailed",
    "Fetched",
    "Message",
    "Persist",
    "Publish",
    "Refresh",
    "Refuse",
    "ReportFailure",
    "Resolve",
    "SlotsChanged",
    "TableReplaced",
    "Withdraw",
]


# --- events ------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Resolve:
    """Where does a request go? ``id`` names the query; ``model`` None: it names none."""

    id: int
    model: str | None
    path: str


@dataclass(frozen=True, slots=True)
class Withdraw:
    """Who asked has left. Nothing happens if the query is answered already."""

    id: int


@dataclass(frozen=True, slots=True)
class Fetched:
    upstream: str
    flight: int
    models: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FetchFailed:
    upstream: str
    flight: int
    reason: str


@dataclass(frozen=True, slots=True)
class ReportFailure:
    """A request could not connect to the remote."""

    upstream: str
    reason: str = "a request could not connect"


@dataclass(frozen=True, slots=True)
class SlotsChanged:
    """All slots of which anything is known."""

    slots: Mapping[str, SlotView]


@dataclass(frozen=True, slots=True)
class TableReplaced:
    """The configuration was reloaded."""

    table: RouteTable


@dataclass(frozen=True, slots=True)
class Refresh:
    """Ask every remote that is worth asking, without anybody waiting for it."""


@dataclass(frozen=True, slots=True)
class Due:
    """The state's ``next_due`` has come."""


Event: TypeAlias = (
    Resolve | Withdraw | Fetched | FetchFailed | ReportFailure | SlotsChanged | TableReplaced | Refresh | Due
)


# --- effects -----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Fetch:
    """Ask the remote for its catalog; the outcome carries the flight's number."""

    upstream: str
    flight: int


@dataclass(frozen=True, slots=True)
class CancelFetch:
    upstream: str
    flight: int


@dataclass(frozen=True, slots=True)
class Answer:
    id: int
    route: Route


@dataclass(frozen=True, slots=True)
class Refuse:
    id: int
    error: SlotdError


@dataclass(frozen=True, slots=True)
class Persist:
    """The catalogs have changed and should be kept."""

    upstreams: Mapping[str, Upstream]


@dataclass(frozen=True, slots=True)
class DecisionInfo:
    """One decision: a route, or the code of a refusal. ``waited_s``: for catalogs."""

    model: str | None
    path: str
    target: str
    tier: int | None
    rule: str
    cache: Cache
    code: str | None
    waited_s: float


@dataclass(frozen=True, slots=True)
class Publish:
    decision: DecisionInfo


Effect: TypeAlias = Fetch | CancelFetch | Answer | Refuse | Persist | Publish


# --- asks --------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Asked:
    """A query whose answer is awaited at ``reply``; the machine never sees a reply."""

    event: Resolve
    reply: Reply[Route]


@dataclass(frozen=True, slots=True)
class AskedToExplain:
    """Answered by the owner from its present state, without a step."""

    model: str | None
    path: str
    reply: Reply[Explanation]


Message: TypeAlias = Event | Asked | AskedToExplain
