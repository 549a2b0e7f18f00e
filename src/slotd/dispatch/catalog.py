"""What is known of each remote, and how catalogs are kept on disk."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

import msgspec

from slotd.dispatch.entries import DispatchLimits, UpstreamEntry

__all__ = [
    "MAX_NAME",
    "Catalog",
    "CatalogUnavailable",
    "Flight",
    "SavedCatalog",
    "Status",
    "Upstream",
    "UpstreamSnapshot",
    "decode_catalogs",
    "encode_catalogs",
    "make_catalog",
]

MAX_NAME = 512
"""Longest model name, in characters, that a catalog keeps or a miss remembers."""

Status: TypeAlias = Literal["cold", "warm", "stale", "offline", "static"]


class CatalogUnavailable(Exception):
    """A remote did not give its catalog. The message is the reason, for people."""


@dataclass(frozen=True, slots=True)
class Catalog:
    """The names that a remote lists, in its order. Replaced as a whole, never changed.

    ``fetched_at`` is on trio's clock; infinite for a static list, which never
    grows old. ``kept``: it was read from disk, so it counts as stale however
    young it is: the world may have changed while slotd was away.
    """

    models: tuple[str, ...]
    fetched_at: float
    kept: bool = False
    names: frozenset[str] = field(default=frozenset(), compare=False, repr=False)


def make_catalog(models: Iterable[str], fetched_at: float, limit: int, *, kept: bool = False) -> Catalog:
    """At most ``limit`` names, each once; names that are empty or overlong are left out."""
    unique: dict[str, None] = {}
    for name in models:
        if 0 < len(name) <= MAX_NAME:
            unique[name] = None
            if len(unique) >= limit:
                break
    return Catalog(tuple(unique), fetched_at, kept, frozenset(unique))


@dataclass(frozen=True, slots=True)
class Flight:
    """A fetch under way."""

    id: int
    started: float


@dataclass(frozen=True, slots=True)
class Upstream:
    """One remote.

    ``asked``: it is being asked, on behalf of every query whose number is at
    least this; the fetch is under way as ``flight``, or waits for its turn.
    ``background``: nobody needs to wait for it to be worth asking.
    ``failures``: in a row; it is offline until ``retry_at``.
    """

    entry: UpstreamEntry
    catalog: Catalog | None = None
    asked: int | None = None
    background: bool = False
    flight: Flight | None = None
    failures: int = 0
    retry_at: float = -math.inf
    reason: str = ""

    @property
    def static(self) -> bool:
        return bool(self.entry.models)

    def offline(self, now: float) -> bool:
        return now < self.retry_at

    def stale(self, now: float, ttl_s: float) -> bool:
        c = self.catalog
        return c is not None and (c.kept or now - c.fetched_at > ttl_s)

    def worth_asking(self, now: float, ttl_s: float) -> bool:
        """Whether its own word would be news: its catalog is cold or stale, and it is not in back-off."""
        return not self.static and not self.offline(now) and (self.catalog is None or self.stale(now, ttl_s))

    def status(self, now: float, ttl_s: float) -> Status:
        if self.offline(now):
            return "offline"
        if self.static:
            return "static"
        if self.catalog is None:
            return "cold"
        return "stale" if self.stale(now, ttl_s) else "warm"

    def answered(self, catalog: Catalog) -> Upstream:
        return Upstream(self.entry, catalog)

    def failed(self, reason: str, now: float, limits: DispatchLimits) -> Upstream:
        """One failure more: its catalog is forgotten, and it is left alone for a while.

        A static remote is never asked, so no answer can clear its record;
        there a failure long after the last one begins a new row.
        """
        row = 0 if self.static and now - self.retry_at > limits.backoff_max_s else self.failures
        pause = min(limits.backoff_s * 2.0 ** min(row, 62), limits.backoff_max_s)
        return replace(
            self,
            catalog=self.catalog if self.static else None,
            failures=row + 1,
            retry_at=now + pause,
            reason=reason,
        )


@dataclass(frozen=True, slots=True)
class UpstreamSnapshot:
    """A remote as lists show it. ``age_s``: of its catalog; ``retry_in_s``: while it is offline."""

    name: str
    url: str
    status: Status
    models: tuple[str, ...]
    age_s: float | None
    asking: bool
    failures: int
    retry_in_s: float | None
    reason: str

    @classmethod
    def of(cls, upstream: Upstream, now: float, ttl_s: float) -> UpstreamSnapshot:
        catalog = upstream.catalog
        aged = catalog is not None and math.isfinite(catalog.fetched_at)
        return cls(
            name=upstream.entry.name,
            url=upstream.entry.url,
            status=upstream.status(now, ttl_s),
            models=() if catalog is None else catalog.models,
            age_s=max(0.0, now - catalog.fetched_at) if catalog is not None and aged else None,
            asking=upstream.asked is not None,
            failures=upstream.failures,
            retry_in_s=upstream.retry_at - now if upstream.offline(now) else None,
            reason=upstream.reason,
        )

    def as_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "url": self.url,
            "status": self.status,
            "models": list(self.models),
            "age_s": self.age_s,
            "asking": self.asking,
            "failures": self.failures,
            "retry_in_s": self.retry_in_s,
            "reason": self.reason,
        }


# --- on disk -----------------------------------------------------------------


class SavedCatalog(msgspec.Struct, frozen=True):
    """A catalog as it is kept across restarts. ``url``: whose it was; ``age_s``: when it was saved."""

    url: str
    models: tuple[str, ...]
    age_s: float = 0.0


class _File(msgspec.Struct, frozen=True):
    version: int
    saved_unix: float
    upstreams: dict[str, SavedCatalog]


_VERSION = 1
_decoder = msgspec.json.Decoder(_File)


def encode_catalogs(saved: Mapping[str, SavedCatalog], saved_unix: float) -> bytes:
    return msgspec.json.encode(_File(_VERSION, saved_unix, dict(saved)))


def decode_catalogs(data: bytes, now_unix: float) -> dict[str, SavedCatalog]:
    """The catalogs, aged by the time since they were saved.

    Raises ``ValueError`` for anything that is not a file of this version; a
    clock that went backwards makes no catalog younger than it was.
    """
    file = _decoder.decode(data)  # its DecodeError is a ValueError
    if file.version != _VERSION:
        raise ValueError(f"version {file.version} is not {_VERSION}")
    away = max(0.0, now_unix - file.saved_unix)
    return {name: SavedCatalog(s.url, s.models, s.age_s + away) for name, s in file.upstreams.items()}
