"""hypercorn's HTTP on sockets and in nurseries of our own."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
from functools import partial

import trio
from hypercorn.config import Config as HypercornConfig
from hypercorn.events import Closed, Event, Updated
from hypercorn.protocol.h11 import H11Protocol
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


class _SentAhead(Exception):
    """A client has sent on before it has its answer."""


class _NeverWait:
    """In the place of hypercorn's event that the next request waits for."""

    async def clear(self) -> None:
        pass

    async def set(self) -> None:
        pass

    async def wait(self) -> None:
        raise _SentAhead


async def _stay_with_http_1(request: object) -> None:
    """In the place of hypercorn's look for HTTP/2: an upgrade that is not taken up means HTTP/1.1."""


class _Connection(TCPServer):
    """hypercorn's connection, which ends when its client has hung up.

    hypercorn's own, once its client has closed an idle connection, waits until
    its idle timer is over, with the socket half closed and two tasks: clients
    that connect for each request would use up our file descriptors.

    It also stops reading while a request sent ahead (pipelined) waits for its
    turn. A client that leaves then is not noticed; when sending to it fails,
    the connection is left over for good. So there are no turns: what was sent
    ahead is thrown away, and the connection closed after the answer, which
    tells the client to ask again.

    It speaks HTTP/1.1 only. In HTTP/2 a client stops an answer by its window and
    not by its socket, and hypercorn waits for that without end.

    And it ends when it is cancelled: hypercorn shields its sends, so that a
    client that reads nothing would hold up a stop until ``TCP_USER_TIMEOUT``.
    A socket that is closed under it lets a shielded send go.
    """

    _sent_ahead = False

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
            protocol.can_read = _NeverWait()  # type: ignore[assignment] # of the same three methods
            protocol._check_protocol = _stay_with_http_1  # type: ignore[method-assign, assignment] # it would upgrade
        try:
            await super()._read_data()
        except _SentAhead:
            self._sent_ahead = True
            await self._hung_up()
            await self.protocol.handle(Closed())
        await self.idle_task.stop()

    async def _hung_up(self) -> None:
        try:
            while await self.stream.receive_some(MAX_RECV):
                pass
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return

    async def protocol_send(self, event: Event) -> None:
        if self._sent_ahead and isinstance(event, Updated) and event.idle:
            event = Closed()  # the answer is out
        await super().protocol_send(event)


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
