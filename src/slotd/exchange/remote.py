"""How the exchange reaches what slotd does not own: by httpx."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

import httpx
import trio

from slotd.errors import UpstreamTimeout, UpstreamUnavailable
from slotd.exchange.headers import is_events
from slotd.exchange.inbound import header
from slotd.wire.broken import Broken
from slotd.wire.fields import Fields
from slotd.wire.transport import Response

__all__ = ["Remote", "RemoteTransport"]


@dataclass(frozen=True, slots=True)
class Remote:
    """What a request to an upstream needs. ``base`` is its URL up to and with ``/v1``."""

    name: str
    base: str
    auth_headers: Mapping[str, str]
    connect_timeout_s: float


class _RemoteResponse:
    def __init__(self, response: httpx.Response) -> None:
        self._response = response
        self._chunks = response.aiter_raw()
        self.status = response.status_code
        received = [(k.lower(), v) for k, v in response.headers.raw]
        length = header(received, b"content-length") or b""
        self.length = int(length) if length.isdigit() else None
        self.headers = Fields(field for field in received if field[0] != b"content-length")
        self.events = is_events(self.headers)
        self.complete = False

    def take(self) -> bytes:
        return b""

    async def receive_some(self) -> bytes:
        try:
            async for chunk in self._chunks:
                if chunk:
                    return chunk
        except httpx.HTTPError as exc:
            raise Broken(str(exc) or type(exc).__name__) from exc
        self.complete = True
        self._let_go()
        return b""

    async def aclose(self) -> None:
        try:
            await self._unwind()
        finally:
            await self._response.aclose()
            self._let_go()

    def _let_go(self) -> None:
        """httpx ties a response and its stream to one another, and to the request with its body."""
        self._response.stream = httpx.ByteStream(b"")

    async def _unwind(self) -> None:
        """End the body where it stands.

        httpx nests generators, and closing the outermost leaves the others to
        the garbage collector. A cancellation that begins in the innermost one
        unwinds them all.
        """
        with suppress(httpx.HTTPError), trio.CancelScope() as scope:  # no news: nobody wants the rest
            scope.cancel()
            async for _ in self._chunks:
                pass


class RemoteTransport:
    """Implements :class:`~slotd.wire.transport.Transport`."""

    def __init__(self, client: httpx.AsyncClient, remote: Remote) -> None:
        self._client = client
        self._remote = remote

    async def request(self, method: bytes, target: bytes, headers: Fields, body: bytes) -> Response:
        """See :class:`~slotd.wire.transport.Transport`.

        Raises also :class:`UpstreamTimeout` and :class:`UpstreamUnavailable`.
        """
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
        request = self._client.build_request(
            method.decode(), url, headers=outgoing, content=body, timeout=timeout
        )
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
        return _RemoteResponse(response)
