"""A request as the exchange sees it, whatever web framework received it."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import Protocol

import msgspec
import trio

from slotd.capability.endpoints import Endpoint
from slotd.errors import RequestInvalid
from slotd.exchange.assemble.splice import Head, top_level
from slotd.wire.fields import Fields
from slotd.wire.multipart import short_fields

__all__ = [
    "Carrier",
    "ClientGone",
    "Head",
    "Headers",
    "Inbound",
    "Outbound",
    "all_headers",
    "header",
    "read_head",
]

Headers = Sequence[tuple[bytes, bytes]]

MODEL_MAX = 1024
"""The longest model name, in characters: it is kept in records, events and errors."""


class Inbound(msgspec.Struct, frozen=True, dict=True):
    """One client request with its whole body, which the gateway has bounded.

    ``path`` and ``query`` are as the client sent them; ``headers`` have
    lower-case names. ``key_priority``: that of the client's API key, if it has one.
    ``parent``: the request on whose behalf slotd makes this one. ``scope``: in which it
    is carried; the adapter may cancel it when its client leaves. ``scope_entered``: the
    adapter has entered it, for this request and those that follow on its connection.
    """

    id: str
    method: str
    path: str
    query: bytes
    headers: Fields
    body: bytes
    endpoint: Endpoint
    client: str = ""
    key_priority: int | None = None
    parent: str = ""
    scope: trio.CancelScope = msgspec.field(default_factory=trio.CancelScope)
    scope_entered: bool = False

    @property
    def head(self) -> Head:
        """What of the body decides; it is read once. Raises as :func:`read_head` does."""
        found: Head | None = self.__dict__.get("_head")
        if found is None:
            found = self.__dict__["_head"] = read_head(self.endpoint, self.body)
        return found

    @property
    def multipart(self) -> bool:
        """Whether the body is a form. Where one is expected, a JSON object may come too."""
        return is_form(self.endpoint, self.body)


class ClientGone(Exception):
    """Nobody reads the answer any more, though no hang-up has been seen."""


class Outbound(Protocol):
    """Where the answer goes: the adapter of a web framework.

    A client that leaves cancels the task that runs the exchange. One that often
    need not wait may have a ``put(data)`` besides: :meth:`send` that has been
    done when it returns None, and else has to be awaited, at once.
    """

    def start(self, status: int, headers: Headers, length: int | None = None, own: bytes = b"") -> None:
        """Send the response head, exactly once, before any :meth:`send`.

        ``headers`` may be those of many answers. This one's are ``length``, that of its body where it is
        known and not among the ``headers``, and ``own``: header lines, each with its end, that are
        well-formed. Raises :class:`ValueError` for ``headers`` that would break the head.
        """

    async def send(self, data: bytes) -> None:
        """Send body bytes, waiting while the client cannot take more.

        Cancelled, it has sent all of ``data`` or nothing. May be called by two
        tasks at a time; they are served in turn. Raises :class:`ClientGone` if
        the client takes nothing for ``write_timeout_s``.
        """


class Carrier(Protocol):
    """What takes a request from its first byte to its last: the exchange, or what stands before it."""

    def run(self, inbound: Inbound, out: Outbound) -> Awaitable[None]:
        """Answer it; see :meth:`slotd.exchange.exchange.Exchange.run`. To be awaited at once."""


def header(headers: Headers, name: bytes) -> bytes | None:
    """The first header of this (lower-case) name."""
    for key, value in headers:
        if key == name:
            return value
    return None


def all_headers(headers: Headers, length: int | None, own: bytes) -> list[tuple[bytes, bytes]]:
    """What :meth:`Outbound.start` gets, as one list of headers."""
    found = list(headers)
    if length is not None:
        found.append((b"content-length", b"%d" % length))
    for line in own.splitlines():
        name, _, value = line.partition(b": ")
        found.append((name, value))
    return found


def is_form(endpoint: Endpoint, body: bytes) -> bool:
    """Whether a body is a multipart form. Where one is expected, a JSON object may come too."""
    return endpoint.body == "multipart" and body[:2] == b"--"


def read_head(endpoint: Endpoint, body: bytes) -> Head:
    """Find what decides without building the document.

    Raises :class:`slotd.errors.InvalidJson`, or :class:`slotd.errors.RequestInvalid`
    for a model name beyond ``MODEL_MAX``.
    """
    if is_form(endpoint, body):
        short = short_fields(body, (b"model", b"stream"))
        return Head(short.get(b"model") or None, short.get(b"stream") == "true")
    head = top_level(body)
    if head.model is not None and len(head.model) > MODEL_MAX:
        raise RequestInvalid(f"`model` has more than {MODEL_MAX} characters", param="model")
    return head
