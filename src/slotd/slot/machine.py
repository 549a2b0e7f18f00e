"""A slot's state machine: ``step(slot, event, now) -> (slot, effects)``. Pure.

The whole of a slot's behaviour is decided here; no task, clock, process or
socket is touched. Deadlines are part of the state (:attr:`Slot.deadlines`):
the shell only waits for the earliest and reports it as ``Due``, so that a
transitional state without a deadline can be seen in a test.

Who waits, who holds a lease and which commands are open is part of the state
as well: every id that comes in with an event leaves in exactly one ``Grant``,
``Refuse`` or ``Done``, unless a ``Release`` withdraws it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any, assert_never

from slotd.errors import (
    RouteStale,
    ServerStopping,
    SlotdError,
    SlotLoadFailed,
    SlotLoading,
    SlotPinned,
    SlotQueueFull,
    SlotQueueTimeout,
    SlotStopped,
    SpawnFailed,
)
from slotd.process.plan import Address, ExitStatus
from slotd.slot import effects as fx
from slotd.slot import messages as ev
from slotd.slot.state import LEGAL, LOADING, UP, Fault, SlotState

__all__ = ["Ending", "Goal", "Slot", "SlotSpec", "Waiter", "next_deadline", "step"]

S = SlotState

PHASE, QUEUE, IDLE, TTL, ABANDON, DRAIN = "phase", "queue", "idle", "ttl", "abandon", "drain"
PORT_ATTEMPTS = 3
"""How many ports a load tries before a taken port counts as its failure."""


@dataclass(frozen=True, slots=True)
class SlotSpec:
    """The numbers of a slot that its machine decides by. Seconds and counts."""

    name: str
    max_parallel: int = 4
    max_queue: int = 64
    queue_timeout_s: float = 300.0
    pull_stall_s: float = 120.0
    ready_timeout_s: float = 180.0
    stop_timeout_s: float = 10.0
    kill_timeout_s: float = 5.0
    drain_timeout_s: float = 30.0
    abandon_after_s: float = 5.0
    idle_after_s: float = 300.0
    ttl_s: float = 0.0
    pinned: bool = False


class Goal(Enum):
    """What an unload leads to."""

    OFFLINE = "offline"
    RESTART = "restart"
    NEXT_PORT = "next port"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Ending:
    """An engine that is to go (draining) or going (unloading): whereto and why."""

    goal: Goal
    why: str
    fault: Fault | None = None


@dataclass(frozen=True, slots=True)
class Waiter:
    id: str
    since: float
    deadline: float


@dataclass(frozen=True, slots=True)
class Pending:
    """A command that is answered when the slot is up, or down."""

    id: str
    up: bool


@dataclass(frozen=True, slots=True)
class Slot:
    """All that a slot's actor knows. Times are seconds on the actor's clock.

    ``alive``: the generation whose engine is not completely gone yet.
    ``ending`` is set while it drains (in an up state) and while it unloads.
    ``undecided``: in ``error``, the engine's remains are still being swept and
    its last words read; those who wait are answered when that is done.
    """

    spec: SlotSpec
    model: str = ""
    state: SlotState = S.OFFLINE
    since: float = 0.0
    generation: int = 0
    alive: int | None = None
    address: Address | None = None
    pid: int | None = None
    models: tuple[str, ...] = ()
    model_present: bool = True
    waiting: tuple[Waiter, ...] = ()
    leases: tuple[str, ...] = ()
    pending: tuple[Pending, ...] = ()
    wanted: bool = False
    stopping: bool = False
    ending: Ending | None = None
    undecided: bool = False
    port_attempts: int = 0
    fault: Fault | None = None
    progress: tuple[int, int | None] | None = None
    progress_phase: str = ""
    load_began: float = 0.0
    load_s: float | None = None
    last_used: float | None = None
    starts: int = 0
    deadlines: Mapping[str, float] = field(default_factory=dict)


def next_deadline(slot: Slot) -> tuple[float, str] | None:
    """The earliest deadline and its timer's name."""
    return min(((at, name) for name, at in slot.deadlines.items()), default=None)


def step(slot: Slot, event: ev.Event, now: float) -> tuple[Slot, tuple[fx.Effect, ...]]:
    """Apply one event. Never raises for any event in any state."""
    turn = _Turn(slot, now)
    turn.apply(event)
    return turn.slot, tuple(turn.effects)


def _fault_error(slot: str, fault: Fault) -> SlotdError:
    kind = SpawnFailed if fault.reason == "spawn_failed" else SlotLoadFailed
    return kind(f"slot {slot!r} could not be loaded: {fault.message}", details=fault.details())


class _Turn:
    """One step in the making: the next state and its effects."""

    def __init__(self, slot: Slot, now: float) -> None:
        self.slot = slot
        self.now = now
        self.effects: list[fx.Effect] = []

    # --- small verbs ------------------------------------------------------------

    def _set(self, **changes: Any) -> None:
        self.slot = replace(self.slot, **changes)

    def _do(self, effect: fx.Effect) -> None:
        self.effects.append(effect)

    def _arm(self, timer: str, after_s: float) -> None:
        self._set(deadlines={**self.slot.deadlines, timer: self.now + after_s})

    def _disarm(self, *timers: str) -> None:
        if any(t in self.slot.deadlines for t in timers):
            self._set(deadlines={t: at for t, at in self.slot.deadlines.items() if t not in timers})

    def _move(self, to: SlotState, why: str) -> None:
        """The only place where the state changes."""
        before = self.slot.state
        if to not in LEGAL[before]:
            raise AssertionError(f"slot {self.slot.spec.name!r}: {before} -> {to} is not a legal transition")
        self._disarm(PHASE, IDLE, TTL, DRAIN)
        self._set(state=to, since=self.now)
        self._do(fx.Moved(before, to, why))

    # --- dispatch ---------------------------------------------------------------

    def apply(self, event: ev.Event) -> None:
        match event:
            case ev.Acquire():
                self._acquire(event)
            case ev.Release(id):
                self._release(id)
            case ev.Load(id):
                self._load(id)
            case ev.Unload(id):
                self._unload(id)
            case ev.Restart(id):
                self._restart(id, "restart")
            case ev.Kill(id):
                self._kill(id)
            case ev.Swap(id, model, present):
                self._swap(id, model, present)
            case ev.Shutdown(id):
                self._shutdown(id)
            case ev.ModelSeen(present):
                if self.slot.state in (S.OFFLINE, S.ERROR):
                    self._set(model_present=present)
            case ev.Due(timer):
                self._due(timer)
            case ev.PullProgressed() | ev.Pulled() | ev.PullFailed():
                if self.slot.state is S.PULLING and event.generation == self.slot.generation:
                    self._pull_event(event)
            case (
                ev.Started()
                | ev.LaunchFailed()
                | ev.PortOpened()
                | ev.Ready()
                | ev.StrangerFound()
                | ev.Exited()
                | ev.Gone()
            ):
                # A late word of an engine that has been replaced means nothing.
                if event.generation == self.slot.alive:
                    self._engine_event(event)
            case _:
                assert_never(event)
        self._watch_abandonment()

    # --- leases -----------------------------------------------------------------

    def _can_grant(self) -> bool:
        s = self.slot
        return s.state in UP and s.ending is None and len(s.leases) < s.spec.max_parallel

    def _acquire(self, event: ev.Acquire) -> None:
        s, spec = self.slot, self.slot.spec
        if s.stopping:
            return self._do(fx.Refuse(event.id, ServerStopping("slotd is shutting down")))
        if event.model and s.model and event.model != s.model:
            return self._do(
                fx.Refuse(
                    event.id,
                    RouteStale(
                        f"slot {spec.name!r} now serves {s.model!r}, not {event.model!r}; ask again",
                        retry_after_s=1,
                    ),
                )
            )
        if self._can_grant() and not s.waiting:
            return self._grant(event.id)
        if not event.wait:
            if s.state in (S.OFFLINE, S.ERROR):
                # Who does not wait comes back: the load must outlive this request.
                self._set(wanted=True)
                self._load_if_down("requested")
            doing = "busy" if s.state in UP else str(self.slot.state)
            return self._do(
                fx.Refuse(event.id, SlotLoading(f"slot {spec.name!r} is {doing}", retry_after_s=2))
            )
        if len(s.waiting) >= spec.max_queue:
            return self._do(
                fx.Refuse(
                    event.id,
                    SlotQueueFull(
                        f"slot {spec.name!r} has {len(s.waiting)} requests waiting already "
                        f"(max_queue = {spec.max_queue})",
                        retry_after_s=1,
                    ),
                )
            )
        waiter = Waiter(event.id, self.now, self.now + spec.queue_timeout_s)
        self._set(waiting=(*s.waiting, waiter))
        self._watch_queue()
        self._load_if_down("requested")
        return None

    def _grant(self, id: str) -> None:
        self._set(leases=(*self.slot.leases, id), last_used=self.now)
        if self.slot.state is not S.SERVING:
            self._move(S.SERVING, "leased")
        self._do(fx.Grant(id))

    def _promote(self) -> None:
        while self.slot.waiting and self._can_grant():
            first, *rest = self.slot.waiting
            self._set(waiting=tuple(rest))
            self._grant(first.id)
        self._watch_queue()

    def _release(self, id: str) -> None:
        s = self.slot
        if id in s.leases:
            self._set(leases=tuple(x for x in s.leases if x != id), last_used=self.now)
            self._promote()
            if not self.slot.leases and self.slot.state is S.SERVING:
                self._move(S.READY, "last lease released")
                if self.slot.ending is not None:
                    self._begin_unload(self.slot.ending)
                else:
                    self._arm_idle()
        elif any(w.id == id for w in s.waiting):
            self._set(waiting=tuple(w for w in s.waiting if w.id != id))
            self._watch_queue()

    def _watch_queue(self) -> None:
        first = min((w.deadline for w in self.slot.waiting), default=None)
        if first is None:
            self._disarm(QUEUE)
        elif self.slot.deadlines.get(QUEUE) != first:
            self._arm(QUEUE, first - self.now)

    def _refuse_waiting(self, error: Callable[[], SlotdError]) -> None:
        for w in self.slot.waiting:
            self._do(fx.Refuse(w.id, error()))
        self._set(waiting=())
        self._watch_queue()

    def _watch_abandonment(self) -> None:
        """A load that nobody wants any more ends after a short grace."""
        s = self.slot
        unwanted = s.state in LOADING and not s.waiting and not s.wanted and not any(p.up for p in s.pending)
        if unwanted and ABANDON not in s.deadlines:
            self._arm(ABANDON, s.spec.abandon_after_s)
        elif not unwanted:
            self._disarm(ABANDON)

    # --- loading ----------------------------------------------------------------

    def _load_if_down(self, why: str) -> None:
        s = self.slot
        if s.state in (S.OFFLINE, S.ERROR) and s.alive is None and not s.stopping:
            self._set(
                generation=s.generation + 1,
                port_attempts=0,
                fault=None,
                ending=None,
                undecided=False,
                load_began=self.now,
                progress=None,
                progress_phase="",
            )
            if s.model_present:
                self._start(why)
            else:
                self._move(S.PULLING, why)
                self._arm(PHASE, s.spec.pull_stall_s)
                self._do(fx.BeginPull(self.slot.generation))

    def _start(self, why: str) -> None:
        s = self.slot
        self._move(S.STARTING, why)
        self._set(alive=s.generation, address=None, pid=None, models=(), starts=s.starts + 1, progress=None)
        self._arm(PHASE, s.spec.ready_timeout_s)
        self._do(fx.Launch(s.generation))

    def _pull_event(self, event: ev.PullProgressed | ev.Pulled | ev.PullFailed) -> None:
        match event:
            case ev.PullProgressed(_, phase, done, total):
                if (done, total) != self.slot.progress or phase != self.slot.progress_phase:
                    self._set(progress=(done, total), progress_phase=phase)
                    self._arm(PHASE, self.slot.spec.pull_stall_s)
            case ev.Pulled():
                self._set(model_present=True)
                self._start("model is here")
            case ev.PullFailed(_, fault):
                self._move(S.ERROR, fault.reason)
                self._fail(fault)

    def _fail(self, fault: Fault) -> None:
        """A load has failed for good: everyone who waits for it hears why."""
        name = self.slot.spec.name
        self._set(fault=fault, wanted=False, undecided=False, ending=None)
        self._refuse_waiting(lambda: _fault_error(name, fault))
        for p in self.slot.pending:
            # Whoever wanted it down has it down.
            self._do(fx.Refuse(p.id, _fault_error(name, fault)) if p.up else fx.Done(p.id))
        self._set(pending=())

    def _engine_event(
        self,
        event: ev.Started
        | ev.LaunchFailed
        | ev.PortOpened
        | ev.Ready
        | ev.StrangerFound
        | ev.Exited
        | ev.Gone,
    ) -> None:
        s = self.slot
        match event:
            case ev.Started(generation, address, pid):
                self._set(address=address, pid=pid)
                if s.state is S.STARTING:
                    self._do(fx.Probe(generation))
            case ev.LaunchFailed(_, fault):
                self._set(alive=None)
                if s.state is S.UNLOADING:
                    self._unloaded()
                elif s.state is S.STARTING:
                    self._move(S.ERROR, fault.reason)
                    self._fail(fault)
                else:
                    self._remains_gone()
            case ev.PortOpened():
                if s.state is S.STARTING:
                    self._warming()
            case ev.Ready(_, models):
                if s.state is S.STARTING:
                    self._warming()
                if self.slot.state is S.WARMING:
                    self._ready(models)
            case ev.StrangerFound():
                if s.state in (S.STARTING, S.WARMING):
                    self._next_port()
            case ev.Exited(generation, status, log):
                self._exited(generation, status, log)
            case ev.Gone():
                self._gone(event)

    def _warming(self) -> None:
        deadline = self.slot.deadlines[PHASE]  # one bound for the whole load
        self._move(S.WARMING, "port answers")
        self._arm(PHASE, deadline - self.now)

    def _ready(self, models: tuple[str, ...]) -> None:
        self._move(S.READY, "health is good and the model is listed")
        self._set(models=models, fault=None, load_s=self.now - self.slot.load_began, port_attempts=0)
        self._finish_pending(up=True)
        self._promote()
        if self.slot.state is S.READY:
            self._arm_idle()

    def _finish_pending(self, *, up: bool) -> None:
        for p in self.slot.pending:
            if p.up is up:
                self._do(fx.Done(p.id))
        self._set(pending=tuple(p for p in self.slot.pending if p.up is not up))

    def _arm_idle(self) -> None:
        if self.slot.spec.idle_after_s > 0:
            self._arm(IDLE, self.slot.spec.idle_after_s)

    def _next_port(self) -> None:
        attempts = self.slot.port_attempts + 1
        if attempts < PORT_ATTEMPTS:
            self._begin_unload(Ending(Goal.NEXT_PORT, "a stranger listens on the port"), grace_s=0)
            return
        fault = Fault("stranger_on_port", f"another program listened on each of {attempts} ports tried")
        self._begin_unload(Ending(Goal.ERROR, fault.reason, fault), grace_s=0)

    # --- the engine's end ---------------------------------------------------------

    def _exited(self, generation: int, status: ExitStatus, log: tuple[str, ...]) -> None:
        s = self.slot
        if s.state in (S.STARTING, S.WARMING):
            fault = Fault(
                "exited_during_load", f"the engine ended while loading ({status})", str(status), log
            )
            self._move(S.ERROR, fault.reason)
            self._set(fault=fault, undecided=True)
            self._do(fx.EngineLost(generation, fault))
        elif s.state in UP:
            fault = Fault("exited", f"the engine ended unexpectedly ({status})", str(status), log)
            self._move(S.ERROR, fault.reason)
            self._set(fault=fault, leases=(), models=(), wanted=False)
            self._do(fx.EngineLost(generation, fault))
        # In `unloading` and `error` this was to be expected: Gone decides.

    def _gone(self, event: ev.Gone) -> None:
        s = self.slot
        if s.state in (S.STARTING, S.WARMING) or s.state in UP:
            # Only if the exit itself went unreported: the same conclusions.
            self._exited(event.generation, event.report.exit, event.log)
            s = self.slot
        self._set(alive=None, pid=None, address=None, models=())
        if event.report.survivors:
            pids = ", ".join(map(str, event.report.survivors))
            fault = Fault("unkillable", f"these processes could not be killed: {pids}", log=event.log)
            if s.state is S.UNLOADING:
                self._move(S.ERROR, fault.reason)
            self._fail(fault)
        elif s.state is S.UNLOADING:
            ending = s.ending
            if ending is not None and ending.fault is not None and not ending.fault.log:
                self._set(ending=replace(ending, fault=replace(ending.fault, log=event.log)))
            self._unloaded()
        elif s.undecided and s.fault is not None:
            if event.port_taken and s.port_attempts + 1 < PORT_ATTEMPTS and s.ending is None:
                self._set(
                    port_attempts=s.port_attempts + 1,
                    generation=s.generation + 1,
                    undecided=False,
                    fault=None,
                )
                self._start("the port was taken; trying another")
            elif s.ending is not None and s.ending.goal is not Goal.ERROR:
                self._finish_error(s.ending)
            else:
                self._fail(replace(s.fault, log=event.log or s.fault.log))
        else:
            if s.fault is not None and event.log:
                self._set(fault=replace(s.fault, log=event.log))
            self._remains_gone()

    def _remains_gone(self) -> None:
        """In ``error``, the last of the engine is gone."""
        if self.slot.ending is not None:
            self._finish_error(self.slot.ending)
        else:
            self._resume()

    def _finish_error(self, ending: Ending) -> None:
        """What was to be unloaded has ended by itself: the wish still holds."""
        self._set(ending=None, undecided=False)
        if ending.goal is Goal.OFFLINE:
            self._move(S.OFFLINE, ending.why)
            self._finish_pending(up=False)
        self._resume()

    def _resume(self) -> None:
        """The slot is down. Whoever waits for it starts it again."""
        s = self.slot
        if s.waiting or any(p.up for p in s.pending):
            self._load_if_down("requests wait" if s.waiting else "asked to load")

    def _begin_unload(self, ending: Ending, grace_s: float | None = None) -> None:
        s = self.slot
        assert s.alive is not None
        grace = s.spec.stop_timeout_s if grace_s is None else grace_s
        self._move(S.UNLOADING, ending.why)
        self._set(ending=ending, models=(), wanted=ending.goal is not Goal.OFFLINE and s.wanted)
        # Twice the kill bound: the launcher's own report must come first.
        self._arm(PHASE, grace + 2 * s.spec.kill_timeout_s)
        fault = ending.fault or Fault("unloaded", f"the slot was stopped: {ending.why}")
        if s.leases:
            self._set(leases=())
        self._do(fx.EngineLost(s.alive, fault))
        self._do(fx.StopEngine(s.alive, grace))

    def _unloaded(self) -> None:
        ending = self.slot.ending or Ending(Goal.OFFLINE, "stopped")
        self._set(ending=None)
        match ending.goal:
            case Goal.ERROR:
                fault = ending.fault or Fault("exited", ending.why)
                self._move(S.ERROR, fault.reason)
                self._fail(fault)
            case Goal.OFFLINE:
                self._move(S.OFFLINE, ending.why)
                self._finish_pending(up=False)
                self._resume()
            case Goal.RESTART:
                self._move(S.OFFLINE, ending.why)
                self._load_if_down(ending.why)
            case Goal.NEXT_PORT:
                attempts = self.slot.port_attempts + 1
                self._move(S.OFFLINE, ending.why)
                if self.slot.stopping:
                    return
                self._set(generation=self.slot.generation + 1, port_attempts=attempts)
                self._start("trying another port")
            case _:
                assert_never(ending.goal)

    # --- commands -----------------------------------------------------------------

    def _refused_for_stop(self, id: str) -> bool:
        if self.slot.stopping:
            self._do(fx.Refuse(id, ServerStopping("slotd is shutting down")))
            return True
        return False

    def _stopped_error(self) -> SlotdError:
        return SlotStopped(
            f"slot {self.slot.spec.name!r} was stopped while this waited for it", retry_after_s=1
        )

    def _drop_demand(self, error: Callable[[], SlotdError]) -> None:
        """Nobody is to be served by what runs or loads now."""
        self._refuse_waiting(error)
        for p in self.slot.pending:
            if p.up:
                self._do(fx.Refuse(p.id, error()))
        self._set(pending=tuple(p for p in self.slot.pending if not p.up), wanted=False)

    def _await(self, id: str, *, up: bool) -> None:
        self._set(pending=(*self.slot.pending, Pending(id, up)))

    def _load(self, id: str) -> None:
        if self._refused_for_stop(id):
            return
        s = self.slot
        self._set(wanted=True)
        if s.state in UP and s.ending is None:
            self._do(fx.Done(id))
        elif s.state in UP and s.ending is not None and s.ending.goal is Goal.OFFLINE:
            # Still draining: it need not go at all.
            self._set(ending=None)
            self._disarm(DRAIN)
            for p in s.pending:
                self._do(fx.Refuse(p.id, self._stopped_error()) if p.up else fx.Done(p.id))
            self._set(pending=())
            self._promote()
            self._do(fx.Done(id))
        else:
            self._await(id, up=True)
            self._load_if_down("asked to load")

    def _unload(self, id: str) -> None:
        s = self.slot
        if s.spec.pinned and s.state not in (S.OFFLINE, S.ERROR):
            error = SlotPinned(f"slot {s.spec.name!r} is pinned; set pinned = false, or kill it")
            return self._do(fx.Refuse(id, error))
        self._drop_demand(self._stopped_error)
        self._go_down(id, "asked to unload", drain=True)
        return None

    def _kill(self, id: str) -> None:
        self._drop_demand(self._stopped_error)
        self._go_down(id, "asked to kill", drain=False, grace_s=0.0)

    def _shutdown(self, id: str) -> None:
        self._set(stopping=True)
        self._drop_demand(lambda: ServerStopping("slotd is shutting down"))
        self._go_down(id, "slotd is shutting down", drain=False)

    def _go_down(self, id: str, why: str, *, drain: bool, grace_s: float | None = None) -> None:
        s = self.slot
        ending = Ending(Goal.OFFLINE, why)
        match s.state:
            case S.OFFLINE:
                return self._do(fx.Done(id))
            case S.PULLING:
                self._do(fx.EndPull(s.generation))
                self._move(S.OFFLINE, why)
                return self._do(fx.Done(id))
            case S.ERROR if s.alive is None:
                self._move(S.OFFLINE, why)
                return self._do(fx.Done(id))
            case _:
                pass
        self._await(id, up=False)
        match s.state:
            case S.ERROR:
                self._set(ending=ending)
            case S.UNLOADING:
                self._set(ending=ending)
                if grace_s is not None and s.alive is not None:
                    self._do(fx.StopEngine(s.alive, grace_s))
            case S.SERVING if drain:
                self._set(ending=ending)
                self._arm(DRAIN, s.spec.drain_timeout_s)
            case _:
                self._begin_unload(ending, grace_s)
        return None

    def _restart(self, id: str, why: str) -> None:
        """Down and up again; whoever waits goes on waiting."""
        if self._refused_for_stop(id):
            return
        s = self.slot
        ending = Ending(Goal.RESTART, why)
        self._await(id, up=True)
        self._set(wanted=True)
        match s.state:
            case S.OFFLINE | S.ERROR:
                if s.alive is not None:
                    self._set(ending=ending)
                self._load_if_down(why)
            case S.PULLING:
                self._do(fx.EndPull(s.generation))
                self._move(S.OFFLINE, why)
                self._load_if_down(why)
            case S.UNLOADING:
                self._set(ending=ending)
            case S.SERVING:
                self._set(ending=ending)
                self._arm(DRAIN, s.spec.drain_timeout_s)
            case _:
                self._begin_unload(ending)
        # Whoever wanted it down is overruled by a later wish.
        for p in self.slot.pending:
            if not p.up:
                self._do(fx.Refuse(p.id, self._stopped_error()))
        self._set(pending=tuple(p for p in self.slot.pending if p.up))

    def _swap(self, id: str, model: str, present: bool) -> None:
        if self._refused_for_stop(id):
            return
        s = self.slot
        if model == s.model:
            self._load(id)
            return
        self._refuse_waiting(
            lambda: RouteStale(
                f"slot {s.spec.name!r} is being swapped to {model!r}; ask again", retry_after_s=1
            )
        )
        self._set(model=model, model_present=present)
        self._restart(id, f"swap to {model}")

    # --- deadlines ------------------------------------------------------------------

    def _due(self, timer: str) -> None:
        if self.slot.deadlines.get(timer, self.now + 1) > self.now:
            return
        self._disarm(timer)
        s = self.slot
        match timer:
            case "phase":
                self._phase_over()
            case "queue":
                waited = s.spec.queue_timeout_s
                for w in s.waiting:
                    if w.deadline <= self.now:
                        error = SlotQueueTimeout(
                            f"waited {waited:g} s for slot {s.spec.name!r} ({s.state}); "
                            "raise server.queue_timeout_s if that is normal"
                        )
                        self._do(fx.Refuse(w.id, error))
                self._set(waiting=tuple(w for w in s.waiting if w.deadline > self.now))
                self._watch_queue()
            case "idle":
                if s.state is S.READY:
                    self._move(S.IDLE, "quiet")
                    if s.spec.ttl_s > 0 and not s.spec.pinned:
                        self._arm(TTL, s.spec.ttl_s)
            case "ttl":
                if s.state is S.IDLE:
                    self._begin_unload(Ending(Goal.OFFLINE, "idle for ttl_s"))
            case "abandon":
                why = "nobody waits for it any more"
                if s.state is S.PULLING:
                    self._do(fx.EndPull(s.generation))
                    self._move(S.OFFLINE, why)
                elif s.state in (S.STARTING, S.WARMING):
                    self._begin_unload(Ending(Goal.OFFLINE, why))
            case "drain":
                if s.state is S.SERVING and s.ending is not None:
                    self._begin_unload(s.ending)

    def _phase_over(self) -> None:
        s = self.slot
        match s.state:
            case S.PULLING:
                fault = Fault("pull_stalled", f"no byte of the model came for {s.spec.pull_stall_s:g} s")
                self._do(fx.EndPull(s.generation))
                self._move(S.ERROR, fault.reason)
                self._fail(fault)
            case S.STARTING | S.WARMING:
                fault = Fault(
                    "load_timeout",
                    f"not ready within ready_timeout_s = {s.spec.ready_timeout_s:g} s "
                    f"(it was still {s.state})",
                )
                self._begin_unload(Ending(Goal.ERROR, fault.reason, fault))
            case S.UNLOADING:
                # The launcher bounds its own stop; this is for when it does not.
                # `alive` stays: no second engine starts beside one that may
                # still hold the memory. Its Gone, if it ever comes, frees the slot.
                fault = Fault("unkillable", "the engine did not end within its stop and kill time-outs")
                self._move(S.ERROR, fault.reason)
                self._fail(fault)
            case _:
                pass
