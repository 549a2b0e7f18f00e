"""The tool loop: chats whose tools slotd runs itself. See :mod:`slotd.omni.omni`."""

from __future__ import annotations

from slotd.omni.omni import Omni

__all__ = ["Omni"]
