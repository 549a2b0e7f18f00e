"""Waiting for a socket in both directions."""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import Protocol

import trio

__all__ = ["wait_either"]


class _Ready(Protocol):
    async def __call__(self, sock: socket.socket, /) -> None: ...


async def wait_either(sock: socket.socket) -> None:
    """Until the socket is readable, writable or closed on this side."""

    async def wait(ready: _Ready) -> None:
        # Closed on this side: the caller looks, an exception group tells no more.
        with suppress(trio.ClosedResourceError):
            await ready(sock)
        nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait, trio.lowlevel.wait_writable)
        await wait(trio.lowlevel.wait_readable)
