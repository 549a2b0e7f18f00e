"""The slot's actor: the shell around its state machine.

It owns the engine's task, the connections to it, the replies that wait, and
the log ring. It decides nothing: each message becomes an event for
:func:`slotd.slot.machine.step`, and the effects that come back are carried out
here, all without awaiting. Whatever takes time runs in a child task and posts
an event when it is done.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, assert_never

import trio

from slotd.actor import Actor, Mailbox, Reply, Snapshot
from slotd.errors import RequestCancelled, SlotdError
from slotd.events import EventBus, types
from slotd.process.logs import LogRing
from slotd.process.plan import EngineHandle, ExitStatus
from slotd.slot import effects as fx
from slotd.slot import messages as ev
from slotd.slot.backend import Backend
from slotd.slot.lease import Fate, Lease
from slotd.slot.machine import Slot, SlotSpec, next_deadline, step
from slotd.slot.state import Fault, SlotSnapshot, SlotState
from slotd.wire.http1 import Http1Pool

__all__ = ["SlotActor", "SlotIdentity"]

KEEP_ALIVE_S = 4.0
"""llama.cpp closes idle connections after 5 s; one that is about to be closed is no help."""


@dataclass(frozen=True, slots=True)
class SlotIdentity:
    """The configured facts of a slot that never change while its actor lives."""

    spec: SlotSpec
    type: str
    engine: str
    model: str
    labels: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    default: bool = False
    log_tail_lines: int = 20


class _Engine:
    """One generation: its task's scope, its connections, its end."""

    def __init__(self, generation: int) -> None:
        self.generation = generation
        self.scope = trio.CancelScope()
        self.fate = Fate()
        self.handle: EngineHandle | None = None
        self.http: Http1Pool | None = None
        self.stop_grace_s: float | None = None
        self.port_taken = False
        self.log_from = 0

    def request_stop(self, grace_s: float) -> None:
        self.stop_grace_s = grace_s
        if self.handle is not None:
            self.handle.request_stop(grace_s)
        else:
            # Not spawned yet: the launcher leaves nothing behind when cancelled.
            self.scope.cancel()

    def lose(self, fault: Fault) -> None:
        self.fate.seal(fault)
        if self.http is not None:
            self.http.close()


class SlotActor(Actor[ev.Message]):
    """Owner of one slot.

    ``resume`` is the machine's state to begin with: a fresh one, or, after a
    crash, one in ``error`` that goes on counting generations.
    """

    def __init__(
        self,
        mailbox: Mailbox[ev.Message],
        identity: SlotIdentity,
        backend: Backend,
        bus: EventBus,
        snapshot: Snapshot[SlotSnapshot],
        logs: LogRing,
        resume: Slot,
    ) -> None:
        super().__init__(mailbox)
        self._identity = identity
        self._backend = backend
        self._bus = bus
        self._snapshot = snapshot
        self._logs = logs
        self._slot = resume
        self._replies: dict[str, Reply[Any]] = {}
        self._engine: _Engine | None = None
        self._pull: trio.CancelScope | None = None
        self._digest = ""

    @property
    def slot(self) -> Slot:
        """The machine's present state. Only for whoever restarts the actor."""
        return self._slot

    # --- the loop -----------------------------------------------------------------

    def started(self) -> None:
        self._publish()

    def crashed(self) -> None:
        """Show it now: ending the engine takes time, and nobody should be sent here meanwhile."""
        fault = Fault("actor_crashed", "slotd's own actor for this slot crashed")
        self._snapshot.publish(self._snapshot.value.after_crash(fault))

    def handle(self, message: ev.Message) -> None:
        match message:
            case ev.QueryState(reply):
                reply.answer(self._slot.state)
            case ev.Asked(event, reply):
                if reply.abandoned:
                    return
                self._replies[event.id] = reply
                self._step(event)
            case ev.Release(id):
                waiting = self._replies.pop(id, None)
                if waiting is not None:
                    # Withdrawn by another than the asker: it must not hang.
                    waiting.refuse(RequestCancelled("the request was withdrawn"))
                self._step(message)
            case _:
                self._step(message)

    def next_deadline(self) -> float:
        due = next_deadline(self._slot)
        return math.inf if due is None else due[0]

    def on_deadline(self, now: float) -> None:
        due = next_deadline(self._slot)
        if due is not None:
            self._step(ev.Due(due[1]))

    def _step(self, event: ev.Event) -> None:
        now = trio.current_time()
        if self._slot.alive is None and self._slot.state in (SlotState.OFFLINE, SlotState.ERROR):
            present = self._backend.present(self._slot.model)
            if present != self._slot.model_present:
                self._slot, _ = step(self._slot, ev.ModelSeen(present), now)
        self._slot, effects = step(self._slot, event, now)
        for effect in effects:
            self._perform(effect)
        self._publish()

    # --- effects --------------------------------------------------------------------

    def _perform(self, effect: fx.Effect) -> None:
        match effect:
            case fx.Grant(id):
                self._grant(id)
            case fx.Refuse(id, error):
                reply = self._replies.pop(id, None)
                if reply is not None:
                    reply.refuse(error)
            case fx.Done(id):
                reply = self._replies.pop(id, None)
                if reply is not None:
                    reply.answer(None)
            case fx.Moved(before, after, why):
                self._moved(before, after, why)
            case fx.Launch(generation):
                self._engine = _Engine(generation)
                self.children.start_soon(self._run_engine, self._engine)
            case fx.Probe(generation):
                if self._engine is not None and self._engine.generation == generation:
                    self.children.start_soon(self._probe, self._engine)
            case fx.StopEngine(generation, grace_s):
                if self._engine is not None and self._engine.generation == generation:
                    self._engine.request_stop(grace_s)
            case fx.EngineLost(generation, fault):
                if self._engine is not None and self._engine.generation == generation:
                    self._engine.lose(fault)
            case fx.BeginPull(generation):
                self._pull = trio.CancelScope()
                self.children.start_soon(self._run_pull, generation, self._slot.model, self._pull)
            case fx.EndPull():
                if self._pull is not None:
                    self._pull.cancel()
            case _:
                assert_never(effect)

    def _grant(self, id: str) -> None:
        engine, address = self._engine, self._slot.address
        assert engine is not None
        assert engine.http is not None
        assert address is not None
        lease = Lease(
            id=id,
            slot=self._slot.spec.name,
            generation=engine.generation,
            model=self._slot.model,
            model_name=self._backend.abilities.model_name,
            address=address,
            http=engine.http,
            fate=engine.fate,
            abilities=self._backend.abilities,
        )
        reply = self._replies.pop(id, None)
        if reply is None or not reply.answer(lease):
            # The asker has left. It posts a release of its own, but it may have
            # been posted before this grant.
            self.mailbox.post(ev.Release(id))

    def _moved(self, before: SlotState, after: SlotState, why: str) -> None:
        slot = self._slot
        self._bus.publish(
            types.SLOT_TRANSITION,
            {
                "from": str(before),
                "to": str(after),
                "why": why,
                "generation": slot.generation,
                "t": trio.current_time(),
            },
            slot=slot.spec.name,
        )
        if after is SlotState.READY and before is SlotState.WARMING:
            self._bus.publish(
                types.SLOT_LOADED,
                {"generation": slot.generation, "load_s": slot.load_s, "model": slot.model},
                slot=slot.spec.name,
            )
        if after is SlotState.ERROR and slot.fault is not None:
            data = {"message": slot.fault.message, "generation": slot.generation, **slot.fault.details()}
            self._bus.publish(types.SLOT_FAULT, data, slot=slot.spec.name)

    def _publish(self) -> None:
        s, identity, abilities = self._slot, self._identity, self._backend.abilities
        note = abilities.note()
        self._snapshot.publish(
            SlotSnapshot(
                name=s.spec.name,
                type=identity.type,
                engine=identity.engine,
                state=s.state,
                generation=s.generation,
                since=s.since,
                model=s.model,
                models=s.models,
                labels=identity.labels,
                aliases=identity.aliases,
                default=identity.default,
                pinned=s.spec.pinned,
                draining=s.ending is not None,
                address=s.address,
                pid=s.pid,
                leases=len(s.leases),
                max_parallel=s.spec.max_parallel,
                queued=len(s.waiting),
                fault=s.fault,
                progress=s.progress,
                progress_phase=s.progress_phase,
                plan_digest=self._digest,
                load_s=s.load_s,
                last_used=s.last_used,
                starts=s.starts,
                nonstream_cancel=abilities.nonstream_cancel,
                notes=(note,) if note else (),
            )
        )

    # --- children -------------------------------------------------------------------

    async def _run_engine(self, engine: _Engine) -> None:
        """Live as long as one engine process; report its start, exit and end."""
        generation = engine.generation
        engine.log_from = self._logs.position
        loading = True

        def started(handle: EngineHandle) -> None:
            engine.handle = handle
            engine.http = Http1Pool(handle.address.host, handle.address.port, idle_s=KEEP_ALIVE_S)
            self.mailbox.post(ev.Started(generation, handle.address, handle.pid))
            if engine.stop_grace_s is not None:
                handle.request_stop(engine.stop_grace_s)

        def exited(status: ExitStatus) -> None:
            nonlocal loading
            loading = self._slot.state in (SlotState.STARTING, SlotState.WARMING)
            if loading and engine.handle is not None:
                engine.port_taken = engine.handle.stranger_listens()
            self.mailbox.post(ev.Exited(generation, status, self._last_words(engine)))

        try:
            with engine.scope:
                plan = self._backend.plan(self._slot.model)
                self._digest = plan.digest()
                report = await self._backend.launcher.run(
                    plan, logs=self._logs, started=started, exited=exited
                )
                stopped = {
                    "generation": generation,
                    "exit": str(report.exit),
                    "killed": report.killed,
                    "swept": report.swept,
                    "survivors": report.survivors,
                }
                self._bus.publish(types.SLOT_STOPPED, stopped, slot=self._slot.spec.name)
                self.mailbox.post(ev.Gone(generation, report, self._last_words(engine), engine.port_taken))
                return
        except SlotdError as error:
            reason = "spawn_failed" if error.code == "slot.spawn_failed" else "plan_invalid"
            self.mailbox.post(ev.LaunchFailed(generation, Fault(reason, error.message)))
            return
        finally:
            engine.lose(Fault("exited", "the engine has ended"))
        # Reached only when the scope was cancelled before the process existed.
        self.mailbox.post(ev.LaunchFailed(generation, Fault("unloaded", "stopped before it was started")))

    def _last_words(self, engine: _Engine) -> tuple[str, ...]:
        """The tail of what this engine wrote, without that of the one before it."""
        return self._logs.tail(self._identity.log_tail_lines, engine.log_from)

    async def _probe(self, engine: _Engine) -> None:
        handle = engine.handle
        if handle is None:
            return
        generation = engine.generation
        models: tuple[str, ...] | None = None

        def port_opened() -> None:
            self.mailbox.post(ev.PortOpened(generation))

        def stranger() -> None:
            self.mailbox.post(ev.StrangerFound(generation))

        async with trio.open_nursery() as nursery:

            async def until_lost() -> None:
                await engine.fate.wait()
                nursery.cancel_scope.cancel()

            nursery.start_soon(until_lost)
            models = await self._backend.await_ready(
                handle,
                port_opened=port_opened,
                stranger=stranger,
            )
            nursery.cancel_scope.cancel()
        if models is not None:
            self.mailbox.post(ev.Ready(generation, models))

    async def _run_pull(self, generation: int, model: str, scope: trio.CancelScope) -> None:
        def progress(phase: str, done: int, total: int | None) -> None:
            self.mailbox.post(ev.PullProgressed(generation, phase, done, total))
            data = {"phase": phase, "done_bytes": done, "total_bytes": total}
            self._bus.publish(types.SLOT_PULL_PROGRESS, data, slot=self._slot.spec.name)

        with scope:
            try:
                await self._backend.fetch(model, progress)
            except SlotdError as error:
                self.mailbox.post(ev.PullFailed(generation, Fault("pull_failed", error.message)))
            else:
                self.mailbox.post(ev.Pulled(generation))
