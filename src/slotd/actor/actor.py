"""The actor: a task that owns state and changes it one message at a time."""

from __future__ import annotations

from typing import Generic, TypeVar

import trio

from slotd.actor.mailbox import Mailbox

M = TypeVar("M")

__all__ = ["Actor"]


class Actor(Generic[M]):
    """Base of every actor: mailbox, loop, children, deadlines.

    A subclass implements :meth:`handle` and, if it has deadlines,
    :meth:`next_deadline` and :meth:`on_deadline`. All three are plain
    functions on purpose: an actor's loop never awaits anything but its next
    message, so it is always ready to receive. Long work is started in
    :attr:`children` and posts its outcome back.

    One instance is one incarnation. An exception in a handler or in a child
    ends it: open asks fail with ``ActorGone``, children are cancelled (an
    engine's task kills its process on the way out), and the exception goes to
    the supervisor.
    """

    def __init__(self, mailbox: Mailbox[M]) -> None:
        self.mailbox = mailbox
        self.children: trio.Nursery
        self._finished = False
        self._patience = trio.CancelScope()  # of the wait for the next message
        self._armed = float("inf")
        self._resting = False
        self._awaited = False  # a message is on its way to the loop
        self._crash: Exception | None = None

    @property
    def name(self) -> str:
        return self.mailbox.name

    @property
    def expects(self) -> bool:
        """Whether a message is on its way to the loop, which has left the mailbox and not been handled."""
        return self._awaited

    def started(self) -> None:
        """Called once, when the mailbox is open and children may be started."""

    def handle(self, message: M) -> None:
        raise NotImplementedError(f"{type(self).__name__} must say how it handles messages")

    def next_deadline(self) -> float:
        """When :meth:`on_deadline` must run next, on trio's clock; inf for never."""
        return float("inf")

    def on_deadline(self, now: float) -> None:
        """A deadline has come. Must move :meth:`next_deadline` past ``now``."""

    def crashed(self) -> None:
        """A bug has ended this incarnation; its children are still ending. For a last word to the outside."""

    def finish(self) -> None:
        """End the loop after the current message: a normal end, not a crash."""
        self._finished = True

    def _take(self, message: M) -> bool:
        """Handle a message at once if the loop rests; False if it must wait for its turn.

        Waking a task costs more than most messages. Since handling one is a
        plain function, it does not matter whose task calls it: still one at a
        time, in the order in which they came, none while another is handled,
        and none before a deadline that has come. A crash is the actor's and
        not the sender's.
        """
        # What the loop waits for: an earlier deadline has woken it, a later one may have come since.
        if not self._resting or self._armed <= trio.current_time():
            if self._resting:
                self._patience.cancel()  # the deadline first
            self._resting, self._awaited = False, True  # and no later message before this one
            return False
        self._resting = self._awaited = False
        try:
            self.handle(message)
        except Exception as exc:
            self._crash = exc
        if self._crash is not None or self._finished or self.next_deadline() < self._armed:
            self._patience.cancel()
        else:
            self._resting = not self._awaited
        return True

    async def run(self) -> None:
        """Live until :meth:`finish`, a crash, or cancellation."""
        self.mailbox.open(self._take)
        async with trio.open_nursery() as self.children:
            try:
                self.started()
                await self._loop()
            except BaseException as exc:
                # Now, not when the children have ended: killing an engine
                # takes time, and askers need not wait for it. A child's crash
                # comes by here too, as the loop's cancellation.
                self.mailbox.close(exc)
                # The nursery cancels itself only for a child's crash; a stop
                # comes from outside it.
                if isinstance(exc, Exception) or self.children.cancel_scope.cancel_called:
                    self.crashed()
                raise
            self.mailbox.close()
            self.children.cancel_scope.cancel()

    async def _loop(self) -> None:
        while not self._finished:
            now = trio.current_time()
            due = self.next_deadline()
            if due <= now:
                # Before receiving: a busy mailbox must not starve the clock.
                self.on_deadline(now)
                if not self._finished and self.next_deadline() <= due:
                    raise RuntimeError(f"actor {self.name!r}: a deadline came due and was not dealt with")
                continue
            with trio.CancelScope(deadline=due) as self._patience:
                self._armed = due
                self._resting = self.mailbox.is_empty
                try:
                    message = await self.mailbox.receive()
                finally:
                    self._resting = False
                self._awaited = False
                if self._crash is None:
                    self.handle(message)
            if self._crash is not None:
                raise self._crash
