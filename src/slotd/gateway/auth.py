"""API keys: who may use the server."""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from typing import Protocol

from slotd.errors import AuthForbidden, AuthRequired

__all__ = ["check_key"]


class _Headers(Protocol):
    def get(self, key: str, default: str, /) -> str: ...


def check_key(headers: _Headers, keys: Mapping[str, int | None]) -> int | None:
    """Let a request pass if it carries one of ``keys``; any request if there are none.

    A key is taken from ``Authorization: Bearer`` or ``x-api-key``. Returns the
    priority that it gives, None if it gives none. Raises :class:`AuthRequired`
    without a key and :class:`AuthForbidden` with a wrong one.
    """
    if not keys:
        return None
    given = headers.get("x-api-key", "")
    authorization = headers.get("authorization", "")
    if not given and authorization[:7].lower() == "bearer ":
        given = authorization[7:].strip()
    if not given:
        raise AuthRequired(
            "this server needs an API key: send 'Authorization: Bearer KEY' or 'x-api-key: KEY'"
        )
    # Header text is latin-1 by the letter; what was meant is its bytes.
    candidate = given.encode("latin-1", "replace")
    # Every key is compared, so that the time taken tells nothing.
    found = [priority for key, priority in keys.items() if hmac.compare_digest(candidate, key.encode())]
    if not found:
        raise AuthForbidden("this API key is not known here")
    return found[0]
