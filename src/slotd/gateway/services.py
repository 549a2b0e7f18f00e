"""What the gateway is given by the composition root."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from slotd.actor import Snapshot
from slotd.arbiter.actor import Arbiter
from slotd.artifacts import Artifacts
from slotd.config import Config
from slotd.config.reread import Reading
from slotd.dispatch import Dispatcher
from slotd.events import EventBus
from slotd.exchange.inbound import Carrier
from slotd.exchange.record import RecordBook
from slotd.gateway.intake import Intake
from slotd.gateway.metrics import Metrics
from slotd.gateway.uploads import Uploads
from slotd.journal.journal import Journal
from slotd.settings import Settings
from slotd.slot.manager import SlotManager

__all__ = ["Services"]


@dataclass(frozen=True, slots=True)
class Services:
    """Handles to the actors below; the gateway itself owns no state.

    ``settings`` may change between two requests: it is read in each, never kept.
    ``reload`` reads the configuration again; see :meth:`slotd.reload.Reloader.reload`.
    """

    settings: Snapshot[Settings]
    reload: Callable[[], Awaitable[Reading]]
    slots: SlotManager
    arbiter: Arbiter
    dispatcher: Dispatcher
    exchange: Carrier
    records: RecordBook
    bus: EventBus
    journal: Journal
    artifacts: Artifacts
    metrics: Metrics
    uploads: Uploads
    intake: Intake
    run_id: str
    started_unix: float
    version: str

    @property
    def config(self) -> Config:
        """The configuration of this moment."""
        return self.settings.value.config

    @property
    def api_keys(self) -> Mapping[str, int | None]:
        """The keys that clients may show, at this moment, and the priority that each gives."""
        return self.settings.value.api_keys
