"""One-shot replies: the answer to an ask, given exactly once."""

from __future__ import annotations

from typing import Generic, TypeVar

import trio

T = TypeVar("T")

__all__ = ["Reply"]


class Reply(Generic[T]):
    """Where an actor puts its answer to one question.

    The first of :meth:`answer` and :meth:`refuse` settles it; later calls do
    nothing and return False, so an owner may fail all it holds without
    remembering which it has answered. Both are synchronous.
    """

    __slots__ = ("_abandoned", "_error", "_event", "_settled", "_value")

    def __init__(self) -> None:
        self._event: trio.Event | None = None  # there while somebody waits
        self._value: T | None = None
        self._error: BaseException | None = None
        self._settled = False
        self._abandoned = False

    @property
    def settled(self) -> bool:
        return self._settled

    @property
    def abandoned(self) -> bool:
        """Whether the asker has stopped listening: nobody will read an answer."""
        return self._abandoned

    def answer(self, value: T) -> bool:
        """Settle with a value. False if it was settled or abandoned before."""
        if self._settled:
            return False
        self._settled = True
        self._value = value
        if self._event is not None:
            self._event.set()
        return not self._abandoned

    def refuse(self, error: BaseException) -> bool:
        """Settle with an error, which is raised at the asker."""
        if self._settled:
            return False
        self._settled = True
        self._error = error
        if self._event is not None:
            self._event.set()
        return not self._abandoned

    def abandon(self) -> None:
        """Called by the asker's side when it leaves, answered or not."""
        self._abandoned = True

    async def wait(self) -> T:
        """The answer. Raises the refusal; give a deadline with ``trio.fail_after``.

        Always a point of cancellation; a schedule point only if it has to wait.
        """
        if self._settled:
            await trio.lowlevel.checkpoint_if_cancelled()
        else:
            if self._event is None:
                self._event = trio.Event()
            await self._event.wait()
        if self._error is not None:
            raise self._error
        return self._value  # type: ignore[return-value] # settled without error: it is a T
