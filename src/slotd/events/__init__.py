"""The event bus: what happened, in order, for whoever wants to know.

Publishing never waits and never fails; readers that fall behind are told how
much they missed. State is not carried here: that is what snapshots are for.
"""

from slotd.events import types
from slotd.events.bus import EventBus, Subscription
from slotd.events.types import Event, Gap

__all__ = ["Event", "EventBus", "Gap", "Subscription", "types"]
