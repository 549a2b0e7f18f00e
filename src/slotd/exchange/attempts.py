"""A request served by a slot: leased, sent, and sent again if its engine is lost before it has answered."""

from __future__ import annotations

from contextlib import suppress
from functools import partial

import msgspec
import structlog
import trio

from slotd.artifacts import Keep
from slotd.dispatch import Route
from slotd.errors import EngineLost, RouteStale, SlotQueueTimeout, StreamStalled
from slotd.events import EventBus, types
from slotd.exchange.adapted import serve_adapted
from slotd.exchange.assemble import NotAssemblable, plan_assembly, set_field
from slotd.exchange.carriage import Carriage
from slotd.exchange.claims import Claims
from slotd.exchange.fallback import model_for
from slotd.exchange.forward import Outgoing, forward, forward_assembled
from slotd.exchange.media import refuse_media
from slotd.exchange.race import first_of
from slotd.exchange.record import RecordBook
from slotd.exchange.shaping import shape
from slotd.exchange.stall import TOTAL, Stalls, Watch
from slotd.slot.lease import Lease
from slotd.slot.manager import SlotManager
from slotd.wire.broken import Broken
from slotd.wire.multipart import set_value

__all__ = ["Attempts"]

log = structlog.get_logger("slotd")

FATE_WAIT_S = 0.25
"""How long to wait for the slot's word on why a connection broke."""


class _Lost(Exception):
    """The engine is lost, by ``error``, as ``broken`` has shown."""

    def __init__(self, error: EngineLost, broken: Broken) -> None:
        super().__init__(error.message)
        self.error = error
        self.broken = broken


class Attempts:
    """Serves requests by slots. Owns nothing; one object serves all."""

    def __init__(
        self, slots: SlotManager, bus: EventBus, keep: Keep, stalls: Stalls, records: RecordBook
    ) -> None:
        self._slots = slots
        self._bus = bus
        self._keep = keep
        self._stalls = stalls
        self._records = records

    async def serve(self, carriage: Carriage, route: Route, slot: str) -> None:
        """Answer the request by ``slot``, or by a slot that stands in for it.

        An engine that dies, refuses or breaks off while nothing of the answer
        has gone to the client costs the client nothing but time: the request
        goes back to the slot with its first arrival, so that it is served next,
        at most ``max_replays`` times and within its deadline. It begins from
        nothing each time. Raises the slot's refusals, :class:`EngineLost`,
        :class:`AnswerTooLarge` and, before anything is
        loaded for it, :class:`slotd.errors.RequestUnprocessable` for what the slot cannot read.
        """
        self._check_media(carriage, slot)
        claims = Claims(self._slots, carriage)
        lost: EngineLost | None = None
        broken: Broken | None = None
        began: float | None = None
        try:
            while True:
                try:
                    lease = claims.take(slot, route.slot_model) or await claims.claim(slot, route.slot_model)
                except SlotQueueTimeout as late:
                    if lost is None:
                        raise
                    raise lost from late  # that is what happened to this one
                if lost is None and route.generation not in (None, lease.generation):
                    raise RouteStale(f"slot {slot!r} was restarted since the route was found")
                if lease.slot != slot:
                    self._check_media(carriage, lease.slot)
                if began is None and carriage.policy.stall.total_s:
                    began = trio.current_time()
                try:
                    if self._is_told(carriage):
                        return await self._attempt_aloud(carriage, route, lease, began)
                    return await self._attempt(carriage, route, lease, began)
                except _Lost as gone:
                    lost, broken = gone.error, gone.broken
                if not self._goes_again(carriage, broken):
                    raise lost from broken
                claims.release()
                self._note_replay(carriage, lease, lost)
        finally:
            lost = broken = None  # what is raised leads back here
            claims.release()

    def _check_media(self, carriage: Carriage, slot: str) -> None:
        inbound, policy = carriage.inbound, carriage.policy
        if slot in policy.text_only:
            refuse_media(inbound.endpoint.upstream_path, inbound.body, slot, policy.seeing)

    def _goes_again(self, carriage: Carriage, broken: Broken) -> bool:
        left = carriage.policy.max_replays - carriage.record.replays
        ended = carriage.record.cause is not None
        # An answer that makes no sense will make none the next time.
        again = not broken.nonsense
        return again and not carriage.answer.begun and left > 0 and not ended

    def _note_replay(self, carriage: Carriage, lease: Lease, lost: EngineLost) -> None:
        record = carriage.record
        record.replays += 1
        carriage.answer.renew()
        data = {
            "id": record.id,
            "generation": lease.generation,
            "reason": lost.details.get("reason"),
            "message": lost.message,
            "replays": record.replays,
        }
        self._bus.publish(types.REQUEST_REPLAYED, data, slot=lease.slot)

    def _is_told(self, carriage: Carriage) -> bool:
        """Whether its client is told what it waits for: who has heard something expects to hear more."""
        return carriage.heartbeat is not None and (carriage.answer.started or carriage.record.replays > 0)

    async def _attempt_aloud(
        self, carriage: Carriage, route: Route, lease: Lease, began: float | None
    ) -> None:
        """:meth:`_attempt`, with comments until the answer begins."""
        heartbeat = carriage.heartbeat
        assert heartbeat is not None
        attempt = partial(self._attempt, carriage, route, lease, began)
        place = carriage.record.fallback_from
        who = f"{lease.slot}, in place of {place}," if place else lease.slot
        await first_of(attempt, partial(heartbeat.beat, lambda: f"{who} is working on it"))

    async def _attempt(self, carriage: Carriage, route: Route, lease: Lease, began: float | None) -> None:
        """Send it once. Raises :class:`_Lost`."""
        inbound, answer, abilities = carriage.inbound, carriage.answer, lease.abilities
        outgoing = Outgoing.of(inbound, self._body(carriage, route, lease))
        assembly = None
        if (
            abilities.nonstream_cancel == "assemble"
            and inbound.endpoint.body == "json"
            and not carriage.head.stream
        ):
            assembly = plan_assembly(inbound.endpoint.upstream_path, outgoing.body)
        adapter = abilities.adapters.get(inbound.endpoint.upstream_path)
        try:
            with self._watch(carriage, lease, began) as watch:
                if adapter is not None:
                    await serve_adapted(adapter, inbound, outgoing.body, lease, answer, watch, self._keep)
                    return
                if assembly is None:
                    await forward(outgoing, lease.http, answer, watch)
                    return
                with suppress(NotAssemblable):  # nothing has been sent yet: let the engine answer by itself
                    await forward_assembled(outgoing, assembly, lease.http, answer, watch)
                    return
            with self._watch(carriage, lease, began) as watch:
                await forward(outgoing, lease.http, answer, watch)
                return
        except Broken as exc:
            broken = exc
        try:
            raise _Lost(await self._engine_lost(lease, broken), broken)
        finally:
            del broken  # whose traceback leads back here

    def _watch(self, carriage: Carriage, lease: Lease, began: float | None) -> Watch:
        def end(stalled: StreamStalled) -> None:
            # First, as the slot may give its engine up for this: that is not what happened here.
            self._records.end(carriage.record, stalled)
            if stalled.details["limit"] != TOTAL:
                self._slots.stalled(lease.slot, lease.id)

        return self._stalls.watch(carriage.policy.stall, end, began)

    def _body(self, carriage: Carriage, route: Route, lease: Lease) -> bytes:
        """The body as the slot's operator has it, with the model's name as the engine needs it."""
        body = self._named(carriage, route, lease)
        shaping = carriage.policy.shaping.get(lease.slot)
        if shaping is None or carriage.inbound.multipart:
            return body
        return shape(body, carriage.inbound.endpoint.upstream_path, shaping, route.variant)

    def _named(self, carriage: Carriage, route: Route, lease: Lease) -> bytes:
        inbound, asked = carriage.inbound, carriage.head.model
        name = lease.model_name
        if not name and carriage.record.fallback_from:
            name = model_for(asked, self._slots.snapshot(lease.slot).models, lease.model)
        elif not name and route.model != route.slot_model:
            name = route.model  # what a binding says
        elif not name and route.variant and asked is not None:
            name = lease.model or asked.removesuffix(f":{route.variant}")
        if not name or asked == name:
            return inbound.body
        if carriage.inbound.multipart:
            return set_value(inbound.body, b"model", name.encode()) if asked is not None else inbound.body
        return set_field(inbound.body, "model", msgspec.json.encode(name))

    async def _engine_lost(self, lease: Lease, exc: Broken) -> EngineLost:
        """The connection broke: find out why from the slot, which may learn of it just after us."""
        fault = lease.fate.fault
        if fault is None:
            with trio.move_on_after(FATE_WAIT_S):
                fault = await lease.fate.wait()
        if fault is None:
            return EngineLost(f"the engine of slot {lease.slot!r} broke off its answer: {exc}")
        return EngineLost(
            f"slot {lease.slot!r} lost its engine while it served this request: {fault.message}",
            details=fault.details(),
        )
