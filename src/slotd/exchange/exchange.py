"""One client request, carried from the first byte in to the last byte out.

Resolve a route, hold a lease, forward, account. The exchange knows no web
framework: the gateway hands it an :class:`Inbound` and an :class:`Outbound`
and runs :meth:`Exchange.run` in a task of the request's own. When the client
leaves, that task is cancelled, and everything below ends with it: the
connection to the upstream is closed (which is what stops generation), the
lease is released, a load that nobody wants any more is given up.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import NoReturn

import msgspec
import trio

from slotd.artifacts import Keep
from slotd.dispatch import Dispatcher, Route, SlotTarget
from slotd.errors import (
    RouteStale,
    SlotNotFound,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from slotd.events import EventBus
from slotd.exchange.accounted import accounted
from slotd.exchange.answer import Answer
from slotd.exchange.assemble import set_field
from slotd.exchange.attempts import Attempts
from slotd.exchange.carriage import Carriage
from slotd.exchange.forward import Outgoing, forward
from slotd.exchange.heartbeat import Heartbeat, can_stream
from slotd.exchange.inbound import Inbound, Outbound
from slotd.exchange.policy import Policy
from slotd.exchange.record import RecordBook, RequestRecord
from slotd.exchange.stall import Stalls
from slotd.exchange.wishes import read_wishes
from slotd.slot.manager import SlotManager
from slotd.wire.broken import Broken
from slotd.wire.multipart import set_value
from slotd.wire.transport import Transport

__all__ = ["Exchange"]

STALE_ROUTES = 3


class Exchange:
    """Carries requests. One object serves all; it owns nothing but the records.

    ``remote`` gives the way to an upstream, or raises :class:`RouteStale` if it
    is configured no more. ``policy`` is asked once for each request.
    ``keep`` takes results that a client fetches later.
    """

    def __init__(
        self,
        slots: SlotManager,
        dispatcher: Dispatcher,
        remote: Callable[[str], Transport],
        records: RecordBook,
        policy: Callable[[], Policy],
        bus: EventBus,
        keep: Keep,
    ) -> None:
        self._dispatcher = dispatcher
        self._remote = remote
        self._records = records
        self._policy = policy
        self._stalls = Stalls()
        self._attempts = Attempts(slots, bus, keep, self._stalls, records)

    async def watch(self) -> NoReturn:
        """End requests whose upstreams say nothing, by ``Policy.stall``. Must run while any are carried."""
        await self._stalls.run()

    def run(self, inbound: Inbound, out: Outbound) -> Awaitable[None]:
        """Answer the request, whatever happens: see :func:`slotd.exchange.accounted.accounted`."""
        record = RequestRecord(
            inbound.id,
            inbound.path,
            inbound.client,
            trio.current_time(),
            time.time(),
            bytes_in=len(inbound.body),
            parent=inbound.parent,
            scope=inbound.scope,
        )
        answer = Answer(out, record, inbound.endpoint.dialect)
        work = partial(self._carry, inbound, answer)
        return accounted(self._records, answer, work, scope_entered=inbound.scope_entered)

    def _understand(self, inbound: Inbound, answer: Answer) -> Carriage:
        """Read what decides. Raises :class:`slotd.errors.RequestInvalid`."""
        record, policy = answer.record, self._policy()
        head = inbound.head
        record.model, record.stream = head.model, head.stream
        wishes = read_wishes(inbound.headers, inbound.key_priority)
        record.priority = wishes.priority
        heartbeat = None
        if head.stream and policy.heartbeat_after_s and can_stream(inbound.endpoint):
            heartbeat = Heartbeat(answer, policy.heartbeat_after_s, policy.heartbeat_every_s)
        return Carriage(inbound, head, wishes, policy, record, answer, heartbeat)

    async def _carry(self, inbound: Inbound, answer: Answer) -> None:
        carriage = self._understand(inbound, answer)
        for attempt in range(1, STALE_ROUTES + 1):
            route = await self._resolve(carriage)
            try:
                target = route.target
                if isinstance(target, SlotTarget):
                    await self._attempts.serve(carriage, route, target.name)
                else:
                    await self._forward_remote(carriage, route, target.name)
            except (RouteStale, SlotNotFound):
                # Also a slot that a reload has removed since: the name may mean another now.
                if attempt == STALE_ROUTES:
                    raise
            else:
                return

    async def _resolve(self, carriage: Carriage) -> Route:
        record = carriage.record
        record.phase = "resolving"
        before = record.resolve_s or 0.0
        route = self._dispatcher.known(carriage.head.model, carriage.inbound.path)
        if route is not None:
            record.resolve_s = before
        else:
            began = trio.current_time()
            try:
                route = await self._dispatcher.resolve(carriage.head.model, carriage.inbound.path)
            finally:
                record.resolve_s = before + trio.current_time() - began
        record.tier, record.rule, record.cache = route.tier, route.rule, route.cache
        record.target, record.target_model = str(route.target), route.model
        record.fallback_from = ""
        return route

    async def _forward_remote(self, carriage: Carriage, route: Route, name: str) -> None:
        """Once only: what an upstream that is not ours has done with a request is not known."""
        inbound = carriage.inbound
        body = inbound.body
        if carriage.head.model != route.model:
            if inbound.multipart:
                body = set_value(body, b"model", route.model.encode())
            else:
                body = set_field(body, "model", msgspec.json.encode(route.model))
        try:
            limits, end = carriage.policy.stall, partial(self._records.end, carriage.record)
            with self._stalls.watch(limits, end) as watch:
                await forward(Outgoing.of(inbound, body), self._remote(name), carriage.answer, watch)
        except Broken as exc:
            raise UpstreamUnavailable(f"upstream {name!r} broke off its answer: {exc}") from exc
        except (UpstreamUnavailable, UpstreamTimeout):
            self._dispatcher.report_failure(name)
            raise
