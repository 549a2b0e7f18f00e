"""What the dispatcher is configured with: plain records, whatever they were read from.

The dispatcher's decisions depend on these and on nothing else of the
configuration; :mod:`slotd.dispatch.from_config` fills them in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["BindingEntry", "DispatchLimits", "SlotEntry", "UpstreamEntry"]


@dataclass(frozen=True, slots=True)
class SlotEntry:
    """A configured slot. ``model``: the id it is to serve, empty if its engine decides.

    ``variants``: it answers to ``NAME:VARIANT`` too, for each of its names.
    """

    name: str
    type: str
    model: str = ""
    aliases: tuple[str, ...] = ()
    default: bool = False
    labels: tuple[str, ...] = ()
    variants: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class UpstreamEntry:
    """A configured remote. ``url`` ends where ``/models`` begins, usually in ``/v1``.

    ``auth``: ``none``, ``bearer``, ``x-api-key`` or ``header:<Name>``; the key
    is read from the environment variable ``key_env`` when it is needed.
    ``models``: a static list; such a remote is never asked for its catalog.
    """

    name: str
    url: str
    auth: str = "none"
    key_env: str = ""
    models: tuple[str, ...] = ()
    connect_timeout_s: float = 5.0

    def same_server(self, other: UpstreamEntry) -> bool:
        """Whether what was learnt from ``other`` holds for this entry."""
        return (self.url, self.auth, self.key_env, self.models) == (
            other.url,
            other.auth,
            other.key_env,
            other.models,
        )


@dataclass(frozen=True, slots=True)
class BindingEntry:
    """Names that match the glob ``match`` go to one target, there called ``model`` if given."""

    match: str
    slot: str | None = None
    upstream: str | None = None
    model: str | None = None

    def __post_init__(self) -> None:
        if (self.slot is None) == (self.upstream is None):
            raise ValueError(f"binding {self.match!r} must name either a slot or an upstream")

    @property
    def kind(self) -> Literal["slot", "upstream"]:
        return "slot" if self.slot is not None else "upstream"


@dataclass(frozen=True, slots=True)
class DispatchLimits:
    """Times in seconds, sizes in items.

    ``prefetch_timeout_s``: longest a request waits for catalogs.
    ``prefetch_parallel``: fetches under way that are younger than
    ``slow_flight_s``; an older one stops counting, so that remotes which
    never answer cannot keep the live ones from being asked.
    ``prefetch_grace_s``: how long a hit waits for remotes declared before it.
    ``fetch_timeout_s``: longest one fetch may take, awaited or not.
    ``negative_ttl_s``: how long a miss is remembered. ``backoff_s`` doubles
    with each failure in a row, up to ``backoff_max_s``. ``max_waiting``:
    requests that may wait for catalogs at a time.
    """

    prefetch_timeout_s: float = 8.0
    prefetch_parallel: int = 16
    prefetch_grace_s: float = 0.05
    catalog_ttl_s: float = 300.0
    negative_ttl_s: float = 30.0
    backoff_s: float = 5.0
    backoff_max_s: float = 300.0
    max_catalog_models: int = 5000
    slow_flight_s: float = 0.1
    fetch_timeout_s: float = 30.0
    max_waiting: int = 1024
    max_misses: int = 1024
