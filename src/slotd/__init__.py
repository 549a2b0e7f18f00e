"""slotd: many AI model servers on one machine behind one OpenAI-compatible endpoint.

Public names; each is imported when it is used, so that the small processes
that live in this package (engine worker, guardian, fake engine) start quickly.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from slotd.app import Slotd
    from slotd.config import load_config, parse_config
    from slotd.errors import NoRouteFound, SlotdError
    from slotd.slot.manager import SlotManager
    from slotd.slot.state import SlotSnapshot, SlotState

__all__ = [
    "NoRouteFound",
    "SlotManager",
    "SlotSnapshot",
    "SlotState",
    "Slotd",
    "SlotdError",
    "load_config",
    "parse_config",
]

_HOME = {
    "Slotd": "app",
    "load_config": "config",
    "parse_config": "config",
    "NoRouteFound": "errors",
    "SlotdError": "errors",
    "SlotManager": "slot.manager",
    "SlotSnapshot": "slot.state",
    "SlotState": "slot.state",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
