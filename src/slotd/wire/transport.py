"""How a target is asked over HTTP, whoever does it: :class:`~slotd.wire.http1.Http1Pool`, for one."""

from __future__ import annotations

from typing import Protocol

from slotd.wire.fields import Fields

__all__ = ["EngineTransport", "Response", "Transport"]


class Response(Protocol):
    """An upstream's answer whose body is still to come. Whoever has it closes it, unless it is complete."""

    @property
    def status(self) -> int: ...

    @property
    def headers(self) -> Fields:
        """As received, but for the length of the body."""
        ...

    @property
    def length(self) -> int | None:
        """Of the body, as announced."""
        ...

    @property
    def events(self) -> bool:
        """Whether it is an event stream."""
        ...

    @property
    def complete(self) -> bool:
        """Whether its natural end has come and every byte has been handed out."""
        ...

    def take(self) -> bytes:
        """Body bytes that have arrived already; may be empty."""
        ...

    async def receive_some(self) -> bytes:
        """Body bytes as they arrive; empty at the natural end. Raises :class:`Broken`."""
        ...

    async def aclose(self) -> None:
        """End it where it stands: the connection is closed, unless it is complete. Idempotent."""
        ...


class Transport(Protocol):
    """A way to a target."""

    async def request(self, method: bytes, target: bytes, headers: Fields, body: bytes) -> Response:
        """Send a request; returns when the answer's head is there. The caller must close it.

        Raises :class:`~slotd.wire.broken.Broken`.
        """
        ...


class EngineTransport(Transport, Protocol):
    """A way to an engine on a port."""

    @property
    def address(self) -> tuple[str, int]:
        """Its host and port, for what is not said over HTTP/1.1."""
        ...
