"""Which headers travel on, and which end here. Names are in lower case, here and everywhere."""

from __future__ import annotations

from slotd.exchange.inbound import Headers
from slotd.wire.fields import Fields

__all__ = ["for_client", "for_upstream", "is_events"]

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

_NOT_ANSWERED = _HOP_BY_HOP | {
    # What slotd says of itself; a second voice would only make it ambiguous.
    b"server",
    b"date",
    b"x-request-id",
}


def for_upstream(headers: Headers) -> Fields:
    """A client's request headers as the upstream gets them. To be derived, where they are kept."""
    return _without(headers, _NOT_FORWARDED)


def for_client(headers: Headers) -> Fields:
    """An upstream's response headers, its body's length apart, as the client gets them. To be derived."""
    return _without(headers, _NOT_ANSWERED)


def is_events(headers: Headers) -> bool:
    """Whether these headers announce an event stream."""
    for k, v in headers:
        if k == b"content-type":
            return b"text/event-stream" in v.lower()
    return False


def _without(headers: Headers, ours: frozenset[bytes]) -> Fields:
    """Those that travel on: neither ours, nor named as this hop's only."""
    kept, named = [], None
    for field in headers:
        name = field[0]
        if name in ours:
            if name == b"connection" and field[1] != b"keep-alive":
                named = _names(field[1]) | (named or set())
        elif not name.startswith(b"x-slotd-"):
            kept.append(field)
    return Fields(field for field in kept if field[0] not in named) if named else Fields(kept)


def _names(value: bytes) -> set[bytes]:
    """What a ``Connection`` header names."""
    return {token.strip().lower() for token in value.split(b",")}
