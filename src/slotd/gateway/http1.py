"""hypercorn's HTTP/1.1 connection, with an end to every wait for a client and an answer to every fault."""

from __future__ import annotations

import math
from contextlib import suppress

import h11
import trio
from hypercorn.config import Config as HypercornConfig
from hypercorn.events import Closed, RawData
from hypercorn.protocol.h11 import H11Protocol, H11WSConnection
from hypercorn.trio.tcp_server import MAX_RECV, TCPServer

from slotd.errors import SlotdError
from slotd.exchange.render import error_response
from slotd.gateway.express.handover import HandedOver
from slotd.gateway.refusals import HeadTimeout, HeadTooLarge, InvalidHttp

__all__ = ["Connection", "HttpConfig"]

LINGER_S, LINGER_BYTES = 1.0, 1 << 20
"""How long, and of how much, what a client still sends is read after an answer that ends its connection."""


class HttpConfig(HypercornConfig):
    """``head_timeout_s``: how long a request's head may take to come."""

    head_timeout_s: float = 30.0


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


class _Strict(h11.Connection):
    """h11, which also refuses a request whose body could be measured in two ways.

    A proxy in front of us that measures it in the other one would take a part
    of the body for a request, or the reverse.
    """

    def next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        """As h11's. Raises also for two kinds of length, and for chunks without HTTP/1.1."""
        event = super().next_event()
        if isinstance(event, h11.Request):
            names = {name for name, _ in event.headers}
            if b"transfer-encoding" in names and (b"content-length" in names or event.http_version != b"1.1"):
                raise h11.RemoteProtocolError("the request's body could be measured in two ways")
        return event


class _Http1(H11Protocol):
    """hypercorn's protocol, which stays with HTTP/1.1 and says what is wrong with a request.

    ``heads`` counts the requests whose head has come.
    """

    def __init__(self, plain: H11Protocol, stream: trio.SocketStream | HandedOver) -> None:
        super().__init__(
            plain.app,
            plain.config,
            plain.context,
            plain.task_group,
            plain.connection_state,
            plain.ssl,
            plain.client,
            plain.server,
            plain.send,
        )
        self._stream = stream
        self.connection = _Strict(h11.SERVER, self.config.h11_max_incomplete_size)
        self.can_read = _Turn(stream, self.connection)  # type: ignore[assignment] # of the methods used
        self.heads = 0

    @property
    def head_begun(self) -> bool:
        """Whether a part of a request's head is here, and the rest is not."""
        return self.connection.their_state is h11.IDLE and bool(self.connection.trailing_data[0])

    async def refuse(self, error: SlotdError, status: int | None = None) -> None:
        """Answer with an error, in the place of a request's own answer; the connection is to end then."""
        usual, headers, body = error_response(error)
        headers += [(b"connection", b"close"), *self.config.response_headers("h11")]
        await self._send_h11_event(h11.Response(status_code=status or usual, headers=headers))
        await self._send_h11_event(h11.Data(data=body))
        await self._send_h11_event(h11.EndOfMessage())

    async def _check_protocol(self, event: h11.Request) -> None:
        """In the place of hypercorn's look for HTTP/2: an upgrade that is not taken up means HTTP/1.1."""
        self.heads += 1

    async def _send_error_response(self, status_code: int) -> None:
        if status_code == HeadTooLarge.status:
            limit_kb = self.config.h11_max_incomplete_size // 1024
            await self.refuse(
                HeadTooLarge(f"the request's head is larger than server.max_head_kb = {limit_kb}")
            )
        else:
            words = (
                "this is no HTTP/1.1 request; a client that speaks TLS or HTTP/2 must be given http:// here"
            )
            await self.refuse(InvalidHttp(words), status_code)
        await self._linger()

    async def _linger(self) -> None:
        """Read on for a moment: closing over what has not been read resets the connection, answer and all."""
        seen = 0
        try:
            with trio.move_on_after(LINGER_S):
                await self._stream.send_eof()
                while seen < LINGER_BYTES and (data := await self._stream.receive_some(MAX_RECV)):
                    seen += len(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return  # it has left, with the answer or without


class Connection(TCPServer):
    """hypercorn's connection, which ends when its client has hung up.

    hypercorn's own, once its client has closed an idle connection, waits until
    its idle timer is over, with the socket half closed and two tasks: clients
    that connect for each request would use up our file descriptors.

    It also sees a client leave that has sent a request ahead: see :class:`_Turn`.

    It speaks HTTP/1.1 only. In HTTP/2 a client stops an answer by its window and
    not by its socket, and hypercorn waits for that without end.

    A request's head has ``head_timeout_s`` to come: the first one of a connection
    from its beginning, each further one from its first byte.

    And it ends when it is cancelled: hypercorn shields its sends, so that a
    client that reads nothing would hold up a stop until ``TCP_USER_TIMEOUT``.
    A socket that is closed under it lets a shielded send go.
    """

    config: HttpConfig
    stream: trio.SocketStream | HandedOver  # type: ignore[assignment] # hypercorn names only the one with TLS

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
        plain = self.protocol.protocol
        assert isinstance(plain, H11Protocol), "without TLS nothing else is agreed on"
        http = self.protocol.protocol = _Http1(plain, self.stream)
        with suppress(_HungUp):  # it is closed below, as one that hangs up between two requests
            await self._read_requests(http)
        await self.protocol.handle(Closed())
        await self.idle_task.stop()

    async def _read_requests(self, http: _Http1) -> None:
        """Hand on what comes, until the client leaves or a head is overdue."""
        head_by = trio.current_time() + self.config.head_timeout_s
        while True:
            with trio.CancelScope(deadline=head_by) as patience:
                try:
                    data = await self.stream.receive_some(MAX_RECV)
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    return
            if patience.cancelled_caught:
                if http.head_begun:
                    await http.refuse(
                        HeadTimeout(
                            "the request's head did not come to an end within "
                            f"server.head_timeout_s = {self.config.head_timeout_s:g}"
                        )
                    )
                return
            heads = http.heads
            await self.protocol.handle(RawData(bytes(data)))
            if not data:
                return
            if http.heads != heads:
                head_by = math.inf
            if head_by == math.inf and http.head_begun:
                head_by = trio.current_time() + self.config.head_timeout_s
                # Its timer counts from the last answer, and would cut this request short.
                await self.idle_task.restart(self._task_group, self._idle_timeout)
