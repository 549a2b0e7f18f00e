"""The testing kit: a fake engine, a harness, fixtures. Public, and slotd's own tests' first tool.

The names are imported when they are used: the fake engine, a process that
lives in this package, must start quickly.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from slotd.testing.comfy_knobs import ComfyKnobs, comfy_command, fake_comfyui_slot
    from slotd.testing.fake_knobs import Knobs, command
    from slotd.testing.harness import (
        FakeEngine,
        FakeServer,
        Harness,
        SlotdProcess,
        config_text,
        fake_slot,
        run_harness,
    )

__all__ = [
    "ComfyKnobs",
    "FakeEngine",
    "FakeServer",
    "Harness",
    "Knobs",
    "SlotdProcess",
    "comfy_command",
    "command",
    "config_text",
    "fake_comfyui_slot",
    "fake_slot",
    "run_harness",
]

_HOME = {
    "Knobs": "fake_knobs",
    "command": "fake_knobs",
    **dict.fromkeys(("ComfyKnobs", "comfy_command", "fake_comfyui_slot"), "comfy_knobs"),
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME.get(name, 'harness')}"), name)
