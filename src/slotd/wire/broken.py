"""How a request to an upstream comes to nothing."""

from __future__ import annotations

__all__ = ["BadResponse", "Broken", "ConnectFailed", "UpstreamBroken"]


class Broken(Exception):
    """An upstream refused, broke off, or answered something that is not HTTP.

    ``nonsense``: it spoke, and will hardly make more sense when asked again.
    """

    def __init__(self, message: str, *, nonsense: bool = False) -> None:
        super().__init__(message)
        self.nonsense = nonsense


class ConnectFailed(Broken):
    """No connection could be made. The cause is chained (an :class:`OSError`), unless the pool was closed."""


class UpstreamBroken(Broken):
    """The connection ended before the response did: by the peer, by a failure, or closed on this side.

    ``bytes_received`` tells whether any byte of the response had arrived; if
    not, nothing is known about what the engine has done with the request.
    """

    def __init__(self, message: str, *, bytes_received: bool) -> None:
        super().__init__(message)
        self.bytes_received = bytes_received


class BadResponse(Broken):
    """The peer sent something that is not an HTTP/1.1 response to a plain request."""

    def __init__(self, message: str) -> None:
        super().__init__(message, nonsense=True)
