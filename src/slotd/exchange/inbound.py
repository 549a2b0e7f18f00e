"""A request as the exchange sees it, whatever web framework received it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from slotd.capability.endpoints import Endpoint
from slotd.exchange.assemble.splice import top_level

__all__ = ["Head", "Headers", "Inbound", "Outbound", "header", "read_head"]

Headers = Sequence[tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True)
class Inbound:
    """One client request with its whole body, which the gateway has bounded.

    ``target`` is the path with query as the client sent it; ``headers`` have
    lower-case names.
    """

    id: str
    method: str
    path: str
    query: bytes
    headers: Headers
    body: bytes
    endpoint: Endpoint
    client: str = ""
    wait: bool = True


class Outbound(Protocol):
    """Where the answer goes: the adapter of a web framework.

    A client that leaves cancels the task that runs the exchange; a client
    that reads nothing for ``write_timeout_s`` does so too.
    """

    async def start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        """Send the response head. Exactly once, before any :meth:`send`."""

    async def send(self, data: bytes) -> None:
        """Send body bytes, waiting while the client cannot take more."""


@dataclass(frozen=True, slots=True)
class Head:
    """What routing needs of a body."""

    model: str | None
    stream: bool


def header(headers: Headers, name: bytes) -> bytes | None:
    """The first header of this (lower-case) name."""
    for key, value in headers:
        if key == name:
            return value
    return None


def read_head(endpoint: Endpoint, body: bytes) -> Head:
    """Find ``model`` and ``stream`` without building the document.

    Raises :class:`slotd.errors.InvalidJson`.
    """
    if endpoint.body == "multipart" and body[:2] == b"--":
        return Head(_multipart_field(body, b"model"), _multipart_field(body, b"stream") == "true")
    fields = top_level(body)
    return Head(fields.model, fields.stream)


def _multipart_field(body: bytes, name: bytes) -> str | None:
    """A short text field of a multipart body.

    The part's head is looked for behind a boundary line only, so that file
    content that looks like one is not taken for it.
    """
    boundary = body[: body.find(b"\r\n")]
    if len(boundary) < 3:
        return None
    pattern = re.compile(
        re.escape(boundary)
        + rb'\r\n(?:[^\r\n]+\r\n)*?[Cc]ontent-[Dd]isposition:[^\r\n]*;\s*name="?'
        + re.escape(name)
        + rb'"?(?:;[^\r\n]*)?\r\n(?:[^\r\n]+\r\n)*\r\n([^\r\n]{0,512})\r\n'
    )
    found = pattern.search(body)
    if found is None:
        return None
    return found.group(1).decode("utf-8", "replace") or None
