"""A connection given from the express lane to hypercorn, with what has been read of it."""

from __future__ import annotations

import trio

from slotd.gateway.express.client import ClientSocket

__all__ = ["HandedOver"]


class HandedOver(trio.abc.HalfCloseableStream):
    """The client's stream as if nothing of it had been read. Owns the socket from now on."""

    def __init__(self, client: ClientSocket) -> None:
        self._first = bytes(client.received)
        self._stream = trio.SocketStream(trio.socket.from_stdlib_socket(client.detach()))
        self.socket = self._stream.socket

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        """What had been read first, then what comes."""
        if not self._first:
            return await self._stream.receive_some(max_bytes)
        await trio.lowlevel.checkpoint()
        most = len(self._first) if max_bytes is None else max_bytes
        data, self._first = self._first[:most], self._first[most:]
        return data

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def send_eof(self) -> None:
        await self._stream.send_eof()

    async def aclose(self) -> None:
        self._first = b""  # whoever reads from now on is told that it is closed
        await self._stream.aclose()
