"""The launcher of engines that are children of slotd on this machine."""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Callable

import trio

from slotd.process import hunt
from slotd.process.guardian import Guardian
from slotd.process.handle import KILL_WAIT_S, LocalEngine, spawn
from slotd.process.identity import Ledger, LedgerEntry, run_marker
from slotd.process.logs import LogRing, pump
from slotd.process.plan import Address, EngineHandle, ExitStatus, LaunchPlan, StopReport
from slotd.process.ports import PortPool

__all__ = ["LocalLauncher"]

HOST = "127.0.0.1"
SWEEP_S = 5.0
"""How long what an engine left may resist SIGKILL."""
FLUSH_S = 1.0
DRAIN_S = 0.25
"""How long the log is read on after the end: what is in the pipe comes at once, the rest is a survivor's."""
BURIAL_S = KILL_WAIT_S + SWEEP_S + FLUSH_S + 1.0
THREADS = 64


class LocalLauncher:
    """Runs engines as child processes; implements :class:`slotd.process.plan.Launcher`.

    Every engine leads a session of its own and carries three environment
    entries: ``SLOTD_RUN``, ``SLOTD_SLOT`` and ``SLOTD_START``, the last one
    unique to the start. They are how its descendants are found wherever they
    went. ``guardian`` and ``ledger`` are told of every group; without them a
    killed slotd leaves its engines behind.
    """

    def __init__(
        self, ports: PortPool, *, run_id: str, guardian: Guardian | None, ledger: Ledger | None
    ) -> None:
        self._ports = ports
        self._run_id = run_id
        self._guardian = guardian
        self._ledger = ledger
        self._starts = itertools.count(1)
        # Its own, so that a crowd of other threads cannot delay a sweep.
        self._threads = trio.CapacityLimiter(THREADS)

    async def run(
        self,
        plan: LaunchPlan,
        *,
        logs: LogRing,
        started: Callable[[EngineHandle], None],
        exited: Callable[[ExitStatus], None],
    ) -> StopReport:
        """See :meth:`slotd.process.plan.Launcher.run`.

        Raises :class:`SpawnFailed`, :class:`slotd.process.ports.PortsExhausted`
        among it. ``exited`` is not called on cancellation, nor for a leader
        that SIGKILL does not end; the report then names it a survivor.
        Cancellation takes ``BURIAL_S`` seconds at most, milliseconds as a rule.
        """
        port = self._ports.take()
        try:
            return await self._run_on(Address(HOST, port), plan, logs, started, exited)
        finally:
            self._ports.give_back(port)

    async def _run_on(
        self,
        address: Address,
        plan: LaunchPlan,
        log: LogRing,
        started: Callable[[EngineHandle], None],
        exited: Callable[[ExitStatus], None],
    ) -> StopReport:
        marker = f"SLOTD_START={self._run_id}:{plan.slot}:{next(self._starts)}"
        argv, env = self._fill_in(plan, address, marker)
        # Not abandoned on cancellation: the thread's result, a process, always arrives here.
        child = await trio.to_thread.run_sync(
            spawn, plan.slot, argv, env, plan.cwd, limiter=self._threads, thread_name="slotd-spawn"
        )
        engine = LocalEngine(child, address, log, marker)
        drained = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_pump_and_tell, child.output, log, drained)
            try:
                self._enter(engine, plan.slot)
                if plan.nudge_after_s is not None:
                    nursery.start_soon(engine.nudge, plan.nudge_after_s)
                started(engine)
                if self._ledger is not None:
                    nursery.start_soon(self._ledger.flush)
                status = await engine.ended()
                if status is not None:
                    exited(status)
            finally:
                report = await self._bury(engine)
            with trio.move_on_after(DRAIN_S):
                await drained.wait()
            nursery.cancel_scope.cancel()
        return report

    async def _bury(self, engine: LocalEngine) -> StopReport:
        """Kill what is left of the engine, then reap it: the one shielded place, in ``BURIAL_S`` at most."""
        swept = hunt.Swept(frozenset(), (engine.identity.pid,))
        with trio.CancelScope(shield=True, deadline=trio.current_time() + BURIAL_S):
            if engine.status is None:
                engine.kill()
                await engine.ended_by_kill()
            # Blocks its thread for SWEEP_S at most, so the deadline above holds.
            sweep = functools.partial(engine.sweep, SWEEP_S)
            swept = await trio.to_thread.run_sync(sweep, limiter=self._threads, thread_name="slotd-sweep")
            if not swept.survivors:
                # Before the reaping: until then the pid cannot name another group.
                self._leave(engine)
            engine.reap()
            if self._ledger is not None:
                with trio.move_on_after(FLUSH_S):
                    await self._ledger.flush()
        leader = engine.identity.pid
        return StopReport(
            exit=engine.status or ExitStatus(code=None),
            killed=engine.killed,
            swept=len(swept.killed - {leader}),
            survivors=swept.survivors,
        )

    def _fill_in(self, plan: LaunchPlan, address: Address, marker: str) -> tuple[list[str], dict[str, str]]:
        # Not str.format: an argument may be JSON.
        def fill(text: str) -> str:
            return text.replace("{port}", str(address.port)).replace("{host}", address.host)

        env = dict(os.environ)
        env.update((name, fill(value)) for name, value in plan.env.items())
        for entry in (run_marker(self._run_id), f"SLOTD_SLOT={plan.slot}", marker):
            name, _, value = entry.partition("=")
            env[name] = value
        return [fill(arg) for arg in plan.argv], env

    def _enter(self, engine: LocalEngine, slot: str) -> None:
        if self._guardian is not None:
            self._guardian.tell_started(engine.identity)
        if self._ledger is not None:
            self._ledger.add(LedgerEntry(engine.identity, self._run_id, slot))

    def _leave(self, engine: LocalEngine) -> None:
        if self._guardian is not None:
            self._guardian.tell_ended(engine.identity)
        if self._ledger is not None:
            self._ledger.remove(engine.identity)


async def _pump_and_tell(fd: int, log: LogRing, drained: trio.Event) -> None:
    await pump(fd, log)
    drained.set()
