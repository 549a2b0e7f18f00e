"""What the gateway is given by the composition root."""

from __future__ import annotations

from dataclasses import dataclass, field

from slotd.config import Config
from slotd.dispatch import Dispatcher
from slotd.events import EventBus
from slotd.exchange.exchange import Exchange
from slotd.exchange.record import RecordBook
from slotd.gateway.metrics import Metrics
from slotd.slot.manager import SlotManager

__all__ = ["Services"]


@dataclass(frozen=True, slots=True)
class Services:
    """Handles to the actors below; the gateway itself owns no state."""

    config: Config
    api_keys: frozenset[str] = field(repr=False)
    slots: SlotManager
    dispatcher: Dispatcher
    exchange: Exchange
    records: RecordBook
    bus: EventBus
    metrics: Metrics
    run_id: str
    started_unix: float
    version: str
