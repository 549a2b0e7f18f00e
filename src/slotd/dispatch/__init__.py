"""Which target a request goes to, by the name of its model: the transport axis of routing.

``bindings`` (the registry), ``policy`` (tiers 1 and 2), ``race`` and
``flights`` (tier 3) and ``machine`` are pure; ``actor`` is the shell, and
``remote`` and ``store`` are its hands.
"""

from slotd.dispatch.actor import Dispatcher, DispatcherActor, Outside
from slotd.dispatch.bindings import RouteTable, compile_table
from slotd.dispatch.catalog import CatalogUnavailable, UpstreamSnapshot
from slotd.dispatch.entries import BindingEntry, DispatchLimits, SlotEntry, UpstreamEntry
from slotd.dispatch.messages import DecisionInfo
from slotd.dispatch.route import Considered, Explanation, Route, Rule, SlotTarget, Target, UpstreamTarget
from slotd.dispatch.store import CatalogStore, FileStore, StoreTrouble

__all__ = [
    "BindingEntry",
    "CatalogStore",
    "CatalogUnavailable",
    "Considered",
    "DecisionInfo",
    "DispatchLimits",
    "Dispatcher",
    "DispatcherActor",
    "Explanation",
    "FileStore",
    "Outside",
    "Route",
    "RouteTable",
    "Rule",
    "SlotEntry",
    "SlotTarget",
    "StoreTrouble",
    "Target",
    "UpstreamEntry",
    "UpstreamSnapshot",
    "UpstreamTarget",
    "compile_table",
]
