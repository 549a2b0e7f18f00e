"""How the exchange reaches a target: local engines by the lean client, remotes by httpx.

Both give the same small response: status, headers, and ``receive_some``.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

import httpx
import trio

from slotd.errors import UpstreamTimeout, UpstreamUnavailable
from slotd.wire.http1 import BadResponse, ConnectFailed, Http1Pool, Http1Response, UpstreamBroken

__all__ = ["BrokenUpstream", "LocalTransport", "Remote", "RemoteTransport", "Response", "Transport"]


class BrokenUpstream(Exception):
    """The upstream refused, broke off, or answered something that is not HTTP.

    ``nonsense``: it spoke, and will hardly make more sense when asked again.
    For the exchange only: it says what to do, and turns it into a typed error.
    """

    def __init__(self, message: str, *, nonsense: bool = False) -> None:
        super().__init__(message)
        self.nonsense = nonsense


class Response(Protocol):
    """An upstream's answer whose body is still to come."""

    @property
    def status(self) -> int: ...

    @property
    def headers(self) -> list[tuple[bytes, bytes]]: ...

    async def receive_some(self) -> bytes:
        """Body bytes as they arrive; empty at the natural end. Raises :class:`BrokenUpstream`."""
        ...


class Transport(Protocol):
    def open(
        self, method: str, target: bytes, headers: list[tuple[bytes, bytes]], body: bytes
    ) -> AbstractAsyncContextManager[Response]:
        """Send a request; the answer's head is there when the block is entered.

        Leaving the block, by whatever way, closes the connection unless the
        answer was complete. Raises :class:`BrokenUpstream`.
        """
        ...


class _LocalResponse:
    __slots__ = ("_receive", "headers", "status")

    def __init__(self, inner: Http1Response) -> None:
        self._receive = inner.receive_some
        self.status = inner.status
        self.headers = inner.headers

    async def receive_some(self) -> bytes:
        try:
            return await self._receive()
        except UpstreamBroken as exc:
            raise BrokenUpstream(str(exc)) from exc
        except BadResponse as exc:
            raise BrokenUpstream(str(exc), nonsense=True) from exc


class LocalTransport:
    """To one generation of a local engine, over its pool."""

    def __init__(self, pool: Http1Pool) -> None:
        self._pool = pool

    def open(
        self, method: str, target: bytes, headers: list[tuple[bytes, bytes]], body: bytes
    ) -> AbstractAsyncContextManager[Response]:
        return _LocalRequest(self._pool, method.encode(), target, headers, body)


class _LocalRequest:
    """What ``async with`` needs, and no more: a generator in its place costs a tenth of a small request."""

    __slots__ = ("_ask", "_pool", "_response")

    def __init__(
        self, pool: Http1Pool, method: bytes, target: bytes, headers: list[tuple[bytes, bytes]], body: bytes
    ) -> None:
        self._pool = pool
        self._ask = (method, target, headers, body)
        self._response: Http1Response | None = None

    async def __aenter__(self) -> _LocalResponse:
        try:
            response = self._response = await self._pool.request(*self._ask)
        except ConnectFailed as exc:
            raise BrokenUpstream(f"no connection: {exc}") from exc
        except UpstreamBroken as exc:
            raise BrokenUpstream(str(exc)) from exc
        except BadResponse as exc:
            raise BrokenUpstream(str(exc), nonsense=True) from exc
        return _LocalResponse(response)

    async def __aexit__(self, *exc: object) -> None:
        if self._response is not None:
            self._response.abort()


@dataclass(frozen=True, slots=True)
class Remote:
    """What a request to an upstream needs. ``base`` is its URL up to and with ``/v1``."""

    name: str
    base: str
    auth_headers: Mapping[str, str]
    connect_timeout_s: float


class _RemoteResponse:
    def __init__(self, response: httpx.Response) -> None:
        self._chunks = response.aiter_raw()
        self.status = response.status_code
        self.headers = [(k.lower(), v) for k, v in response.headers.raw]

    async def receive_some(self) -> bytes:
        try:
            async for chunk in self._chunks:
                if chunk:
                    return chunk
        except httpx.HTTPError as exc:
            raise BrokenUpstream(str(exc) or type(exc).__name__) from exc
        return b""

    async def unwind(self) -> None:
        """End the body where it stands.

        httpx nests generators, and closing the outermost leaves the others to
        the garbage collector. A cancellation that begins in the innermost one
        unwinds them all.
        """
        with trio.CancelScope() as scope:
            scope.cancel()
            async for _ in self._chunks:
                pass


class RemoteTransport:
    """To an upstream that slotd does not own."""

    def __init__(self, client: httpx.AsyncClient, remote: Remote) -> None:
        self._client = client
        self._remote = remote

    @asynccontextmanager
    async def open(
        self, method: str, target: bytes, headers: list[tuple[bytes, bytes]], body: bytes
    ) -> AsyncIterator[Response]:
        remote = self._remote
        # Paths come as "/v1/..." and the configured base ends in "/v1".
        path = target.decode("latin-1")
        url = remote.base.rstrip("/") + (
            path.removeprefix("/v1") if remote.base.rstrip("/").endswith("/v1") else path
        )
        outgoing = [(k.decode("latin-1"), v.decode("latin-1")) for k, v in headers]
        outgoing += list(remote.auth_headers.items())
        outgoing.append(("accept-encoding", "identity"))
        timeout = httpx.Timeout(None, connect=remote.connect_timeout_s)
        request = self._client.build_request(method, url, headers=outgoing, content=body, timeout=timeout)
        try:
            response = await self._client.send(request, stream=True)
        except httpx.ConnectTimeout as exc:
            raise UpstreamTimeout(
                f"upstream {remote.name!r} did not accept a connection within {remote.connect_timeout_s:g} s"
            ) from exc
        except httpx.ConnectError as exc:
            raise UpstreamUnavailable(f"upstream {remote.name!r} cannot be reached: {exc}") from exc
        except httpx.HTTPError as exc:
            raise UpstreamUnavailable(f"upstream {remote.name!r} broke off: {exc}") from exc
        remote_response = _RemoteResponse(response)
        try:
            yield remote_response
        finally:
            try:
                await remote_response.unwind()
            finally:
                await response.aclose()
