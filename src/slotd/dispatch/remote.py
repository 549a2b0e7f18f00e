"""Asking a remote for its catalog over HTTP."""

from __future__ import annotations

import os
from collections.abc import Mapping

import httpx
import msgspec
import trio
from pydantic import SecretStr

from slotd.config import auth_header
from slotd.dispatch.catalog import CatalogUnavailable
from slotd.dispatch.entries import UpstreamEntry

__all__ = ["CatalogFetcher", "SharedClient", "new_client"]

MAX_ANSWER_BYTES = 8 << 20


class _Model(msgspec.Struct):
    id: str


class _ModelList(msgspec.Struct):
    data: list[_Model]


_decoder = msgspec.json.Decoder(_ModelList)


def new_client() -> httpx.AsyncClient:
    """The client that all fetches share; who makes it closes it.

    Unbounded connections: the machine bounds the fetches, and a bounded pool
    of httpcore loses places to cancelled requests. No proxies from the
    environment: where a catalog comes from is what the configuration says.
    """
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=16)
    return httpx.AsyncClient(trust_env=False, follow_redirects=False, limits=limits)


class SharedClient:
    """The client of :func:`new_client`, made when a remote is first asked.

    A start with no remote does without: to load httpcore and the certificates takes 30 ms.
    """

    def __init__(self) -> None:
        self._made: httpx.AsyncClient | None = None

    def get(self) -> httpx.AsyncClient:
        """The same one each time."""
        if self._made is None:
            self._made = new_client()
        return self._made

    async def aclose(self) -> None:
        """Close it, if it was made. Afterwards it must not be asked for."""
        if self._made is not None:
            await self._made.aclose()


class CatalogFetcher:
    """Fetches ``/models`` of a remote. Keys are read from ``environ`` when they are needed."""

    def __init__(self, client: httpx.AsyncClient, environ: Mapping[str, str] = os.environ) -> None:
        self._client = client
        self._environ = environ

    async def __call__(self, upstream: UpstreamEntry) -> tuple[str, ...]:
        """The ids that it lists, in its order.

        Raises :class:`CatalogUnavailable` with the reason. Only the connect
        has a time-out here; the deadline of the whole is the caller's, who
        may cancel at any point.
        """
        headers = self._headers(upstream)
        timeout = httpx.Timeout(None, connect=upstream.connect_timeout_s)
        try:
            async with self._client.stream(
                "GET", upstream.url.rstrip("/") + "/models", headers=headers, timeout=timeout
            ) as response:
                if response.status_code != 200:
                    raise CatalogUnavailable(f"it answered {response.status_code}")
                if response.headers.get("content-encoding", "identity") != "identity":
                    # Asked not to; what it unpacks to has no bound.
                    raise CatalogUnavailable("its answer is compressed")
                body = await _bounded(response)
        except httpx.ConnectTimeout as exc:
            raise CatalogUnavailable(f"no connection within {upstream.connect_timeout_s:g} s") from exc
        except httpx.ConnectError as exc:
            raise CatalogUnavailable(f"cannot connect: {exc}") from exc
        except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as exc:
            # The last two: what a remote or a key can provoke below httpx's own errors.
            raise CatalogUnavailable(f"{type(exc).__name__}: {exc}") from exc
        try:
            return tuple(m.id for m in _decoder.decode(body).data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
            raise CatalogUnavailable(f"its answer is no list of models: {exc}") from exc

    def _headers(self, upstream: UpstreamEntry) -> dict[str, str]:
        headers = {"accept": "application/json", "accept-encoding": "identity"}
        if upstream.auth == "none":
            return headers
        key = self._environ.get(upstream.key_env, "").strip()
        if not key:
            raise CatalogUnavailable(f"its key is missing: {upstream.key_env or 'key_env'} is not set")
        shown = auth_header(upstream.auth, SecretStr(key))
        return headers if shown is None else {**headers, shown[0]: shown[1]}


async def _bounded(response: httpx.Response) -> bytes:
    body = bytearray()
    # Leaving the loop early would leave httpx's nested generators to the
    # garbage collector; a cancellation unwinds them from the inside.
    with trio.CancelScope() as enough:
        async for chunk in response.aiter_raw():
            body += chunk
            if len(body) > MAX_ANSWER_BYTES:
                enough.cancel()
    if len(body) > MAX_ANSWER_BYTES:
        raise CatalogUnavailable(f"its answer is longer than {MAX_ANSWER_BYTES >> 20} MiB")
    return bytes(body)
