"""The right to use a slot for one request, and what became of its engine."""

from __future__ import annotations

import msgspec
import trio

from slotd.process.plan import Address
from slotd.slot.backend import Abilities
from slotd.slot.state import Fault
from slotd.wire.transport import EngineTransport

__all__ = ["Fate", "Lease"]


class Fate:
    """Why a generation of an engine stopped answering; empty while it lives.

    One cell per generation, filled once by the slot's actor, before it breaks
    the generation's connections: whoever sees a broken connection finds the
    reason here, or waits a moment for it.
    """

    __slots__ = ("_event", "_fault")

    def __init__(self) -> None:
        self._event = trio.Event()
        self._fault: Fault | None = None

    @property
    def fault(self) -> Fault | None:
        return self._fault

    def seal(self, fault: Fault) -> None:
        """The engine is lost. The first reason stands."""
        if self._fault is None:
            self._fault = fault
            self._event.set()

    async def wait(self) -> Fault:
        """Wait until the engine is lost; returns why."""
        await self._event.wait()
        assert self._fault is not None
        return self._fault


class Lease(msgspec.Struct, frozen=True):
    """Granted by a slot's actor; valid until it is released or its engine is lost.

    ``http`` are the connections to this generation of the engine: the actor
    closes them when the engine is lost, and every reader then gets an error at
    once. ``model`` is what the slot serves, ``model_name`` what the engine
    wants to read as the request's model ("" if it does not care).
    """

    id: str
    slot: str
    generation: int
    model: str
    model_name: str
    address: Address
    http: EngineTransport
    fate: Fate
    abilities: Abilities
