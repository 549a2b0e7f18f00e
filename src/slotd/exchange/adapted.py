"""A request carried by an adapter: the client's side of it."""

from __future__ import annotations

from dataclasses import dataclass

from slotd.adapt import Adapter, Call
from slotd.artifacts import Keep, Together
from slotd.exchange.answer import Answer
from slotd.exchange.inbound import Inbound, header
from slotd.exchange.stall import Watch
from slotd.slot.lease import Lease

__all__ = ["serve_adapted"]


@dataclass(frozen=True, slots=True)
class _Reply:
    """Implements :class:`slotd.adapt.contract.Reply`."""

    answer: Answer
    watch: Watch
    together: Together
    origin: str

    def progressed(self) -> None:
        self.watch.progressed()
        record = self.answer.record
        if record.first_byte_s is None:
            record.first_byte_s = record.elapsed()

    def says(self, words: str) -> None:
        self.progressed()
        self.answer.record.progress = words

    def keep(self, data: bytes, content_type: str) -> str:
        return f"{self.origin}/api/artifacts/{self.together.put(data, content_type)}"

    async def comment(self, text: str) -> None:
        await self.answer.comment(text)

    async def begin(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self.answer.begin(status, headers)

    async def send(self, data: bytes) -> None:
        self.watch.pause()
        await self.answer.send(data)
        self.watch.progressed()

    async def document(self, body: bytes, *, content_type: str = "application/json") -> None:
        length = str(len(body)).encode()
        await self.begin(200, [(b"content-type", content_type.encode()), (b"content-length", length)])
        await self.send(body)


async def serve_adapted(
    adapter: Adapter, inbound: Inbound, body: bytes, lease: Lease, answer: Answer, watch: Watch, keep: Keep
) -> None:
    """Let ``adapter`` carry the request. Raises :class:`~slotd.wire.broken.Broken` if its engine is lost."""
    answer.record.phase = "forwarding"
    content_type = (header(inbound.headers, b"content-type") or b"application/json").decode("latin-1")
    call = Call(inbound.id, inbound.endpoint.upstream_path, content_type, body, lease.model)
    host = (header(inbound.headers, b"host") or b"").decode("latin-1")
    origin = f"http://{host}" if host else ""
    with keep() as together:
        await adapter.serve(call, lease.http, _Reply(answer, watch, together, origin))
