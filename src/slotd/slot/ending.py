"""How an engine, or a load, comes to its end, and what that means for those who wait."""

from __future__ import annotations

from dataclasses import replace
from typing import assert_never

from slotd.errors import SlotdError, SlotUnkillable
from slotd.process.plan import ExitStatus
from slotd.process.postmortem import explain
from slotd.slot import effects as fx
from slotd.slot import messages as ev
from slotd.slot.queueing import fault_error, refuse_waiting
from slotd.slot.slot import Check, Ending, Goal, Room
from slotd.slot.state import UP, Fault, SlotState
from slotd.slot.turn import CHECK, PHASE, PROVEN, Turn

__all__ = [
    "PORT_ATTEMPTS",
    "begin_unload",
    "exited",
    "fail",
    "finish_pending",
    "gone",
    "lost",
    "nothing_started",
    "start",
]

S = SlotState

PORT_ATTEMPTS = 3
"""How many ports a load tries before a taken port counts as its failure."""


def start(t: Turn, why: str) -> None:
    """Start an engine as the present generation. The room for it is held."""
    s = t.slot
    t.move(S.STARTING, why)
    t.set(
        alive=s.generation,
        address=None,
        pid=None,
        models=(),
        probe="",
        starts=s.starts + 1,
        progress=None,
        stale=False,
        check=Check.OFF,
        stalled=frozenset(),
        stalls=0,
    )
    t.disarm(CHECK, PROVEN)
    t.arm(PHASE, t.now + s.spec.ready_timeout_s)
    t.do(fx.Launch(s.generation))


def fail(t: Turn, fault: Fault) -> None:
    """A load has failed for good: everyone who waits for it hears why."""
    s = t.slot
    breaker = s.breaker.failed(fault, t.now)
    t.set(
        fault=fault,
        wanted=s.spec.keep_up and not fault.terminal and not s.stopping,
        undecided=False,
        ending=None,
        breaker=breaker,
    )
    refuse_waiting(t, lambda: fault_error(s.spec.name, fault))
    for p in s.pending:
        t.do(fx.Refuse(p.id, fault_error(s.spec.name, fault)) if p.up else fx.Done(p.id))
    t.set(pending=())
    _give_up_room(t, failed=True)


def stuck(t: Turn, fault: Fault) -> None:
    """An engine will not die. Nothing can be started beside it; whoever wanted it down has to know."""
    s = t.slot
    t.set(fault=fault, wanted=False, undecided=False, ending=None)
    refuse_waiting(t, lambda: fault_error(s.spec.name, fault))
    for p in s.pending:
        error: SlotdError = SlotUnkillable(
            f"the engine of slot {s.spec.name!r} does not end: {fault.message}", details=fault.details()
        )
        t.do(fx.Refuse(p.id, fault_error(s.spec.name, fault) if p.up else error))
    t.set(pending=())
    if s.room is not Room.NONE:
        t.do(fx.Tell(fx.Word.FAILED, s.ticket))


def _give_up_room(t: Turn, *, failed: bool) -> None:
    s = t.slot
    if s.room is Room.HELD and s.alive is None:
        if failed:
            t.do(fx.Tell(fx.Word.FAILED, s.ticket))
        t.do(fx.Tell(fx.Word.GONE, s.ticket))
        t.set(room=Room.NONE, leaving=False)


def finish_pending(t: Turn, *, up: bool) -> None:
    for p in t.slot.pending:
        if p.up is up:
            t.do(fx.Done(p.id))
    t.set(pending=tuple(p for p in t.slot.pending if p.up is not up))


# --- on purpose ------------------------------------------------------------------


def begin_unload(t: Turn, ending: Ending, grace_s: float | None = None) -> None:
    """Stop the engine now; its streams are closed first, so that it has nothing to wait for."""
    s = t.slot
    assert s.alive is not None
    grace = s.spec.stop_timeout_s if grace_s is None else grace_s
    t.move(S.UNLOADING, ending.why)
    t.set(ending=ending, models=(), leases={}, stalled=frozenset(), stale=False)
    # Twice the kill bound: the launcher's own report must come first.
    t.arm(PHASE, t.now + grace + 2 * s.spec.kill_timeout_s)
    _stop_check(t)
    reason = "stopping" if s.stopping else "unloaded"
    fault = ending.fault or Fault(reason, f"the slot was stopped: {ending.why}")
    t.do(fx.EngineLost(s.alive, fault))
    t.do(fx.StopEngine(s.alive, grace))


def _stop_check(t: Turn) -> None:
    if t.slot.check is Check.RUNNING:
        t.do(fx.StopCheck())
    t.set(check=Check.OFF)
    t.disarm(CHECK, PROVEN)


def _unloaded(t: Turn) -> None:
    """What was to be stopped is gone."""
    ending = t.slot.ending or Ending(Goal.OFFLINE, "stopped")
    t.set(ending=None)
    match ending.goal:
        case Goal.ERROR:
            fault = ending.fault or Fault("exited", ending.why)
            t.move(S.ERROR, fault.reason)
            fail(t, fault)
        case Goal.OFFLINE:
            t.move(S.OFFLINE, ending.why)
            finish_pending(t, up=False)
        case Goal.RESTART:
            t.move(S.OFFLINE, ending.why)
            t.set(wanted=not t.slot.stopping)
        case Goal.NEXT_PORT:
            attempts = t.slot.port_attempts + 1
            t.move(S.OFFLINE, ending.why)
            if t.slot.wish and not t.slot.stopping and not t.slot.leaving:
                t.set(generation=t.slot.generation + 1, port_attempts=attempts)
                start(t, "trying another port")
        case _:
            assert_never(ending.goal)


# --- by itself ---------------------------------------------------------------------


def lost(t: Turn, fault: Fault) -> None:
    """An engine that was up serves no more. Those who wait, wait on: it is started again for them."""
    s = t.slot
    assert s.alive is not None
    t.move(S.ERROR, fault.reason)
    t.set(
        fault=fault,
        leases={},
        stalled=frozenset(),
        models=(),
        stale=False,
        wanted=(s.spec.keep_up or any(p.up for p in s.pending)) and not s.stopping,
        breaker=s.breaker.failed(fault, t.now),
    )
    _stop_check(t)
    t.do(fx.EngineLost(s.alive, fault))


def _tail(t: Turn, log: tuple[str, ...]) -> tuple[str, ...]:
    """The lines that people are shown; the cause is looked for in more of them."""
    return log[len(log) - min(len(log), t.slot.spec.log_lines) :]


def _typed(t: Turn, status: ExitStatus, log: tuple[str, ...], oom: bool, *, loading: bool) -> Fault:
    verdict = explain(status, log, oom_killed=oom)
    reason = verdict.reason
    if reason == "exited" and loading:
        reason = "exited_during_load"
    # Once it has served, its file and its libraries cannot have been the trouble.
    return Fault(reason, verdict.message, str(status), _tail(t, log), terminal=verdict.terminal and loading)


def exited(t: Turn, event: ev.Exited) -> None:
    """The leader has ended; what is left of the engine is being swept."""
    s = t.slot
    if s.state in (S.STARTING, S.WARMING):
        fault = _typed(t, event.status, event.log, event.oom, loading=True)
        t.move(S.ERROR, fault.reason)
        t.set(fault=fault, undecided=True)
        t.do(fx.EngineLost(event.generation, fault))
    elif s.state in UP:
        lost(t, _typed(t, event.status, event.log, event.oom, loading=False))
    # In `unloading` and `error` this was to be expected: Gone decides.


def gone(t: Turn, event: ev.Gone) -> None:
    """Nothing of the engine is left."""
    s = t.slot
    if s.state in (S.STARTING, S.WARMING) or s.state in UP:
        # Only if the exit itself went unreported: the same conclusions.
        exited(t, ev.Exited(event.generation, event.report.exit, event.log, event.oom))
        s = t.slot
    t.set(alive=None, pid=None, address=None, models=())
    if event.report.survivors:
        pids = ", ".join(map(str, event.report.survivors))
        fault = Fault("unkillable", f"these processes could not be killed: {pids}", log=_tail(t, event.log))
        if s.state is S.UNLOADING:
            t.move(S.ERROR, fault.reason)
        stuck(t, fault)
    elif s.state is S.UNLOADING:
        ending = s.ending
        if ending is not None and ending.fault is not None and not ending.fault.log:
            t.set(ending=replace(ending, fault=replace(ending.fault, log=_tail(t, event.log))))
        _unloaded(t)
    elif s.undecided and s.fault is not None:
        _load_ended(t, event)
    else:
        if s.fault is not None and event.log:
            more = replace(s.fault, log=_tail(t, event.log))
            breaker = s.breaker.with_fault(more) if s.breaker.fault is s.fault else s.breaker
            t.set(fault=more, breaker=breaker)
        _remains_gone(t)


def _load_ended(t: Turn, event: ev.Gone) -> None:
    """An engine has ended while it loaded, and its last words are known."""
    s = t.slot
    fault = _typed(t, event.report.exit, event.log, event.oom, loading=True)
    t.set(undecided=False, fault=fault)
    if s.ending is not None and s.ending.goal is not Goal.ERROR:
        _remains_gone(t)
        return
    if (event.port_taken or fault.reason == "port_taken") and s.port_attempts + 1 < PORT_ATTEMPTS:
        if s.wish and not s.leaving:
            t.set(port_attempts=s.port_attempts + 1, generation=s.generation + 1, fault=None)
            start(t, "the port was taken; trying another")
        return
    if fault.reason == "killed" and not s.stopping:
        # By somebody else: no fault of the model's, so those who wait need not hear of it.
        breaker = s.breaker.failed(fault, t.now)
        if not breaker.parked:
            t.set(breaker=breaker, ending=None)
            return
    fail(t, fault)


def nothing_started(t: Turn, fault: Fault) -> None:
    """No process came into being, or it was stopped before its first word."""
    t.set(alive=None, pid=None, address=None)
    match t.slot.state:
        case S.UNLOADING:
            _unloaded(t)
        case S.STARTING:
            t.move(S.ERROR, fault.reason)
            fail(t, fault)
        case _:
            _remains_gone(t)


def _remains_gone(t: Turn) -> None:
    """In ``error``, the last of the engine is gone. What was to be unloaded is: the wish still holds."""
    ending = t.slot.ending
    t.set(ending=None, undecided=False)
    if ending is None:
        return
    if ending.goal is Goal.RESTART:
        t.set(wanted=not t.slot.stopping)
    elif ending.goal is Goal.OFFLINE:
        t.move(S.OFFLINE, ending.why)
        finish_pending(t, up=False)
