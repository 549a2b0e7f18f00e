"""An engine's life: fetched, started, ready, lost or stopped, gone."""

from __future__ import annotations

from dataclasses import replace
from typing import assert_never

from slotd.errors import SlotdError, SlotLoadFailed, SpawnFailed
from slotd.process.plan import ExitStatus
from slotd.slot import effects as fx
from slotd.slot import messages as ev
from slotd.slot.queueing import Queueing
from slotd.slot.slot import Ending, Goal
from slotd.slot.state import UP, Fault, SlotState
from slotd.slot.turn import IDLE, PHASE

__all__ = ["Loading"]

S = SlotState

PORT_ATTEMPTS = 3
"""How many ports a load tries before a taken port counts as its failure."""


def _fault_error(slot: str, fault: Fault) -> SlotdError:
    kind = SpawnFailed if fault.reason == "spawn_failed" else SlotLoadFailed
    return kind(f"slot {slot!r} could not be loaded: {fault.message}", details=fault.details())


class Loading(Queueing):
    """From demand to a ready engine, and from an engine's end to what comes next."""

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
                # Stopped between its spawn and the first word: it may have been announced.
                self._set(alive=None, pid=None, address=None)
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
