"""Engines, downloads and a house of slots that live on virtual time only.

:class:`FakeBackend` stands for the world of one slot. Each start takes the
next :class:`Script` and acts it out as a :class:`slotd.process.plan.Launcher`
must: ``started`` once it exists, ``exited`` when its leader ends, the report
when nothing is left. :func:`in_house` runs a slot manager around a test and
checks at the end that what was published all along was true.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import trio

from slotd.actor import Intensity, Snapshot
from slotd.arbiter.tenant import Need
from slotd.errors import RequestInvalid, SlotdError, SpawnFailed, SpawnStarved
from slotd.events import Event, EventBus, types
from slotd.process.logs import LogRing
from slotd.process.plan import Address, EngineHandle, ExitStatus, LaunchPlan, StopReport
from slotd.process.vitals import Footprint, Vitals
from slotd.slot.actor import SlotIdentity
from slotd.slot.backend import Abilities, Finding, Readiness
from slotd.slot.lease import Lease
from slotd.slot.machine import SlotSpec
from slotd.slot.manager import SlotManager
from slotd.slot.state import LEGAL, UP, SlotSnapshot, SlotState
from slotd.wire.http1 import Http1Pool

NEVER = math.inf
FAILED = ExitStatus(1)


@dataclass(frozen=True, slots=True)
class Script:
    """What one engine does. Seconds from its start, unless said otherwise.

    ``spawn_s``: how long starting the process takes; like a thread that
    spawns, it cannot be interrupted unless ``spawn_yields``. ``obeys_s``: from
    SIGTERM to its end. ``sweep_s``: from its leader's end to the report.
    ``immortal``: not even SIGKILL ends it; only cancellation does. It uses a
    whole CPU until ``frozen_s``, and is seen stopped from ``stopped_s``;
    neither reading comes before ``reading_s`` have passed.
    """

    spawn_s: float = 0.1
    spawn_yields: bool = False
    spawn_error: str = ""
    spawn_terminal: bool = False
    plan_error: str = ""
    words: tuple[str, ...] = ()
    opens_s: float = 0.5
    ready_s: float = 1.0
    stranger_s: float = NEVER
    stranger_at_exit: bool = False
    exits_s: float = NEVER
    exit: ExitStatus = FAILED
    obeys_s: float = 0.2
    sweep_s: float = 0.05
    immortal: bool = False
    survivors: tuple[int, ...] = ()
    frozen_s: float = NEVER
    stopped_s: float = NEVER
    reading_s: float = 0.0
    ram_mb: int = 100
    gpu_mb: int = 0
    run_bug_s: float = NEVER
    probe_bug_s: float = NEVER


@dataclass(frozen=True, slots=True)
class Pull:
    """A download: one step of progress each ``step_s``, then done, failed or silent."""

    steps: int = 3
    step_s: float = 1.0
    error: str = ""
    terminal: bool = False
    stalls: bool = False
    bug: bool = False


class Bug(Exception):
    """What a fake raises where a real one would have a defect."""


class FakeEngine:
    """A running engine of the fake launcher."""

    def __init__(self, script: Script, model: str, number: int, logs: LogRing) -> None:
        self.script = script
        self.model = model
        self.born = trio.current_time()
        self.stops: list[float] = []
        self._address = Address("127.0.0.1", 40000 + number)
        self._pid = 1000 + number
        self._logs = logs
        self._term_at = NEVER
        self._kill_at = NEVER
        self._changed = trio.Event()
        self.ended = False

    @property
    def address(self) -> Address:
        return self._address

    @property
    def pid(self) -> int | None:
        return self._pid

    @property
    def logs(self) -> LogRing:
        return self._logs

    def request_stop(self, grace_s: float) -> None:
        now = trio.current_time()
        self.stops.append(grace_s)
        self._term_at = min(self._term_at, now)
        self._kill_at = min(self._kill_at, now + grace_s)
        self._changed.set()
        self._changed = trio.Event()

    def owns_listener(self) -> bool:
        return not self.stranger_listens()

    def stranger_listens(self) -> bool:
        if self.script.stranger_at_exit:
            return self.ended
        return trio.current_time() >= self.born + self.script.stranger_s

    async def vitals(self) -> Vitals | None:
        await trio.sleep(self.script.reading_s)
        if self.ended:
            return None
        age = trio.current_time() - self.born
        stopped = age >= self.script.stopped_s
        busy = min(age, self.script.frozen_s, self.script.stopped_s)
        return Vitals(cpu_s=busy, stopped=stopped, processes=1)

    async def footprint(self) -> Footprint | None:
        await trio.sleep(self.script.reading_s)
        return None if self.ended else Footprint(self.script.ram_mb, self.script.gpu_mb)

    def _end(self) -> tuple[float, ExitStatus]:
        script = self.script
        by_itself = (self.born + script.exits_s, script.exit)
        if script.immortal:
            return by_itself
        obeyed = (self._term_at + script.obeys_s, ExitStatus(None, 15))
        killed = (self._kill_at, ExitStatus(None, 9))
        return min(by_itself, killed, obeyed, key=lambda end: end[0])

    async def leader(self) -> ExitStatus:
        """Live until the leader ends."""
        while True:
            at, status = self._end()
            if trio.current_time() >= at:
                self.ended = True
                return status
            with trio.move_on_at(at):
                await self._changed.wait()


class FakeBackend:
    """The world of one slot: launcher, store and probe in one."""

    def __init__(
        self,
        *scripts: Script,
        default: Script = Script(),
        pulls: tuple[Pull, ...] = (),
        absent: tuple[str, ...] = (),
    ) -> None:
        self.scripts = list(scripts)
        self.default = default
        self.pulls = list(pulls)
        self.absent = set(absent)
        self.abilities = Abilities(nonstream_cancel="close", model_name="")
        self.readiness = Readiness()
        self.launcher = self
        self.engines: list[FakeEngine] = []
        self.running: set[FakeEngine] = set()
        self.pulling = 0
        self.planned: list[str] = []
        self.flags: tuple[str, ...] = ()
        self.need_mb = 100
        self.findings: list[Finding] = []
        self.check_s = 0.0
        self.checks = 0
        self.checking = 0

    # --- the backend ------------------------------------------------------------

    def present(self, model: str) -> bool:
        return model not in self.absent

    def plan(self, model: str) -> LaunchPlan:
        script = self.scripts[0] if self.scripts else self.default
        if script.plan_error:
            self.scripts.pop(0)
            raise RequestInvalid(script.plan_error)
        self.planned.append(model)
        return LaunchPlan("chat", ("engine", model, *self.flags))

    def need(self, model: str) -> Need:
        return Need(self.need_mb, 0, "estimated")

    async def fetch(self, model: str, progress: Callable[[str, int, int | None], None]) -> Path:
        pull = self.pulls.pop(0) if self.pulls else Pull()
        self.pulling += 1
        try:
            for n in range(1, pull.steps + 1):
                await trio.sleep(pull.step_s)
                progress("downloading", n * 100, pull.steps * 100)
            if pull.stalls:
                await trio.sleep_forever()
            if pull.bug:
                raise Bug("the store is broken")
            if pull.error:
                raise (SpawnFailed if pull.terminal else SpawnStarved)(pull.error)
        finally:
            self.pulling -= 1
        self.absent.discard(model)
        return Path(model)

    async def await_ready(
        self,
        handle: EngineHandle,
        *,
        port_opened: Callable[[], None],
        stranger: Callable[[], None],
        saw: Callable[[str], None],
    ) -> tuple[str, ...]:
        assert isinstance(handle, FakeEngine)
        script, born = handle.script, handle.born
        turns: list[tuple[float, str]] = [
            (born + script.stranger_s, "stranger"),
            (born + script.probe_bug_s, "bug"),
            (born + script.opens_s, "open"),
            (born + script.ready_s, "ready"),
        ]
        for at, what in sorted(turn for turn in turns if turn[0] < NEVER):
            saw(f"waits for {what}")
            await trio.sleep_until(at)
            if what == "stranger":
                stranger()
                break
            if what == "bug":
                raise Bug("the probe is broken")
            if what == "open":
                port_opened()
            if what == "ready":
                return (handle.model,)
        await trio.sleep_forever()
        raise AssertionError

    async def check_output(self, http: Http1Pool, model: str) -> Finding | None:
        """The next of ``findings`` after ``check_s``; without any, there is nothing to find."""
        self.checks += 1
        self.checking += 1
        try:
            await trio.sleep(self.check_s)
        finally:
            self.checking -= 1
        return self.findings.pop(0) if self.findings else None

    # --- the launcher -------------------------------------------------------------

    async def run(
        self,
        plan: LaunchPlan,
        *,
        logs: LogRing,
        started: Callable[[EngineHandle], None],
        exited: Callable[[ExitStatus], None],
    ) -> StopReport:
        script = self.scripts.pop(0) if self.scripts else self.default
        with trio.CancelScope(shield=not script.spawn_yields):
            await trio.sleep(script.spawn_s)
        if script.spawn_error:
            raise (SpawnFailed if script.spawn_terminal else SpawnStarved)(script.spawn_error)
        engine = FakeEngine(script, plan.argv[1], len(self.engines), logs)
        self.engines.append(engine)
        self.running.add(engine)
        assert len(self.running) == 1, "two engines at once would share the memory"
        try:
            started(engine)
            for word in script.words:
                logs.append(word.encode() + b"\n")
            with trio.move_on_after(script.run_bug_s) as scope:
                status = await engine.leader()
            if scope.cancelled_caught:
                raise Bug("the launcher is broken")
            exited(status)
            await trio.sleep(script.sweep_s)
        finally:
            self.running.discard(engine)
        return StopReport(status, killed=status.signal == 9, survivors=script.survivors)


# --- a house of slots -----------------------------------------------------------------


class _Bus:
    """An event bus that writes down what it carries; no heir, as one that is compiled may have none."""

    def __init__(self, journal: list[Event | SlotSnapshot]) -> None:
        self._bus = EventBus(1000)
        self._journal = journal

    def publish(self, kind: str, data: Mapping[str, Any], *, slot: str | None = None) -> Event:
        event = self._bus.publish(kind, data, slot=slot)
        self._journal.append(event)
        return event

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bus, name)


class _Cell(Snapshot[SlotSnapshot]):
    """Writes down what is published."""

    def __init__(self, value: SlotSnapshot, journal: list[Event | SlotSnapshot]) -> None:
        super().__init__(value)
        self._journal = journal

    def publish(self, value: SlotSnapshot) -> None:
        self._journal.append(value)
        super().publish(value)

    def publish_later(self, draw: Callable[[], SlotSnapshot]) -> None:
        """Every state that could have been looked at is looked at, in its place among the events."""
        self.publish(draw())


SPEC = SlotSpec(
    "chat",
    max_parallel=2,
    max_queue=8,
    queue_timeout_s=60,
    pull_stall_s=20,
    ready_timeout_s=30,
    stop_timeout_s=10,
    kill_timeout_s=5,
    drain_timeout_s=8,
    abandon_after_s=4,
    idle_after_s=15,
    ttl_s=40,
)


@dataclass
class House:
    """A slot manager under test, and all it has published."""

    slots: SlotManager
    bus: EventBus
    journal: list[Event | SlotSnapshot]
    backends: dict[str, FakeBackend]
    granted: list[str] = field(default_factory=list)

    @property
    def backend(self) -> FakeBackend:
        return self.backends["chat"]

    def now(self, name: str = "chat") -> SlotSnapshot:
        return self.slots.snapshot(name)

    def states(self, name: str = "chat") -> list[str]:
        """Every state the slot has moved to, in order."""
        return [
            e.data["to"]
            for e in self.journal
            if isinstance(e, Event) and e.kind == types.SLOT_TRANSITION and e.slot == name
        ]

    async def use(
        self, id: str, *, hold_s: float = 0.0, name: str = "chat", model: str = "", wait: bool = True
    ) -> Lease | SlotdError:
        """Be a request, as the exchange is one: the lease it had, or its refusal."""
        try:
            lease = await self.slots.acquire(name, id, model=model, wait=wait)
            self.granted.append(id)
            await trio.sleep(hold_s)
        except SlotdError as error:
            return error
        finally:
            self.slots.release(name, id)
        return lease

    def crash(self, name: str = "chat") -> None:
        """Post something that no slot knows."""
        self.slots.mailbox(name).post(object())  # type: ignore[arg-type] # that is the bug

    async def wait_state(self, *states: SlotState, name: str = "chat") -> SlotSnapshot:
        return await self.slots.wait_for(name, states)

    def check(self) -> None:
        """What was published all along fits together, and no engine or download is left."""
        for name in self.backends:
            check_journal(name, self.journal)
        for backend in self.backends.values():
            assert not backend.running, "an engine outlived its slot"
            assert not backend.pulling
            assert not backend.checking


def check_journal(name: str, journal: list[Event | SlotSnapshot]) -> None:
    """Every transition legal and following on the last; every snapshot true to them and in itself."""
    state = SlotState.OFFLINE
    for item in journal:
        if isinstance(item, Event):
            if item.slot != name or item.kind != types.SLOT_TRANSITION:
                continue
            before, after = SlotState(item.data["from"]), SlotState(item.data["to"])
            assert before is state, f"{before} -> {after} does not follow on {state}"
            assert after in LEGAL[before], f"{before} -> {after}"
            state = after
        elif item.name == name:
            if item.state is not state:
                # The one way around the table: the actor itself broke.
                assert item.state is SlotState.ERROR
                assert item.fault is not None
                assert item.fault.reason == "actor_crashed"
                state = item.state
            check_snapshot(item)


def check_snapshot(s: SlotSnapshot) -> None:
    assert 0 <= s.leases <= s.max_parallel
    assert (s.leases > 0) == (s.state is SlotState.SERVING)
    if s.state not in UP:
        assert not s.models, f"{s.state} lists models"
    if s.state in UP:
        assert s.models
        assert s.pid is not None
        assert s.address is not None
    if s.state in (SlotState.OFFLINE, SlotState.PULLING):
        assert s.pid is None, f"{s.state} with a process"
        assert s.address is None
    if s.draining:
        assert s.state in (SlotState.SERVING, SlotState.UNLOADING, SlotState.ERROR)
    if s.state is SlotState.ERROR:
        assert s.fault is not None


async def in_house(
    test: Callable[[House], Awaitable[None]],
    *backends: FakeBackend,
    spec: SlotSpec = SPEC,
    intensity: Intensity | None = None,
    hang_guard_s: float = 5000,
    names: tuple[str, ...] = ("chat", "embed", "image"),
) -> House:
    """Run ``test`` against a manager of one slot per backend ("chat" first), then check the whole journal."""
    journal: list[Event | SlotSnapshot] = []
    bus = cast(EventBus, _Bus(journal))
    slots = SlotManager(bus, intensity=intensity)
    given = dict(zip(names, backends or (FakeBackend(),), strict=False))
    for name, backend in given.items():
        own = dataclasses.replace(spec, name=name)
        slots.add(SlotIdentity(own, "llm", "fake", "m"), backend)
        entry = slots._entries[name]
        entry.snapshot = _Cell(entry.snapshot.value, journal)
    house = House(slots, bus, journal, given)
    with trio.fail_after(hang_guard_s):
        async with trio.open_nursery() as nursery:
            await nursery.start(slots.run)
            await test(house)
            nursery.cancel_scope.cancel()
    house.check()
    return house
