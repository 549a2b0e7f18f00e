"""One connection after another, one request after another: read, admit, answer, or hand over."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import NoReturn

import structlog
import trio

from slotd.actor import Snapshot
from slotd.errors import ServerStopping, SlotdError
from slotd.exchange.inbound import Carrier, ClientGone
from slotd.exchange.render import Dialect, error_response
from slotd.gateway.express.answer import SocketOut
from slotd.gateway.express.body import BadChunk, ChunkedBody
from slotd.gateway.express.client import ClientSocket
from slotd.gateway.express.hangups import Hangups
from slotd.gateway.express.head import CHUNKED, HeadReader, NotPlain, RequestHead, could_be_plain
from slotd.gateway.intake import Intake, too_large
from slotd.gateway.refusals import BodyTimeout, HeadTimeout, InvalidHttp
from slotd.gateway.uploads import Uploads
from slotd.settings import Settings

__all__ = ["HandOver", "Lane"]

log = structlog.get_logger("slotd")

HandOver = Callable[[ClientSocket], Awaitable[None]]
"""Serves a connection to its end in the other lane, beginning with what has been received of it."""

KEEP_ALIVE_S = 75.0
"""How long a connection may wait for its next request."""

LOOK_S = 0.1
"""How often heads are looked for that are overdue. Each may have twice that more than it should."""

LAST_HEAD_S = 0.5
"""How long, once slotd stops, the head of a request that has begun to arrive may still take."""

LINGER_S, LINGER_BYTES = 1.0, 1 << 20
"""How long, and of how much, what a client still sends is read after an answer that ends its connection."""

_END = b"\r\n\r\n"


class _Ended(Exception):
    """The client has left, or nothing more is wanted of it."""


class Lane:
    """Serves connections. Owns what waits between two requests, so that a stop can end it.

    :meth:`notice_hangups` and :meth:`notice_late_heads` must run meanwhile.
    """

    def __init__(
        self,
        carrier: Carrier,
        intake: Intake,
        uploads: Uploads,
        settings: Snapshot[Settings],
    ) -> None:
        self._carrier = carrier
        self._intake = intake
        self._uploads = uploads
        self._settings = settings
        self._hangups = Hangups()
        self._heads = HeadReader()
        self._reading: dict[ClientSocket, None] = {}
        self._stopping = False

    async def notice_hangups(self) -> NoReturn:
        """Notice clients that leave, until cancelled."""
        await self._hangups.run()

    async def notice_late_heads(self) -> NoReturn:
        """Notice heads that are overdue, until cancelled."""
        while True:
            # A deadline for each head would cost more than reading it, and knowing the time is not free.
            await trio.sleep(LOOK_S)
            now = trio.current_time()
            for client in tuple(self._reading):
                if client.read_by is None:
                    client.read_by = now + client.patience_s
                elif client.read_by <= now:
                    client.give_up()

    def stop(self) -> None:
        """Connections end with the answers that are under way, and those between two requests now.

        A head that has begun may come to an end, within :data:`LAST_HEAD_S`.
        """
        self._stopping = True
        soon = trio.current_time() + LAST_HEAD_S
        for client in tuple(self._reading):
            if client.received:
                client.read_by = soon if client.read_by is None else min(client.read_by, soon)
            else:
                client.close()

    async def serve(self, client: ClientSocket, hand_over: HandOver) -> None:
        """Serve a connection to its end. Cancelled: it is for the caller to close."""
        try:
            plain = await self._serve(client)
        finally:
            self._hangups.forget(client)
        if not plain:
            await hand_over(client)

    async def _serve(self, client: ClientSocket) -> bool:
        """Serve plain requests; whether it was to the end, and not to the first of another kind."""
        while True:
            # One for all that come, as entering one costs as much as parsing a head.
            with trio.CancelScope() as scope:
                try:
                    await self._requests(client, scope)
                except NotPlain:
                    return False
                return True
            # It went with a request that was ended from outside. Whoever has
            # been told so may ask again.
            if client.busy or client.gone or self._stopping:
                return True

    async def _requests(self, client: ClientSocket, scope: trio.CancelScope) -> None:
        """One after the other, in ``scope``; returns when the connection is to end. Raises NotPlain."""
        while True:
            head = await self._read_head(client, fresh=not client.served)
            if head is None:
                if client.overdue and client.received:
                    await self._refuse(client, self._too_late(), "openai")
                return
            if not client.served:
                client.served = True
                self._hangups.watch(client)
            client.busy = True
            if not await self._one(client, head, scope) or self._stopping:
                return
            client.busy = False
            if client.received and scope.cancel_called:
                # The next is here already, and reading it no wait: it has a scope of its own coming.
                await trio.lowlevel.checkpoint()

    # --- reading -------------------------------------------------------------------------

    async def _read_head(self, client: ClientSocket, *, fresh: bool) -> RequestHead | None:
        """The head of the next request; None if it does not come. Raises :class:`NotPlain`."""
        server = self._settings.value.config.server
        received = client.received
        if self._stopping and not received:
            return None
        patience_s = server.head_timeout_s
        if not (received or fresh):
            patience_s = max(KEEP_ALIVE_S, patience_s + 1)
        if self._stopping:
            patience_s = min(patience_s, LAST_HEAD_S)
        client.patience_s, client.read_by = patience_s, None
        self._reading[client] = None
        try:
            seen = 0
            while (end := received.find(_END, max(seen - 3, 0))) < 0:
                if (received and not could_be_plain(received)) or len(received) > server.max_head_kb * 1024:
                    raise NotPlain
                if seen == 0 and received and not fresh:
                    client.patience_s, client.read_by = server.head_timeout_s, None
                seen = len(received)
                await trio.lowlevel.wait_readable(client.sock)
                if not client.take_in():
                    return None
        except (OSError, trio.ClosedResourceError):
            return None
        finally:
            del self._reading[client]
        if end > server.max_head_kb * 1024:
            raise NotPlain
        data = bytes(received[: end + len(_END)])
        head = self._heads.read(data, hand_over_origins=bool(server.cors_origins))
        del received[: end + len(_END)]
        return head

    def _too_late(self) -> SlotdError:
        """What is wrong with a head that was not here in time."""
        if self._stopping:
            return ServerStopping("slotd is shutting down and waits no longer for this request")
        limit_s = self._settings.value.config.server.head_timeout_s
        words = f"did not come to an end within server.head_timeout_s = {limit_s:g}"
        return HeadTimeout(f"the request's head {words}")

    async def _more(self, client: ClientSocket) -> None:
        try:
            here = await client.receive()
        except (OSError, trio.ClosedResourceError):
            here = False
        if not here:
            raise _Ended

    async def _read_body(self, client: ClientSocket, head: RequestHead) -> bytes:
        """The rest of the request. Raises typed errors, and :class:`_Ended`."""
        server = self._settings.value.config.server
        limit = server.max_body_mb * 1024 * 1024
        if head.length > limit:
            raise too_large(server.max_body_mb)
        read = self._read_chunks if head.length == CHUNKED else self._read_length
        if head.expects_continue and not client.received:
            try:
                await client.send(b"HTTP/1.1 100 Continue\r\n\r\n", server.write_timeout_s)
            except (OSError, trio.ClosedResourceError, trio.TooSlowError) as exc:
                raise _Ended from exc
        patience_s = server.idle_timeout_s or float("inf")
        with trio.move_on_after(patience_s):
            return await self._uploads.receive(partial(read, client, head, limit))
        raise BodyTimeout(f"the request's body did not come to an end within {patience_s:g} s")

    async def _read_length(self, client: ClientSocket, head: RequestHead, limit: int) -> bytes:
        while len(client.received) < head.length:
            await self._more(client)
        return _take(client, head.length)

    async def _read_chunks(self, client: ClientSocket, head: RequestHead, limit: int) -> bytes:
        body = ChunkedBody()
        while True:
            try:
                body.feed(client.received)
            except BadChunk as exc:
                raise InvalidHttp(f"the request's chunked body is malformed: {exc}") from exc
            client.received.clear()
            if body.size > limit:
                raise too_large(limit // (1024 * 1024))
            if body.done:
                client.received += body.rest
                return body.body
            await self._more(client)

    # --- answering -----------------------------------------------------------------------

    async def _one(self, client: ClientSocket, head: RequestHead, scope: trio.CancelScope) -> bool:
        """Answer one request; whether another may follow."""
        dialect, server = head.endpoint.dialect, self._settings.value.config.server
        refusal: SlotdError | None = None
        try:
            priority = self._intake.check_key(head.headers)
            self._intake.admit(server.max_connections)
            if head.length != CHUNKED and head.length <= min(len(client.received), server.max_body_mb << 20):
                body = _take(client, head.length)  # mostly it is here already
            else:
                body = await self._read_body(client, head)
        except _Ended:
            return False
        except SlotdError as error:
            refusal = error
        if refusal is not None:
            try:
                # What is left of the body is not worth reading.
                await self._refuse(client, refusal, dialect)
            finally:
                refusal = None  # whose traceback leads back here
            return False
        inbound = self._intake.inbound(
            head.endpoint, head.query, head.headers, body, client.peer, priority, scope
        )
        out = SocketOut(client, server.write_timeout_s, close=self._stopping or not head.keep_alive)
        client.begin(scope)
        failed = False
        try:
            await self._carrier.run(inbound, out)
            if not client.gone:
                await out.finish()
        except (SlotdError, ClientGone):
            return False  # half an answer: the connection ends, and so it is told
        except Exception:
            log.exception("a request met a bug", request=inbound.id, path=inbound.path)
            failed = True
        finally:
            client.end()
        if failed:
            if not out.begun:
                bug = SlotdError("slotd itself failed at this request; its log says why")
                await self._refuse(client, bug, dialect)
            return False
        return not (client.gone or out.closes)

    async def _refuse(self, client: ClientSocket, error: SlotdError, dialect: Dialect) -> None:
        """Answer with an error, and end the connection when the client has had the time to read it."""
        out = SocketOut(client, LINGER_S, close=True)
        status, headers, body = error_response(error, dialect)
        with suppress(ClientGone):
            out.start(status, headers)
            await out.send(body)
            await client.linger(LINGER_S, LINGER_BYTES)


def _take(client: ClientSocket, length: int) -> bytes:
    body = bytes(memoryview(client.received)[:length])
    del client.received[:length]
    return body
