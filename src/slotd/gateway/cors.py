"""Cross-origin requests: which web pages may call slotd from a browser."""

from __future__ import annotations

from collections.abc import Callable

from quart import Response, request
from quart_trio import QuartTrio

__all__ = ["add_cors"]

MAX_AGE_S = 600
METHODS = "GET, POST, DELETE, OPTIONS"
EXPOSED = "x-request-id, x-slotd-route, server-timing, retry-after"


def _allowed(origin: str | None, origins: tuple[str, ...]) -> str | None:
    if not origin or not origins:
        return None
    if "*" in origins:
        return "*"
    return origin if origin in origins else None


def add_cors(app: QuartTrio, origins: Callable[[], tuple[str, ...]]) -> None:
    """Answer preflights and mark answers for pages of the configured ``origins``.

    Read at each request, since a reload may change them. Without any nothing is
    added, and a browser keeps other pages out. Register before what checks
    keys: a preflight carries none.
    """

    @app.before_request
    async def preflight() -> Response | None:
        asked = request.headers.get("access-control-request-method")
        if request.method != "OPTIONS" or asked is None:
            return None
        if _allowed(request.headers.get("origin"), origins()) is None:
            return None
        response = Response("", status=204)
        response.headers["access-control-allow-methods"] = METHODS
        wanted = request.headers.get("access-control-request-headers", "")
        response.headers["access-control-allow-headers"] = wanted or "authorization, content-type, x-api-key"
        response.headers["access-control-max-age"] = str(MAX_AGE_S)
        return response

    @app.after_request
    async def mark(response: Response) -> Response:
        configured = origins()
        if configured:
            response.headers.add("vary", "Origin")
        allowed = _allowed(request.headers.get("origin"), configured)
        if allowed is not None:
            response.headers["access-control-allow-origin"] = allowed
            response.headers["access-control-expose-headers"] = EXPOSED
        return response
