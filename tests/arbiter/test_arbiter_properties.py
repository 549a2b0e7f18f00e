"""The arbiter's machine among slots that do anything they may: what must hold after every step."""

from __future__ import annotations

import dataclasses
import random

import pytest
from arbiter_world import LIMITS, FakeSlot, World
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from slotd.arbiter import messages as ev
from slotd.arbiter import tenant as tn
from slotd.arbiter.exclusive import uses
from slotd.arbiter.room import Room, total
from slotd.arbiter.state import Demand
from slotd.errors import GpuExclusive, SlotdError

NAMES = ("a", "b", "c", "d", "e", "f")


class Watched(World):
    """A world that objects at once to what the arbiter must never do."""

    def admitted(self, name: str, ticket: int) -> None:
        slot = self.slots[name]
        super().admitted(name, ticket)
        assert len(self.answers[name, ticket]) == 1, "an Admit is answered once"
        hold = self.state.holds[name]
        budget = self.state.capacity()
        if hold.room:
            assert budget is not None
            held = total(h.room for h in self.state.holds.values())
            assert not hold.room.beyond(budget - (held - hold.room)), "more reserved than there is"
            reading = self.state.reading
            assert reading is not None
            loading = total(
                h.room for h in self.state.holds.values() if self.state.loading(h) and h is not hold
            )
            assert not hold.room.beyond(reading.free - Room(LIMITS.reserve_mb) - loading), "spawned blindly"
        for mode in self.state.modes.values():
            if mode.owner != name and uses(slot.facts, mode.device):
                assert mode.phase.value == "restoring", "a device has one owner"
        if slot.facts.exclusive and slot.facts.owns_memory:
            others = [h for h in self.state.holds if h != name]
            assert not any(uses(self.slots[o].facts, slot.facts.exclusive) for o in others)

    def denied(self, name: str, ticket: int, error: SlotdError) -> None:
        super().denied(name, ticket, error)
        assert len(self.answers[name, ticket]) == 1, "an Admit is answered once"
        assert error.message
        if isinstance(error, GpuExclusive):
            assert error.retry_after_s is not None
            assert 1 <= error.retry_after_s <= 3600

    def ordered(self, slot: FakeSlot, leave: tn.Leave) -> None:
        limits, view = self.state.limits, slot.view()
        assert not slot.facts.pinned, "a pinned slot is told to leave"
        assert slot.facts.owns_memory
        parting = self.state.holds[slot.name].parting
        assert parting is not None
        if not leave.drain:
            assert view.up
            assert view.leases == view.queued == 0, "in use, and told to go without a drain"
        elif leave.refusal is None:
            winner = self.demand_of(parting.winner)
            assert self.now >= winner.since + limits.max_wait_s, "driven out before its time"
            assert leave.cut_after_s is None
        else:
            device = self.slots[parting.winner].facts.exclusive
            assert device
            assert uses(slot.facts, device)
            assert leave.cut_after_s is not None
        super().ordered(slot, leave)

    def demand_of(self, name: str) -> Demand:
        return self.state.demands[name]

    def came_back(self, slot: FakeSlot) -> None:
        assert slot.driven_out, "called back without having been driven out"
        assert slot.phase == "off", "called back, and not out"
        slot.driven_out = False
        super().came_back(slot)

    def check(self) -> None:
        s = self.state
        assert s.next_due > self.now
        for name, slot in self.slots.items():
            assert not (name in s.holds and name in s.demands)
            if s.resync_until is not None:
                continue
            assert (slot.phase == "asked") == (name in s.demands), "whoever waits is known, and nobody else"
            assert slot.holds == (name in s.holds)
            assert slot.contended == (name in s.contended)
        for demand in s.demands.values():
            assert self.now < demand.asked_at + s.limits.wait_s + s.limits.resync_s, "waits beyond its bound"
            assert demand.why or s.resync_until is not None, "waits without saying for what"
        assert len(s.releases) <= len(self.slots)
        assert not s.contended or s.demands

    # --- what slots may do --------------------------------------------------------------

    def act(self, slot: FakeSlot, what: str, amount: int) -> None:
        name = slot.name
        match what, slot.phase:
            case "want", "off":
                self.want(name, since=self.now - amount, queued=amount % 2)
            case "go on", "loading":
                self.up(name, leases=amount % 3)
            case "go on", "unloading":
                self.gone(name, free=amount % 4 != 0)
            case "go on", "draining":
                self.release(name)
            case "fail", "loading":
                self.fail(name)
            case "withdraw", "asked":
                self.withdraw(name)
            case "die", "up" | "draining":
                self.gone(name)
            case "crash", "up":
                # It loads anew under its ticket.
                slot.phase, slot.leases, slot.queued, slot.taken, slot.gpu_taken = "loading", 0, 0, 0, 0
            case "unload", "up":
                slot.phase, slot.leases, slot.queued = "unloading", 0, 0
            case "use", "up":
                self.lease(name, 1 + amount % 2)
            case "release", "up":
                self.release(name)
            case "grow", "up":
                slot.taken = slot.need.ram_mb + amount
                self.send(tn.Measured(name, slot.ticket, "d", slot.taken, slot.gpu_taken))
            case "free", "off":
                self.freed(name)
            case "quiet", "up" if slot.contended and not slot.leases:
                self.quiet(name)
            case _:
                pass


ACTS = (
    *("want", "want", "go on", "go on", "go on", "fail", "withdraw", "die"),
    *("crash", "unload", "use", "release", "grow", "free", "quiet"),
)


def world(seed: int) -> Watched:
    """Six slots of all kinds."""
    rng = random.Random(seed)
    w = Watched(
        dataclasses.replace(LIMITS, budget_mb=rng.choice([0, 80])), gpu=rng.choice([None, 50]), total=110
    )
    for name in NAMES:
        w.add(
            name,
            rng.choice([10, 20, 30, 40, 50, 60, 70, 120]),
            rng.choice([0, 0, 20, 40]),
            source=rng.choice(["configured", "estimated"]),
            priority=rng.choice([10, 50]),
            pinned=rng.random() < 0.15,
            device=rng.choice(["", "gpu0", "gpu0"]),
            exclusive=rng.choice(["", "", "gpu0", "gpu1"]),
            restore_after_s=rng.choice([0.0, 20.0]),
            owns_memory=rng.random() < 0.9,
        )
    return w


def come_to_rest(w: Watched) -> None:
    """Nobody wants anything more, and everybody does what is asked of them."""
    w.strangers = 0
    for _ in range(400):
        for slot in w.slots.values():
            if slot.phase in ("loading", "draining"):
                w.act(slot, "go on", 0)
            elif slot.phase == "unloading":
                w.act(slot, "go on", 1)
            elif slot.phase == "off":
                w.act(slot, "free", 0)
            elif slot.leases:
                w.act(slot, "release", 0)
        w.wait(1)
        w.check()
        resting = all(s.phase in ("off", "up") for s in w.slots.values())
        if resting and not w.state.demands and not w.state.owed and not w.state.releases:
            break
    assert not w.state.demands, "somebody waits for ever"
    assert not w.state.owed
    assert not w.state.contended
    w.took()
    w.wait(15)
    assert not any(word.startswith(("back", "denied", "contended")) for word in w.took())


class ArbiterMachine(RuleBasedStateMachine):
    @initialize(seed=st.integers(0, 2000))
    def begin(self, seed: int) -> None:
        self.world = world(seed)

    @rule(name=st.sampled_from(NAMES), what=st.sampled_from(ACTS), amount=st.integers(0, 12))
    def act(self, name: str, what: str, amount: int) -> None:
        self.world.act(self.world.slots[name], what, amount)

    @rule(seconds=st.sampled_from([0.01, 0.3, 1.0, 2.5, 12.0, 31.0]))
    def time_passes(self, seconds: float) -> None:
        self.world.wait(seconds)

    @rule(mb=st.sampled_from([0, 0, 20, 100]))
    def strangers(self, mb: int) -> None:
        self.world.strangers = mb

    @rule()
    def release_device(self) -> None:
        self.world.send(ev.ReleaseDevice("gpu0"))

    @rule()
    def crash(self) -> None:
        self.world.crash()

    @rule(name=st.sampled_from(NAMES))
    def late_words(self, name: str) -> None:
        """Of a load that is over: nothing changes but what the clock does."""
        w = self.world
        before = w.state.holds.keys(), w.state.demands.keys()
        old = w.slots[name].ticket - 1
        words = (tn.Up, tn.Failed, tn.Gone, tn.Quiet, tn.Withdraw)
        for word in words:
            w.send(word(name, old))
        assert (w.state.holds.keys(), w.state.demands.keys()) == before

    @invariant()
    def holds(self) -> None:
        if hasattr(self, "world"):
            self.world.check()

    def teardown(self) -> None:
        if hasattr(self, "world"):
            come_to_rest(self.world)


TestArbiterMachine = ArbiterMachine.TestCase
TestArbiterMachine.settings = settings(max_examples=150, stateful_step_count=50, deadline=None)


@pytest.mark.parametrize("seed", range(150))
def test_left_alone_it_comes_to_rest(seed: int) -> None:
    rng = random.Random(seed)
    w = world(seed)
    for _ in range(rng.randrange(20, 80)):
        w.act(w.slots[rng.choice(NAMES)], rng.choice(ACTS), rng.randrange(12))
        if rng.random() < 0.02:
            w.crash()
        w.wait(rng.choice([0.01, 0.3, 1.0, 5.0]))
        w.check()
    come_to_rest(w)
