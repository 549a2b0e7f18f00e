"""What is wrong with a request as HTTP, before anybody has looked at what it asks for."""

from __future__ import annotations

from slotd.errors import RequestInvalid

__all__ = ["BodyTimeout", "HeadTimeout", "HeadTooLarge", "InvalidHttp"]


class InvalidHttp(RequestInvalid):
    """What came is no HTTP/1.1 request."""

    code = "request.invalid_http"


class HeadTooLarge(RequestInvalid):
    code = "request.head_too_large"
    status = 431


class HeadTimeout(RequestInvalid):
    """A request has begun, and its head does not come to an end."""

    code = "request.head_timeout"
    status = 408


class BodyTimeout(RequestInvalid):
    """A request's body does not come to an end."""

    code = "request.body_timeout"
    status = 408
