"""A launcher that launches nothing: for servers that someone else runs."""

from __future__ import annotations

from collections.abc import Callable

import trio

from slotd.process.logs import LogRing
from slotd.process.plan import Address, EngineHandle, ExitStatus, LaunchPlan, StopReport
from slotd.process.vitals import Footprint, Vitals

__all__ = ["AttachLauncher"]

WATCH_EVERY_S = 2.0
LOOK_EVERY_S = 0.1
"""Before it has been seen. One that has been ready must have been seen, or its end would go unnoticed."""
CONNECT_TIMEOUT_S = 5.0
MISSES = 2
"""So many connections in a row must fail before the server counts as gone."""


class _Attached:
    """An :class:`slotd.process.plan.EngineHandle` without a process."""

    def __init__(self, address: Address, logs: LogRing) -> None:
        self._address = address
        self._logs = logs
        self.detach = trio.Event()

    @property
    def address(self) -> Address:
        return self._address

    @property
    def pid(self) -> int | None:
        return None

    @property
    def logs(self) -> LogRing:
        return self._logs

    def request_stop(self, grace_s: float) -> None:
        """Leave it alone from now on. The server itself is not ours to stop."""
        del grace_s
        self.detach.set()

    def owns_listener(self) -> bool:
        return True

    def stranger_listens(self) -> bool:
        return False

    async def vitals(self) -> Vitals | None:
        await trio.lowlevel.checkpoint()
        return None

    async def footprint(self) -> Footprint | None:
        await trio.lowlevel.checkpoint()
        return None


class AttachLauncher:
    """Watches a server at a fixed address; "exit" is when it stops accepting connections."""

    def __init__(self, address: Address) -> None:
        self._address = address

    async def run(
        self,
        plan: LaunchPlan,
        *,
        logs: LogRing,
        started: Callable[[EngineHandle], None],
        exited: Callable[[ExitStatus], None],
    ) -> StopReport:
        """See :class:`slotd.process.plan.Launcher`. Never starts, never stops the server."""
        del plan
        handle = _Attached(self._address, logs)
        started(handle)
        seen = False
        misses = 0
        while not handle.detach.is_set():
            if await self._accepts():
                seen, misses = True, 0
            elif seen:  # else the load's own deadline decides
                misses += 1
                if misses >= MISSES:
                    logs.append(f"slotd: {self._address} accepts no connections any more\n".encode())
                    break
            with trio.move_on_after(WATCH_EVERY_S if seen else LOOK_EVERY_S):
                await handle.detach.wait()
        status = ExitStatus(None)
        exited(status)
        return StopReport(status)

    async def _accepts(self) -> bool:
        with trio.move_on_after(CONNECT_TIMEOUT_S):
            try:
                stream = await trio.open_tcp_stream(self._address.host, self._address.port)
            except OSError:
                return False
            await stream.aclose()
            return True
        return False
