"""One assembly: the request as the engine gets it, and its stream read back."""

from __future__ import annotations

from slotd.exchange.assemble.errors import AssemblyTooLarge
from slotd.exchange.assemble.shape import Assembled, Shape
from slotd.wire.sse import EventParser, EventTooLarge

__all__ = ["Assembly"]


class Assembly:
    """Turns one engine stream into the answer that was asked for.

    ``body`` is what to send: the client's bytes with only ``stream`` set (and,
    for chat and completions, ``stream_options.include_usage`` and
    ``timings_per_token``). Feed it the
    body of a 200 ``text/event-stream`` answer; any other answer of the engine
    goes to the client as it is. Belongs to one request and one task.
    """

    def __init__(self, body: bytes, shape: Shape) -> None:
        self.body = body
        self._shape = shape
        self._parser = EventParser(max_event_bytes=shape.budget.limit)

    @property
    def done(self) -> bool:
        """The stream's natural end has been seen: :meth:`finish` will answer."""
        return self._shape.done

    def feed(self, chunk: bytes) -> None:
        """Take in a piece of the stream, cut anywhere.

        Raises an :class:`~slotd.exchange.assemble.errors.AssemblyError` when no
        answer can come of it any more: ``AssemblyTooLarge``, ``MalformedStream``
        or ``NotAssemblable``.
        """
        try:
            events = self._parser.feed(chunk)
        except EventTooLarge as error:
            raise AssemblyTooLarge(error.limit) from error
        for event in events:
            if self._shape.done:
                return
            self._shape.event(event)

    def finish(self) -> Assembled:
        """The answer, after the end of the stream (or once :attr:`done`).

        An error that the engine reported inside the stream is the answer it
        would have given: its status and its JSON. Raises ``IncompleteStream``
        where the stream ended without its natural end, and ``NotAssemblable``
        where it left out text that the engine's own answer would show.
        """
        return self._shape.result()
