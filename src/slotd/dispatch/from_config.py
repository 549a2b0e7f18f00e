"""The one place where the dispatcher meets the shape of ``slotd.toml``."""

from __future__ import annotations

from slotd.config import Config
from slotd.dispatch.bindings import RouteTable, compile_table
from slotd.dispatch.entries import BindingEntry, DispatchLimits, SlotEntry, UpstreamEntry

__all__ = ["compile_config"]


def compile_config(config: Config) -> RouteTable:
    """The route table of a configuration."""
    d = config.dispatcher
    return compile_table(
        slots=[
            SlotEntry(n, s.type, s.model, s.aliases, s.default, config.labels_of(n), tuple(s.variants))
            for n, s in config.slots.items()
        ],
        upstreams=[
            UpstreamEntry(n, u.url, u.auth, u.key_env, u.models, u.connect_timeout_s)
            for n, u in config.upstreams.items()
        ],
        bindings=[
            BindingEntry(b.match, b.slot or None, b.upstream or None, b.model or None)
            for b in config.bindings
        ],
        limits=DispatchLimits(
            prefetch_timeout_s=d.prefetch_timeout_s,
            prefetch_parallel=d.prefetch_parallel,
            prefetch_grace_s=d.prefetch_grace_ms / 1000,
            catalog_ttl_s=d.catalog_ttl_s,
            negative_ttl_s=d.negative_ttl_s,
            backoff_s=d.backoff_s,
            backoff_max_s=d.backoff_max_s,
            max_catalog_models=d.max_catalog_models,
        ),
    )
