"""A faithful environment of a slot's machine, for tests that drive it without an actor."""

from __future__ import annotations

import math
from typing import Any, cast

from slotd.errors import OutOfMemory, SlotdError
from slotd.process.plan import Address, ExitStatus, StopReport
from slotd.slot import effects as fx
from slotd.slot import messages as ev
from slotd.slot.lease import Lease
from slotd.slot.machine import Check, Room, Slot, SlotSpec, next_deadline, step
from slotd.slot.queueing import nothing_follows, passes_freely
from slotd.slot.settle import derive
from slotd.slot.state import LEGAL, TRANSITIONAL, UP, Fault, SlotState
from slotd.slot.turn import IDLE, Turn
from slotd.slot.turnstile import Turnstile

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


FAILED = ExitStatus(1)


def _lease(id: str) -> Lease:
    return cast(Lease, id)


class World:
    """A faithful environment: it answers effects as launchers and stores do, when the test says so."""

    def __init__(self, spec: SlotSpec = SPEC, *, present: bool = True) -> None:
        self.now = 0.0
        self.slot = Slot(spec, model="m", model_present=present)
        self.open: set[str] = set()  # ids asked and neither answered nor withdrawn
        self.held: set[str] = set()  # leases granted and neither released nor lost
        self.answered: list[str] = []
        self.refused: dict[str, SlotdError] = {}
        self.granted: list[str] = []
        self.told: list[fx.Word] = []
        self.stopped: list[float] = []
        self.engines: dict[int, str] = {}  # generation -> launched | started | exited
        self.pulls: set[int] = set()
        self.asked: int | None = None  # the ticket that the arbiter has to answer
        self.room: int | None = None  # the ticket whose room is held
        self.checking = False
        self.moves: list[fx.Moved] = []
        self.ids = 0
        self.replays = 0
        self.reconfigured = False

    def late(self) -> bool:
        """Enough has happened for an end."""
        return self.ids > 25

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
                    self.granted.append(id)
                case fx.Refuse(id, _) | fx.Done(id):
                    assert id in self.open, f"{id} answered twice or unasked"
                    self.open.remove(id)
                    self.answered.append(id)
                    if isinstance(effect, fx.Refuse):
                        self.refused[id] = effect.error
                case fx.Launch(generation):
                    assert generation not in self.engines
                    assert not self.engines, "one engine at a time: the old one is gone before the new starts"
                    assert self.room is not None, "no start without room"
                    self.engines[generation] = "launched"
                case fx.BeginPull(generation):
                    self.pulls.add(generation)
                case fx.EndPull(generation):
                    self.pulls.discard(generation)
                    self.checking = False
                case fx.EngineLost():
                    self.held.clear()
                case fx.AskRoom(ticket, since):
                    assert self.asked in (None, ticket), "one wish for room at a time"
                    assert self.room is None, "the room of the last load is given back first"
                    assert since <= self.now
                    self.asked = ticket
                case fx.Tell(word, ticket, _):
                    self.hear(word, ticket)
                case fx.CheckOutput(generation):
                    assert generation in self.engines
                    assert not self.checking
                    self.checking = True
                case fx.StopCheck():
                    assert self.checking
                    self.checking = False
                case fx.StopEngine(generation, grace_s):
                    assert generation in self.engines
                    self.stopped.append(grace_s)
                case fx.Probe(generation):
                    assert generation in self.engines
        assert state is self.slot.state, "the state only changes by announced transitions"

    def hear(self, word: fx.Word, ticket: int) -> None:
        self.told.append(word)
        match word:
            case fx.Word.WITHDRAW:
                assert ticket == self.asked
                self.asked = None
            case fx.Word.GONE:
                assert ticket == self.room
                assert not self.engines, "room is given back when nothing is left in it"
                self.room = None
            case fx.Word.UP | fx.Word.QUIET | fx.Word.STAYS | fx.Word.FAILED:
                assert ticket == self.room
            case fx.Word.HOLDING:
                pass

    def arbiter_step(self, *, deny: bool = False) -> None:
        if self.asked is None:
            return
        ticket, self.asked = self.asked, None
        if deny:
            self.send(ev.Denied(ticket, OutOfMemory("no room")))
        else:
            self.room = ticket
            self.send(ev.Admitted(ticket))

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
        assert len(s.waiting) <= s.spec.max_queue + self.replays
        waiting = {w.id for w in s.waiting} | {p.id for p in s.pending}
        assert waiting == self.open, "every open ask is known to the machine"
        if s.waiting and s.down:
            blocked = s.breaker.blocks(self.now) and "breaker" in s.deadlines
            assert s.room is Room.ASKED or blocked, "who waits at a slot that is down waits for something"
        assert (s.room is Room.ASKED) == (self.asked is not None)
        assert (s.room is Room.HELD) == (self.room is not None)
        if s.room is Room.HELD and s.alive is None:
            assert not s.down, "a slot that is down holds no room"
        assert (s.check is Check.RUNNING) == self.checking
        assert (s.alive is None) == (not self.engines)
        if s.ending is not None and s.state in UP:
            assert s.state is SlotState.SERVING, "only a slot with leases drains"
            assert not s.stopping or "drain" in s.deadlines or s.leaving or self.reconfigured
        if s.state is SlotState.ERROR and s.alive is not None and s.pending:
            assert "phase" in s.deadlines, "a command waits for the last engine without a bound"
        if s.stopping:
            assert not any(p.up for p in s.pending)
        if nothing_follows(s):
            turn = Turn(s, self.now)
            derive(turn)
            assert (turn.slot, turn.effects) == (s, []), "the short cut leaves out what follows"
        if passes_freely(s):
            self.check_turnstile()

    def check_turnstile(self) -> None:
        """Who comes and goes by the turnstile leaves the slot as messages would, and decides nothing."""
        now, told = self.now, list[fx.Moved]()
        turnstile = Turnstile(lambda: now)
        turnstile.open(self.slot, _lease, lambda *move: told.append(fx.Moved(*move[:3])), lambda: None)
        by_messages, present, rested = self.slot, list(self.slot.leases), not self.slot.leases
        until = self.slot.deadlines.get(IDLE, math.inf)  # then the actor takes over

        def through() -> Slot:
            passed = turnstile.passed()
            return self.slot if passed is None else step(self.slot, passed, passed.last_used)[0]

        for n, leaves in enumerate((False, True, True, False, False, True, False, True, True)):
            if (now := now + 0.7) >= until:
                break
            told.clear()
            if leaves and (len(present) > 1 or (present and rested)):
                id = present.pop(0)
                assert turnstile.give_back(id)
                by_messages, effects = step(by_messages, ev.Release(id), now)
                assert effects == tuple(told)
            elif not leaves and len(present) < self.slot.spec.max_parallel:
                id = f"comes{n}"
                present.append(id)
                assert turnstile.take(id, self.slot.model) is not None
                by_messages, effects = step(by_messages, ev.Acquire(id), now)
                assert effects == (*told, fx.Grant(id))
            elif leaves:
                id = present[0] if present else "nobody"
                assert not turnstile.give_back(id), "nobody waits for the deadline of a rest"
            else:
                assert turnstile.take(f"comes{n}", "") is None, "it is full"
            assert through() == by_messages
            first, last = next_deadline(self.slot), next_deadline(by_messages)
            assert last is None or (first is not None and first <= last), "the actor wakes in time"
        if IDLE in by_messages.deadlines:
            now = until
            assert turnstile.take("late", "") is None, "the deadline comes first"
        passed = turnstile.close()
        assert (self.slot if passed is None else step(self.slot, passed, passed.last_used)[0]) == by_messages
        assert turnstile.take("late", "") is None
        assert not turnstile.give_back(present[0] if present else "nobody")

    def due(self) -> bool:
        found = next_deadline(self.slot)
        if found is None:
            return False
        self.now = max(self.now, found[0])
        self.send(ev.Due(found[1]))
        return True

    def pass_time(self, seconds: float) -> None:
        until = self.now + seconds
        while (found := next_deadline(self.slot)) is not None and found[0] <= until:
            self.due()
            self.check()
        self.now = until

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
            case ("killed", "started"):
                self.engines[generation] = "exited"
                self.send(ev.Exited(generation, ExitStatus(None, 9), ("bye",)))
            case ("hung", "started"):
                self.send(ev.Hung(generation, Fault("hung", "it does nothing")))
            case ("gone", "exited"):
                del self.engines[generation]
                status = ExitStatus(None, 9) if taken else ExitStatus(1)
                self.send(ev.Gone(generation, StopReport(status), ("bye",), taken and generation % 2 == 0))
            case ("survive", "exited"):
                del self.engines[generation]
                self.send(ev.Gone(generation, StopReport(ExitStatus(1), survivors=(9,)), ("bye",)))
            case _:
                pass

    def pull_step(self, outcome: str) -> None:
        if not self.pulls:
            return
        generation = max(self.pulls)
        if outcome == "progress":
            self.send(ev.PullProgressed(generation, "downloading", int(self.now * 10), 1000))
            return
        self.pulls.clear()
        if outcome == "done":
            self.send(ev.Pulled(generation))
        else:
            self.send(ev.PullFailed(generation, Fault("pull_failed", "no network")))

    def judge(self, sane: bool | None) -> None:
        if self.checking and self.slot.alive is not None:
            self.checking = False
            self.send(ev.OutputJudged(self.slot.alive, sane, "?????"))

    def release(self, id: str) -> None:
        self.held.discard(id)
        self.send(ev.Release(id))

    # --- in short, for scenarios ----------------------------------------------------

    def acquire(self, id: str, **how: Any) -> None:
        self.ask(ev.Acquire(id, **how))

    def come_up(self) -> None:
        """Room is given, the engine starts and is ready."""
        self.arbiter_step()
        for kind in ("start", "open", "ready"):
            self.engine_step(kind)
        assert self.slot.state in UP, self.slot

    def die(self, status: ExitStatus = FAILED, log: tuple[str, ...] = ()) -> None:
        """The engine ends and is swept."""
        (generation,) = self.engines
        self.engines[generation] = "exited"
        self.send(ev.Exited(generation, status, log))
        del self.engines[generation]
        self.send(ev.Gone(generation, StopReport(status), log))

    def end(self) -> None:
        """What was told to stop has ended."""
        self.die(ExitStatus(None, 15))

    @property
    def state(self) -> str:
        return str(self.slot.state)

    def finish_engine(self) -> None:
        for kind in ("start", "exit", "gone"):
            self.engine_step(kind)
