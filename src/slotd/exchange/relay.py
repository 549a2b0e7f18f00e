"""Bytes from the upstream to the client, as they come, within the stall limits."""

from __future__ import annotations

from slotd.exchange.answer import Answer
from slotd.exchange.engine_errors import tells_error
from slotd.exchange.frames import FrameGate
from slotd.exchange.headers import for_client
from slotd.exchange.stall import Watch
from slotd.wire.broken import Broken
from slotd.wire.transport import Response

__all__ = ["relay_bytes", "relay_events"]


async def relay_bytes(response: Response, answer: Answer, watch: Watch) -> None:
    """Relay a body that is no event stream, chunk by chunk, unchanged.

    The head goes out with the first of it: until then nothing has been said.
    """
    # Mostly it has come with its head.
    while data := response.take() or await response.receive_some():
        if not answer.begun:
            answer.begin(response.status, response.headers.derive(for_client), response.length)
        if (rest := answer.put(data)) is not None:
            watch.pause()
            await rest
        watch.progressed()
        if response.complete:
            return
    if not answer.begun:
        answer.begin(response.status, response.headers.derive(for_client), response.length)


async def relay_events(response: Response, answer: Answer, watch: Watch) -> None:
    """Relay an event stream. What has been sent always ends on a frame boundary.

    The head goes out with the first whole frame. An error that the engine tells
    in its stream goes through like everything else and is noted in the record.
    An upstream that closes behind its closing event, without the end of the
    HTTP body, has said everything: the client's body ends as it should.
    """
    gate = answer.gate = FrameGate()
    usage = answer.usage
    ended = False
    while not ended:
        try:
            data = response.take() or await response.receive_some()
        except Broken:
            if gate.clean and not gate.holds and usage.closed():
                return
            raise
        ended = not data
        ready = gate.rest() if ended else gate.feed(data)
        if not answer.begun and (ready or ended):
            # Without its length: an error may have to follow what has come.
            answer.begin(response.status, response.headers.derive(for_client))
        if ready:
            if (waiting := answer.put(ready)) is not None:
                watch.pause()
                await waiting
            if tells_error(ready):
                answer.record.error = "engine.error"
        watch.progressed()
