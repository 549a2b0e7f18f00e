"""Honest waiting: comments in a stream that tell its client what it waits for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Never

import trio

from slotd.capability.endpoints import Endpoint
from slotd.exchange.answer import Answer
from slotd.slot.state import SlotSnapshot, SlotState

__all__ = ["Heartbeat", "can_stream", "what_it_waits_for"]

_STREAMED = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/infill"})
_MB = 1_000_000


def can_stream(endpoint: Endpoint) -> bool:
    """Whether engines answer ``"stream": true`` with an event stream on this path.

    Elsewhere the field is ignored, and the answer is a document that could not
    follow a comment.
    """
    return endpoint.upstream_path in _STREAMED


class Heartbeat:
    """The comments of one request, ``after_s`` seconds into a wait and then ``every_s``.

    Once one has been sent, the next wait goes on in the same rhythm: a client
    that has heard something expects to hear more.
    """

    def __init__(self, answer: Answer, after_s: float, every_s: float) -> None:
        self._answer = answer
        self._after_s = after_s
        self._every_s = every_s
        self._last: float | None = None

    async def beat(self, text: Callable[[], str]) -> Never:
        """Comment on a wait that begins now, with what ``text`` says each time.

        Never ends by itself: whoever has what was waited for cancels it. Nothing
        is said any more once the answer has begun; see :meth:`Answer.comment`.
        """
        first = trio.current_time() + self._after_s
        await trio.sleep_until(first if self._last is None else self._last + self._every_s)
        while True:
            await self._answer.comment(text())
            self._last = trio.current_time()
            await trio.sleep(self._every_s)


def what_it_waits_for(slot: SlotSnapshot) -> str:
    """Why a request does not get this slot yet, in a few words. Pure."""
    name = slot.name
    if slot.blocked:
        return f"{name} {slot.blocked}"
    match slot.state:
        case SlotState.PULLING:
            return f"{name} is pulling {slot.model or 'its model'}{_progress(slot.progress)}"
        case SlotState.STARTING | SlotState.WARMING:
            return f"{name} is starting"
        case SlotState.UNLOADING:
            return f"{name} is stopping its last engine"
        case SlotState.ERROR:
            return f"{name} is in error" + (f": {slot.fault.message}" if slot.fault else "")
        case SlotState.OFFLINE:
            return f"{name} is about to start"
        case _:
            others = slot.queued - 1
            doing = f"{name} is serving {slot.leases} of {slot.max_parallel} requests"
            return f"{doing}, {others} more waiting" if others > 0 else doing


def _progress(progress: tuple[int, int | None] | None) -> str:
    if progress is None:
        return ""
    done, total = progress
    return f", {done // _MB} MB" if total is None else f", {done // _MB} of {total // _MB} MB"
