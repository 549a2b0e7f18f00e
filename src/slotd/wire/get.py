"""One small GET, as probes need it: an answer, or none."""

from __future__ import annotations

import errno

import trio

from slotd.wire.http1 import Broken, ConnectFailed, Http1Pool

__all__ = ["SHORTAGE", "get"]

MAX_BODY = 1 << 20

SHORTAGE = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.EADDRNOTAVAIL})
"""What this side lacked: it says nothing about the one that was to be asked."""


async def get(http: Http1Pool, path: str, timeout_s: float) -> tuple[int, bytes] | None:
    """Status and body (cut near 1 MiB), or None if there was no HTTP answer in time.

    Raises :class:`OSError` if the question could not even be asked for want of
    descriptors, ports or memory here (:data:`SHORTAGE`).
    """
    with trio.move_on_after(timeout_s):
        try:
            async with await http.request(b"GET", path.encode(), [], b"") as response:
                body = bytearray()
                while len(body) <= MAX_BODY and (data := await response.receive_some()):
                    body += data
                return response.status, bytes(body)
        except ConnectFailed as exc:
            cause = exc.__context__
            if isinstance(cause, OSError) and cause.errno in SHORTAGE:
                raise cause from None
        except Broken:
            return None
    return None
