"""The requests that an omni chat makes: through the exchange, as any client's, and never over a socket."""

from __future__ import annotations

from dataclasses import dataclass
from string import ascii_lowercase

import msgspec
import trio

from slotd.capability.endpoints import ENDPOINTS
from slotd.errors import AnswerTooLarge, SlotdError
from slotd.exchange.inbound import Carrier, Headers, Inbound, Outbound, all_headers, header
from slotd.omni.failure import ToolFailed, said
from slotd.wire.fields import Fields

__all__ = ["MAX_BYTES", "Child", "Collected", "letters"]

MAX_BYTES = 64 << 20
"""The longest answer that is kept whole."""

_FOR_TOOLS = (b"host", b"x-slotd-priority")


def letters(number: int) -> str:
    """a, b, … z, aa, ab, …: names of the calls of one round."""
    name = ""
    number += 1
    while number:
        number, rest = divmod(number - 1, 26)
        name = ascii_lowercase[rest] + name
    return name


def _scope() -> trio.CancelScope:
    """A child's own. It knows how long it has, so that its record tells running late from being left."""
    left = trio.current_effective_deadline()
    return trio.CancelScope(deadline=left) if left > trio.current_time() else trio.CancelScope()


class Collected:
    """An :class:`slotd.exchange.inbound.Outbound` that keeps the answer."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self._body = bytearray()

    @property
    def body(self) -> bytes:
        return bytes(self._body)

    @property
    def content_type(self) -> str:
        """Without parameters."""
        found = header(self.headers, b"content-type") or b""
        return found.decode("latin-1").partition(";")[0].strip().lower()

    def start(self, status: int, headers: Headers, length: int | None = None, own: bytes = b"") -> None:
        self.status, self.headers = status, all_headers(headers, length, own)

    async def send(self, data: bytes) -> None:
        """Raises :class:`slotd.errors.AnswerTooLarge`."""
        if len(self._body) + len(data) > MAX_BYTES:
            raise AnswerTooLarge(f"an answer is larger than {MAX_BYTES >> 20} MiB")
        self._body += data


@dataclass(frozen=True, slots=True)
class Child:
    """Makes requests on behalf of ``parent``."""

    exchange: Carrier
    parent: Inbound

    async def turn(self, number: int, body: bytes, out: Outbound) -> None:
        """A turn of the model, by the client's own headers; ``out`` gets the answer.

        How long it is ready to wait for a slot it has said of the first one:
        the others wait for what the chat itself has set in motion. Raises what
        :meth:`slotd.exchange.exchange.Exchange.run` raises.
        """
        headers = self.parent.headers
        if number > 1:
            headers = Fields(field for field in headers if field[0] != b"x-slotd-wait")
        inbound = msgspec.structs.replace(
            self.parent,
            id=f"{self.parent.id}.{number}",
            parent=self.parent.id,
            headers=headers,
            body=body,
            scope=_scope(),
            scope_entered=False,
        )
        await self.exchange.run(inbound, out)

    async def post(self, id: str, path: str, content_type: str, body: bytes) -> Collected:
        """A tool's request; returns a successful answer. Raises :class:`ToolFailed`."""
        kept = [(key, value) for key, value in self.parent.headers if key in _FOR_TOOLS]
        inbound = msgspec.structs.replace(
            self.parent,
            id=id,
            parent=self.parent.id,
            path=path,
            query=b"",
            endpoint=ENDPOINTS[path],
            headers=Fields([(b"content-type", content_type.encode()), *kept]),
            body=body,
            scope=_scope(),
            scope_entered=False,
        )
        answer = Collected()
        try:
            await self.exchange.run(inbound, answer)
        except SlotdError as error:
            raise ToolFailed(error.message, error.code) from error
        if answer.status != 200:
            raise ToolFailed(*said(answer.status, answer.body))
        return answer

    async def post_json(self, id: str, path: str, document: object) -> Collected:
        """The same for a JSON document."""
        return await self.post(id, path, "application/json", msgspec.json.encode(document))
