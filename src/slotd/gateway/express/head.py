"""Reading the head of a request: is it one for this lane, and what does it say? Pure.

The grammar is llhttp's (through httptools), strict, and where that is lenient
(spaces in the request line, protocols that are like HTTP) ours on top. What
is not accepted, or could be read in two ways, is not for this lane: the other
one refuses it, in its own words.
"""

from __future__ import annotations

import re

import httptools

from slotd.capability.endpoints import ENDPOINTS, Endpoint
from slotd.value import Value
from slotd.wire.fields import Fields
from slotd.wire.memo import HeadMemo

__all__ = ["CHUNKED", "HeadReader", "NotPlain", "RequestHead", "could_be_plain", "read_head"]

CHUNKED = -1
"""In the place of a body's length: it comes in chunks."""

_METHOD = b"POST "
_CR = 0x0D
_END = b"\r\n\r\n"
_CLOSE = re.compile(rb"(?:^|,)[ \t]*close[ \t]*(?:,|$)", re.IGNORECASE)
_BY_TARGET = {path.encode(): endpoint for path, endpoint in ENDPOINTS.items()}


_TELLING = frozenset(
    {
        b"content-length",
        b"transfer-encoding",
        b"connection",
        b"expect",
        b"upgrade",
        b"host",
        b"origin",
    }
)
"""Headers that say something about the request itself."""


class NotPlain(Exception):
    """Not for this lane."""


class RequestHead(Value, frozen=True):
    """A request's head. ``headers`` have no ``Content-Length``: ``length`` is that, or :data:`CHUNKED`."""

    endpoint: Endpoint
    query: bytes
    headers: Fields
    length: int
    keep_alive: bool
    expects_continue: bool


def could_be_plain(data: bytes | bytearray) -> bool:
    """Whether what has come so far may become a request for this lane.

    Not if its first line ends without a CR: a head of such lines would be waited
    for in vain, since no CR LF CR LF will end it.
    """
    if len(data) < len(_METHOD):
        return _METHOD.startswith(bytes(data))
    end = data.find(b"\n")
    return data.startswith(_METHOD) and (end < 0 or data[end - 1] == _CR)


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
    # llhttp takes several spaces for one, and RTSP for HTTP.
    exact = data.startswith(b"%b%b HTTP/1.1\r\n" % (_METHOD, reader.url))
    if endpoint is None or not (reader.complete and exact):
        raise NotPlain
    lengths = hosts = 0
    length, keep_alive, expects = 0, True, False
    for name, value in reader.headers:
        if name not in _TELLING:
            continue
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
            case b"connection":
                # Not llhttp's answer: it forgets, at the end of a request without a body.
                keep_alive = keep_alive and not _CLOSE.search(value)
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
    if lengths > 1 or hosts != 1:
        raise NotPlain
    fields = Fields(field for field in reader.headers if field[0] != b"content-length")
    return RequestHead(endpoint, query, fields, length, keep_alive, expects)


class HeadReader:
    """:func:`read_head` for those that come again and again."""

    def __init__(self) -> None:
        self._memo: HeadMemo[RequestHead] = HeadMemo()

    def read(self, data: bytes, *, hand_over_origins: bool) -> RequestHead:
        """What :func:`read_head` gives, of a head that came before without looking into it."""
        end = len(data) - len(_END)
        if (found := self._memo.find(data, end)) is not None:
            head, length = found
            if length is None or length == head.length:
                return head
            return RequestHead(
                head.endpoint, head.query, head.headers, length, head.keep_alive, head.expects_continue
            )
        head = read_head(data, hand_over_origins=hand_over_origins)
        # What becomes of one of these is for the configuration to say.
        if not any(name == b"origin" for name, _ in head.headers):
            measured = data.count(b"\r\n", 0, end) > len(head.headers)  # by the one that is not among them
            self._memo.learn(data, end, len(head.headers) + measured, head.length if measured else None, head)
        return head


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
        self.headers.append((name.lower(), value.rstrip(b" \t")))  # llhttp takes off one space of several

    def on_headers_complete(self) -> None:
        self.complete = True
