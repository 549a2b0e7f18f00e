"""By what rules requests are carried: limits, replays, heartbeats, fallbacks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

from slotd.capability.choice import VISION
from slotd.config import Config, LlamaCppOptions
from slotd.exchange.shaping import Shaping
from slotd.exchange.stall import StallLimits

__all__ = ["NO_FALLBACKS", "Fallbacks", "Policy"]


@dataclass(frozen=True, slots=True)
class Fallbacks:
    """Who answers in a slot's place, in this order, once a request has waited ``after_s`` seconds."""

    slots: tuple[str, ...] = ()
    after_s: float = 0.0


NO_FALLBACKS = Fallbacks()


@dataclass(frozen=True, slots=True)
class Policy:
    """What a request is carried by, from its beginning to its end.

    ``max_replays``: how often it is sent again when its engine is lost before
    anything of the answer went to the client. ``heartbeat_after_s``: a streaming
    request that waits longer hears comments every ``heartbeat_every_s``; 0 = never.
    ``fallbacks``, ``shaping``: by slot, only those that have any. ``text_only``:
    slots that are known to read nothing but text. ``seeing``: those that say
    that they can do more.
    """

    stall: StallLimits = field(default_factory=StallLimits)
    max_replays: int = 2
    heartbeat_after_s: float = 10.0
    heartbeat_every_s: float = 5.0
    fallbacks: Mapping[str, Fallbacks] = field(default_factory=dict)
    shaping: Mapping[str, Shaping] = field(default_factory=dict)
    text_only: frozenset[str] = frozenset()
    seeing: tuple[str, ...] = ()

    @classmethod
    def of(cls, config: Config) -> Self:
        """The rules that a configuration gives."""
        server = config.server
        chats = {slot.name: slot.options for slot in config.slots.values() if slot.type == "llm"}
        text_only = frozenset(
            name
            for name, options in chats.items()
            if isinstance(options, LlamaCppOptions) and options.text_only
        )
        return cls(
            stall=StallLimits(server.first_byte_timeout_s, server.idle_timeout_s, server.total_timeout_s),
            max_replays=server.max_replays,
            heartbeat_after_s=server.heartbeat_after_s,
            heartbeat_every_s=server.heartbeat_every_s,
            fallbacks={
                slot.name: Fallbacks(tuple(slot.fallbacks), slot.fallback_after_s)
                for slot in config.slots.values()
                if slot.fallbacks
            },
            shaping={slot.name: shaping for slot in config.slots.values() if (shaping := Shaping.of(slot))},
            text_only=text_only,
            seeing=tuple(n for n in chats if n not in text_only and VISION in config.labels_of(n)),
        )
