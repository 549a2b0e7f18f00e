"""The arbiter as an actor, on virtual time, with fake tenants: also when it crashes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest
import trio
import trio.testing

from slotd.actor import ChildCrashed, ChildSpec, Supervisor
from slotd.arbiter import Arbiter, Limits, Reading, Room
from slotd.arbiter import tenant as tn
from slotd.errors import OutOfMemory, SlotdError
from slotd.events import EventBus, types

LIMITS = Limits(
    reserve_mb=10,
    wait_s=100,
    release_timeout_s=5,
    max_wait_s=30,
    turn_hold_s=1,
    idle_look_every_s=0,
)


class Footprints:
    """A store in memory."""

    def __init__(self) -> None:
        self.kept: dict[str, tn.Need] = {}

    def get(self, digest: str) -> tn.Need | None:
        return self.kept.get(digest)

    def put(self, digest: str, ram_mb: int, gpu_mb: int) -> None:
        self.kept[digest] = tn.Need(ram_mb, gpu_mb, "measured")


class Bench:
    """An arbiter under supervision, its tenants, and the memory of the machine."""

    def __init__(self) -> None:
        self.bus = EventBus(64)
        self.footprints = Footprints()
        self.total = 110
        self.tenants: dict[str, FakeTenant] = {}
        self.measures = 0
        self.hang = False
        self.crashes: list[ChildCrashed] = []
        self.arbiter = Arbiter(LIMITS, self.bus, footprints=self.footprints, measure=self.measure)

    async def measure(self) -> Reading:
        self.measures += 1
        await trio.sleep(100 if self.hang else 0.001)
        return Reading(self.total, self.total - sum(t.taken for t in self.tenants.values()))

    def tenant(self, name: str, ram: int, **facts: object) -> FakeTenant:
        tenant = self.tenants[name] = FakeTenant(self.arbiter, name, ram)
        self.arbiter.register(tn.TenantFacts(name, **facts), tenant)  # type: ignore[arg-type] # shorthand
        return tenant

    def kinds(self) -> list[str]:
        with self.bus.subscribe(after=0) as events:
            return [e.kind for e in events._buffer]  # what the ring still has, without waiting


class FakeTenant:
    """A slot's side of it, reduced to what the arbiter sees. Answers at once, as a slot's actor would."""

    def __init__(self, arbiter: Arbiter, name: str, ram: int) -> None:
        self.arbiter = arbiter
        self.name = name
        self.need = tn.Need(ram, 0, "estimated")
        self.ticket = 0
        self.phase = "off"
        self.taken = 0
        self.leases = 0
        self.back = 0
        self.orders: list[tn.Leave] = []
        self.errors: list[SlotdError] = []
        self.answered = trio.Event()
        self.told = trio.Event()
        self.deaf = False
        self.resyncs = 0

    def want(self) -> None:
        self.ticket += 1
        self.phase, self.answered = "asked", trio.Event()
        self._admit()

    def _admit(self) -> None:
        self.arbiter.report(tn.Admit(self.name, self.ticket, self.need, self.name, trio.current_time()))

    def up(self) -> None:
        self.phase, self.taken = "up", self.need.ram_mb
        self.arbiter.report(tn.Up(self.name, self.ticket))

    def gone(self) -> None:
        self.phase, self.taken = "off", 0
        self.arbiter.report(tn.Gone(self.name, self.ticket))

    async def load(self) -> None:
        self.want()
        await self.answered.wait()
        assert self.phase == "loading"
        self.up()

    # --- the Tenant protocol ---

    def admitted(self, ticket: int) -> None:
        if (ticket, self.phase) == (self.ticket, "asked"):
            self.phase = "loading"
            self.answered.set()

    def denied(self, ticket: int, error: SlotdError) -> None:
        self.errors.append(error)
        self.phase = "off"
        self.answered.set()

    def contended(self, on: bool) -> None:
        pass

    def leave(self, order: tn.Leave) -> None:
        self.orders.append(order)
        self.told.set()
        if self.leases and not order.drain:
            self.arbiter.report(tn.Stays(self.name, self.ticket, "in use"))
        else:
            self.phase = "unloading"

    def come_back(self) -> None:
        self.back += 1
        self.want()

    def resync(self) -> None:
        self.resyncs += 1
        if self.deaf:
            return
        held = self.ticket if self.phase in ("loading", "up", "unloading") else None
        self.arbiter.report(tn.Holding(self.name, held, self.need, self.phase == "up"))
        if self.phase == "asked":
            self._admit()

    def view(self) -> tn.TenantView:
        quiet = 0.0 if not self.leases and self.phase == "up" else None
        return tn.TenantView(self.phase == "up", self.leases, 0, None, quiet)


Body = Callable[[Bench], Awaitable[None]]


async def with_bench(body: Body) -> None:
    bench = Bench()
    supervisor = Supervisor(bench.crashes.append)
    with trio.fail_after(500):
        async with trio.open_nursery() as nursery:
            await nursery.start(supervisor.run)
            supervisor.start(ChildSpec("arbiter", bench.arbiter.run))
            await bench.arbiter.mailbox.wait_open()
            await body(bench)
            nursery.cancel_scope.cancel()


async def crash(bench: Bench) -> None:
    """Let the arbiter's actor die of a bug, and wait for the next one."""
    before = len(bench.crashes)
    bench.arbiter.mailbox.post(object())  # type: ignore[arg-type] # what no actor understands
    while len(bench.crashes) == before:
        await trio.testing.wait_all_tasks_blocked()
    await bench.arbiter.mailbox.wait_open()


async def test_a_slot_is_admitted_and_shown(autojump_clock: trio.testing.MockClock) -> None:
    async def body(bench: Bench) -> None:
        a = bench.tenant("a", 60)
        await a.load()
        b = bench.tenant("b", 60)
        a.leases = 1
        b.want()
        await trio.sleep(0.1)
        shown = bench.arbiter.snapshot
        assert shown.budget == Room(100, shown.budget.gpu_mb if shown.budget else 0)
        assert shown.reserved == Room(60)
        assert shown.free is not None
        assert shown.free.ram_mb == 50
        assert [(h.slot, h.up, h.leaving) for h in shown.held] == [("a", True, False)]
        assert [w.slot for w in shown.waiting] == ["b"]
        assert bench.arbiter.waits_for("b") == "waits for memory: 'a' is in use"
        assert bench.arbiter.waits_for("a") == ""

    await with_bench(body)


async def test_an_eviction_from_demand_to_admission(autojump_clock: trio.testing.MockClock) -> None:
    async def body(bench: Bench) -> None:
        a, b = bench.tenant("a", 60), bench.tenant("b", 60)
        await a.load()
        await trio.sleep(2)
        b.want()
        await a.told.wait()
        await trio.sleep(3)
        a.phase = "off"
        bench.arbiter.report(tn.Gone("a", a.ticket))  # its memory shows a second later
        await trio.sleep(1)
        assert b.phase == "asked"
        a.taken = 0
        await b.answered.wait()
        assert b.phase == "loading"
        kinds = bench.kinds()
        assert kinds == [types.ARBITER_EVICTING, types.ARBITER_RELEASED]

    await with_bench(body)


async def test_what_is_learned_of_a_plan_decides_its_next_load(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def body(bench: Bench) -> None:
        a = bench.tenant("a", 200)
        bench.footprints.put("a", 40, 0)
        await a.load()
        assert bench.arbiter.snapshot.reserved == Room(40)
        bench.arbiter.report(tn.Measured("a", a.ticket, "a", 45, 0))
        await trio.testing.wait_all_tasks_blocked()
        assert bench.footprints.kept["a"].ram_mb == 45

    await with_bench(body)


async def test_a_denial_reaches_the_slot(autojump_clock: trio.testing.MockClock) -> None:
    async def body(bench: Bench) -> None:
        a = bench.tenant("a", 101)
        a.want()
        await a.answered.wait()
        assert isinstance(a.errors[0], OutOfMemory)
        assert bench.kinds() == [types.ARBITER_DENIED]

    await with_bench(body)


async def test_a_measurement_that_hangs_is_given_up_and_the_wait_stays_bounded(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def body(bench: Bench) -> None:
        bench.hang = True
        a = bench.tenant("a", 10)
        a.want()
        await trio.sleep(30)
        assert bench.measures > 3
        await a.answered.wait()
        assert "measured" in a.errors[0].message
        a.want()
        bench.hang = False
        await a.answered.wait()
        assert a.phase == "loading"

    await with_bench(body)


async def test_exclusive_use_and_release_by_hand(autojump_clock: trio.testing.MockClock) -> None:
    async def body(bench: Bench) -> None:
        chat = bench.tenant("chat", 20, device="gpu0")
        img = bench.tenant("img", 20, exclusive="gpu0", restore_after_s=0.0)
        await chat.load()
        img.want()
        await chat.told.wait()
        assert chat.orders[0].refusal is not None
        chat.gone()
        await img.answered.wait()
        img.up()
        await trio.sleep(100)
        (mode,) = bench.arbiter.snapshot.modes
        assert (mode.device, mode.owner, mode.phase, mode.losers) == ("gpu0", "img", "committed", ("chat",))
        assert mode.ends_at is None
        bench.arbiter.release_device("gpu0")
        await img.told.wait()
        img.gone()
        await trio.sleep(0.1)
        assert chat.back == 1
        assert not bench.arbiter.snapshot.modes

    await with_bench(body)


async def test_a_crash_hangs_nobody_and_admits_nobody_too_many(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def body(bench: Bench) -> None:
        a, b, c = bench.tenant("a", 60), bench.tenant("b", 60), bench.tenant("c", 30)
        await a.load()
        a.leases = 1
        b.want()
        await trio.testing.wait_all_tasks_blocked()
        await crash(bench)
        assert len(bench.crashes) == 1
        c.want()
        await c.answered.wait()
        assert [t.resyncs for t in (a, b, c)] == [1, 1, 1]
        assert c.phase == "asked" or c.phase == "loading"
        assert b.phase == "asked", "a still holds what it held"
        assert bench.arbiter.snapshot.reserved.ram_mb <= 100
        a.leases = 0
        await a.told.wait()
        a.gone()
        await b.answered.wait()
        assert b.phase == "loading"

    await with_bench(body)


async def test_what_was_said_while_the_arbiter_was_down_is_asked_for_again(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def body(bench: Bench) -> None:
        a, b = bench.tenant("a", 60), bench.tenant("b", 60)
        await a.load()
        await trio.sleep(2)
        b.want()
        await a.told.wait()
        bench.arbiter.mailbox.post(object())  # type: ignore[arg-type] # what no actor understands
        a.gone()  # dies in the mailbox, behind that
        assert not b.answered.is_set()
        await b.answered.wait()
        assert b.phase == "loading"
        assert a.back == 0
        bench.arbiter.report(tn.Failed("b", b.ticket))
        b.gone()
        await trio.sleep(0.2)
        assert a.back == 1, "the new arbiter knows who left for it"

    await with_bench(body)


async def test_a_tenant_that_does_not_answer_delays_the_others_by_a_second(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def body(bench: Bench) -> None:
        a, deaf = bench.tenant("a", 60), bench.tenant("deaf", 10)
        deaf.deaf = True
        await crash(bench)
        began = trio.current_time()
        assert bench.arbiter.snapshot.resyncing
        a.want()
        await a.answered.wait()
        assert a.phase == "loading"
        assert trio.current_time() - began == pytest.approx(1.0, abs=0.1)

    await with_bench(body)


async def test_a_slot_that_is_removed_while_the_arbiter_is_down_is_forgotten(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def body(bench: Bench) -> None:
        a, b = bench.tenant("a", 60), bench.tenant("b", 60)
        await a.load()
        a.leases = 1
        b.want()
        await trio.testing.wait_all_tasks_blocked()
        bench.arbiter.mailbox.post(object())  # type: ignore[arg-type] # what no actor understands
        del bench.tenants["a"]
        bench.arbiter.unregister("a")
        await b.answered.wait()
        assert b.phase == "loading"
        assert [h.slot for h in bench.arbiter.snapshot.held] == ["b"]
        bench.arbiter.unregister("a")

    await with_bench(body)


async def test_facts_and_limits_may_change(autojump_clock: trio.testing.MockClock) -> None:
    async def body(bench: Bench) -> None:
        a, b = bench.tenant("a", 60), bench.tenant("b", 60)
        await a.load()
        bench.arbiter.register(tn.TenantFacts("a", pinned=True), a)
        b.want()
        await b.answered.wait()
        assert b.phase == "off"
        bench.total = 200
        bench.arbiter.reconfigure(replace(LIMITS, budget_mb=130))
        await trio.sleep(2)
        b.want()
        await b.answered.wait()
        assert b.phase == "off", "the budget is known from the last measurement"
        await trio.sleep(2)
        await crash(bench)
        assert bench.arbiter.snapshot.reserve == Room(10, 256)

    await with_bench(body)


async def test_only_slots_that_hold_or_want_room_are_looked_at(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever happens to one of a thousand slots must not cost a look at each of the others."""
    looked: list[str] = []
    view = FakeTenant.view

    def counted(self: FakeTenant) -> tn.TenantView:
        looked.append(self.name)
        return view(self)

    monkeypatch.setattr(FakeTenant, "view", counted)

    async def body(bench: Bench) -> None:
        a, b, _ = (bench.tenant(name, 30) for name in "abc")
        await trio.testing.wait_all_tasks_blocked()
        assert looked == []
        a.want()
        await trio.testing.wait_all_tasks_blocked()
        assert set(looked) == {"a"}, "already when it asks: it may be let in there and then"
        await a.answered.wait()
        a.up()
        looked.clear()
        await b.load()
        assert set(looked) == {"a", "b"}

    await with_bench(body)
