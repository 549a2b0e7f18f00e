"""The slot's state machine under random events: what must hold after every step."""

from __future__ import annotations

import dataclasses
import random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from slotd.process.plan import Address, ExitStatus, StopReport
from slotd.slot import effects as fx
from slotd.slot import messages as ev
from slotd.slot.machine import Slot, SlotSpec, next_deadline, step
from slotd.slot.state import LEGAL, TRANSITIONAL, UP, Fault, SlotState

SPEC = SlotSpec(
    "chat",
    max_parallel=2,
    max_queue=3,
    queue_timeout_s=50,
    pull_stall_s=20,
    ready_timeout_s=30,
    stop_timeout_s=10,
    kill_timeout_s=5,
    drain_timeout_s=8,
    abandon_after_s=4,
    idle_after_s=15,
    ttl_s=40,
)


class World:
    """A faithful environment: it answers effects as launchers and stores do, when the test says so."""

    def __init__(self, spec: SlotSpec = SPEC, *, present: bool = True) -> None:
        self.now = 0.0
        self.slot = Slot(spec, model="m", model_present=present)
        self.open: set[str] = set()  # ids asked and neither answered nor withdrawn
        self.held: set[str] = set()  # leases granted and neither released nor lost
        self.answered: list[str] = []
        self.engines: dict[int, str] = {}  # generation -> launched | started | exited
        self.pulls: set[int] = set()
        self.moves: list[fx.Moved] = []
        self.ids = 0

    def new_id(self, kind: str) -> str:
        self.ids += 1
        return f"{kind}{self.ids}"

    def ask(self, event: ev.Acquire | ev.Command) -> None:
        self.open.add(event.id)
        self.send(event)

    def send(self, event: ev.Event) -> None:
        before = self.slot
        self.slot, effects = step(self.slot, event, self.now)
        state = before.state
        for effect in effects:
            match effect:
                case fx.Moved(was, to, _):
                    assert was is state, "transitions follow on one another"
                    assert to in LEGAL[was], f"{was} -> {to}"
                    state = to
                    self.moves.append(effect)
                case fx.Grant(id):
                    assert id in self.open, f"{id} granted twice or unasked"
                    self.open.remove(id)
                    self.held.add(id)
                case fx.Refuse(id, _) | fx.Done(id):
                    assert id in self.open, f"{id} answered twice or unasked"
                    self.open.remove(id)
                    self.answered.append(id)
                case fx.Launch(generation):
                    assert generation not in self.engines
                    assert not self.engines, "one engine at a time: the old one is gone before the new starts"
                    self.engines[generation] = "launched"
                case fx.BeginPull(generation):
                    self.pulls.add(generation)
                case fx.EndPull(generation):
                    self.pulls.discard(generation)
                case fx.EngineLost():
                    self.held.clear()
                case fx.Probe(generation) | fx.StopEngine(generation, _):
                    assert generation in self.engines
        assert state is self.slot.state, "the state only changes by announced transitions"

    def check(self) -> None:
        s = self.slot
        if s.state in TRANSITIONAL:
            assert "phase" in s.deadlines, f"{s.state} has no deadline"
            assert s.deadlines["phase"] > self.now - 1e-9 or next_deadline(s) is not None
        assert ("queue" in s.deadlines) == bool(s.waiting)
        if s.state in UP:
            assert (s.state is SlotState.SERVING) == bool(s.leases)
        else:
            assert not s.leases
        assert set(s.leases) == self.held, "no lease is lost, none is invented"
        assert len(s.leases) <= s.spec.max_parallel
        assert len(s.waiting) <= s.spec.max_queue
        waiting = {w.id for w in s.waiting} | {p.id for p in s.pending}
        assert waiting == self.open, "every open ask is known to the machine"
        if s.waiting and s.state in (SlotState.OFFLINE, SlotState.ERROR):
            assert s.alive is not None, "who waits at a slot that is down waits for its remains to go"
        assert (s.alive is None) == (not self.engines)
        if s.ending is not None and s.state in UP:
            assert s.state is SlotState.SERVING, "only a slot with leases drains"
            assert "drain" in s.deadlines
        if s.state is SlotState.ERROR and s.alive is not None and s.pending:
            assert "phase" in s.deadlines, "a command waits for the last engine without a bound"
        if s.stopping:
            assert not any(p.up for p in s.pending)

    def due(self) -> bool:
        found = next_deadline(self.slot)
        if found is None:
            return False
        self.now = max(self.now, found[0])
        self.send(ev.Due(found[1]))
        return True

    def engine_step(self, kind: str, *, taken: bool = False) -> None:
        """Let the present engine do one thing that is possible for it."""
        if not self.engines:
            return
        generation, phase = next(iter(self.engines.items()))
        match (kind, phase):
            case ("start", "launched"):
                self.engines[generation] = "started"
                self.send(ev.Started(generation, Address("127.0.0.1", 1), 7))
            case ("fail", "launched"):
                del self.engines[generation]
                self.send(ev.LaunchFailed(generation, Fault("spawn_failed", "no such program")))
            case ("open", "started"):
                self.send(ev.PortOpened(generation))
            case ("ready", "started"):
                self.send(ev.Ready(generation, ("m",)))
            case ("stranger", "started"):
                self.send(ev.StrangerFound(generation))
            case ("exit", "started"):
                self.engines[generation] = "exited"
                self.send(ev.Exited(generation, ExitStatus(1), ("bye",)))
            case ("gone", "exited"):
                del self.engines[generation]
                self.send(ev.Gone(generation, StopReport(ExitStatus(1)), ("bye",), taken))
            case ("survive", "exited"):
                del self.engines[generation]
                self.send(ev.Gone(generation, StopReport(ExitStatus(1), survivors=(9,)), ("bye",)))
            case _:
                pass

    def finish_engine(self) -> None:
        for kind in ("start", "exit", "gone"):
            self.engine_step(kind)


class SlotMachine(RuleBasedStateMachine):
    @initialize(present=st.booleans(), ttl=st.sampled_from([0.0, 40.0]), pinned=st.booleans())
    def begin(self, present: bool, ttl: float, pinned: bool) -> None:
        self.world = World(dataclasses.replace(SPEC, ttl_s=ttl, pinned=pinned), present=present)

    @rule(wait=st.booleans(), model=st.sampled_from(["", "m", "other"]))
    def acquire(self, wait: bool, model: str) -> None:
        self.world.ask(ev.Acquire(self.world.new_id("lease"), model, wait))

    @precondition(lambda self: self.world.held)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        id = data.draw(st.sampled_from(sorted(self.world.held)))
        self.world.held.discard(id)
        self.world.send(ev.Release(id))

    @precondition(lambda self: self.world.slot.waiting)
    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        id = data.draw(st.sampled_from([w.id for w in self.world.slot.waiting]))
        self.world.open.discard(id)
        self.world.send(ev.Release(id))

    @rule(id=st.sampled_from(["lease999", "lease1"]))
    def release_unknown(self, id: str) -> None:
        if id not in self.world.held and id not in self.world.open:
            before = self.world.slot
            self.world.send(ev.Release(id))
            assert self.world.slot == before

    @rule(kind=st.sampled_from([ev.Load, ev.Unload, ev.Restart, ev.Kill]))
    def command(self, kind: type[ev.Load] | type[ev.Unload] | type[ev.Restart] | type[ev.Kill]) -> None:
        self.world.ask(kind(self.world.new_id("command")))

    @rule(model=st.sampled_from(["m", "other"]), present=st.booleans())
    def swap(self, model: str, present: bool) -> None:
        self.world.ask(ev.Swap(self.world.new_id("command"), model, present))

    @rule(
        kind=st.sampled_from(
            [
                "start",
                "fail",
                "open",
                "ready",
                "stranger",
                "exit",
                "gone",
                "survive",
                "start",
                "ready",
                "gone",
            ]
        ),
        taken=st.booleans(),
    )
    def engine(self, kind: str, taken: bool) -> None:
        self.world.engine_step(kind, taken=taken)

    @precondition(lambda self: self.world.pulls)
    @rule(outcome=st.sampled_from(["progress", "done", "failed"]))
    def pull(self, outcome: str) -> None:
        generation = max(self.world.pulls)
        if outcome == "progress":
            self.world.send(ev.PullProgressed(generation, "downloading", int(self.world.now * 10), 1000))
            return
        self.world.pulls.clear()
        if outcome == "done":
            self.world.send(ev.Pulled(generation))
        else:
            self.world.send(ev.PullFailed(generation, Fault("pull_failed", "no network")))

    @rule(
        kind=st.sampled_from(["Ready", "Exited", "Gone", "Started", "Pulled", "Stranger"]),
        back=st.integers(1, 3),
    )
    def late_word(self, kind: str, back: int) -> None:
        """An engine that has been replaced says something."""
        old = self.world.slot.generation - back
        events: dict[str, ev.Event] = {
            "Ready": ev.Ready(old, ("old",)),
            "Exited": ev.Exited(old, ExitStatus(0)),
            "Gone": ev.Gone(old, StopReport(ExitStatus(0))),
            "Started": ev.Started(old, Address("127.0.0.1", 2), 8),
            "Pulled": ev.Pulled(old),
            "Stranger": ev.StrangerFound(old),
        }
        event = events[kind]
        if old == self.world.slot.alive:
            return
        before = self.world.slot
        self.world.send(event)
        assert self.world.slot == before

    @rule(seconds=st.floats(0, 20))
    def time_passes(self, seconds: float) -> None:
        until = self.world.now + seconds
        while (found := next_deadline(self.world.slot)) is not None and found[0] <= until:
            self.world.due()
            self.world.check()
        self.world.now = until

    @rule()
    def close_doors(self) -> None:
        self.world.send(ev.CloseDoors())
        assert not self.world.slot.waiting
        assert set(self.world.slot.leases) == self.world.held, "who is being answered may finish"

    @rule()
    def shut_down(self) -> None:
        self.world.ask(ev.Shutdown(self.world.new_id("command")))

    @invariant()
    def holds(self) -> None:
        if hasattr(self, "world"):
            self.world.check()

    def teardown(self) -> None:
        """Whatever happened: told to stop, it ends stopped, and all askers are answered."""
        if not hasattr(self, "world"):
            return
        world = self.world
        world.ask(ev.Shutdown(world.new_id("command")))
        for _ in range(20):
            world.finish_engine()
            world.check()
        assert world.slot.state in (SlotState.OFFLINE, SlotState.ERROR)
        assert world.slot.alive is None
        assert not world.open
        assert not world.held
        launched = world.slot.starts
        world.ask(ev.Acquire(world.new_id("lease")))
        world.ask(ev.Load(world.new_id("command")))
        assert world.slot.starts == launched, "a stopped slot stays stopped"
        assert not world.open


TestSlotMachine = SlotMachine.TestCase
TestSlotMachine.settings = settings(max_examples=400, stateful_step_count=60, deadline=None)


@pytest.mark.parametrize("seed", range(200))
def test_left_alone_it_comes_to_rest(seed: int) -> None:
    """After any history, if engines and clock go on and nobody asks for more, everyone gets an answer."""
    rng = random.Random(seed)
    world = World(present=rng.random() < 0.5)
    for _ in range(rng.randrange(1, 40)):
        match rng.randrange(6):
            case 0 | 1:
                world.ask(ev.Acquire(world.new_id("lease"), "", rng.random() < 0.8))
            case 2:
                id = world.new_id("command")
                commands: list[ev.Command] = [ev.Load(id), ev.Unload(id), ev.Restart(id), ev.Kill(id)]
                world.ask(rng.choice(commands))
            case 3 | 4:
                world.engine_step(rng.choice(["start", "open", "ready", "exit", "gone"]))
            case 5:
                world.now += rng.random() * 5
        world.check()
    for _ in range(300):
        for kind in ("start", "gone", "exit") if world.slot.state is SlotState.UNLOADING else ("gone",):
            world.engine_step(kind)
        if not world.due() and not world.engines:
            break
        for id in sorted(world.held):
            world.held.discard(id)
            world.send(ev.Release(id))
        world.check()
    assert not world.open
