"""An actor's mailbox: synchronous posts, asks that are always answered."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Generic, TypeVar

import trio

from slotd.actor.reply import Reply
from slotd.errors import ActorGone

M = TypeVar("M")
T = TypeVar("T")

__all__ = ["Mailbox"]


class Mailbox(Generic[M]):
    """The one way to an actor.

    It outlives its actor: a supervisor that restarts the actor opens the same
    mailbox again, so whoever holds it need not learn of the restart. While it
    is closed, posts are dropped and asks raise :class:`ActorGone` at once.

    The channel is unbounded so that :meth:`post` never waits and so never
    loses a message to cancellation (a release posted from a cancelled task
    arrives). What bounds it is admission: the owner refuses work beyond its
    configured queue, and every poster posts a bounded number of messages per
    piece of admitted work.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._sender: trio.MemorySendChannel[M] | None = None
        self._receiver: trio.MemoryReceiveChannel[M] | None = None
        self._open: set[Reply[object]] = set()
        self._opened = trio.Event()
        self._taker: Callable[[M], bool] | None = None

    @property
    def is_open(self) -> bool:
        return self._sender is not None

    @property
    def open_asks(self) -> int:
        return len(self._open)

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits to be received."""
        return self._receiver is None or not self._receiver.statistics().current_buffer_used

    def open(self, taker: Callable[[M], bool] | None = None) -> None:
        """Make a fresh channel. Called by the actor as it starts.

        ``taker`` is offered each message first, in the sender's task; what it
        returns False for goes into the channel.
        """
        if self._sender is not None:
            raise RuntimeError(f"mailbox {self.name!r} is open already: two actors would share it")
        self._sender, self._receiver = trio.open_memory_channel(math.inf)
        self._taker = taker
        self._opened.set()

    async def wait_open(self) -> None:
        """Wait until an actor listens. For whoever starts one and is about to ask it."""
        await self._opened.wait()

    def close(self, cause: BaseException | None = None) -> None:
        """Refuse everything from now on and fail every open ask. Idempotent.

        Closing the channel drops what it buffers, with the replies inside, and
        would leave their askers hanging: so the replies are tracked here and
        failed here, with :class:`ActorGone` from ``cause``.
        """
        if self._sender is None or self._receiver is None:
            return
        self._sender.close()
        self._receiver.close()
        self._sender = self._receiver = self._taker = None
        self._opened = trio.Event()
        for reply in list(self._open):
            gone = ActorGone(self.name)
            gone.__cause__ = cause
            reply.refuse(gone)

    def post(self, message: M) -> bool:
        """Put a message in, without waiting. False if the actor is gone."""
        if self._sender is None:
            return False
        if self._taker is None or not self._taker(message):
            self._sender.send_nowait(message)
        return True

    async def ask(self, make: Callable[[Reply[T]], M]) -> T:
        """Post ``make(reply)`` and wait for the answer.

        Ends in the answer, the owner's refusal, or :class:`ActorGone`; never
        hangs because the actor died. A cancelled asker leaves its question
        behind; where an unread answer would cost something (a lease), the
        asker names it beforehand and posts its release unconditionally.
        """
        return await self.put(make).wait()

    def put(self, make: Callable[[Reply[T]], M]) -> Reply[T]:
        """The first half of :meth:`ask`: post ``make(reply)``, and give the reply back.

        An actor at rest has settled it already; one that is open has to be
        waited for, or abandoned. Raises :class:`ActorGone`.
        """
        if self._sender is None:
            raise ActorGone(self.name)
        reply: Reply[T] = Reply()
        self.post(make(reply))
        if not reply.settled:
            reply.join(self._open)
        return reply

    async def receive(self) -> M:
        """The next message. Only the owner calls this."""
        if self._receiver is None:
            raise ActorGone(self.name)
        return await self._receiver.receive()
