"""One prompt, from its submission to its result, whatever happens on the way."""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import trio

from slotd.comfy.api import Api, Entry
from slotd.comfy.events import Line
from slotd.comfy.progress import Progress
from slotd.comfy.workflow import Graph
from slotd.errors import EngineError, SlotdError, SlotQueueTimeout, StreamStalled
from slotd.wire.http1 import Broken, UpstreamBroken

__all__ = ["Limits", "run_prompt"]

LOOK_S = 2.0
"""How often its history is looked at while the websocket tells of it."""

LOOK_ALONE_S = 0.25
"""And while it does not."""

SOON_S = 0.005
"""The first look after ComfyUI has said that it is done; what it says comes just before the history does."""

STOP_TIMEOUT_S = 2.0
"""For stopping a prompt that nobody waits for any more."""

SETTLE_S = 0.05
"""For a prompt whose submission was not answered to be in the queue, or not."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds. ``wait_s``: in ComfyUI's own queue. ``run_s``: from when ComfyUI begins; 0 = no limit."""

    wait_s: float
    run_s: float = 0.0


async def run_prompt(
    api: Api, line: Line, graph: Graph, limits: Limits, says: Callable[[str], None]
) -> tuple[Entry, str]:
    """Have ComfyUI work on ``graph``; returns what its history says at the end, failed or not.

    With it, what was wrong with nodes that it left out, "" for nothing. ``says``
    is told how far it is; each call is also a sign of life. Raises :class:`SlotQueueTimeout` and
    :class:`StreamStalled` at the limits, :class:`EngineError` for a graph that is
    refused, and the wire's exceptions; a prompt that ComfyUI knows no more is an
    :class:`UpstreamBroken`.

    However this ends without a result, cancelled for example, the prompt is
    taken out of the queue or interrupted, within ``STOP_TIMEOUT_S``.
    """
    prompt_id = str(uuid.uuid4())
    progress = Progress(prompt_id, len(graph))

    def heard(message: str | bytes) -> bool:
        waits = not progress.started
        ours = progress.hear(message)
        if ours:
            says(progress.words())
        return ours and (waits or progress.over)

    line.heard = heard
    may_be_there, answered = True, False
    try:
        try:
            left_out = await api.submit(graph, prompt_id=prompt_id, client_id=line.client_id)
        except EngineError:
            may_be_there = False
            raise
        answered = True
        says(progress.words())
        entry = await _result(api, line, prompt_id, progress, says, limits)
        may_be_there = False
        return entry, left_out
    finally:
        if may_be_there:
            await _stop(api, prompt_id, answered=answered)


async def _result(
    api: Api, line: Line, prompt_id: str, progress: Progress, says: Callable[[str], None], limits: Limits
) -> Entry:
    late = trio.current_time() + limits.wait_s
    over = math.inf  # until it has begun
    soon = SOON_S
    while True:
        pause = LOOK_S if line.up else LOOK_ALONE_S
        if progress.over:
            pause, soon = min(soon, pause), soon * 2
        until = over if progress.started else late
        await line.news(max(0.0, min(pause, until - trio.current_time())))
        if (entry := await api.history(prompt_id)) is not None:
            return entry
        match await api.place(prompt_id):
            case "running":
                progress.started = True
                if not line.up:  # else its own messages are its signs of life
                    says(progress.words())
            case "pending":
                says(progress.words())
                if trio.current_time() >= late:
                    raise SlotQueueTimeout(
                        f"ComfyUI had other work for {limits.wait_s:g} s (options.queue_timeout_s); "
                        "try again later",
                        retry_after_s=10,
                    )
            case "absent":
                # It may have ended between the two looks.
                if (entry := await api.history(prompt_id)) is not None:
                    return entry
                raise UpstreamBroken(
                    "ComfyUI knows nothing of it any more: it was started anew, or its queue cleared",
                    bytes_received=False,
                )
        if progress.started and over == math.inf and limits.run_s:
            over = trio.current_time() + limits.run_s
        elif trio.current_time() >= over:
            raise StreamStalled(
                f"ComfyUI did not finish it in {limits.run_s:g} s (options.run_timeout_s); "
                f"it was at {progress.words()}",
                details={"limit": "run_timeout_s"},
            )


async def _stop(api: Api, prompt_id: str, *, answered: bool) -> None:
    """Bounded, and shielded: who has left must not leave work behind."""
    with trio.move_on_after(STOP_TIMEOUT_S, shield=True):
        if not answered:
            await trio.sleep(SETTLE_S)
        # An engine that cannot be reached has nothing left to stop.
        with suppress(Broken, SlotdError):
            await api.stop(prompt_id)
