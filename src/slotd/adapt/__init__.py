"""Engines whose API is not OpenAI's: how a request becomes theirs, and their answer the client's.

The seam is :mod:`slotd.adapt.contract`. An engine's backend says which paths
it serves through an :class:`Adapter` (``Abilities.adapters``); the exchange
leases the slot as for any request and lets the adapter carry it. The gateway
knows nothing of it.
"""

from slotd.adapt.contract import Adapter, Call, Reply
from slotd.adapt.translated import Ask, Document, Translated, Translation

__all__ = ["Adapter", "Ask", "Call", "Document", "Reply", "Translated", "Translation"]
