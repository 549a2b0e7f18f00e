"""From a model that is fetched to an engine that is ready."""

from __future__ import annotations

from slotd.slot import effects as fx
from slotd.slot import messages as ev
from slotd.slot.ending import (
    PORT_ATTEMPTS,
    begin_unload,
    exited,
    fail,
    finish_pending,
    gone,
    lost,
    nothing_started,
)
from slotd.slot.slot import Check, Ending, Goal
from slotd.slot.state import UP, Fault, SlotState
from slotd.slot.turn import CHECK, PHASE, PROVEN, Turn

__all__ = ["EngineEvent", "PullEvent", "engine_event", "hung", "pull_event"]

S = SlotState

CHECK_WITHIN_S = 60.0
"""How long the output check waits for a quiet moment before it runs beside requests."""
PROVEN_AFTER_S = 60.0

PullEvent = ev.PullProgressed | ev.Pulled | ev.PullFailed
EngineEvent = (
    ev.Started
    | ev.LaunchFailed
    | ev.PortOpened
    | ev.ProbeSaw
    | ev.Ready
    | ev.StrangerFound
    | ev.Exited
    | ev.Gone
    | ev.Hung
)


def pull_event(t: Turn, event: PullEvent) -> None:
    match event:
        case ev.PullProgressed(_, phase, done, total):
            if (done, total) != t.slot.progress or phase != t.slot.progress_phase:
                t.set(progress=(done, total), progress_phase=phase)
                t.arm(PHASE, t.now + t.slot.spec.pull_stall_s)
        case ev.Pulled():
            t.set(model_present=True, progress=None)
            t.move(S.OFFLINE, "model is here")
        case ev.PullFailed(_, fault):
            t.move(S.ERROR, fault.reason)
            fail(t, fault)


def engine_event(t: Turn, event: EngineEvent) -> None:
    s = t.slot
    match event:
        case ev.Started(generation, address, pid):
            t.set(address=address, pid=pid)
            if s.state is S.STARTING:
                t.do(fx.Probe(generation))
        case ev.LaunchFailed(_, fault):
            nothing_started(t, fault)
        case ev.PortOpened():
            if s.state is S.STARTING:
                _warming(t)
        case ev.ProbeSaw(_, words):
            t.set(probe=words)
        case ev.Ready(_, models):
            if s.state is S.STARTING:
                _warming(t)
            if t.slot.state is S.WARMING:
                _ready(t, models)
        case ev.StrangerFound():
            if s.state in (S.STARTING, S.WARMING):
                _next_port(t)
        case ev.Exited():
            exited(t, event)
        case ev.Gone():
            gone(t, event)
        case ev.Hung(_, fault):
            hung(t, fault)


def _warming(t: Turn) -> None:
    deadline = t.slot.deadlines[PHASE]  # one bound for the whole load
    t.move(S.WARMING, "port answers")
    t.arm(PHASE, deadline)


def _ready(t: Turn, models: tuple[str, ...]) -> None:
    s = t.slot
    t.move(S.READY, "health is good and the model is listed")
    t.set(
        models=models,
        probe="",
        fault=None,
        load_s=t.now - s.load_began,
        port_attempts=0,
        told_quiet=False,
        check=Check.DUE if s.spec.check_output else Check.OFF,
    )
    t.arm(PROVEN, t.now + PROVEN_AFTER_S)
    if s.spec.check_output:
        t.arm(CHECK, t.now + CHECK_WITHIN_S)
    finish_pending(t, up=True)
    t.do(fx.Tell(fx.Word.UP, s.ticket))


def _next_port(t: Turn) -> None:
    attempts = t.slot.port_attempts + 1
    if attempts < PORT_ATTEMPTS:
        begin_unload(t, Ending(Goal.NEXT_PORT, "a stranger listens on the port"), grace_s=0)
        return
    fault = Fault("stranger_on_port", f"another program listened on each of {attempts} ports tried")
    begin_unload(t, Ending(Goal.ERROR, fault.reason, fault), grace_s=0)


def hung(t: Turn, fault: Fault) -> None:
    """Kill an engine that is up and does nothing. Those whose requests it had are replayed or told."""
    s = t.slot
    if s.state in UP and s.alive is not None:
        lost(t, fault)
        t.do(fx.StopEngine(s.alive, 0.0))
