"""Hundreds of seeded trials of the kit's one promise: every ask ends, exactly once.

Askers are cancelled at random times while the actor that they ask crashes at
random and is restarted. The actor grants leases, so that a lost release or a
grant that nobody read would show as a lease that stays.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass
from typing import Literal, assert_never

import trio
from actor_timers import Timers
from trio.testing import MockClock, wait_all_tasks_blocked

from slotd.actor import Actor, ChildCrashed, ChildSpec, Intensity, Mailbox, Reply, Supervisor
from slotd.errors import ActorGone

TRIALS = 300
ASKS = 40
HORIZON_S = 30.0
"""All asks are made and all askers cancelled within this time."""
LONGEST_HOLD_S = 20.0

Manner = Literal["grant", "refuse", "hold", "crash", "crash in a child", "crash at a deadline"]
MANNERS: tuple[Manner, ...] = ("grant", "refuse", "hold", "crash", "crash in a child", "crash at a deadline")
WEIGHTS = (40, 15, 30, 6, 5, 4)


class Refused(Exception):
    pass


class Bug(Exception):
    pass


@dataclass(frozen=True, slots=True)
class Acquire:
    lease: str
    manner: Manner
    for_s: float
    reply: Reply[str]


@dataclass(frozen=True, slots=True)
class Release:
    lease: str


@dataclass(frozen=True, slots=True)
class Ping:
    reply: Reply[int]


Message = Acquire | Release | Ping


class Lender(Actor[Message]):
    """Lends named leases; takes most of its manners from the questions."""

    def __init__(self, mailbox: Mailbox[Message], lenders: list[Lender]) -> None:
        super().__init__(mailbox)
        lenders.append(self)
        self.incarnation = len(lenders)
        self.timers = Timers()
        self.waiting: dict[str, Acquire] = {}
        self.leases: set[str] = set()

    def handle(self, message: Message) -> None:
        match message:
            case Acquire():
                self._acquire(message)
            case Release(lease):
                self.leases.discard(lease)
                withdrawn = self.waiting.pop(lease, None)
                if withdrawn is not None:
                    self.timers.clear(lease)
                    withdrawn.reply.refuse(Refused("withdrawn"))
            case Ping(reply):
                reply.answer(self.incarnation)
            case _:
                assert_never(message)

    def _acquire(self, ask: Acquire) -> None:
        match ask.manner:
            case "grant":
                self._grant(ask)
            case "refuse":
                ask.reply.refuse(Refused(ask.lease))
            case "crash":
                raise Bug("in the handler")
            case "hold" | "crash at a deadline":
                self.waiting[ask.lease] = ask
                self.timers.set(ask.lease, trio.current_time() + ask.for_s)
            case "crash in a child":
                self.waiting[ask.lease] = ask
                self.timers.set(ask.lease, trio.current_time() + LONGEST_HOLD_S)
                self.children.start_soon(self._fuse, ask.for_s)
            case _:
                assert_never(ask.manner)

    async def _fuse(self, burns_s: float) -> None:
        await trio.sleep(burns_s)
        raise Bug("in a child")

    def _grant(self, ask: Acquire) -> None:
        self.leases.add(ask.lease)
        if not ask.reply.answer(ask.lease):
            self.mailbox.post(Release(ask.lease))  # its asker's own may have come before

    def next_deadline(self) -> float:
        return self.timers.next()

    def on_deadline(self, now: float) -> None:
        for lease in self.timers.pop_due(now):
            ask = self.waiting.pop(lease)
            if ask.manner == "crash at a deadline":
                raise Bug("at a deadline")
            self._grant(ask)


@dataclass
class Trial:
    """One seeded run: a flaky lender, a sound one, and askers with little patience."""

    seed: int

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.outcomes: Counter[str] = Counter()
        self.crashes: list[ChildCrashed] = []
        self.flaky: list[Lender] = []
        self.sound: list[Lender] = []
        self.mailbox: Mailbox[Message] = Mailbox("flaky")
        self.sibling: Mailbox[Message] = Mailbox("sound")
        self.pings = 0

    def run(self) -> Trial:
        trio.run(self._main, clock=MockClock(autojump_threshold=0))
        return self

    async def _main(self) -> None:
        rng = self.rng
        supervisor = Supervisor(self.crashes.append)
        # It may crash for ever, with pauses of which some asks fall into.
        patient = Intensity(max_restarts=10 * ASKS, within_s=3.0, backoff_s=0.05, backoff_max_s=0.5)

        async def flaky() -> None:
            await Lender(self.mailbox, self.flaky).run()

        async def sound() -> None:
            await Lender(self.sibling, self.sound).run()

        with trio.fail_after(HORIZON_S + LONGEST_HOLD_S + 60):  # hung askers end the trial
            async with trio.open_nursery() as nursery:
                await nursery.start(supervisor.run)
                supervisor.start(ChildSpec("flaky", flaky, patient))
                supervisor.start(ChildSpec("sound", sound))
                await wait_all_tasks_blocked()  # both mailboxes are open
                async with trio.open_nursery() as askers:
                    for n in range(ASKS):
                        manner = rng.choices(MANNERS, WEIGHTS)[0]
                        # Times on a coarse grid, so that much falls together.
                        at, patience, keep_s, for_s = (
                            rng.randrange(int(4 * most)) / 4 for most in (HORIZON_S, 12, 4, LONGEST_HOLD_S)
                        )
                        askers.start_soon(self._asker, f"lease-{n}", manner, at, patience, keep_s, for_s)
                    askers.start_soon(self._ping_the_sibling)
                await trio.sleep(2 * LONGEST_HOLD_S)  # fuses burn down, the last back-off ends
                self._check()
                nursery.cancel_scope.cancel()

    async def _asker(
        self, lease: str, manner: Manner, at: float, patience: float, keep_s: float, for_s: float
    ) -> None:
        await trio.sleep(at)
        outcome = "cancelled"
        with trio.move_on_after(patience):
            try:
                granted: str = await self.mailbox.ask(lambda reply: Acquire(lease, manner, for_s, reply))
                assert granted == lease
                outcome = "answered"
                await trio.sleep(keep_s)
            except Refused:
                outcome = "refused"
            except ActorGone:
                outcome = "gone"
            finally:
                self.mailbox.post(Release(lease))
        self.outcomes[outcome] += 1

    async def _ping_the_sibling(self) -> None:
        for _ in range(int(HORIZON_S)):
            incarnation: int = await self.sibling.ask(Ping)
            assert incarnation == 1
            self.pings += 1
            await trio.sleep(1)

    def _check(self) -> None:
        assert self.outcomes.total() == ASKS
        assert self.mailbox.open_asks == 0
        assert self.pings == int(HORIZON_S)
        assert len(self.sound) == 1
        assert {crash.name for crash in self.crashes} <= {"flaky"}
        assert len(self.flaky) == len(self.crashes) + 1
        survivor = self.flaky[-1]
        assert self.mailbox.is_open
        assert survivor.leases == set()
        assert survivor.waiting == {}


def test_every_ask_ends_whatever_crashes_and_whoever_is_cancelled() -> None:
    outcomes: Counter[str] = Counter()
    crashes: Counter[str] = Counter()
    for seed in range(TRIALS):
        try:
            trial = Trial(seed).run()
        except BaseException as exc:
            exc.add_note(f"trial with seed {seed}")
            raise
        outcomes += trial.outcomes
        crashes.update(str(leaf) for crash in trial.crashes for leaf in _leaves(crash.error))
    assert outcomes.total() == TRIALS * ASKS
    # The trials are of use only if everything happens in them, often.
    assert all(outcomes[kind] > TRIALS for kind in ("answered", "refused", "gone", "cancelled")), outcomes
    assert all(crashes[where] > 100 for where in ("in the handler", "in a child", "at a deadline")), crashes


def _leaves(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in _leaves(inner)]
    return [error]
