"""The slot's actor: the shell around its state machine.

It owns the engine's task, the connections to it, the replies that wait, and
the log ring. It decides nothing: each message becomes an event for
:func:`slotd.slot.machine.step`, and the effects that come back are carried out
here, all without awaiting. Whatever takes time runs in a child task and posts
an event when it is done.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, assert_never

import trio

from slotd.actor import Actor, Mailbox, Reply, Snapshot
from slotd.arbiter import tenant
from slotd.arbiter.tenant import TenantFacts
from slotd.capability.choice import LoadedSlot
from slotd.errors import RequestCancelled, SlotdError
from slotd.events import EventBus, types
from slotd.process.logs import LogRing
from slotd.process.vitals import Footprint
from slotd.slot import effects as fx
from slotd.slot import messages as ev
from slotd.slot.backend import Backend
from slotd.slot.generation import Generation
from slotd.slot.lease import Lease
from slotd.slot.machine import Room, Slot, SlotSpec, next_deadline, step
from slotd.slot.queueing import passes_freely
from slotd.slot.state import LOADING, UP, Fault, SlotSnapshot, SlotState
from slotd.slot.turn import BREAKER
from slotd.slot.turnstile import Turnstile

__all__ = ["Configure", "SlotActor", "SlotIdentity"]

DRIFT_LOOK_S = 5.0
"""How often, at most, a quiet slot compares what runs with what would be started."""


@dataclass(frozen=True, slots=True)
class SlotIdentity:
    """The configured facts of a slot. They change only by :class:`slotd.slot.actor.Configure`.

    ``context``: tokens that one request may come to, prompt and answer, None if unknown.
    """

    spec: SlotSpec
    type: str
    engine: str
    model: str
    labels: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    default: bool = False
    priority: int = 50
    device: str = ""
    exclusive: str = ""
    restore_after_s: float = 3600.0
    owns_memory: bool = True
    system_prompt: str = ""
    context: int | None = None
    variants: tuple[str, ...] = ()

    def loaded(self, model: str) -> LoadedSlot:
        """As the capability axis sees it while it is to serve ``model``."""
        return LoadedSlot(
            name=self.spec.name,
            model_id=model or self.spec.name,
            type=self.type,
            device=self.device,
            labels=self.labels,
            system_prompt=self.system_prompt,
            default=self.default,
        )

    def facts(self) -> TenantFacts:
        """What the arbiter has to know."""
        return TenantFacts(
            slot=self.spec.name,
            priority=self.priority,
            pinned=self.spec.pinned,
            device=self.device,
            exclusive=self.exclusive,
            restore_after_s=self.restore_after_s,
            owns_memory=self.owns_memory,
            drain_timeout_s=self.spec.drain_timeout_s,
        )


@dataclass(frozen=True, slots=True)
class Configure:
    """Another configuration, and the backend that goes with it."""

    identity: SlotIdentity
    backend: Backend


def _with(slot: Slot, passed: ev.Passed) -> Slot:
    """The slot after what has passed its turnstile. The effects are known: they were told as it happened."""
    return step(slot, passed, passed.last_used)[0]


class SlotActor(Actor[ev.Message | Configure]):
    """Owner of one slot.

    ``resume`` is the machine's state to begin with: a fresh one, or, after a
    crash, one in ``error`` that goes on counting generations. ``report`` posts
    to the arbiter; None: there is none, and room for everybody. ``on_routed`` is
    called when something has changed by which requests are routed. ``turnstile``
    is closed, and this one's alone until :meth:`run` ends.
    """

    def __init__(
        self,
        mailbox: Mailbox[ev.Message | Configure],
        identity: SlotIdentity,
        backend: Backend,
        bus: EventBus,
        snapshot: Snapshot[SlotSnapshot],
        logs: LogRing,
        resume: Slot,
        report: Callable[[tenant.Report], object] | None = None,
        on_routed: Callable[[], None] = lambda: None,
        turnstile: Turnstile | None = None,
    ) -> None:
        super().__init__(mailbox)
        self._turnstile = turnstile or Turnstile()
        self._identity = identity
        self._backend = backend
        self._bus = bus
        self._snapshot = snapshot
        self._logs = logs
        self._slot = resume
        self._replies: dict[str, Reply[Any]] = {}
        self._report = report
        self._on_routed = on_routed
        self._routed: tuple[object, ...] = ()
        self._engine: Generation | None = None
        self._pull: trio.CancelScope | None = None
        self._digest = ""
        self._need = tenant.Need(0)
        self._footprint: Footprint | None = None
        self._drift_seen = -math.inf

    @property
    def slot(self) -> Slot:
        """The machine's present state. Only for whoever restarts the actor."""
        return self._present()

    def _present(self) -> Slot:
        """Its state, with what has passed the turnstile since the last step."""
        passed = self._turnstile.passed()
        return self._slot if passed is None else _with(self._slot, passed)

    # --- the loop -----------------------------------------------------------------

    async def run(self) -> None:
        try:
            await super().run()
        finally:
            self._turnstile.shut()

    def started(self) -> None:
        self._turnstile.close()  # what has passed there was its last owner's
        self._publish()

    def crashed(self) -> None:
        """Show it now: ending the engine takes time, and nobody should be sent here meanwhile."""
        self._turnstile.shut()
        fault = Fault("actor_crashed", "slotd's own actor for this slot crashed")
        self._snapshot.publish(self._snapshot.value.after_crash(fault))
        self._on_routed()

    def _take(self, message: ev.Message | Configure) -> bool:
        taken = super()._take(message)
        if not taken:
            # It waits for its turn, and whoever comes now comes after it.
            self._turnstile.shut()
        return taken

    def handle(self, message: ev.Message | Configure) -> None:
        match message:
            case ev.QueryState(reply):
                reply.answer(self._present().state)
            case Configure(identity, backend):
                self._configure(identity, backend)
            case ev.Asked(event, reply):
                if reply.abandoned:
                    return
                self._replies[event.id] = reply
                self._step(event)
            case ev.Release(id, _):
                waiting = self._replies.pop(id, None)
                if waiting is not None:
                    # Withdrawn by another than the asker: it must not hang.
                    waiting.refuse(RequestCancelled("the request was withdrawn"))
                self._step(message)
            case _:
                self._step(message)

    def next_deadline(self) -> float:
        return min(self._slot.deadlines.values(), default=math.inf)

    def on_deadline(self, now: float) -> None:
        # More than one may come due at the same instant.
        while (due := next_deadline(self._slot)) is not None and due[0] <= now:
            self._step(ev.Due(due[1]))
            if next_deadline(self._slot) == due:
                return  # not dealt with: the loop says so

    def _step(self, event: ev.Event) -> None:
        now = trio.current_time()
        self._take_over()
        if self._slot.alive is None and self._slot.state in (SlotState.OFFLINE, SlotState.ERROR):
            present = self._backend.present(self._slot.model)
            if present != self._slot.model_present:
                self._slot, _ = step(self._slot, ev.ModelSeen(present), now)
        self._slot, effects = step(self._slot, event, now)
        for effect in effects:
            self._perform(effect)
        if self._slot.quiet and now >= self._drift_seen + DRIFT_LOOK_S:
            self._drift_seen = now
            if self._planned() != self._digest:
                self.mailbox.post(ev.Drifted(True))
        self._let_pass()

    def _take_over(self) -> None:
        """Let nobody pass any more. What has passed is known from now on."""
        if (passed := self._turnstile.close()) is not None:
            self._slot = _with(self._slot, passed)
            self._show()  # what follows reaches readers before its own publish

    def _let_pass(self) -> None:
        """Leave the slot to its turnstile, if there is nothing to decide, and show what has become of it."""
        if passes_freely(self._slot) and self.mailbox.is_empty and not self.expects:
            look_at = self._drift_seen + DRIFT_LOOK_S
            self._turnstile.open(self._slot, self._lease, self._moved, self._show, look_at)
        self._publish()

    def _planned(self) -> str:
        """The digest of what would be started now; the present one if that cannot be told."""
        try:
            return self._backend.plan(self._slot.model).digest()
        except SlotdError:
            return self._digest

    def _configure(self, identity: SlotIdentity, backend: Backend) -> None:
        before, self._identity, self._backend = self._identity, identity, backend
        model = identity.model if identity.model != before.model else None
        relaunch = model is not None or self._planned() != self._digest
        self._step(ev.Reconfigure(identity.spec, relaunch, model))

    # --- effects --------------------------------------------------------------------

    def _perform(self, effect: fx.Effect) -> None:
        match effect:
            case fx.Grant(id):
                self._grant(id)
            case fx.Refuse(id, error):
                reply = self._replies.pop(id, None)
                if reply is not None:
                    reply.refuse(error.again())
            case fx.Done(id):
                reply = self._replies.pop(id, None)
                if reply is not None:
                    reply.answer(None)
            case fx.Moved(before, after, why):
                self._moved(before, after, why, trio.current_time())
            case fx.Launch(generation):
                self._launch(generation)
            case fx.Probe(generation):
                if (engine := self._of(generation)) is not None:
                    self.children.start_soon(engine.probe)
            case fx.StopEngine(generation, grace_s):
                if (engine := self._of(generation)) is not None:
                    engine.request_stop(grace_s)
            case fx.EngineLost(generation, fault):
                if (engine := self._of(generation)) is not None:
                    engine.lose(fault)
            case fx.CheckOutput(generation):
                if (engine := self._of(generation)) is not None:
                    self.children.start_soon(engine.check_output, engine.open_check())
            case fx.StopCheck():
                if self._engine is not None:
                    self._engine.stop_check()
            case fx.AskRoom(ticket, since):
                self._ask_room(ticket, since)
            case fx.Tell(word, ticket, why):
                self._tell(word, ticket, why)
            case fx.BeginPull(generation):
                self._pull = trio.CancelScope()
                self.children.start_soon(self._run_pull, generation, self._slot.model, self._pull)
            case fx.EndPull():
                if self._pull is not None:
                    self._pull.cancel()
            case _:
                assert_never(effect)

    def _of(self, generation: int) -> Generation | None:
        engine = self._engine
        return engine if engine is not None and engine.number == generation else None

    def _launch(self, generation: int) -> None:
        engine = Generation(
            generation,
            self._slot.model,
            self._backend,
            self._logs,
            self.mailbox.post,
            self._measured,
        )
        self._engine, self._footprint = engine, None

        def ended(facts: dict[str, object]) -> None:
            self._bus.publish(types.SLOT_STOPPED, facts, slot=self._slot.spec.name)

        async def run() -> None:
            await engine.run(ended)

        self.children.start_soon(run, name=f"engine {self._slot.spec.name}#{generation}")

    def _measured(self, found: Footprint) -> None:
        s = self._slot
        self._footprint = found
        if self._report is not None and self._engine is not None:
            self._report(
                tenant.Measured(s.spec.name, s.ticket, self._engine.digest, found.ram_mb, found.gpu_mb)
            )
        self._publish()

    # --- the arbiter ----------------------------------------------------------------

    def _ask_room(self, ticket: int, since: float) -> None:
        s = self._slot
        if self._report is None:
            self.mailbox.post(ev.Admitted(ticket))
            return
        try:
            self._need = self._backend.need(s.model)
        except SlotdError:
            self._need = tenant.Need(0)  # what is wrong with it, the start will say
        try:
            digest = self._backend.plan(s.model).digest()
        except SlotdError:
            digest = ""
        self._report(tenant.Admit(s.spec.name, ticket, self._need, digest, since))

    def _tell(self, word: fx.Word, ticket: int, why: str) -> None:
        if self._report is None:
            return
        s, name = self._slot, self._slot.spec.name
        match word:
            case fx.Word.WITHDRAW:
                self._report(tenant.Withdraw(name, ticket))
            case fx.Word.UP:
                self._report(tenant.Up(name, ticket))
            case fx.Word.FAILED:
                self._report(tenant.Failed(name, ticket))
            case fx.Word.GONE:
                self._report(tenant.Gone(name, ticket))
            case fx.Word.QUIET:
                self._report(tenant.Quiet(name, ticket))
            case fx.Word.STAYS:
                self._report(tenant.Stays(name, ticket, why))
            case fx.Word.HOLDING:
                held = ticket if s.room is Room.HELD else None
                self._report(tenant.Holding(name, held, self._need, s.state in UP))
            case _:
                assert_never(word)

    # --- leases and news --------------------------------------------------------------

    def _lease(self, id: str) -> Lease:
        """The lease of this name on the engine that runs."""
        engine, slot, abilities = self._engine, self._slot, self._backend.abilities
        assert engine is not None
        assert engine.http is not None
        assert slot.address is not None
        return Lease(
            id,
            slot.spec.name,
            engine.number,
            slot.model,
            abilities.model_name,
            slot.address,
            engine.http,
            engine.fate,
            abilities,
        )

    def _grant(self, id: str) -> None:
        reply = self._replies.pop(id, None)
        if reply is None or not reply.answer(self._lease(id)):
            # The asker has left. It posts a release of its own, but it may have
            # been posted before this grant.
            self.mailbox.post(ev.Release(id))

    def _moved(self, before: SlotState, after: SlotState, why: str, now: float) -> None:
        slot = self._slot
        self._bus.publish(
            types.SLOT_TRANSITION,
            {
                "from": str(before),
                "to": str(after),
                "why": why,
                "generation": slot.generation,
                "t": now,
            },
            slot=slot.spec.name,
        )
        if after is SlotState.READY and before is SlotState.WARMING:
            if self._engine is not None:
                self._digest = self._engine.digest
                self._drift_seen = now
                self.children.start_soon(self._engine.watch, slot.spec.liveness_timeout_s)
            self._bus.publish(
                types.SLOT_LOADED,
                {"generation": slot.generation, "load_s": slot.load_s, "model": slot.model},
                slot=slot.spec.name,
            )
        if after is SlotState.ERROR and slot.fault is not None:
            data = {"message": slot.fault.message, "generation": slot.generation, **slot.fault.details()}
            self._bus.publish(types.SLOT_FAULT, data, slot=slot.spec.name)

    def _show(self) -> None:
        """Most changes (a lease more, a lease less) nobody looks at."""
        # Drawn of this state, not of the one at the time of the look: a step's effects
        # reach readers before its own publish, and they must not see it half told.
        self._snapshot.publish_later(partial(self._shown, self._slot))

    def _publish(self) -> None:
        """Show it; what routing needs is told."""
        self._show()
        s = self._slot
        # Busy or not is no matter: whoever is up is asked, and knows best.
        state = SlotState.READY if s.state in UP else s.state
        routed = (state, s.ending is not None, s.model, s.models, s.generation)
        if routed != self._routed:
            self._routed = routed
            self._on_routed()

    def _shown(self, s: Slot) -> SlotSnapshot:
        if s is self._slot:
            s = self._present()
        identity, abilities = self._identity, self._backend.abilities
        note = abilities.note()
        taken = self._taken(s)
        return SlotSnapshot(
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
            context=identity.context,
            variants=identity.variants,
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
            priority=identity.priority,
            device=identity.device,
            exclusive=identity.exclusive,
            blocked=self._blocked(s),
            probe=s.probe if s.state in LOADING else "",
            retry_at=s.breaker.until if s.breaker.blocks(trio.current_time()) else None,
            failures=s.breaker.failures,
            drift=s.stale,
            checked=self._checked(s),
            ram_mb=taken[0],
            gpu_mb=taken[1],
            notes=(note,) if note else (),
        )

    def _blocked(self, s: Slot) -> str:
        if s.room is Room.ASKED:
            return f"waits for room: needs {self._need.ram_mb} MiB" + (
                f" and {self._need.gpu_mb} MiB on the GPU" if self._need.gpu_mb else ""
            )
        if s.down and s.wish and BREAKER in s.deadlines:
            return f"has failed {s.breaker.failures} times in a row; tried again later"
        return ""

    def _checked(self, s: Slot) -> str:
        return f"failed: {s.condemned.message}" if s.condemned is not None else s.check.value

    def _taken(self, s: Slot) -> tuple[int | None, int | None]:
        """MiB that it takes up, as measured, else as reserved."""
        if s.alive is None:
            return None, None
        if self._footprint is not None:
            return self._footprint.ram_mb, self._footprint.gpu_mb
        return self._need.ram_mb or None, self._need.gpu_mb or None

    # --- children -------------------------------------------------------------------

    async def _run_pull(self, generation: int, model: str, scope: trio.CancelScope) -> None:
        def progress(phase: str, done: int, total: int | None) -> None:
            self.mailbox.post(ev.PullProgressed(generation, phase, done, total))
            data = {"phase": phase, "done_bytes": done, "total_bytes": total}
            self._bus.publish(types.SLOT_PULL_PROGRESS, data, slot=self._slot.spec.name)

        with scope:
            try:
                await self._backend.fetch(model, progress)
            except SlotdError as error:
                fault = Fault("pull_failed", error.message, terminal=error.terminal)
                self.mailbox.post(ev.PullFailed(generation, fault))
            else:
                self.mailbox.post(ev.Pulled(generation))
