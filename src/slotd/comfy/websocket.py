"""A websocket that only listens, on a trio stream: wsproto does the protocol."""

from __future__ import annotations

from collections.abc import Callable

import trio
from wsproto import ConnectionType, WSConnection
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Ping,
    RejectConnection,
    Request,
    TextMessage,
)
from wsproto.utilities import RemoteProtocolError

__all__ = ["listen"]

RECV_BYTES = 65536
MESSAGE_MAX = 16 << 20
"""Bytes or characters; previews are pictures. A longer message ends the websocket."""


async def listen(
    stream: trio.abc.Stream,
    host: str,
    target: str,
    opened: Callable[[], None],
    heard: Callable[[str | bytes], None],
) -> None:
    """Open a websocket on ``stream`` and listen; returns when it has ended, whoever ended it, or was refused.

    ``opened`` is called once it is open, ``heard`` with each whole message.
    The stream is the caller's to close. Raises :class:`trio.BrokenResourceError`
    for a connection that breaks.
    """
    socket = WSConnection(ConnectionType.CLIENT)
    await stream.send_all(socket.send(Request(host=host, target=target)))
    parts: list[str | bytes] = []
    size = 0
    while data := bytes(await stream.receive_some(RECV_BYTES)):
        try:
            socket.receive_data(data)
            for event in socket.events():
                match event:
                    case AcceptConnection():
                        opened()
                    case TextMessage() | BytesMessage():
                        parts.append(event.data if isinstance(event.data, str) else bytes(event.data))
                        size += len(event.data)
                        if size > MESSAGE_MAX:
                            return
                        if event.message_finished:
                            heard(_joined(parts))
                            parts, size = [], 0
                    case Ping():
                        await stream.send_all(socket.send(event.response()))
                    case CloseConnection() | RejectConnection():
                        return
                    case _:
                        pass
        except RemoteProtocolError:
            return


def _joined(parts: list[str | bytes]) -> str | bytes:
    if isinstance(parts[0], str):
        return "".join(part for part in parts if isinstance(part, str))
    return b"".join(part for part in parts if isinstance(part, bytes))
