"""HTTP/1.1 messages as bytes: write a request, read a response. No I/O.

:func:`encode_request` and :class:`ResponseReader` are all the client knows of
the protocol; sockets live in :mod:`slotd.wire.http1_conn`. The grammar is
llhttp's (through httptools), strict: what it does not accept is
:class:`BadResponse`.
"""

from __future__ import annotations

from collections.abc import Sequence

import httptools

from slotd.wire.broken import BadResponse

__all__ = ["RECV_BYTES", "ResponseReader", "encode_request"]

RECV_BYTES = 65536
"""The most that is read from a socket in one go, and so the most body a reader holds."""

_JOIN_BYTES = 65536
"""Bodies up to this size travel in one buffer with the head: one copy is cheaper than a second segment."""

_OWN_HEADERS = frozenset((b"host", b"content-length", b"transfer-encoding"))
_BODY_METHODS = frozenset((b"POST", b"PUT", b"PATCH"))


def encode_request(
    method: bytes, target: bytes, host: bytes, headers: Sequence[tuple[bytes, bytes]], body: bytes
) -> list[bytes]:
    """The request as the buffers to send, in order: one if the body is small, else head and body.

    ``Host`` and ``Content-Length`` are set here, and a body is never chunked,
    so the caller's ``Host``, ``Content-Length`` and ``Transfer-Encoding`` are
    left out; every other header goes out as given. Raises :class:`ValueError`
    for bytes that would break the framing (CR, LF, NUL; a space in the target).
    """
    if not method or not target or b" " in method or b" " in target:
        raise ValueError(f"not a method and a request target: {method!r} {target!r}")
    lines = [b"%b %b HTTP/1.1" % (method, target), b"Host: " + host]
    lines += [b": ".join(field) for field in headers if field[0].lower() not in _OWN_HEADERS]
    if body or method in _BODY_METHODS:
        lines.append(b"Content-Length: %d" % len(body))
    head = b"\r\n".join(lines)
    # One look at the joined head instead of one at each part: the only line
    # ends in it must be those that were just put there.
    ends = len(lines) - 1
    if head.count(b"\r") != ends or head.count(b"\n") != ends or b"\0" in head:
        raise ValueError("a CR, LF or NUL in the method, target or headers of a request")
    head += b"\r\n\r\n"
    return [head + body] if len(body) <= _JOIN_BYTES else [head, body]


class ResponseReader:
    """Reads exactly one response, fed in pieces of any size. Interim (1xx) responses are skipped.

    Feed what :meth:`wanted` allows until :attr:`head_done`, then take body
    bytes with :meth:`take` after each feed until :attr:`ended`. The head,
    interim responses included, is bounded by ``max_head_bytes``, and so is any
    run of bytes after it that carries no body (trailers, chunk extensions);
    decoded bytes that wait to be taken are bounded by what one feed brought.

    ``headers`` have lower-case names. ``events``: they announce an event stream.
    """

    __slots__ = (
        "_interim",
        "_is_head",
        "_limit",
        "_parser",
        "_pieces",
        "_quiet",
        "_until_eof",
        "any_bytes",
        "ended",
        "events",
        "head_done",
        "headers",
        "reusable",
        "status",
    )

    def __init__(self, method: bytes, max_head_bytes: int) -> None:
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.events = False
        self.any_bytes = False
        """Whether the peer has said anything at all, interim responses included."""
        self.head_done = False
        self.ended = False
        """Whether the natural end was seen."""
        self.reusable = False
        """Whether, once :attr:`ended`, another request may follow on the same connection."""
        self._is_head = method == b"HEAD"
        self._interim = False
        self._until_eof = False
        self._pieces: list[bytes] = []
        self._limit = max_head_bytes
        self._quiet = 0
        self._parser: httptools.HttpResponseParser | None = httptools.HttpResponseParser(self)

    def wanted(self) -> int:
        """How many bytes the next feed may bring at most (positive)."""
        return RECV_BYTES if self.head_done else min(RECV_BYTES, self._limit - self._quiet)

    @property
    def drained(self) -> bool:
        """Whether the natural end was seen and every body byte has been taken."""
        return self.ended and not self._pieces

    def feed(self, data: bytes) -> None:
        """Take in what the peer sent (not empty). Raises :class:`BadResponse`."""
        parser = self._parser
        if parser is None:
            raise RuntimeError("fed after the end")
        self.any_bytes = True
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
            self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        parser = self._parser
        assert parser is not None
        self.status = parser.get_status_code()
        if self.status < 200:
            if self.status == 101:
                raise BadResponse("the peer switched protocols unasked")
            self._interim = True
            self.headers.clear()
            return
        version = parser.get_http_version()
        if version not in ("1.1", "1.0"):
            raise BadResponse(f"HTTP version {version}")
        self.head_done = True
        measured = False  # whether the body announces its own end
        kind: bytes | None = None
        for name, value in self.headers:
            if name == b"content-length":
                measured = True
            elif name == b"content-type":
                kind = value if kind is None else kind
            elif name == b"transfer-encoding":
                # "chunked" anywhere: should the parser see it differently,
                # an EOF is then a cut and not mistaken for the end.
                measured = measured or b"chunked" in value.lower()
        self._until_eof = not measured
        self.events = kind is not None and b"text/event-stream" in kind.lower()
        # llama.cpp closes after a streamed answer though it advertises
        # keep-alive, so no event stream is ever followed by another request.
        # HEAD is too rare to be worth proving that no body follows it.
        self.reusable = parser.should_keep_alive() and not (self.events or self._is_head)
        if self._is_head:
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
