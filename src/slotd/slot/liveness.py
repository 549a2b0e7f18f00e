"""Whether an engine that is up still lives: judged by progress, not by patience."""

from __future__ import annotations

from collections.abc import Callable

import trio

from slotd.process.plan import EngineHandle
from slotd.slot.backend import Readiness
from slotd.slot.state import Fault
from slotd.wire.http1 import Http1Pool


async def watch(
    handle: EngineHandle,
    http: Http1Pool,
    readiness: Readiness,
    timeout_s: float,
    *,
    hung: Callable[[Fault], None],
) -> None:
    await trio.sleep_forever()
