"""One prompt, from its submission to its result, whatever happens on the way."""

from __future__ import annotations

import uuid
from contextlib import suppress

import trio

from slotd.adapt import Reply
from slotd.comfy.api import Api, Entry
from slotd.comfy.events import Line
from slotd.comfy.progress import Progress
from slotd.comfy.workflow import Graph
from slotd.errors import EngineError, SlotdError, SlotQueueTimeout
from slotd.wire.http1 import BadResponse, ConnectFailed, UpstreamBroken

__all__ = ["run_prompt"]

LOOK_S = 2.0
"""How often its history is looked at while the websocket tells of it."""

LOOK_ALONE_S = 0.25
"""And while it does not."""

SOON_S = 0.005
"""The first look after ComfyUI has said that it is done; what it says comes just before the history does."""

STOP_TIMEOUT_S = 2.0
"""For stopping a prompt that nobody waits for any more."""


async def run_prompt(
    api: Api, line: Line, graph: Graph, reply: Reply, *, wait_s: float, about: str = ""
) -> Entry:
    """Have ComfyUI work on ``graph``; returns what its history says at the end, failed or not.

    ``wait_s``: the longest that it may be in ComfyUI's queue before ComfyUI
    begins with it; then :class:`SlotQueueTimeout`. ``about`` goes before the
    words on its progress. Raises :class:`EngineError` for a graph that is
    refused, and the wire's exceptions; one that ComfyUI knows no more is an
    :class:`UpstreamBroken`.

    However this ends without a result, cancelled for example, the prompt is
    taken out of the queue or interrupted, within ``STOP_TIMEOUT_S``.
    """
    prompt_id = str(uuid.uuid4())
    progress = Progress(prompt_id, len(graph))

    def heard(message: str | bytes) -> bool:
        ours = progress.hear(message)
        if ours:
            reply.says(about + progress.words())
        return ours and progress.over

    line.heard = heard
    may_be_there = True  # also of one whose submission was not answered
    try:
        try:
            await api.submit(graph, prompt_id=prompt_id, client_id=line.client_id)
        except EngineError:
            may_be_there = False
            raise
        reply.says(about + progress.words())
        entry = await _result(api, line, prompt_id, progress, reply, wait_s, about)
        may_be_there = False
        return entry
    finally:
        if may_be_there:
            await _stop(api, prompt_id)


async def _result(
    api: Api, line: Line, prompt_id: str, progress: Progress, reply: Reply, wait_s: float, about: str
) -> Entry:
    late = trio.current_time() + wait_s
    soon = SOON_S
    while True:
        pause = LOOK_S if line.up else LOOK_ALONE_S
        if progress.over:
            pause, soon = min(soon, pause), soon * 2
        elif not progress.started:
            pause = max(0.0, min(pause, late - trio.current_time()))
        await line.news(pause)
        if (entry := await api.history(prompt_id)) is not None:
            return entry
        match await api.place(prompt_id):
            case "running":
                progress.started = True
                if not line.up:  # else its own messages are its signs of life
                    reply.says(about + progress.words())
            case "pending":
                reply.says(about + progress.words())
                if trio.current_time() >= late:
                    raise SlotQueueTimeout(
                        f"ComfyUI had other work for {wait_s:g} s (options.queue_timeout_s); try again later",
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


async def _stop(api: Api, prompt_id: str) -> None:
    """Bounded, and shielded: who has left must not leave work behind."""
    with trio.move_on_after(STOP_TIMEOUT_S, shield=True):
        # An engine that cannot be reached has nothing left to stop.
        with suppress(ConnectFailed, UpstreamBroken, BadResponse, SlotdError):
            await api.stop(prompt_id)
