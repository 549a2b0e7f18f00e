"""Reading the head of a request: is it one for this lane, and what does it say? Pure.

The grammar is llhttp's (through httptools), strict. What it does not accept,
or could be read in two ways, is not for this lane: the other one refuses it,
in its own words. One thing is refused here: a body whose length is told twice.
"""

from __future__ import annotations

from dataclasses import dataclass

import httptools

from slotd.capability.endpoints import ENDPOINTS, Endpoint

__all__ = ["CHUNKED", "NotPlain", "RequestHead", "could_be_plain", "read_head"]

CHUNKED = -1
"""In the place of a body's length: it comes in chunks."""

_METHOD = b"POST "
_BY_TARGET = {path.encode(): endpoint for path, endpoint in ENDPOINTS.items()}


class NotPlain(Exception):
    """Not for this lane. ``smuggled``: it is nobody's, since it tells two lengths."""

    def __init__(self, *, smuggled: bool = False) -> None:
        super().__init__()
        self.smuggled = smuggled


@dataclass(frozen=True, slots=True)
class RequestHead:
    """A request's head. ``headers`` have lower-case names; ``length`` is the body's, or :data:`CHUNKED`."""

    endpoint: Endpoint
    query: bytes
    headers: list[tuple[bytes, bytes]]
    length: int
    keep_alive: bool
    expects_continue: bool


def could_be_plain(data: bytes | bytearray) -> bool:
    """Whether what has come so far may become a request for this lane."""
    return data.startswith(_METHOD) if len(data) >= len(_METHOD) else _METHOD.startswith(bytes(data))


def read_head(data: bytes, *, hand_over_origins: bool) -> RequestHead:
    """The head in ``data``, which is whole and ends in its empty line.

    ``hand_over_origins``: requests of web pages of another origin are for the
    other lane. Raises :class:`NotPlain`.
    """
    reader = _Reader()
    parser = httptools.HttpRequestParser(reader)
    try:
        parser.feed_data(data)
    except (httptools.HttpParserError, httptools.HttpParserUpgrade) as exc:
        raise NotPlain from exc
    target, _, query = reader.url.partition(b"?")
    endpoint = _BY_TARGET.get(target)
    if endpoint is None or not reader.complete or parser.get_http_version() != "1.1":
        raise NotPlain
    lengths = hosts = 0
    length, expects = 0, False
    for name, value in reader.headers:
        match name:
            case b"content-length":
                if not (value.isdigit() and len(value) < 16):
                    raise NotPlain
                lengths += 1
                length = int(value)
            case b"transfer-encoding":
                if value.lower() != b"chunked":
                    raise NotPlain
                lengths += 1
                length = CHUNKED
            case b"expect":
                if value.lower() != b"100-continue":
                    raise NotPlain
                expects = True
            case b"upgrade":
                raise NotPlain
            case b"host":
                hosts += 1
            case b"origin":
                if hand_over_origins:
                    raise NotPlain
            case _:
                pass
    if lengths > 1:
        raise NotPlain(smuggled=True)
    if hosts != 1:
        raise NotPlain
    return RequestHead(endpoint, query, reader.headers, length, parser.should_keep_alive(), expects)


class _Reader:
    """httptools' callbacks."""

    __slots__ = ("complete", "headers", "url")

    def __init__(self) -> None:
        self.url = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.complete = False

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self.complete = True
