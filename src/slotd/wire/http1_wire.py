"""HTTP/1.1 messages as bytes: write a request, read a response. No I/O.

:func:`encode_request` and :class:`ResponseReader` are all the client knows of
the protocol; sockets live in :mod:`slotd.wire.http1_conn`. The grammar is
llhttp's (through httptools), strict: what it does not accept is
:class:`BadResponse`.
"""

from __future__ import annotations

import httptools

from slotd.value import Value
from slotd.wire.broken import BadResponse
from slotd.wire.fields import Field, Fields, lines
from slotd.wire.memo import HeadMemo

__all__ = ["RECV_BYTES", "ResponseHead", "ResponseReader", "encode_request"]

RECV_BYTES = 65536
"""The most that is read from a socket in one go, and so the most body a reader holds."""

_JOIN_BYTES = 65536
"""Bodies up to this size travel in one buffer with the head: one copy is cheaper than a second segment."""

_OWN_HEADERS = frozenset((b"host", b"content-length", b"transfer-encoding"))
_BODY_METHODS = frozenset((b"POST", b"PUT", b"PATCH"))
_BODILESS = frozenset((204, 304))
_END = b"\r\n\r\n"
_NO_FIELDS = Fields()


def encode_request(method: bytes, target: bytes, host: bytes, headers: Fields, body: bytes) -> list[bytes]:
    """The request as the buffers to send, in order: one if the body is small, else head and body.

    ``Host`` and ``Content-Length`` are set here, and a body is never chunked,
    so the caller's ``Host``, ``Content-Length`` and ``Transfer-Encoding`` are
    left out; every other header goes out as given. Raises :class:`ValueError`
    for bytes that would break the framing (CR, LF, NUL; a space in the target).
    """
    first = b"%b %b HTTP/1.1" % (method, target)
    if first.count(b" ") != 2 or not method or not target:
        raise ValueError(f"not a method and a request target: {method!r} {target!r}")
    if b"\r" in first or b"\n" in first or b"\0" in first:
        raise ValueError("a CR, LF or NUL in the method or target of a request")
    fields = headers.derive(_lines_of_request)
    if body or method in _BODY_METHODS:
        head = b"%b\r\nHost: %b\r\n%bContent-Length: %d\r\n\r\n" % (first, host, fields, len(body))
    else:
        head = b"%b\r\nHost: %b\r\n%b\r\n" % (first, host, fields)
    return [head + body] if len(body) <= _JOIN_BYTES else [head, body]


def _lines_of_request(headers: Fields) -> bytes:
    return lines(Fields(field for field in headers if field[0].lower() not in _OWN_HEADERS))


class ResponseHead(Value, frozen=True):
    """What the head of a response says, but for the length of its body.

    ``events``: it announces an event stream. ``reusable``: another request may
    follow on the same connection.
    """

    status: int
    headers: Fields
    events: bool
    reusable: bool


class ResponseReader:
    """Reads exactly one response, fed in pieces of any size. Interim (1xx) responses are skipped.

    Feed what :meth:`wanted` allows until :attr:`head_done`, then take body
    bytes with :meth:`take` after each feed until :attr:`ended`. The head,
    interim responses included, is bounded by ``max_head_bytes``, and so is any
    run of bytes after it that carries no body (trailers, chunk extensions);
    decoded bytes that wait to be taken are bounded by what one feed brought.

    ``memo``: heads that this peer has sent before. One of those, with the length
    of its body, is not parsed again, nor is that body.

    ``headers`` have lower-case names, and are without ``Content-Length``, which is in
    ``length`` (None: the response has none). ``events``: they announce an event stream.
    """

    __slots__ = (
        "_interim",
        "_keeps_alive",
        "_left",
        "_limit",
        "_memo",
        "_method",
        "_named",
        "_parser",
        "_pieces",
        "_quiet",
        "_until_eof",
        "any_bytes",
        "ended",
        "events",
        "head_done",
        "headers",
        "length",
        "reusable",
        "status",
    )

    def __init__(
        self, method: bytes, max_head_bytes: int, memo: HeadMemo[ResponseHead] | None = None
    ) -> None:
        self.status = 0
        self.headers = _NO_FIELDS
        self.length: int | None = None
        self.events = False
        self.any_bytes = False
        """Whether the peer has said anything at all, interim responses included."""
        self.head_done = False
        self.ended = False
        """Whether the natural end was seen."""
        self.reusable = False
        """Whether, once :attr:`ended`, another request may follow on the same connection."""
        self._method = method
        self._memo = memo if method != b"HEAD" else None  # which says of a length that is not there
        self._interim = False
        self._keeps_alive = False
        self._until_eof = False
        self._named: list[Field] = []
        self._pieces: list[bytes] = []
        self._limit = max_head_bytes
        self._quiet = 0
        self._left = -1  # how much of a body is still to come, of which that is known
        self._parser: httptools.HttpResponseParser | None = None

    def wanted(self) -> int:
        """How many bytes the next feed may bring at most (positive)."""
        return RECV_BYTES if self.head_done else min(RECV_BYTES, self._limit - self._quiet)

    @property
    def drained(self) -> bool:
        """Whether the natural end was seen and every body byte has been taken."""
        return self.ended and not self._pieces

    def feed(self, data: bytes) -> None:
        """Take in what the peer sent (not empty). Raises :class:`BadResponse`."""
        if not self.any_bytes:
            self.any_bytes = True
            self._begin(data)
        elif self._left >= 0:
            self._measure(data, 0)
        else:
            self._parse(data)

    def _begin(self, data: bytes) -> None:
        """Take in what comes first."""
        # Behind empty lines, which the parser passes over, the first such end is not the head's.
        end = data.find(_END) if data.startswith(b"HTTP/") else -1
        known = self._memo.find(data, end) if self._memo is not None and end >= 0 else None
        if known is not None and (length := known[1]) is not None:
            head = known[0]
            self.status, self.headers, self.length = head.status, head.headers, length
            self.events, self.reusable = head.events, head.reusable
            self.head_done = True
            self._left = length
            self._measure(data, end + len(_END))
            return
        self._parser = httptools.HttpResponseParser(self)
        self._parse(data)
        if not self.head_done or end < 0:
            return
        if known is not None:
            self.headers = known[0].headers  # what has been worked out of them is there
        elif self._memo is not None:
            head = ResponseHead(self.status, self.headers, self.events, self._keeps_alive)
            self._memo.learn(data, end, len(self._named), self.length, head)

    def _measure(self, data: bytes, start: int) -> None:
        """Take in ``data[start:]``, of a body whose length is known."""
        if self.ended:
            raise RuntimeError("fed after the end")
        here = len(data) - start
        if here > self._left:
            self.reusable = False  # the answer stands, the connection does not
            here = self._left
        if here:
            self._pieces.append(data[start : start + here])
            self._left -= here
        self.ended = not self._left

    def _parse(self, data: bytes) -> None:
        parser = self._parser
        if parser is None:
            raise RuntimeError("fed after the end")
        in_head = not self.head_done
        try:
            parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as exc:
            # After the natural end an error only means surplus bytes: the
            # answer stands, the connection does not.
            if not self.ended:
                self.stop()
                cause = exc.__context__ if isinstance(exc.__context__, BadResponse) else exc
                raise BadResponse(f"not an HTTP/1.1 response: {cause}") from exc
            self.reusable = False
        if self.ended:
            self.stop()
        elif self._pieces or in_head == self.head_done:
            self._quiet = 0
        else:
            self._quiet += len(data)
            if self._quiet >= self._limit:
                self.stop()
                where = "a response head" if in_head else "a stretch of the response without body"
                raise BadResponse(f"{where} of more than {self._limit} bytes")

    def feed_eof(self) -> bool:
        """The peer closed its side. True if that is how this response ends, false if it is cut."""
        if self._until_eof and not self.ended:
            self.ended = True
            self.stop()
        return self.ended

    def take(self) -> bytes:
        """The body bytes that have arrived since the last call, joined; may be empty."""
        pieces = self._pieces
        if not pieces:
            return b""
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        return data

    def stop(self) -> None:
        """Read no further. Idempotent."""
        # Parser and reader hold each other; without this every response
        # would wait for the cycle collector.
        self._parser = None

    # --- callbacks of the parser ---------------------------------------------

    def on_message_begin(self) -> None:
        if self.head_done:
            raise BadResponse("bytes after the end of the response")

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.head_done:  # later ones are trailers
            self._named.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        parser = self._parser
        assert parser is not None
        self.status = parser.get_status_code()
        if self.status < 200:
            if self.status == 101:
                raise BadResponse("the peer switched protocols unasked")
            self._interim = True
            self._memo = None  # what comes does not begin with the head that counts
            self._named.clear()
            return
        version = parser.get_http_version()
        if version not in ("1.1", "1.0"):
            raise BadResponse(f"HTTP version {version}")
        self.head_done = True
        is_head = self._method == b"HEAD"
        kept: list[Field] = []
        chunked = False
        kind: bytes | None = None
        for field in self._named:
            name, value = field
            if name == b"content-length":
                self.length = int(value)
                continue
            kept.append(field)
            if name == b"content-type":
                kind = value if kind is None else kind
            elif name == b"transfer-encoding":
                # "chunked" anywhere: should the parser see it differently,
                # an EOF is then a cut and not mistaken for the end.
                chunked = chunked or b"chunked" in value.lower()
        self.headers = Fields(kept)
        if self.length is not None and (chunked or self.status in _BODILESS):
            self._memo = None  # the body is not of this length
        self._until_eof = self.length is None and not chunked
        self.events = kind is not None and b"text/event-stream" in kind.lower()
        # llama.cpp closes after a streamed answer though it advertises
        # keep-alive, so no event stream is ever followed by another request.
        # HEAD is too rare to be worth proving that no body follows it.
        self.reusable = self._keeps_alive = parser.should_keep_alive() and not (self.events or is_head)
        if is_head:
            self.ended = True

    def on_body(self, data: bytes) -> None:
        if self._interim:
            raise BadResponse(f"a body in an interim response ({self.status})")
        if not self.ended:
            self._pieces.append(data)

    def on_message_complete(self) -> None:
        if self._interim:
            self._interim = False
        else:
            self.ended = True
