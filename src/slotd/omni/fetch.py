"""Fetching an address that a model gives: only where the operator lets it, and never from inside.

A model may be made to ask for anything by what it has read. So the host is
resolved here, each address is judged, and the connection goes to the very
address that was judged: a name that means something else a moment later
changes nothing. Each redirect is judged anew.
"""

from __future__ import annotations

import ipaddress
import socket
import ssl
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import httpx
import trio

from slotd.omni.failure import ToolFailed
from slotd.omni.media import UNKNOWN, Media, sniff

__all__ = ["FetchRules", "Resolve", "fetch", "is_public", "may_reach"]

REDIRECTS = 3
_REDIRECT = frozenset({301, 302, 303, 307, 308})
_CHUNK = 65536

IpAddress: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolve: TypeAlias = Callable[[str, int], Awaitable[list[str]]]
"""A host and a port to addresses. Raises ``OSError``."""

_NAT64 = ipaddress.ip_network("64:ff9b::/96")


@dataclass(frozen=True, slots=True)
class FetchRules:
    """``private``: hosts and networks that may be reached although they are not public."""

    allowed: bool = False
    private: tuple[str, ...] = ()
    max_bytes: int = 32 << 20
    timeout_s: float = 30.0


def is_public(address: IpAddress) -> bool:
    """Whether everybody on the internet could reach it. What an address stands for counts, too."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if inner is None and address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is None and address.teredo is not None:
            inner = address.teredo[1]
        if inner is not None:
            return is_public(inner)
        if address.is_site_local:
            return False
    return address.is_global and not (
        address.is_private
        or address.is_loopback
        or address.is_link_local
        or address.is_reserved
        or address.is_multicast
        or address.is_unspecified
    )


def may_reach(host: str, address: str, private: Collection[str]) -> bool:
    """Whether ``host`` may be fetched from at ``address``. Pure."""
    try:
        found: IpAddress = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if is_public(found):
        return True
    if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is not None:
        found = found.ipv4_mapped
    for entry in private:
        try:
            network = ipaddress.ip_network(entry, strict=False)
        except ValueError:
            if entry.lower().rstrip(".") == host.lower().rstrip("."):
                return True
        else:
            if found in network:
                return True
    return False


LOOKUPS_MAX = 8

_lookups: trio.lowlevel.RunVar[trio.CapacityLimiter] = trio.lowlevel.RunVar("slotd-lookups")


async def _resolve(host: str, port: int) -> list[str]:
    # A name that no server answers for keeps its thread when it is given up.
    # Threads of a limiter of their own: the rest of slotd never waits for these.
    try:
        limiter = _lookups.get()
    except LookupError:
        _lookups.set(limiter := trio.CapacityLimiter(LOOKUPS_MAX))
    ask = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
    found = await trio.to_thread.run_sync(ask, abandon_on_cancel=True, limiter=limiter)
    return [str(info[4][0]) for info in found]


async def fetch(url: str, rules: FetchRules, resolve: Resolve = _resolve) -> Media:
    """Get what is at ``url``. Raises :class:`ToolFailed`; nothing of it goes on after that."""
    if not rules.allowed:
        raise ToolFailed(
            "addresses are not fetched here (omni.fetch_urls); give base64 or another tool's URL"
        )
    try:
        with trio.fail_after(rules.timeout_s):
            return await _follow(url, rules, resolve)
    except trio.TooSlowError as exc:
        raise ToolFailed(f"fetching took longer than {rules.timeout_s:g} s (omni.fetch_timeout_s)") from exc
    except httpx.HTTPError as exc:
        raise ToolFailed(f"fetching failed: {exc or type(exc).__name__}") from exc
    except (httpx.InvalidURL, UnicodeError) as exc:  # httpx itself looks at where a redirect leads
        raise ToolFailed(f"it leads to what is no URL: {exc}") from exc


async def _follow(url: str, rules: FetchRules, resolve: Resolve) -> Media:
    for _ in range(REDIRECTS + 1):
        found = await _once(_parsed(url), rules, resolve)
        if isinstance(found, Media):
            return found
        url = found
    raise ToolFailed(f"more than {REDIRECTS} redirects")


def _parsed(url: str) -> httpx.URL:
    try:
        parsed = httpx.URL(url)
        host = parsed.host  # an international name is only read here
    except (httpx.InvalidURL, UnicodeError) as exc:
        raise ToolFailed(f"this is no URL: {exc}") from exc
    if parsed.scheme not in ("http", "https") or not host:
        raise ToolFailed("only http and https addresses are fetched")
    if parsed.userinfo:
        raise ToolFailed("an address with a user name or password is not fetched")
    return parsed


async def _once(url: httpx.URL, rules: FetchRules, resolve: Resolve) -> Media | str:
    """What is there, or where to look instead."""
    address = await _address(url, rules, resolve)
    host = url.raw_host.decode("ascii")
    named = f"[{host}]" if ":" in host else host
    headers = {
        "host": named if url.port is None else f"{named}:{url.port}",
        "accept-encoding": "identity",
        "user-agent": "slotd",
    }
    verify: ssl.SSLContext | bool = False
    if url.scheme == "https":
        # Reading the certificates takes long enough to hold everybody else up.
        verify = await trio.to_thread.run_sync(httpx.create_ssl_context)
    async with httpx.AsyncClient(
        trust_env=False, verify=verify, follow_redirects=False, timeout=rules.timeout_s
    ) as client:
        request = client.build_request("GET", url.copy_with(host=address), headers=headers)
        # The certificate has to be that of the name, not of the address.
        request.extensions["sni_hostname"] = host
        response = await client.send(request, stream=True)
        try:
            return await _read(url, response, rules)
        finally:
            await response.aclose()


async def _address(url: httpx.URL, rules: FetchRules, resolve: Resolve) -> str:
    host = url.host
    port = url.port or (443 if url.scheme == "https" else 80)
    try:
        found = await resolve(url.raw_host.decode("ascii"), port)
    except (OSError, UnicodeError) as exc:
        raise ToolFailed(f"the host {host!r} cannot be found: {exc}") from exc
    for address in found:
        if may_reach(host, address, rules.private):
            return address
    raise ToolFailed(f"the host {host!r} is not a public one; fetching from it is not allowed")


async def _read(url: httpx.URL, response: httpx.Response, rules: FetchRules) -> Media | str:
    if response.status_code in _REDIRECT and "location" in response.headers:
        return str(url.join(response.headers["location"]))
    if response.status_code != 200:
        raise ToolFailed(f"fetching was answered with status {response.status_code}")
    if response.headers.get("content-encoding", "identity") != "identity":
        raise ToolFailed("it comes compressed, though that was not asked for")
    too_large = ToolFailed(f"it is larger than {rules.max_bytes >> 20} MiB (omni.fetch_max_mb)")
    length = response.headers.get("content-length", "")
    if length.isascii() and length.isdigit() and int(length) > rules.max_bytes:
        raise too_large
    data = bytearray()
    chunks = response.aiter_raw(_CHUNK)
    try:
        async for chunk in chunks:
            data += chunk
            if len(data) > rules.max_bytes:
                raise too_large
    finally:
        # httpx nests generators: a cancellation that begins in the innermost ends them all.
        with trio.CancelScope() as scope:
            scope.cancel()
            async for _ in chunks:
                pass
    if not data:
        raise ToolFailed("what is there is empty")
    kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    return Media(bytes(data), sniff(bytes(data), kind or UNKNOWN))
