"""Which headers travel on, and which end here."""

from __future__ import annotations

from slotd.exchange.inbound import Headers

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


def for_upstream(headers: Headers) -> list[tuple[bytes, bytes]]:
    """A client's request headers (lower-case names) as the upstream gets them."""
    return _without(headers, _NOT_FORWARDED)


def for_client(headers: Headers) -> list[tuple[bytes, bytes]]:
    """An upstream's response headers as the client gets them, names in lower case.

    A body is relayed unchanged, so its length still holds; that of an event
    stream does not, since an error event may have to follow what has come.
    """
    kept = _without([(k.lower(), v) for k, v in headers], _NOT_ANSWERED)
    if is_events(kept):
        return [field for field in kept if field[0] != b"content-length"]
    return kept


def is_events(headers: Headers) -> bool:
    """Whether these headers announce an event stream."""
    for k, v in headers:
        if k.lower() == b"content-type":
            return b"text/event-stream" in v.lower()
    return False


def _without(headers: Headers, ours: frozenset[bytes]) -> list[tuple[bytes, bytes]]:
    kept = [field for field in headers if field[0] not in ours and not field[0].startswith(b"x-slotd-")]
    named: set[bytes] = set()
    for k, v in headers:
        if k == b"connection":
            named.update(token.strip().lower() for token in v.split(b","))
    return [field for field in kept if field[0] not in named] if named else kept
