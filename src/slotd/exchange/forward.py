"""One request sent to one upstream once, and its answer relayed or put together."""

from __future__ import annotations

from collections.abc import Awaitable
from contextlib import aclosing

from slotd.errors import AnswerTooLarge
from slotd.exchange.answer import Answer
from slotd.exchange.assemble import (
    Assembly,
    AssemblyError,
    AssemblyTooLarge,
    IncompleteStream,
    NotAssemblable,
)
from slotd.exchange.engine_errors import SHOWN_BYTES, as_event
from slotd.exchange.headers import for_upstream
from slotd.exchange.inbound import Inbound
from slotd.exchange.relay import relay_bytes, relay_events
from slotd.exchange.stall import Watch
from slotd.value import Value
from slotd.wire.broken import Broken
from slotd.wire.fields import Fields
from slotd.wire.transport import Response, Transport

__all__ = ["Outgoing", "forward", "forward_assembled"]

_JSON = Fields([(b"content-type", b"application/json")])


class Outgoing(Value, frozen=True):
    """A request as an upstream gets it."""

    method: bytes
    target: bytes
    headers: Fields
    body: bytes

    @classmethod
    def of(cls, inbound: Inbound, body: bytes) -> Outgoing:
        """The client's request with this body."""
        path = inbound.endpoint.upstream_path.encode()
        target = path + b"?" + inbound.query if inbound.query else path
        return cls(inbound.method.encode(), target, inbound.headers.derive(for_upstream), body)


async def forward(outgoing: Outgoing, transport: Transport, answer: Answer, watch: Watch) -> None:
    """Send it and relay what comes. Raises :class:`Broken`."""
    answer.record.phase = "forwarding"
    response = await transport.request(outgoing.method, outgoing.target, outgoing.headers, outgoing.body)
    try:
        await _relay(response, answer, watch)
    finally:
        # One that is complete has ended already: mostly there is nothing to wait for.
        if not response.complete:
            await response.aclose()


async def forward_assembled(
    outgoing: Outgoing, assembly: Assembly, transport: Transport, answer: Answer, watch: Watch
) -> None:
    """Stream from the upstream, answer with one document: see :mod:`slotd.exchange.assemble`.

    Raises :class:`NotAssemblable`, with nothing sent, where only the upstream's
    own document will do, and :class:`Broken`.
    """
    record = answer.record
    record.phase = "forwarding"
    async with aclosing(
        await transport.request(outgoing.method, outgoing.target, outgoing.headers, assembly.body)
    ) as response:
        if response.status != 200 or not response.events:
            await _relay(response, answer, watch)
            return
        _first_byte(answer, watch)
        try:
            while not assembly.done and (data := await response.receive_some()):
                watch.progressed()
                assembly.feed(data)
            document = assembly.finish()
        except NotAssemblable:
            raise
        except AssemblyTooLarge as exc:
            raise AnswerTooLarge(f"{exc}; ask for a stream instead") from exc
        except AssemblyError as exc:
            raise Broken(str(exc), nonsense=not isinstance(exc, IncompleteStream)) from exc
    watch.pause()
    answer.begin(document.status, _JSON, len(document.body))
    await answer.send(document.body)


def _relay(response: Response, answer: Answer, watch: Watch) -> Awaitable[None]:
    _first_byte(answer, watch)
    if answer.started and not (response.status == 200 and response.events):
        return _refuse(response, answer, watch)
    if response.events:
        return relay_events(response, answer, watch)
    return relay_bytes(response, answer, watch)


def _first_byte(answer: Answer, watch: Watch) -> None:
    watch.progressed()
    if answer.record.first_byte_s is None:
        answer.record.first_byte_s = answer.record.elapsed()


async def _refuse(response: Response, answer: Answer, watch: Watch) -> None:
    """A stream has begun, and its head cannot be taken back: tell in it what the upstream says."""
    body = b""
    while len(body) < SHOWN_BYTES and (data := await response.receive_some()):
        watch.progressed()
        body += data
    watch.pause()
    answer.record.error = "engine.error"
    await answer.refuse(as_event(response.status, body[:SHOWN_BYTES], answer.dialect))
