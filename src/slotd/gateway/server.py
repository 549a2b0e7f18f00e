"""hypercorn, with the sockets made here."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable

import trio
from hypercorn.config import Config as HypercornConfig
from hypercorn.trio import serve
from quart_trio import QuartTrio

from slotd.config import ServerConfig
from slotd.errors import SlotdError

__all__ = ["BindFailed", "bind", "run_server"]


class BindFailed(SlotdError):
    """The configured address cannot be listened on."""

    code = "server.bind_failed"


def bind(server: ServerConfig) -> socket.socket:
    """A bound socket for the configured address; port 0 takes a free one.

    Sets ``TCP_USER_TIMEOUT``, which accepted connections inherit: hypercorn
    sends with no deadline, so a client that stops reading would pin its
    handler for ever.
    """
    infos = socket.getaddrinfo(server.host, server.port, type=socket.SOCK_STREAM)
    family, kind, proto, _, address = infos[0]
    sock = socket.socket(family, kind, proto)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            milliseconds = int(server.write_timeout_s * 1000)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
        sock.bind(address)
    except OSError as exc:
        sock.close()
        raise BindFailed(
            f"cannot listen on {server.host}:{server.port}: {exc.strerror}; "
            "is another slotd running? set server.port to another port"
        ) from exc
    return sock


async def run_server(
    app: QuartTrio,
    sock: socket.socket,
    server: ServerConfig,
    stop: Callable[[], Awaitable[None]],
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until ``stop`` returns; then stop accepting and drain for a bounded time. Takes ``sock`` over."""
    config = HypercornConfig()
    config.bind = [f"fd://{sock.detach()}"]  # hypercorn owns and closes it now
    config.graceful_timeout = server.shutdown_timeout_s
    config.keep_alive_timeout = 75
    config.read_timeout = None  # would also apply while an answer is under way
    config.h11_max_incomplete_size = server.max_head_kb * 1024
    config.include_server_header = False
    config.accesslog = None
    config.errorlog = None
    await serve(app, config, shutdown_trigger=stop, task_status=_Started(task_status))


class _Started(trio.TaskStatus[list[str]]):
    """hypercorn tells what it bound; we only pass on that it did."""

    def __init__(self, status: trio.TaskStatus[None]) -> None:
        self._status = status

    def started(self, value: object = None) -> None:
        self._status.started()
