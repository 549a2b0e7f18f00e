"""What an adapter is given and what it owes. Nothing here knows an engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from slotd.wire.transport import EngineTransport

__all__ = ["Adapter", "Call", "Reply"]


@dataclass(frozen=True, slots=True)
class Call:
    """A client's request, bounded and whole, for an engine that does not speak its shape.

    ``id`` is the request's, unique in this run. ``path`` is the endpoint's (of
    :data:`slotd.capability.endpoints.ENDPOINTS`), in its main spelling.
    ``model`` is what the slot serves.
    """

    id: str
    path: str
    content_type: str
    body: bytes
    model: str = ""


class Reply(Protocol):
    """The client's side of the call."""

    def progressed(self) -> None:
        """The engine gave a sign of life: the stall guard begins anew."""

    def says(self, words: str) -> None:
        """How far it is, in a few words, for who looks at the request. Also a sign of life."""

    def keep(self, data: bytes, content_type: str) -> str:
        """Keep a result for a while; returns the URL at which the client gets it.

        None goes before the answer is complete. Raises
        :class:`slotd.errors.AnswerTooLarge` if there is no room for it beside them.
        """

    async def comment(self, text: str) -> None:
        """Tell a client that asked for events something, such as how far it is. For those only.

        It is no part of the answer: an engine that is lost is still replaced.
        But only events can follow. Nothing happens once the answer has begun.
        """

    async def begin(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        """The answer's head; lower-case names. Exactly once, before any :meth:`send`."""

    async def send(self, data: bytes) -> None:
        """Bytes of the answer, waiting while the client cannot take more."""

    async def document(self, body: bytes, *, content_type: str = "application/json") -> None:
        """The whole answer, status 200, in one."""


class Adapter(Protocol):
    """Serves one endpoint by engines of one kind. Owns nothing: one object serves all calls."""

    async def serve(self, call: Call, http: EngineTransport, reply: Reply) -> None:
        """Answer ``call`` by the engine that ``http`` leads to; returns when the answer is complete.

        Raises a :class:`slotd.errors.SlotdError` for what the client is to be
        told (:class:`~slotd.errors.RequestUnprocessable` for what is missing or
        wrong in its request, :class:`~slotd.errors.EngineError` for the
        engine's refusal), and lets the wire's exceptions pass
        (:class:`~slotd.wire.broken.Broken`): an engine that is lost before
        :meth:`Reply.begin` is started anew, and ``serve`` is called again.

        Cancelled when the client leaves: what goes on in the engine is stopped,
        in a bounded time.
        """
        ...
