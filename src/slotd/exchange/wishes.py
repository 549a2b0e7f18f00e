"""What a client asks of slotd itself, by headers: how long it waits, and how urgent it is."""

from __future__ import annotations

import re

from slotd.config.secrets import PRIORITIES
from slotd.errors import RequestInvalid
from slotd.exchange.inbound import Headers, header
from slotd.value import Value
from slotd.wire.fields import Fields

__all__ = ["Wishes", "read_wishes"]

_SECONDS = re.compile(rb"\d{1,6}(?:\.\d{1,6})?", re.ASCII)
_INTEGER = re.compile(rb"[+-]?\d{1,3}", re.ASCII)


class Wishes(Value, frozen=True):
    """``wait_s``: seconds the client is ready to wait for a slot, None for as long as it takes.

    ``priority``: higher ones are served first, 0 is the usual one.
    """

    wait_s: float | None = None
    priority: int = 0


_NONE = Wishes()


def read_wishes(headers: Fields, key_priority: int | None = None) -> Wishes:
    """The wishes that ``X-Slotd-Wait`` and ``X-Slotd-Priority`` express.

    ``key_priority`` is that of the API key, if it has one: what is taken where
    the request states none, and the most that it gets. Raises
    :class:`RequestInvalid` for a header that says nothing that can be meant.
    """
    wait, priority = headers.derive(_told)
    wait_s: float | None = None
    if wait is not None:
        if not _SECONDS.fullmatch(wait):
            raise RequestInvalid(
                f"X-Slotd-Wait: {_shown(wait)} is no number of seconds", param="X-Slotd-Wait"
            )
        wait_s = float(wait)
    if priority is None:
        return _NONE if wait_s is None and not key_priority else Wishes(wait_s, key_priority or 0)
    if not _INTEGER.fullmatch(priority) or int(priority) not in PRIORITIES:
        raise RequestInvalid(
            f"X-Slotd-Priority: {_shown(priority)} is no integer from {PRIORITIES[0]} to {PRIORITIES[-1]}",
            param="X-Slotd-Priority",
        )
    wanted = int(priority)
    return Wishes(wait_s, wanted if key_priority is None else min(wanted, key_priority))


def _told(headers: Headers) -> tuple[bytes | None, bytes | None]:
    return header(headers, b"x-slotd-wait"), header(headers, b"x-slotd-priority")


def _shown(value: bytes) -> str:
    return repr(value[:32].decode("latin-1"))
