"""Which headers travel on, and which end here."""

from __future__ import annotations

from slotd.exchange.inbound import Headers

__all__ = ["for_client", "for_upstream"]

_HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
# Ours, or about this hop only. Credentials for slotd are not the upstream's
# business; encodings are kept off so that event frames can be told apart.
# A conversation id makes llama.cpp's streams resumable, and a resumable
# stream goes on generating when its client has left.
_NOT_FORWARDED = _HOP_BY_HOP | {
    b"host",
    b"content-length",
    b"expect",
    b"authorization",
    b"x-api-key",
    b"accept-encoding",
    b"x-conversation-id",
}

_OURS = frozenset({b"server", b"date", b"x-request-id"})
"""What slotd says of itself; a second voice would only make it ambiguous."""


def for_upstream(headers: Headers) -> list[tuple[bytes, bytes]]:
    """A client's request headers (lower-case names) as the upstream gets them."""
    named = _named_by_connection(headers)
    return [
        (k, v)
        for k, v in headers
        if k not in _NOT_FORWARDED and k not in named and not k.startswith(b"x-slotd-")
    ]


def for_client(headers: Headers) -> list[tuple[bytes, bytes]]:
    """An upstream's response headers as the client gets them.

    A body is relayed unchanged, so its length still holds; that of an event
    stream does not, since an error event may have to follow what has come.
    """
    lowered = [(k.lower(), v) for k, v in headers]
    named = _named_by_connection(lowered)
    events = any(k == b"content-type" and b"text/event-stream" in v.lower() for k, v in lowered)
    return [
        (k, v)
        for k, v in lowered
        if k not in _HOP_BY_HOP
        and k not in named
        and k not in _OURS
        and not k.startswith(b"x-slotd-")
        and not (events and k == b"content-length")
    ]


def _named_by_connection(headers: Headers) -> frozenset[bytes]:
    return frozenset(
        token.strip().lower() for k, v in headers if k == b"connection" for token in v.split(b",") if token
    )
