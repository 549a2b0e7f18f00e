"""One request on its way: what was asked, by which rules it goes, and what has come of it."""

from __future__ import annotations

import msgspec

from slotd.exchange.answer import Answer
from slotd.exchange.heartbeat import Heartbeat
from slotd.exchange.inbound import Head, Inbound
from slotd.exchange.policy import Policy
from slotd.exchange.record import RequestRecord
from slotd.exchange.wishes import Wishes
from slotd.slot.lease import Lease

__all__ = ["Carriage"]


class Carriage(msgspec.Struct, frozen=True):
    """What the steps of a request share; made when its body and headers have been understood.

    ``heartbeat`` is None for a request that is told nothing while it waits.
    """

    inbound: Inbound
    head: Head
    wishes: Wishes
    policy: Policy
    record: RequestRecord
    answer: Answer
    heartbeat: Heartbeat | None

    def routed_to(self, lease: Lease, slot: str) -> None:
        """It has a lease, on ``slot`` or in its place."""
        record = self.record
        record.generation = lease.generation
        record.target = f"slot:{lease.slot}"
        record.fallback_from = ""
        if lease.slot != slot:
            record.fallback_from, record.target_model = slot, lease.model
