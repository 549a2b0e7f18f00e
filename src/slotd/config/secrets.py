"""Keys, apart from the configuration: it can be shown and logged, they cannot."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import SecretStr

__all__ = [
    "PRIORITIES",
    "ApiKey",
    "KeyFileInvalid",
    "KeyInvalid",
    "Secrets",
    "auth_header",
    "read_api_key",
    "read_keys_file",
    "split_keys",
]

MAX_KEYS_FILE_BYTES = 64 * 1024

PRIORITIES = range(-100, 101)
"""What the priority of a request may be; 0 is the usual one, higher ones are served first."""

_PRIORITY = ";priority="


@dataclass(frozen=True, slots=True)
class ApiKey:
    """What a client may show.

    ``priority``: what its requests have, and the most they can ask for; None: the
    usual one, and whatever they ask for.
    """

    secret: SecretStr
    priority: int | None = None


@dataclass(frozen=True, slots=True)
class Secrets:
    """What was found in the environment and in the keys file.

    ``api_keys``: what clients of slotd may show; empty = nobody is asked.
    ``upstream_keys`` and ``slot_keys``: by name, only those that are set. The
    values print as asterisks; ``get_secret_value()`` gives the text.
    """

    api_keys: tuple[ApiKey, ...] = ()
    upstream_keys: Mapping[str, SecretStr] = field(default_factory=dict)
    slot_keys: Mapping[str, SecretStr] = field(default_factory=dict)


class KeyFileInvalid(Exception):
    """The keys file cannot be used; the message follows its key in the configuration."""


class KeyInvalid(Exception):
    """A key that cannot be used; the message never repeats it."""


def read_api_key(text: str) -> ApiKey:
    """A key as it is configured: ``SECRET`` or ``SECRET;priority=N``. Raises :class:`KeyInvalid`."""
    secret, mark, number = text.partition(_PRIORITY)
    if not all_sendable([secret]):
        raise KeyInvalid("holds characters that a header cannot carry")
    if not mark:
        return ApiKey(SecretStr(secret))
    if not secret:
        raise KeyInvalid(f"has nothing before its '{_PRIORITY}'")
    try:
        priority = int(number)
    except ValueError:
        priority = PRIORITIES.stop
    if priority not in PRIORITIES:
        raise KeyInvalid(f"has a priority that is no integer from {PRIORITIES[0]} to {PRIORITIES[-1]}")
    return ApiKey(SecretStr(secret), priority)


def auth_header(auth: str, key: SecretStr | None) -> tuple[str, str] | None:
    """The header that shows ``key`` as ``auth`` says (see ``UpstreamConfig.auth``); None for none."""
    if auth == "none" or key is None:
        return None
    value = key.get_secret_value()
    if auth == "bearer":
        return ("Authorization", f"Bearer {value}")
    return (auth.removeprefix("header:"), value)


def split_keys(text: str) -> tuple[str, ...]:
    """The keys of a comma-separated list, without blanks around them."""
    return tuple(key for part in text.split(",") if (key := part.strip()))


def read_keys_file(path: Path) -> tuple[str, ...]:
    """The keys of a file: one a line; blank lines and lines that begin with # do not count.

    Raises :class:`KeyFileInvalid`; the message never repeats what the file holds.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_KEYS_FILE_BYTES + 1)
        text = raw.decode()
    except OSError as error:
        raise KeyFileInvalid(f"cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise KeyFileInvalid("is not text in UTF-8") from error
    if len(raw) > MAX_KEYS_FILE_BYTES:
        raise KeyFileInvalid(f"is longer than {MAX_KEYS_FILE_BYTES // 1024} KB; that is no list of keys")
    lines = (line.strip() for line in text.splitlines())
    keys = tuple(line for line in lines if line and not line.startswith("#"))
    if not keys:
        raise KeyFileInvalid("holds no key")
    return keys


def all_sendable(keys: Iterable[str]) -> bool:
    """Whether every key can stand in an HTTP header as it is: visible ASCII, no blanks."""
    return all(key.isascii() and key.isprintable() and " " not in key for key in keys)
