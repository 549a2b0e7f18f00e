"""Watching an engine from its first breath until it is ready."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import trio

from slotd.process.plan import EngineHandle
from slotd.slot.backend import Readiness
from slotd.wire.get import get
from slotd.wire.http1 import Http1Pool

__all__ = ["await_ready"]

FIRST_DELAY_S = 0.01
MAX_DELAY_S = 0.1
PART = 0.03
"""Between two looks pass this part of the time since the start, from the first delay to the longest: a
look costs a fraction of a millisecond, and what passes after the engine is ready delays the first token.
"""

ANSWER_TIMEOUT_S = 5.0


class _Model(msgspec.Struct):
    id: str


class _ModelList(msgspec.Struct):
    data: list[_Model] = []


_models = msgspec.json.Decoder(_ModelList)


async def await_ready(
    handle: EngineHandle,
    readiness: Readiness,
    configured_model: str,
    *,
    port_opened: Callable[[], None],
    stranger: Callable[[], None],
    saw: Callable[[str], None],
) -> tuple[str, ...]:
    """Probe until the engine is ready, and return the names of the models it lists.

    Ready means: health is 200, a model is listed, and the listener belongs to
    the engine itself. Nothing else promotes; a time-out never does. Calls
    ``port_opened`` once, when our own listener answers, and ``stranger`` when
    somebody else holds the port, after which the caller is expected to give
    up. ``saw`` is told in words what each look found, for whoever wonders why
    it takes so long. Runs until cancelled; the deadline is the caller's.

    The probe has a connection of its own, outside the engine's users' pool.
    """
    http = Http1Pool(handle.address.host, handle.address.port, max_idle=1)
    began = trio.current_time()
    opened = False
    try:
        while True:
            answer = await _get(http, readiness.health_path)
            if answer is None:
                words = f"nobody answers GET {readiness.health_path} at {handle.address}"
                if readiness.own_listener and handle.stranger_listens():
                    stranger()
            elif readiness.own_listener and not handle.owns_listener():
                words = f"somebody else listens at {handle.address}"
                if handle.stranger_listens():
                    stranger()
            else:
                if not opened:
                    opened = True
                    port_opened()
                words = f"GET {readiness.health_path} answers {answer[0]}"
                if answer[0] == 200:
                    models = await _listed(http, readiness, configured_model)
                    if models:
                        return models
                    words = f"GET {readiness.models_path} lists no model"
            saw(words)
            elapsed = trio.current_time() - began
            await trio.sleep(min(max(elapsed * PART, FIRST_DELAY_S), MAX_DELAY_S))
    finally:
        http.close()


async def _listed(http: Http1Pool, readiness: Readiness, configured_model: str) -> tuple[str, ...]:
    if not readiness.models_path:
        return (configured_model,) if configured_model else ("default",)
    answer = await _get(http, readiness.models_path)
    if answer is None or answer[0] != 200:
        return ()
    try:
        return tuple(m.id for m in _models.decode(answer[1]).data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ()


async def _get(http: Http1Pool, path: str) -> tuple[int, bytes] | None:
    """As :func:`slotd.wire.get.get`; what this side lacks it may have at the next look."""
    try:
        return await get(http, path, ANSWER_TIMEOUT_S)
    except OSError:
        return None
