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
from collections.abc import Callable

import msgspec
import structlog
import trio

from slotd.dispatch import Dispatcher, Route, SlotTarget, UpstreamTarget
from slotd.errors import (
    AnswerTooLarge,
    EngineLost,
    RequestCancelled,
    RouteStale,
    SlotdError,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from slotd.exchange.assemble import (
    Assembly,
    AssemblyError,
    AssemblyTooLarge,
    NotAssemblable,
    plan_assembly,
    set_field,
)
from slotd.exchange.frames import FrameGate
from slotd.exchange.headers import for_client, for_upstream
from slotd.exchange.inbound import ClientGone, Head, Inbound, Outbound, read_head
from slotd.exchange.record import RecordBook, RequestRecord, UsageTail
from slotd.exchange.relay import StallLimits, Watch, relay_bytes, relay_events
from slotd.exchange.render import error_response, sse_error
from slotd.exchange.transport import BrokenUpstream, LocalTransport, Response, Transport
from slotd.slot.lease import Lease
from slotd.slot.manager import SlotManager

__all__ = ["Exchange"]

log = structlog.get_logger("slotd")

FATE_WAIT_S = 0.25
"""How long to wait for the slot's word on why a connection broke."""

STALE_ROUTES = 3


class _Carriage:
    """What one request has come to so far."""

    def __init__(self, inbound: Inbound, out: Outbound, record: RequestRecord) -> None:
        self.inbound = inbound
        self.out = out
        self.record = record
        self.started = False
        self.events = False
        self.length: int | None = None
        self.gate = FrameGate()
        self.usage = UsageTail()

    def answered(self) -> bool:
        """Whether the client has got the whole answer."""
        if not self.started:
            return False
        return self.usage.ended() if self.events else self.record.bytes_out == self.length

    async def start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        record = self.record
        self.length = next((int(v) for k, v in headers if k == b"content-length" and v.isdigit()), None)
        record.status = status
        record.phase = "answering"
        self.events = any(k == b"content-type" and b"text/event-stream" in v.lower() for k, v in headers)
        headers = [*headers, *trace_headers(record)]
        self.started = True
        await self.out.start(status, headers)


def trace_headers(record: RequestRecord) -> list[tuple[bytes, bytes]]:
    """Who answered, and where the time before the first byte went."""
    found = [(b"x-request-id", record.id.encode())]
    if record.target:
        route = f"{record.target}; tier={record.tier}; rule={record.rule}"
        found.append((b"x-slotd-route", route.encode("ascii", "replace")))
    parts = [
        f"{name};dur={seconds * 1000:.1f}"
        for name, seconds in (("resolve", record.resolve_s), ("wait", record.wait_s))
        if seconds is not None
    ]
    parts.append(f"total;dur={record.elapsed() * 1000:.1f}")
    found.append((b"server-timing", ", ".join(parts).encode()))
    return found


class Exchange:
    """Carries requests. One object serves all; it owns nothing but the records."""

    def __init__(
        self,
        slots: SlotManager,
        dispatcher: Dispatcher,
        remote: Callable[[str], Transport],
        records: RecordBook,
        limits: StallLimits,
    ) -> None:
        self._slots = slots
        self._dispatcher = dispatcher
        self._remote = remote
        self._records = records
        self._limits = limits

    async def run(self, inbound: Inbound, out: Outbound) -> None:
        """Answer the request, whatever happens; returns when the answer is complete.

        Errors become an error response, or the last event of a stream that has
        begun; one that is not typed is a bug, is logged, and ends this request
        alone. A body that has begun and is no event stream can only be broken
        off: the typed error is raised then, for the adapter to close the
        connection. :class:`ClientGone` passes through. Cancelled when the
        client leaves.
        """
        record = RequestRecord(
            inbound.id,
            inbound.path,
            inbound.client,
            trio.current_time(),
            time.time(),
            bytes_in=len(inbound.body),
        )
        carriage = _Carriage(inbound, out, record)
        self._records.open(record)
        try:
            with record.scope:
                await self._answer(carriage)
            if record.scope.cancelled_caught:
                record.outcome = "error"
                await self._fail(carriage, RequestCancelled("an operator cancelled this request"))
        finally:
            record.tokens_in, record.tokens_out = carriage.usage.read()
            if record.outcome == "live":
                # Cancelled, bare or in a group. Clients hang up once they have
                # read the end, often before we get to see it ourselves.
                record.outcome = "ok" if carriage.answered() else "client_gone"
            self._records.close(record)

    async def _answer(self, carriage: _Carriage) -> None:
        try:
            await self._carry(carriage)
        except SlotdError as error:
            await self._fail(carriage, error)
        except ClientGone:
            raise
        except Exception:
            log.exception("a request met a bug", request=carriage.record.id, path=carriage.record.path)
            await self._fail(carriage, SlotdError("slotd itself failed at this request; its log says why"))
        else:
            status = carriage.record.status or 0
            carriage.record.outcome = "ok" if status < 400 else "error"

    async def _fail(self, carriage: _Carriage, error: SlotdError) -> None:
        record, dialect = carriage.record, carriage.inbound.endpoint.dialect
        record.outcome, record.error = "error", error.code
        if not carriage.started:
            status, headers, body = error_response(error, dialect)
            await carriage.start(status, headers)
            await carriage.out.send(body)
        elif carriage.events and carriage.gate.clean:
            await carriage.out.send(sse_error(error, dialect))
        else:
            # Nothing well-formed can follow half a document.
            raise error

    # --- resolve, lease -----------------------------------------------------------

    async def _carry(self, carriage: _Carriage) -> None:
        inbound, record = carriage.inbound, carriage.record
        head = read_head(inbound.endpoint, inbound.body)
        record.model, record.stream = head.model, head.stream
        for attempt in range(1, STALE_ROUTES + 1):
            route = await self._resolve(carriage, head)
            match route.target:
                case UpstreamTarget(name):
                    await self._forward_remote(carriage, route, name)
                    return
                case SlotTarget(name):
                    try:
                        await self._with_lease(carriage, head, route, name)
                    except RouteStale:
                        if attempt == STALE_ROUTES:
                            raise
                    else:
                        return

    async def _resolve(self, carriage: _Carriage, head: Head) -> Route:
        record = carriage.record
        began = trio.current_time()
        try:
            route = await self._dispatcher.resolve(head.model, carriage.inbound.path)
        finally:
            record.resolve_s = trio.current_time() - began
        record.tier, record.rule, record.cache = route.tier, route.rule, route.cache
        record.target, record.target_model = str(route.target), route.model
        return route

    async def _with_lease(self, carriage: _Carriage, head: Head, route: Route, slot: str) -> None:
        inbound, record = carriage.inbound, carriage.record
        record.phase = "waiting"
        began = trio.current_time()
        # Named here, released unconditionally: a grant that arrives as we are
        # cancelled is given back like any other.
        lease_id = inbound.id
        try:
            lease = await self._slots.acquire(slot, lease_id, model=route.slot_model, wait=inbound.wait)
            record.wait_s = trio.current_time() - began
            record.generation = lease.generation
            if route.generation is not None and route.generation != lease.generation:
                raise RouteStale(f"slot {slot!r} was restarted since the route was found")
            await self._forward_local(carriage, head, route, lease)
        finally:
            self._slots.release(slot, lease_id)

    # --- forward ------------------------------------------------------------------

    async def _forward_local(self, carriage: _Carriage, head: Head, route: Route, lease: Lease) -> None:
        inbound = carriage.inbound
        body = inbound.body
        assembly: Assembly | None = None
        if inbound.endpoint.body == "json":
            # What the engine insists on, or what a binding says; else as the client wrote it.
            bound = route.model if route.model != route.slot_model else ""
            name = lease.model_name or bound
            if name and head.model != name:
                body = set_field(body, "model", _json_string(name))
            if not head.stream and lease.abilities.nonstream_cancel == "assemble":
                assembly = plan_assembly(inbound.endpoint.upstream_path, body)
        transport = LocalTransport(lease.http)
        try:
            if assembly is not None:
                try:
                    await self._forward_assembled(carriage, transport, assembly)
                except NotAssemblable:
                    # Nothing has been sent yet: let the engine answer by itself.
                    await self._forward(carriage, transport, body)
            else:
                await self._forward(carriage, transport, body)
        except BrokenUpstream as exc:
            raise await self._engine_lost(lease, exc) from exc

    async def _engine_lost(self, lease: Lease, exc: BrokenUpstream) -> EngineLost:
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

    async def _forward_remote(self, carriage: _Carriage, route: Route, name: str) -> None:
        inbound = carriage.inbound
        body = inbound.body
        if inbound.endpoint.body == "json" and carriage.record.model != route.model:
            body = set_field(body, "model", _json_string(route.model))
        try:
            await self._forward(carriage, self._remote(name), body)
        except BrokenUpstream as exc:
            raise UpstreamUnavailable(f"upstream {name!r} broke off its answer: {exc}") from exc
        except (UpstreamUnavailable, UpstreamTimeout):
            self._dispatcher.report_failure(name)
            raise

    def _target(self, inbound: Inbound) -> bytes:
        path = inbound.endpoint.upstream_path.encode()
        return path + b"?" + inbound.query if inbound.query else path

    async def _forward(self, carriage: _Carriage, transport: Transport, body: bytes) -> None:
        inbound, record = carriage.inbound, carriage.record
        record.phase = "forwarding"
        with Watch(self._limits) as watch:
            async with transport.open(
                inbound.method, self._target(inbound), for_upstream(inbound.headers), body
            ) as response:
                await self._relay(carriage, response, watch)

    async def _relay(self, carriage: _Carriage, response: Response, watch: Watch) -> None:
        record = carriage.record
        watch.progressed()
        if record.first_byte_s is None:
            record.first_byte_s = record.elapsed()
        await carriage.start(response.status, for_client(response.headers))
        if carriage.events:
            await relay_events(response, carriage.out, watch, record, carriage.usage, carriage.gate)
        else:
            await relay_bytes(response, carriage.out, watch, record, carriage.usage)

    async def _forward_assembled(self, carriage: _Carriage, transport: Transport, assembly: Assembly) -> None:
        """Stream from the engine, answer with one document: see ``exchange.assemble``."""
        inbound, record = carriage.inbound, carriage.record
        record.phase = "forwarding"
        with Watch(self._limits) as watch:
            async with transport.open(
                inbound.method, self._target(inbound), for_upstream(inbound.headers), assembly.body
            ) as response:
                kind = next((v for k, v in response.headers if k.lower() == b"content-type"), b"")
                if response.status != 200 or b"text/event-stream" not in kind:
                    await self._relay(carriage, response, watch)
                    return
                record.first_byte_s = record.elapsed()
                try:
                    while not assembly.done and (data := await response.receive_some()):
                        watch.progressed()
                        assembly.feed(data)
                    answer = assembly.finish()
                except NotAssemblable:
                    raise
                except AssemblyTooLarge as exc:
                    raise AnswerTooLarge(f"{exc}; ask for a stream instead") from exc
                except AssemblyError as exc:
                    raise BrokenUpstream(str(exc), connected=True, got_bytes=True) from exc
            watch.pause()
            length = str(len(answer.body)).encode()
            await carriage.start(
                answer.status, [(b"content-type", b"application/json"), (b"content-length", length)]
            )
            await carriage.out.send(answer.body)
            carriage.usage.feed(answer.body)
            record.bytes_out += len(answer.body)


def _json_string(text: str) -> bytes:
    return msgspec.json.encode(text)
