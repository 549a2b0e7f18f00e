"""Who may load, and who must go: memory and exclusive devices.

:class:`Arbiter` is the way to its actor; slots and the arbiter speak as
:mod:`slotd.arbiter.tenant` says.
"""

from slotd.arbiter.actor import Arbiter, FootprintStore
from slotd.arbiter.room import Limits, Reading, Room
from slotd.arbiter.snapshot import ArbiterSnapshot

__all__ = ["Arbiter", "ArbiterSnapshot", "FootprintStore", "Limits", "Reading", "Room"]
