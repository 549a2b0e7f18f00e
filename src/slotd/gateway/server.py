"""hypercorn's HTTP on sockets and in nurseries of our own."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

import trio
from hypercorn.trio.lifespan import Lifespan
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState, LifespanState
from hypercorn.utils import wrap_app
from quart_trio import QuartTrio

from slotd.actor import Snapshot
from slotd.config import ServerConfig
from slotd.errors import SlotdError
from slotd.gateway.door import Door
from slotd.gateway.express.client import ClientSocket
from slotd.gateway.express.handover import HandedOver
from slotd.gateway.express.lane import Lane
from slotd.gateway.express.listener import RawListener
from slotd.gateway.farewell import farewell
from slotd.gateway.http1 import Connection, HttpConfig
from slotd.settings import Settings

__all__ = ["BindFailed", "Stopping", "bind", "listen", "run_server"]

FLUSH_S, FLUSH_AT_ONCE_S = 1.0, 0.3
"""How long the last words of requests that are ended may take to be sent, and that in a hurry."""


class BindFailed(SlotdError):
    """The configured address cannot be listened on."""

    code = "server.bind_failed"


def bind(server: ServerConfig) -> socket.socket:
    """A bound socket for the configured address; port 0 takes a free one."""
    infos = socket.getaddrinfo(server.host, server.port, type=socket.SOCK_STREAM)
    family, kind, proto, _, address = infos[0]
    sock = socket.socket(family, kind, proto)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
    except OSError as exc:
        sock.close()
        raise BindFailed(
            f"cannot listen on {server.host}:{server.port}: {exc.strerror}; "
            "is another slotd running? set server.port to another port"
        ) from exc
    return sock


BACKLOG = 1024
"""Connections that the kernel completes ahead of us: a burst of clients is not refused."""


KEEP_ALIVE_S = 75.0
"""How long a connection may wait for its next request."""


def _limit(
    server: ServerConfig, app: QuartTrio, config: HttpConfig, door: Door, sock: trio.socket.SocketType
) -> None:
    """Set the bounds of requests and of connections that begin from now on.

    ``TCP_USER_TIMEOUT``, which accepted connections inherit: hypercorn sends with
    no deadline, so a client that stops reading would pin its handler for ever.
    """
    app.config["BODY_TIMEOUT"] = server.idle_timeout_s or None
    app.config["MAX_CONTENT_LENGTH"] = server.max_body_mb * 1024 * 1024
    config.h11_max_incomplete_size = server.max_head_kb * 1024
    config.head_timeout_s = server.head_timeout_s
    # hypercorn's timer knows nothing of a head that has begun: the head's own must be the first.
    config.keep_alive_timeout = max(KEEP_ALIVE_S, server.head_timeout_s + 1)
    door.allow(server.max_sockets)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(server.write_timeout_s * 1000))


@dataclass(frozen=True, slots=True)
class Stopping:
    """How a server is stopped.

    ``asked`` returns when it is to stop, ``hurried`` when that is to be now.
    ``end_requests`` makes every request that still runs say its last words; it
    does not wait.
    """

    asked: Callable[[], Awaitable[None]]
    hurried: Callable[[], Awaitable[None]] = trio.sleep_forever
    end_requests: Callable[[], None] = lambda: None


async def _end(connections: trio.CancelScope, stopping: Stopping, settings: Snapshot[Settings]) -> None:
    """Once asked to stop: let requests finish for a while, end them, then cut what has not heard it."""
    await stopping.asked()
    with trio.move_on_after(settings.value.config.server.shutdown_timeout_s) as drain:
        await stopping.hurried()
    stopping.end_requests()
    if drain.cancelled_caught:
        connections.deadline = trio.current_time() + FLUSH_S
        await stopping.hurried()
    connections.deadline = min(connections.deadline, trio.current_time() + FLUSH_AT_ONCE_S)


def listen(sock: socket.socket) -> None:
    """Let clients come. Their connections are made like ``sock`` is then, accepted or not."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.listen(BACKLOG)


async def _close(client: ClientSocket) -> None:
    client.close()  # no checkpoint: nothing follows


async def run_server(
    app: QuartTrio,
    sock: socket.socket,
    settings: Snapshot[Settings],
    stopping: Stopping,
    lane: Lane | None = None,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until asked to stop. Takes ``sock`` over. ``lane``: who looks at each connection first.

    Then who comes is answered with a 503, and requests have ``shutdown_timeout_s`` to
    finish (less in a hurry) before they are ended with an answer that says so, for which
    they have a moment; connections that do not take it are cut. The limits are
    those of ``settings``, as it changes.
    """
    config = HttpConfig()
    config.read_timeout = None  # would also apply while an answer is under way
    config.include_server_header = False
    config.accesslog = None
    config.errorlog = None
    listen(sock)
    sock = socket.socket(fileno=sock.detach())
    listener = trio.SocketListener(trio.socket.from_stdlib_socket(sock))

    door = Door(settings.value.config.server.max_sockets)

    async def follow() -> None:
        version = settings.version
        while True:
            version = await settings.wait_change(version)
            _limit(settings.value.config.server, app, config, door, listener.socket)

    _limit(settings.value.config.server, app, config, door, listener.socket)
    framework = wrap_app(app, config.wsgi_max_body_size, "asgi")
    context = WorkerContext(None)
    state: LifespanState = {}
    lifespan = Lifespan(framework, config, state)
    async with listener, trio.open_nursery() as base:
        base.start_soon(follow)
        if lane is not None:
            base.start_soon(lane.notice_hangups)
            base.start_soon(lane.notice_late_heads)
        await base.start(lifespan.handle_lifespan)
        await lifespan.wait_for_startup()
        async with trio.open_nursery() as late:
            over = trio.Event()
            async with trio.open_nursery() as connections:
                base.start_soon(_end, connections.cancel_scope, stopping, settings)
                connect = partial(Connection, framework, config, context, ConnectionState(state))

                async def hand_over(client: ClientSocket) -> None:
                    stream = HandedOver(client)
                    try:
                        await connect(stream)  # type: ignore[arg-type] # hypercorn names only the one with TLS
                    finally:
                        await trio.aclose_forcefully(stream)

                async with trio.open_nursery() as accepting:
                    if lane is None:
                        accepting.start_soon(door.serve, listener, connect, connections)
                    else:
                        serve = partial(lane.serve, hand_over=hand_over)
                        accepting.start_soon(door.serve, RawListener(sock), serve, connections, _close)
                    task_status.started()
                    await stopping.asked()
                    accepting.cancel_scope.cancel()
                if lane is not None:
                    lane.stop()
                late.start_soon(farewell, listener, settings.value.config.server.max_sockets, over)
                await context.terminated.set()  # idle connections end now, busy ones after their answer
            over.set()
        await lifespan.wait_for_shutdown()
        base.cancel_scope.cancel()
