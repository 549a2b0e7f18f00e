"""One-shot replies: the answer to an ask, given exactly once."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

import trio

T = TypeVar("T")

__all__ = ["Reply"]


class Reply(Generic[T]):
    """Where an actor puts its answer to one question.

    The first of :meth:`answer` and :meth:`refuse` settles it; later calls do
    nothing and return False, so an owner may fail all it holds without
    remembering which it has answered. Both are synchronous.
    """

    __slots__ = ("_abandoned", "_error", "_event", "_open", "_refused", "_settled", "_value")

    def __init__(self) -> None:
        self._event: trio.Event | None = None  # there while somebody waits
        self._value: T | None = None
        self._error: BaseException | None = None
        self._refused = False
        self._settled = False
        self._abandoned = False
        self._open: set[Reply[Any]] | None = None

    @property
    def settled(self) -> bool:
        return self._settled

    @property
    def answered(self) -> bool:
        """Whether it has been settled with a value."""
        return self._settled and not self._refused

    @property
    def abandoned(self) -> bool:
        """Whether the asker has stopped listening: nobody will read an answer."""
        return self._abandoned

    def join(self, open: set[Reply[Any]]) -> None:
        """Be in ``open`` until it is settled or abandoned."""
        self._open = open
        open.add(self)

    def answer(self, value: T) -> bool:
        """Settle with a value. False if it was settled or abandoned before."""
        if self._settled:
            return False
        self._value = value
        return self._settle()

    def refuse(self, error: BaseException) -> bool:
        """Settle with an error, which is raised at the asker."""
        if self._settled:
            return False
        self._error, self._refused = error, True
        return self._settle()

    def _settle(self) -> bool:
        self._settled = True
        if self._open is not None:
            self._open.discard(self)
        if self._event is not None:
            self._event.set()
        return not self._abandoned

    def abandon(self) -> None:
        """Called by the asker's side when it leaves, answered or not."""
        self._abandoned = True
        if self._open is not None:
            self._open.discard(self)

    def result(self) -> T:
        """What it was settled with. Raises the refusal, once, and :class:`RuntimeError` while it is open."""
        if not self._settled:
            raise RuntimeError("nobody has answered yet")
        if self._refused:
            # Not kept: what is raised leads by its traceback to whoever has this, and so
            # back to itself, and all that its asker has would wait for the garbage collector.
            error, self._error = self._error, None
            try:
                raise error or RuntimeError("the refusal has been raised already")
            finally:
                del error
        return self._value  # type: ignore[return-value] # settled without error: it is a T

    async def wait(self) -> T:
        """The answer. Raises the refusal; give a deadline with ``trio.fail_after``.

        Always a point of cancellation; a schedule point only if it has to wait.
        Who leaves by cancellation has abandoned it.
        """
        try:
            if self._settled:
                await trio.lowlevel.checkpoint_if_cancelled()
            else:
                if self._event is None:
                    self._event = trio.Event()
                await self._event.wait()
        finally:
            self.abandon()
        return self.result()
