"""A run of random faults under load: the site, the crowd, the plan and the oracle together."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import trio

from slotd.testing.chaos import table
from slotd.testing.chaos.asks import Service
from slotd.testing.chaos.clients import Crowd
from slotd.testing.chaos.inject import Injector
from slotd.testing.chaos.oracle import Expect, Oracle, Recovery, Struck, Violation
from slotd.testing.chaos.plan import Fault, Step, Target, make_plan, told
from slotd.testing.chaos.site import Limits, Site, SiteDown, SlotPlan, moody_slot
from slotd.testing.fake_knobs import Knobs
from slotd.wire.http1 import Broken, Http1Pool
from slotd.wire.sse import EventParser

__all__ = ["Memory", "Result", "Settings", "soak"]

LOOK_EVERY_S = 0.5
SPARE_PART = 6
"""A plan has so large a part (the sixth of it) more than the faults that are wanted."""

MANAGEMENT_S = 3.0
"""The management surface reads snapshots: it answers at once, whatever the engines do."""

QUIET_S = 30.0
"""So long after the last request and the last fault nothing may be left of them."""

SPARE_FILES = 4
"""Descriptors that a quiet slotd may hold beyond those of the first quiet moment (worker threads, caches)."""

FLAT_MB_PER_1000 = 1.5
"""Memory counts as flat if a long-lived slotd grows by no more than so much in 1,000 requests."""

LONG_ENOUGH = 3
"""Quiet moments of one slotd, after its first, that it takes to tell."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What is run: ``faults`` over ``minutes``; after every ``rest_every`` of them all comes to rest."""

    seed: int = 0
    minutes: float = 1.0
    faults: int = 50
    clients: int = 20
    think_s: float = 0.3
    rest_every: int = 100
    engine: Literal["fake", "llama-cpp"] = "fake"
    model: Path | None = None
    expect: Expect = field(default_factory=Expect)
    without: frozenset[type[Fault]] = frozenset()
    base: Path | None = None
    ports: tuple[int, int] = (26000, 26099)


@dataclass(frozen=True, slots=True)
class Memory:
    """slotd at rest: which one, after how many requests, resident memory and open files."""

    incarnation: int
    requests: int
    rss_kb: int
    files: int


@dataclass(slots=True)
class Result:
    """What a run came to."""

    settings: Settings
    took_s: float = 0.0
    violations: list[Violation] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)
    missed: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    latencies: list[float] = field(default_factory=list)
    recoveries: list[Recovery] = field(default_factory=list)
    struck: Struck = field(default_factory=Struck)
    restarts_s: list[float] = field(default_factory=list)
    swept_s: list[float] = field(default_factory=list)
    memory: list[Memory] = field(default_factory=list)
    events: int = 0
    looks: int = 0

    @property
    def growth_mb_per_1000(self) -> float | None:
        """How much the longest-lived slotd grew with each 1,000 requests; None if none lived long enough.

        Its first quiet moment is left out: buffers that have a bound fill up.
        """
        longest = Counter(m.incarnation for m in self.memory).most_common(1)
        points = [m for m in self.memory if longest and m.incarnation == longest[0][0]][1:]
        if len(points) < LONG_ENOUGH:
            return None
        slope = statistics.linear_regression([m.requests for m in points], [m.rss_kb for m in points]).slope
        return slope * 1000 / 1024


Tell = Callable[[str], None]


async def soak(settings: Settings, tell: Tell = lambda line: None) -> Result:
    """Run it all; ``tell`` gets a line for each step and each violation."""
    with tempfile.TemporaryDirectory(prefix="slotd-chaos-") as made:
        site = make_site(settings, settings.base or Path(made))
        try:
            return await _Run(settings, site, tell).run()
        finally:
            await trio.to_thread.run_sync(site.end)


def plan_of(settings: Settings) -> tuple[Step, ...]:
    """The faults of a run with these settings, and some more: a few will find nothing to act on."""
    targets = (
        Target("chat", fake=settings.engine == "fake"),
        Target("embed"),
        Target("pair", models=("m1", "m2")),
        Target("left"),
        Target("right"),
    )
    return make_plan(
        settings.seed,
        settings.faults + settings.faults // SPARE_PART,
        settings.minutes * 60 / settings.faults,
        targets,
        without=settings.without,
    )


# --- the site ------------------------------------------------------------------------------


def make_site(settings: Settings, base: Path) -> Site:
    """Five slots: two plain ones, one that is swapped, and two that memory cannot hold at once."""
    limits = Limits()
    base.mkdir(parents=True, exist_ok=True)
    for model in ("m1", "m2"):
        (base / model).write_bytes(b"weights")
    common = {
        "ready_timeout_s": limits.ready_s,
        "stop_timeout_s": limits.stop_s,
        "drain_timeout_s": limits.drain_s,
        "liveness_timeout_s": limits.liveness_s,
        "abandon_after_s": 1,
        "idle_after_s": 1,
        "max_queue": 64,
    }
    slots: dict[str, SlotPlan] = {}

    def fake(service: Service, knobs: Knobs, **more: object) -> None:
        table = moody_slot(base, service.slot, knobs, **{**common, **more})
        slots[service.slot] = SlotPlan(table, service)

    def knobs(*models: str, fork_grandchild: bool = False) -> Knobs:
        return Knobs(
            models=models,
            echo=True,
            first_token_delay_s=0.05,
            token_delay_s=0.02,
            load_delay_s=0.05,
            fork_grandchild=fork_grandchild,
        )

    more = "\n[memory]\nbudget_mb = 1000\nreserve_mb = 64\nwait_s = 20\nrelease_timeout_s = 3\n"
    more += f"\n[process]\nport_first = {settings.ports[0]}\nport_last = {settings.ports[1]}\n"
    more += f"kill_timeout_s = {limits.kill_s}\n"
    more += "".join(f'\n[models.{m}]\nsource = "file:{base / m}"\n' for m in ("m1", "m2"))
    chat = {"default": True, "max_parallel": 4}
    if settings.engine == "llama-cpp":
        assert settings.model is not None, "the real engine needs a model"
        more += f'\n[models.real]\nsource = "file:{settings.model.resolve()}"\n'
        real = {
            **common,
            **chat,
            "type": "llm",
            "engine": "llama-cpp",
            "model": "real",
            "memory_mb": 300,
            "ready_timeout_s": 60,
            "options": {"ctx_size": 4096, "threads": 1},
        }
        slots["chat"] = SlotPlan(real, Service("chat", echoes=False, weight=2))
    else:
        fake(Service("chat", models=("chat",), weight=3), knobs("chat"), memory_mb=100, **chat)
    embed = Service("embed", "embedding", ("embed",))
    fake(embed, knobs("embed"), type="embedding", default=True, memory_mb=50, ttl_s=4)
    pair = Service("pair", models=("m1", "m2"))
    fake(pair, knobs(fork_grandchild=True), model="m1", memory_mb=100, max_parallel=2)
    named = [*slots["pair"].table["command"], "--models={model}"]
    slots["pair"] = SlotPlan({**slots["pair"].table, "command": named}, pair)
    for name in ("left", "right"):
        fake(Service(name, models=(name,), weight=0.7), knobs(name), memory_mb=450, max_parallel=2)
    return Site(base, slots, limits, ports=settings.ports, more=more)


# --- the run ---------------------------------------------------------------------------------


class _Run:
    def __init__(self, settings: Settings, site: Site, tell: Tell) -> None:
        self._settings = settings
        self._site = site
        self._tell = tell
        self._oracle = Oracle(site, settings.expect, tell)
        services = [plan.service for plan in site.slots.values()]
        self._crowd = Crowd(
            site,
            self._oracle,
            services,
            count=settings.clients,
            think_s=settings.think_s,
            seed=settings.seed,
        )
        self._injector = Injector(site, self._oracle, settings.expect)
        self._memory: list[Memory] = []
        self._looks = 0
        self._under_way = 0
        self._idle = trio.Event()

    async def run(self) -> Result:
        settings, oracle = self._settings, self._oracle
        began = time.monotonic()
        steps = plan_of(settings)
        oracle.slotd_started()
        await self._site.start()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._read_events)
            nursery.start_soon(self._look_on)
            await self._warm_up()
            nursery.start_soon(self._crowd.run)
            async with trio.open_nursery() as faults:
                await self._go_through(steps, faults)
            nursery.cancel_scope.cancel()
        await self._end()
        result = Result(
            settings=settings,
            took_s=time.monotonic() - began,
            violations=oracle.violations,
            faults=oracle.faults,
            missed=oracle.missed,
            outcomes=oracle.outcomes,
            latencies=list(oracle.latencies),
            recoveries=oracle.recoveries,
            struck=oracle.struck,
            restarts_s=oracle.restarts_s,
            swept_s=oracle.swept_s,
            memory=self._memory,
            events=oracle.events,
            looks=self._looks,
        )
        growth = result.growth_mb_per_1000
        if growth is not None and growth > FLAT_MB_PER_1000:
            oracle.violated(f"memory grew by {growth:.2f} MiB in 1,000 requests: {self._memory}")
        return result

    async def _go_through(self, steps: tuple[Step, ...], nursery: trio.Nursery) -> None:
        due = trio.current_time()
        last_s = 0.0
        rested = True
        wanted = self._settings.faults
        for step in steps:
            if self._oracle.faults.total() + self._under_way >= wanted:
                await self._injected()
                if self._oracle.faults.total() >= wanted:
                    break
            due += step.at_s - last_s
            last_s = step.at_s
            await trio.sleep_until(due)
            self._tell(f"{step.number:5} {step.at_s:8.1f} s  {told(step.fault)}")
            self._oracle.begins(step)
            self._under_way += 1
            nursery.start_soon(self._inject, step)
            rested = step.number % self._settings.rest_every == 0
            if rested:
                await self._rest()
                due = trio.current_time()
        if not rested:
            await self._rest()

    async def _inject(self, step: Step) -> None:
        try:
            await self._injector.inject(step)
        finally:
            self._under_way -= 1
            if not self._under_way:
                self._idle.set()

    # --- quiet moments -------------------------------------------------------------------------

    async def _injected(self) -> None:
        """Wait until no fault is being carried out."""
        while self._under_way:
            self._idle = trio.Event()
            await self._idle.wait()

    async def _warm_up(self) -> None:
        """Every slot once up and down again, so that what is made once is there before it is counted."""
        for name in self._site.slots:
            await self._site.call("POST", f"/api/slots/{name}/load", timeout_s=60)
        await self._come_to_rest()

    async def _rest(self) -> None:
        """Stop asking and breaking; nothing may be left of it all. Then go on."""
        await self._injected()
        with trio.move_on_after(self._site.limits.hang_s + QUIET_S) as scope:
            await self._crowd.pause()
        if scope.cancelled_caught:
            self._oracle.violated("requests did not end although the load has stopped")
        await self._come_to_rest()
        self._oracle.check_records()
        self._crowd.resume()

    async def _come_to_rest(self) -> None:
        site, oracle = self._site, self._oracle
        for name in site.slots:
            site.good_mood(name)
            reply = await site.call("POST", f"/api/slots/{name}/unload", timeout_s=60)
            if reply.status != 200:
                oracle.violated(f"at rest: unload {name}: {reply.document}")
        trouble = "?"
        with trio.move_on_after(QUIET_S):
            while trouble := await self._left_over():  # noqa: ASYNC110 # another process: no event to wait for
                await trio.sleep(0.2)
        if trouble:
            oracle.violated(f"at rest: {trouble}")
        files = sum(table.descriptors(site.pid).values())
        first = next((m.files for m in self._memory), files)
        if files > first + SPARE_FILES:
            oracle.violated(f"at rest: {files} open files, {first} at first: {table.descriptors(site.pid)}")
        memory = Memory(site.incarnation, oracle.outcomes.total(), table.memory_kb(site.pid), files)
        self._memory.append(memory)
        self._tell(
            f"    at rest after {memory.requests} requests: {memory.rss_kb / 1024:.1f} MiB, {files} files; "
            f"answered though their engine was killed: {oracle.struck.plain['ok']} of "
            f"{oracle.struck.plain.total()}"
        )

    async def _left_over(self) -> str:
        """What there is though nobody asks for anything; empty if nothing."""
        site = self._site
        for view in (await site.call("GET", "/api/slots")).document["slots"]:
            if view["leases"] or view["queued"] or view["state"] != "offline" or view["pid"] is not None:
                shown = {k: view[k] for k in ("name", "state", "leases", "queued", "pid", "fault")}
                return f"a slot is not as it should be: {shown}; {self._oracle.story(view['name'])}"
        if live := (await site.call("GET", "/api/requests")).document["live"]:
            return f"requests are live: {live}"
        engines = [m for m in table.look(site.mark).values() if m.slot]
        if engines:
            return f"engine processes: {engines}"
        if ports := table.listeners(site.ports):
            return f"listeners on {sorted(ports)}"
        files = sum(table.descriptors(site.pid).values())
        first = next((m.files for m in self._memory), files)
        if files > first + SPARE_FILES:
            return f"open files: {table.descriptors(site.pid)}, at first {first}"
        return ""

    async def _end(self) -> None:
        """Stop slotd as an operator would: it takes everything with it."""
        site, oracle = self._site, self._oracle
        code, lines = await site.stop()
        oracle.slotd_wrote(lines)
        if code != 0:
            oracle.violated(f"at the end: slotd ended with {code} (None: not in time)")
        with trio.move_on_after(3):
            while table.look(site.mark):  # noqa: ASYNC110 # other processes: no event to wait for
                await trio.sleep(0.1)
        if left := table.look(site.mark):
            oracle.violated(f"at the end: processes are left: {list(left.values())}")
        if ports := table.listeners(site.ports):
            oracle.violated(f"at the end: somebody listens on {sorted(ports)}")

    # --- watching ------------------------------------------------------------------------------------

    async def _look_on(self) -> None:
        """Compare what slotd shows with the process table, again and again."""
        while True:
            await trio.sleep(LOOK_EVERY_S)
            if not self._site.is_up:
                continue
            incarnation = self._site.incarnation
            try:
                reply = await self._site.call("GET", "/api/slots", timeout_s=MANAGEMENT_S)
            except SiteDown:
                continue
            except TimeoutError as exc:
                self._oracle.violated(f"the management surface: {exc}")
                continue
            if self._site.is_up and self._site.incarnation == incarnation:
                self._oracle.look(reply.document["slots"])
                self._looks += 1

    async def _read_events(self) -> None:
        """Follow the events of one slotd after another, each from its first."""
        followed = 0
        while True:
            await self._site.wait_up()
            if self._site.incarnation == followed:
                await trio.sleep(0.02)
                continue
            followed = self._site.incarnation
            with suppress(Broken):
                await self._follow()

    async def _follow(self) -> None:
        host, port = self._site.address
        parser = EventParser(max_event_bytes=1 << 22)
        pool = Http1Pool(host, port, max_idle=0)
        try:
            response = await pool.request(b"GET", b"/api/events?after=0", [], b"")
            while chunk := await response.receive_some():
                for event in parser.feed(chunk):
                    if event.name != "snapshot":
                        data: Mapping[str, object] = json.loads(event.data)
                        self._oracle.event(event.name, data)
        finally:
            pool.close()
