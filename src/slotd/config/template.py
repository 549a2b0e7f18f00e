"""The configuration that ``slotd init`` writes."""

from __future__ import annotations

from importlib import resources

__all__ = ["demo_text"]


def demo_text() -> str:
    """A working configuration with the demo model, as text."""
    return resources.files("slotd.config").joinpath("demo.toml").read_text(encoding="utf-8")
