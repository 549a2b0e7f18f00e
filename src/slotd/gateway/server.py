"""hypercorn's HTTP on sockets and in nurseries of our own."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
from functools import partial

import h11
import trio
from hypercorn.config import Config as HypercornConfig
from hypercorn.events import Closed
from hypercorn.protocol.h11 import H11Protocol, H11WSConnection
from hypercorn.trio.lifespan import Lifespan
from hypercorn.trio.tcp_server import MAX_RECV, TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState, LifespanState
from hypercorn.utils import wrap_app
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


BACKLOG = 1024
"""Connections that the kernel completes ahead of us: a burst of clients is not refused."""


class _HungUp(Exception):
    """The client has left while a request that it sent ahead waited for its turn."""


AHEAD_MAX = 1 << 20
"""Bytes read ahead of their turn; with more, a hang-up is seen only when the answer is out."""


class _Turn:
    """In the place of hypercorn's event that a request sent ahead (pipelined) waits for.

    hypercorn stops reading while it waits, and so does not see a client that
    leaves: its answer goes on, and when sending it fails the connection is
    left over for good. This one reads on and keeps what comes for its turn.
    """

    def __init__(self, stream: trio.abc.Stream, connection: h11.Connection | H11WSConnection) -> None:
        self._stream = stream
        self._connection = connection
        self._event = trio.Event()
        self._gone = False

    async def clear(self) -> None:
        self._event = trio.Event()

    async def set(self) -> None:
        self._event.set()

    async def wait(self) -> None:
        ahead = bytearray()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._read_ahead, ahead)
            await self._event.wait()
            nursery.cancel_scope.cancel()
        if self._gone:
            raise _HungUp
        if ahead:
            self._connection.receive_data(bytes(ahead))

    async def _read_ahead(self, ahead: bytearray) -> None:
        while len(ahead) < AHEAD_MAX:
            try:
                data = await self._stream.receive_some(MAX_RECV)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                data = b""
            if not data:
                self._gone = True
                self._event.set()
                return
            ahead += data


async def _stay_with_http_1(request: object) -> None:
    """In the place of hypercorn's look for HTTP/2: an upgrade that is not taken up means HTTP/1.1."""


class _Connection(TCPServer):
    """hypercorn's connection, which ends when its client has hung up.

    hypercorn's own, once its client has closed an idle connection, waits until
    its idle timer is over, with the socket half closed and two tasks: clients
    that connect for each request would use up our file descriptors.

    It also sees a client leave that has sent a request ahead: see :class:`_Turn`.

    It speaks HTTP/1.1 only. In HTTP/2 a client stops an answer by its window and
    not by its socket, and hypercorn waits for that without end.

    And it ends when it is cancelled: hypercorn shields its sends, so that a
    client that reads nothing would hold up a stop until ``TCP_USER_TIMEOUT``.
    A socket that is closed under it lets a shielded send go.
    """

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._cut)
            await super().run()
            nursery.cancel_scope.cancel()

    async def _cut(self) -> None:
        try:
            await trio.sleep_forever()
        finally:
            self.stream.socket.close()

    async def _read_data(self) -> None:
        protocol = self.protocol.protocol
        if isinstance(protocol, H11Protocol):
            turn = _Turn(self.stream, protocol.connection)
            protocol.can_read = turn  # type: ignore[assignment] # of the methods that are used
            protocol._check_protocol = _stay_with_http_1  # type: ignore[method-assign, assignment] # it would upgrade
        try:
            await super()._read_data()
        except _HungUp:
            await self.protocol.handle(Closed())
        await self.idle_task.stop()


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
    config.keep_alive_timeout = 75
    config.read_timeout = None  # would also apply while an answer is under way
    config.h11_max_incomplete_size = server.max_head_kb * 1024
    config.include_server_header = False
    config.accesslog = None
    config.errorlog = None
    sock.listen(BACKLOG)
    listener = trio.SocketListener(trio.socket.from_stdlib_socket(socket.socket(fileno=sock.detach())))
    framework = wrap_app(app, config.wsgi_max_body_size, "asgi")
    context = WorkerContext(None)
    state: LifespanState = {}
    lifespan = Lifespan(framework, config, state)
    async with listener, trio.open_nursery() as base:
        await base.start(lifespan.handle_lifespan)
        await lifespan.wait_for_startup()
        async with trio.open_nursery() as connections:
            connect = partial(_Connection, framework, config, context, ConnectionState(state))
            async with trio.open_nursery() as accepting:
                accepting.start_soon(
                    partial(trio.serve_listeners, connect, [listener], handler_nursery=connections)
                )
                task_status.started()
                await stop()
                accepting.cancel_scope.cancel()
            await context.terminated.set()  # idle connections end now, busy ones after their answer
            connections.cancel_scope.deadline = trio.current_time() + server.shutdown_timeout_s
        await lifespan.wait_for_shutdown()
        base.cancel_scope.cancel()
