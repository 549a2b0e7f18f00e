"""The slot's state machine under random events: what must hold after every step."""

from __future__ import annotations

import dataclasses
import random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from slot_world import SPEC, World

from slotd.errors import GpuExclusive
from slotd.process.plan import Address, ExitStatus, StopReport
from slotd.slot import messages as ev
from slotd.slot.state import SlotState


class SlotMachine(RuleBasedStateMachine):
    @initialize(
        present=st.booleans(), ttl=st.sampled_from([0.0, 40.0]), pinned=st.booleans(), check=st.booleans()
    )
    def begin(self, present: bool, ttl: float, pinned: bool, check: bool) -> None:
        spec = dataclasses.replace(SPEC, ttl_s=ttl, pinned=pinned, keep_up=pinned, check_output=check)
        self.world = World(spec, present=present)

    @rule(
        wait=st.booleans(),
        model=st.sampled_from(["", "m", "other"]),
        priority=st.integers(-2, 2),
        replay=st.booleans(),
        age=st.floats(0, 60),
    )
    def acquire(self, wait: bool, model: str, priority: int, replay: bool, age: float) -> None:
        world = self.world
        world.replays += replay
        since = max(0.0, world.now - age) if replay else None
        world.ask(ev.Acquire(world.new_id("lease"), model, wait, since, priority, replay))

    @rule(deny=st.booleans())
    def arbiter(self, deny: bool) -> None:
        self.world.arbiter_step(deny=deny and self.world.ids % 3 == 0)

    @rule(drain=st.booleans(), refuse=st.booleans(), cut=st.booleans(), late=st.booleans())
    def leave(self, drain: bool, refuse: bool, cut: bool, late: bool) -> None:
        ticket = self.world.slot.ticket - late
        refusal = GpuExclusive("others need it") if refuse and drain else None
        before = self.world.slot
        self.world.send(ev.Leave(ticket, "others need it", drain, refusal, 5.0 if cut and drain else None))
        if not drain and before.state is SlotState.SERVING:
            assert self.world.slot.leases == before.leases, "who is served is never evicted"

    @rule(on=st.booleans())
    def contended(self, on: bool) -> None:
        self.world.send(ev.Contended(on))

    @rule(event=st.sampled_from([ev.ComeBack(), ev.Resync(), ev.Drifted(True), ev.Drifted(False)]))
    def others_speak(self, event: ev.Event) -> None:
        self.world.send(event)

    @rule(relaunch=st.booleans(), ttl=st.sampled_from([0.0, 40.0]), model=st.sampled_from([None, "m", "n"]))
    def reconfigure(self, relaunch: bool, ttl: float, model: str | None) -> None:
        world = self.world
        world.reconfigured = world.reconfigured or relaunch
        spec = dataclasses.replace(world.slot.spec, ttl_s=ttl)
        world.send(ev.Reconfigure(spec, relaunch or model is not None, model))

    @precondition(lambda self: self.world.held)
    @rule(data=st.data())
    def stall(self, data: st.DataObject) -> None:
        self.world.send(ev.Stalled(data.draw(st.sampled_from(sorted(self.world.held)))))

    @rule(sane=st.sampled_from([True, None, False]), back=st.integers(0, 1))
    def judged(self, sane: bool | None, back: int) -> None:
        alive = self.world.slot.alive
        if alive is not None:
            if self.world.checking and back == 0:
                self.world.checking = False
            self.world.send(ev.OutputJudged(alive - back, sane, "?????"))

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
                "killed",
                "hung",
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
        self.world.pull_step(outcome)

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
        self.world.pass_time(seconds)

    @rule(ask=st.booleans(), far=st.integers(1, 4))
    def move_on(self, ask: bool, far: int) -> None:
        """What mostly happens: somebody asks, there is room, the engine comes up."""
        world = self.world
        if ask:
            world.ask(ev.Acquire(world.new_id("lease")))
        world.pull_step("done")
        world.arbiter_step()
        for kind in ("start", "open", "ready")[:far]:
            world.engine_step(kind)
            world.check()

    @rule(ask=st.booleans())
    def serve(self, ask: bool) -> None:
        self.move_on(True, 3)
        self.move_on(ask, 3)

    @precondition(lambda self: self.world.late())
    @rule()
    def close_doors(self) -> None:
        self.world.send(ev.CloseDoors())
        assert not self.world.slot.waiting
        assert set(self.world.slot.leases) == self.world.held, "who is being answered may finish"

    @precondition(lambda self: self.world.late())
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
            world.arbiter_step()
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


def something_happens(world: World, rng: random.Random) -> None:
    """One event, as often as such things are."""
    slot = world.slot
    event: ev.Event
    match rng.randrange(24):
        case 0 | 1 | 2 | 3:
            replay = rng.random() < 0.2
            world.replays += replay
            since = max(0.0, world.now - 10) if replay else None
            priority = rng.randrange(-2, 3)
            event = ev.Acquire(world.new_id("lease"), "", rng.random() < 0.8, since, priority, replay)
            world.ask(event)
        case 4 | 5 | 6 | 7 if world.held:
            id = rng.choice(sorted(world.held))
            if rng.random() < 0.1:
                world.send(ev.Stalled(id))
            else:
                world.release(id)
        case 4 | 5 | 6 | 7 | 8 | 9 | 10 | 11 | 12 | 13:
            world.pull_step(rng.choice(["progress", "done", "done", "failed"]))
            world.arbiter_step(deny=rng.random() < 0.1)
            usual = ["start", "open", "ready", "start", "open", "ready", "gone"] * 4
            world.engine_step(
                rng.choice([*usual, "exit", "killed", "hung", "stranger"]), taken=rng.random() < 0.3
            )
        case 14:
            world.engine_step(rng.choice(["gone", "survive", "fail"]))
        case 15 | 16:
            id = world.new_id("command")
            commands: list[ev.Command] = [ev.Load(id), ev.Load(id), ev.Load(id), ev.Unload(id), ev.Kill(id)]
            world.ask(rng.choice([*commands, ev.Restart(id)]))
        case 17 | 18:
            world.pass_time(rng.random() * 12)
        case 19:
            refusal = GpuExclusive("others need it") if rng.random() < 0.3 else None
            drain = rng.random() < 0.5
            world.send(ev.Leave(slot.ticket, "others need it", drain, refusal if drain else None))
        case 20:
            world.judge(rng.choice([True, True, None, False]))
        case 21:
            events: list[ev.Event] = [ev.ComeBack(), ev.Resync(), ev.Contended(True), ev.Contended(False)]
            world.send(rng.choice([*events, ev.Drifted(True)]))
        case 22 if slot.waiting:
            id = rng.choice(slot.waiting).id
            world.open.discard(id)
            world.send(ev.Release(id, rng.random() < 0.5))
        case 23:
            if rng.random() < 0.3:
                world.reconfigured = True
                spec = dataclasses.replace(slot.spec, idle_after_s=rng.choice([15, 15, 6, 0]))
                world.send(ev.Reconfigure(spec, rng.random() < 0.5, rng.choice([None, None, "n"])))
        case _:
            pass


@pytest.mark.parametrize("seed", range(200))
def test_left_alone_it_comes_to_rest(seed: int) -> None:
    """After any history, if engines and clock go on and nobody asks for more, everyone gets an answer."""
    rng = random.Random(seed)
    check = rng.random() < 0.5
    world = World(dataclasses.replace(SPEC, check_output=check), present=rng.random() < 0.5)
    for _ in range(rng.randrange(1, 150)):
        something_happens(world, rng)
        world.check()
    for _ in range(600):
        world.arbiter_step()
        for kind in ("start", "gone", "exit") if world.slot.state is SlotState.UNLOADING else ("gone",):
            world.engine_step(kind)
        if not world.due() and not world.engines and world.asked is None:
            break
        for id in sorted(world.held):
            world.release(id)
        world.check()
    assert not world.open
    assert not world.slot.wish or world.slot.alive is not None
