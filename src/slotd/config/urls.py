"""What an address in the configuration may look like."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

from slotd.config.names import nearest

__all__ = ["check_url", "endpoint", "is_loopback"]

_DEFAULT_PORTS = {"http": 80, "https": 443}


def check_url(text: str, *, query: bool = False) -> str | None:
    """What is wrong with an http(s) URL, in words that follow its key; None if nothing.

    The words never repeat the URL: it may hold a password.
    """
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        return "is not a URL: its host or port cannot be read"
    if "://" not in text:
        return "must begin with http:// or https://"
    if parts.scheme not in _DEFAULT_PORTS:
        near = nearest(parts.scheme, _DEFAULT_PORTS)
        return f"unknown URL scheme {parts.scheme!r}; " + (
            f"did you mean {near!r}?" if near else "use http or https"
        )
    if not parts.hostname:
        return "names no host"
    if port == 0:
        return "port 0 cannot be connected to"
    if parts.username is not None or parts.password is not None:
        return "must not hold a user name or password; the key belongs in an environment variable (key_env)"
    if not query and (parts.query or "?" in text):
        return "must not hold a query ('?')"
    if "#" in text:
        return "must not hold a fragment ('#')"
    if any(c.isspace() or not c.isprintable() for c in text):
        return "must not hold spaces or control characters"
    return None


def endpoint(url: str) -> tuple[str, int]:
    """Host and port of a URL that :func:`check_url` accepts."""
    parts = urlsplit(url)
    return parts.hostname or "", parts.port or _DEFAULT_PORTS[parts.scheme]


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach ``host``. Names other than localhost do not count."""
    if host.casefold() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
