"""One generation of a slot's engine: the tasks that live as long as it, and what they report.

Nothing is decided here. Each task posts events for the slot's machine, with
the generation's number, and ends when the engine does.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress

import trio

from slotd.errors import SlotdError
from slotd.process.logs import LogRing
from slotd.process.plan import EngineHandle, ExitStatus, LaunchPlan
from slotd.process.vitals import Footprint, oom_kills
from slotd.slot import liveness
from slotd.slot import messages as ev
from slotd.slot.backend import Backend
from slotd.slot.lease import Fate
from slotd.slot.state import Fault
from slotd.wire.http1 import Http1Pool

__all__ = ["Generation"]

KEEP_ALIVE_S = 4.0
"""llama.cpp closes idle connections after 5 s; one that is about to be closed is no help."""

MEASURE_FIRST_S = 1.0
MEASURE_EVERY_S = 15.0
"""Engines take memory with their first requests; the cost of a look grows with theirs."""

CHECK_TIMEOUT_S = 60.0

LAST_WORDS = 300
"""Lines of the log in which the cause of an end is looked for: tracebacks and debuggers bury it."""


class Generation:
    """An engine's process, its connections, its end.

    ``post`` takes events for the machine; ``measured`` is told what the engine
    takes up.
    """

    def __init__(
        self,
        number: int,
        model: str,
        backend: Backend,
        logs: LogRing,
        post: Callable[[ev.Event], object],
        measured: Callable[[Footprint], None],
    ) -> None:
        self.number = number
        self.fate = Fate()
        self.http: Http1Pool | None = None
        self.digest = ""
        self._model = model
        self._backend = backend
        self._logs = logs
        self._post = post
        self._measured = measured
        self._handle: EngineHandle | None = None
        self._scope = trio.CancelScope()
        self._check = trio.CancelScope()
        self._stop_grace_s: float | None = None
        self._port_taken = False
        self._was_ready = False
        self._oom_before = 0
        self._log_from = logs.position

    # --- orders: all synchronous ---------------------------------------------------

    def request_stop(self, grace_s: float) -> None:
        """End the engine; see :meth:`slotd.process.plan.EngineHandle.request_stop`."""
        self._stop_grace_s = grace_s
        if self._handle is not None:
            self._handle.request_stop(grace_s)
        else:
            # Not spawned yet: the launcher leaves nothing behind when cancelled.
            self._scope.cancel()

    def lose(self, fault: Fault) -> None:
        """It answers no more: break its connections, and say why."""
        self.fate.seal(fault)
        if self.http is not None:
            self.http.close()

    def open_check(self) -> trio.CancelScope:
        """For :meth:`check_output`; made beforehand, so that an order to stop cannot come too early."""
        self._check = trio.CancelScope()
        return self._check

    def stop_check(self) -> None:
        self._check.cancel()

    # --- its tasks -------------------------------------------------------------------

    async def run(self, ended: Callable[[dict[str, object]], None]) -> None:
        """Live as long as the process; ``ended`` gets the facts of its end, for the record."""
        try:
            with self._scope:
                self._oom_before = oom_kills()  # two small files of procfs, which no disk delays
                plan = self._backend.plan(self._model)
                self.digest = plan.digest()
                await self._launch(plan, ended)
                return
        except SlotdError as error:
            reason = "spawn_failed" if error.code == "slot.spawn_failed" else "plan_invalid"
            self._post(ev.LaunchFailed(self.number, Fault(reason, error.message, terminal=error.terminal)))
            return
        finally:
            self.lose(Fault("exited", "the engine has ended"))
        # Reached only when the scope was cancelled before the process existed.
        self._post(ev.LaunchFailed(self.number, Fault("unloaded", "stopped before it was started")))

    async def _launch(self, plan: LaunchPlan, ended: Callable[[dict[str, object]], None]) -> None:
        report = await self._backend.launcher.run(
            plan, logs=self._logs, started=self._started, exited=self._exited
        )
        ended(
            {
                "generation": self.number,
                "exit": str(report.exit),
                "killed": report.killed,
                "swept": report.swept,
                "survivors": report.survivors,
            }
        )
        self._post(ev.Gone(self.number, report, self._last_words(), self._port_taken, self._oom()))

    def _started(self, handle: EngineHandle) -> None:
        self._handle = handle
        self.http = Http1Pool(handle.address.host, handle.address.port, idle_s=KEEP_ALIVE_S)
        self._post(ev.Started(self.number, handle.address, handle.pid))
        if self._stop_grace_s is not None:
            handle.request_stop(self._stop_grace_s)

    def _exited(self, status: ExitStatus) -> None:
        if self._handle is not None and not self._was_ready:
            self._port_taken = self._handle.stranger_listens()
        self._post(ev.Exited(self.number, status, self._last_words(), self._oom()))

    def _oom(self) -> bool:
        return oom_kills() > self._oom_before

    def _last_words(self) -> tuple[str, ...]:
        """The tail of what this engine wrote, without that of the one before it."""
        return self._logs.tail(LAST_WORDS, self._log_from)

    async def probe(self) -> None:
        """Watch the engine until it is ready."""
        handle = self._handle
        if handle is None:
            return

        def port_opened() -> None:
            self._post(ev.PortOpened(self.number))

        def stranger() -> None:
            self._post(ev.StrangerFound(self.number))

        seen = ""

        def saw(words: str) -> None:
            nonlocal seen
            if words != seen:
                seen = words
                self._post(ev.ProbeSaw(self.number, words))

        async def until_ready() -> None:
            models = await self._backend.await_ready(
                handle, port_opened=port_opened, stranger=stranger, saw=saw
            )
            self._was_ready = True
            self._post(ev.Ready(self.number, models))

        await self._while_it_lives(until_ready)

    async def watch(self, liveness_timeout_s: float) -> None:
        """See whether the ready engine still lives (0: do not), and what it takes up."""
        handle, http = self._handle, self.http
        if handle is None or http is None:
            return

        def hung(fault: Fault) -> None:
            self._post(ev.Hung(self.number, fault))

        async def both() -> None:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._measure, handle)
                if liveness_timeout_s > 0:
                    await liveness.watch(handle, http, self._backend.readiness, liveness_timeout_s, hung=hung)

        await self._while_it_lives(both)

    async def _measure(self, handle: EngineHandle) -> None:
        pause = MEASURE_FIRST_S
        while True:
            await trio.sleep(pause)
            found = await handle.footprint()
            if found is not None:
                self._measured(found)
            pause = MEASURE_EVERY_S

    async def check_output(self, scope: trio.CancelScope) -> None:
        """Judge what the engine writes; posts nothing if :meth:`stop_check` came first."""
        http = self.http
        if http is None:
            return
        with scope, suppress(trio.TooSlowError):
            with trio.fail_after(CHECK_TIMEOUT_S):
                finding = await self._backend.check_output(http, self._model)
            sane = None if finding is None else finding.ok
            why = "" if finding is None else finding.why or ""
            self._post(ev.OutputJudged(self.number, sane, why))
            return
        if not scope.cancel_called:
            self._post(ev.OutputJudged(self.number, None, "no answer in time"))

    async def _while_it_lives(self, work: Callable[[], Awaitable[None]]) -> None:
        """Do it until it is done or the engine is lost."""
        async with trio.open_nursery() as nursery:

            async def until_lost() -> None:
                await self.fate.wait()
                nursery.cancel_scope.cancel()

            nursery.start_soon(until_lost)
            await work()
            nursery.cancel_scope.cancel()
