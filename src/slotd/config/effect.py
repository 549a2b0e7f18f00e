"""When a changed key takes effect in a running slotd."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from slotd.config.model import Config, SlotConfig
from slotd.config.options import LlamaCppOptions

__all__ = ["AT_RESTART", "Effect", "effect_of"]


class Effect(StrEnum):
    """``now``: from the next request on. ``relaunch``: it is part of how an engine is
    launched; a running one is reloaded. ``restart``: at slotd's next start, and left as
    it was until then."""

    NOW = "now"
    RELAUNCH = "relaunch"
    RESTART = "restart"


AT_RESTART: Mapping[str, frozenset[str]] = {
    # What it listens on and what it made room for.
    "server": frozenset(
        {"host", "port", "express", "state_dir", "recent_requests", "event_buffer", "restore"}
    ),
    "journal": frozenset({"max_events", "max_requests", "queue"}),
    "process": frozenset({"port_first", "port_last", "log_kb"}),
}
"""Section → the keys that a running slotd cannot change."""

_LAUNCH = frozenset({"type", "engine", "model", "command", "env", "cwd", "url", "options"})
"""Keys of a slot that its launch plan is made from."""

_SOURCE = frozenset({"source", "sha256"})
"""Keys of a model that say which file it is."""


def effect_of(path: tuple[str, ...], key: str, config: Config) -> Effect:
    """When a change of ``key`` in the section at ``path`` takes effect. ``config``: the new one."""
    section = path[0]
    if key in AT_RESTART.get(section, ()):
        return Effect.RESTART
    if section == "models" and key in _SOURCE:
        return Effect.RELAUNCH
    if section == "slots":
        top = key.partition(".")[0]
        if top in _LAUNCH or (top == "max_parallel" and _follows(config.slots.get(path[1]))):
            return Effect.RELAUNCH
    return Effect.NOW


def _follows(slot: SlotConfig | None) -> bool:
    """Whether the engine is launched for as many sequences as the slot serves requests."""
    return slot is not None and isinstance(slot.options, LlamaCppOptions) and slot.options.parallel == 0
