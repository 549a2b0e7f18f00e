"""Bytes from the upstream to the client, as they come, within the stall limits."""

from __future__ import annotations

import math
from dataclasses import dataclass

import trio

from slotd.errors import StreamStalled
from slotd.exchange.frames import FrameGate
from slotd.exchange.inbound import Outbound
from slotd.exchange.record import RequestRecord, UsageTail
from slotd.exchange.transport import BrokenUpstream, Response

__all__ = ["StallLimits", "Watch", "relay_bytes", "relay_events"]


@dataclass(frozen=True, slots=True)
class StallLimits:
    """Seconds; 0 means no limit.

    ``first_byte_s``: from sending the request to the first byte of its answer.
    ``idle_s``: silence inside an answer. ``total_s``: the whole of it.
    """

    first_byte_s: float = 600.0
    idle_s: float = 300.0
    total_s: float = 0.0


class Watch:
    """The stall guard: one cancel scope whose deadline moves with progress.

    Use as a context manager around everything that waits for the upstream.
    When its deadline passes, the block ends in :class:`StreamStalled`. Moving
    a deadline is cheap; a scope per chunk is not.
    """

    def __init__(self, limits: StallLimits) -> None:
        now = trio.current_time()
        self._limits = limits
        self._end = now + limits.total_s if limits.total_s else math.inf
        self._scope = trio.CancelScope()
        self._what = ""
        self._set(limits.first_byte_s, "the first byte of an answer", "first_byte_timeout_s")

    def _set(self, limit_s: float, what: str, key: str) -> None:
        at = trio.current_time() + limit_s if limit_s else math.inf
        self._scope.deadline = min(at, self._end)
        self._what = f"no answer for {limit_s:g} s while waiting for {what} (server.{key})"

    def progressed(self) -> None:
        """The upstream has said something."""
        self._set(self._limits.idle_s, "more of a stream", "idle_timeout_s")

    def pause(self) -> None:
        """The client is being waited for, not the upstream."""
        self._scope.deadline = self._end

    def __enter__(self) -> Watch:
        self._scope.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: object) -> bool:
        swallowed = bool(self._scope.__exit__(kind, exc, tb))  # type: ignore[arg-type] # a traceback
        if self._scope.cancelled_caught:
            if trio.current_time() >= self._end:
                raise StreamStalled(
                    f"the answer took longer than server.total_timeout_s = {self._limits.total_s:g} s"
                )
            raise StreamStalled(self._what)
        return swallowed


async def relay_bytes(
    response: Response, out: Outbound, watch: Watch, record: RequestRecord, usage: UsageTail
) -> None:
    """Relay a body that is no event stream, chunk by chunk, unchanged."""
    while data := await response.receive_some():
        watch.pause()
        await out.send(data)
        usage.feed(data)
        record.bytes_out += len(data)
        watch.progressed()


async def relay_events(
    response: Response,
    out: Outbound,
    watch: Watch,
    record: RequestRecord,
    usage: UsageTail,
    gate: FrameGate,
) -> None:
    """Relay an event stream. What has been sent always ends on a frame boundary.

    An upstream that closes behind its closing event, without the end of the
    HTTP body, has said everything: the client's body ends as it should.
    """
    while True:
        try:
            data = await response.receive_some()
        except BrokenUpstream:
            if gate.clean and not gate.holds and usage.closed():
                return
            raise
        if not data:
            break
        if record.first_byte_s is None:
            record.first_byte_s = record.elapsed()
        ready = gate.feed(data)
        if ready:
            watch.pause()
            await out.send(ready)
            usage.feed(ready)
            record.bytes_out += len(ready)
        watch.progressed()
    if rest := gate.rest():
        watch.pause()
        await out.send(rest)
        usage.feed(rest)
        record.bytes_out += len(rest)
