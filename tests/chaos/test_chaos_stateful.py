"""Hypothesis drives live slot actors together with the live arbiter.

The machines of both have properties of their own; here it is the talk between
them that is tried: who asks for room, is let in, is told to leave, refuses,
fails, is called back, and what of it survives the crash of either. Real
actors and mailboxes; engines and memory are made up; time is virtual.
"""

from __future__ import annotations

from typing import Any

import trio
from chaos_guest import Guest
from chaos_town import NAMES, NEED_MB, Town
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from slot_fakes import NEVER, FakeBackend, Script
from structlog.testing import capture_logs

from slotd.errors import SlotdError
from slotd.process.plan import ExitStatus
from slotd.slot.state import UP

names = st.sampled_from(NAMES)
scripts = st.builds(
    Script,
    spawn_s=st.sampled_from([0.0, 0.1, 2.0]),
    spawn_yields=st.booleans(),
    spawn_error=st.sampled_from(["", "", "", "refused"]),
    opens_s=st.just(0.5),
    ready_s=st.sampled_from([0.5, 1.0, 5.0, NEVER]),
    stranger_s=st.sampled_from([NEVER, NEVER, NEVER, 0.4]),
    exits_s=st.sampled_from([NEVER, NEVER, NEVER, 0.2, 3.0, 20.0]),
    exit=st.sampled_from([ExitStatus(0), ExitStatus(1), ExitStatus(None, 11)]),
    obeys_s=st.sampled_from([0.0, 0.2, 3.0, 1000.0]),
    sweep_s=st.sampled_from([0.0, 0.05, 2.0]),
    frozen_s=st.sampled_from([NEVER, NEVER, 1.0]),
    ram_mb=st.just(NEED_MB),
)


class Client:
    """A request: it waits for its lease, holds it, and lets go when told."""

    def __init__(self, id: str, name: str) -> None:
        self.id = id
        self.name = name
        self.held = False
        self.over = False
        self.answer: SlotdError | None = None
        self._let_go = trio.Event()
        self._scope = trio.CancelScope()

    async def run(self, town: Town, priority: int, wait: bool) -> None:
        try:
            with self._scope:
                lease = await town.slots.acquire(self.name, self.id, priority=priority, wait=wait)
                self.held = True
                # An engine that is lost ends the request, as the exchange does.
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._until_lost, lease.fate, nursery.cancel_scope)
                    await self._let_go.wait()
                    nursery.cancel_scope.cancel()
        except SlotdError as error:
            self.answer = error
        finally:
            town.slots.release(self.name, self.id)
            self.held = False
            self.over = True

    async def _until_lost(self, fate: Any, scope: trio.CancelScope) -> None:
        await fate.wait()
        scope.cancel()

    def let_go(self) -> None:
        self._let_go.set()

    def leave(self) -> None:
        self._scope.cancel()


class LiveTown(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self._quiet = capture_logs()  # actors crash on purpose, and loudly
        self._quiet.__enter__()
        self.guest = Guest()
        self.town: Town
        self.clients: list[Client] = []
        self.commands = 0
        self.answered = 0
        self.crashed = False

    @initialize(given_scripts=st.lists(scripts, max_size=12))
    def begin(self, given_scripts: list[Script]) -> None:
        backends = {name: FakeBackend(*given_scripts[n::3]) for n, name in enumerate(NAMES)}
        self.town = self.guest.act(Town, backends)
        self.guest.spawn(self.town.run)

    # --- clients ---------------------------------------------------------------------

    @rule(name=names, priority=st.integers(0, 2), wait=st.sampled_from([True, True, True, False]))
    def ask(self, name: str, priority: int, wait: bool) -> None:
        client = Client(f"r{len(self.clients)}", name)
        self.clients.append(client)
        self.guest.spawn(client.run, self.town, priority, wait)

    @precondition(lambda self: any(not c.over for c in self.clients))
    @rule(data=st.data(), leaves=st.booleans())
    def end(self, data: st.DataObject, leaves: bool) -> None:
        client = data.draw(st.sampled_from([c for c in self.clients if not c.over]))
        if client.held and not leaves:
            self.guest.act(client.let_go)
        else:
            self.guest.act(client.leave)

    # --- operators -----------------------------------------------------------------------

    @rule(name=names, verb=st.sampled_from(["load", "unload", "restart", "kill", "swap"]))
    def command(self, name: str, verb: str) -> None:
        async def run() -> None:
            await self.town.command(name, verb)
            self.answered += 1

        self.commands += 1
        self.guest.spawn(run)

    # --- the world ---------------------------------------------------------------------------

    @rule(name=names)
    def engine_dies(self, name: str) -> None:
        self.guest.act(self.town.kill, name)

    @rule(seconds=st.sampled_from([0.05, 0.5, 2.0, 9.0, 31.0]))
    def time_passes(self, seconds: float) -> None:
        self.guest.advance(seconds, self.town.check)

    @rule(seconds=st.sampled_from([2.0, 61.0, 3600.0]))
    def clock_jumps(self, seconds: float) -> None:
        self.guest.jump(seconds)

    @rule(name=names)
    def slot_crashes(self, name: str) -> None:
        self.crashed = True
        self.guest.act(self.town.crash_slot, name)

    @rule()
    def arbiter_crashes(self) -> None:
        self.guest.act(self.town.crash_arbiter)

    # --- what holds ------------------------------------------------------------------------------

    @invariant()
    def holds(self) -> None:
        if not hasattr(self, "town"):
            return
        self.town.check()
        for name in NAMES:
            s = self.town.now(name)
            held = sum(c.held and c.name == name for c in self.clients)
            waiting = sum(not c.held and not c.over and c.name == name for c in self.clients)
            assert (s.leases, s.queued) == (held, waiting), f"{name}: {s}"

    def teardown(self) -> None:
        """Whatever happened: left alone it comes to rest, all are answered, and every slot still works."""
        try:
            if hasattr(self, "town"):
                self._come_to_rest()
        finally:
            self._quiet.__exit__(None, None, None)
            self.guest.close()

    def _come_to_rest(self) -> None:
        town = self.town
        for backend in town.backends.values():
            backend.scripts.clear()
        for client in self.clients:
            if client.held:
                self.guest.act(client.let_go)
        for _ in range(60):
            self.guest.advance(10, town.check)
            for client in self.clients:
                if client.held:
                    self.guest.act(client.let_go)
            if all(c.over for c in self.clients) and self.answered == self.commands and town.at_rest():
                break
        assert [c.id for c in self.clients if not c.over] == []
        assert self.answered == self.commands
        assert town.at_rest()
        for name in NAMES:
            self._still_works(name)
        self.guest.spawn(town.slots.shutdown)
        self.guest.advance(30, town.check)
        town.check_end()

    def _still_works(self, name: str) -> None:
        loaded: list[SlotdError | None] = []

        async def load() -> None:
            loaded.append(await self.town.command(name, "load"))

        self.guest.spawn(load)
        for _ in range(20):
            if not loaded:
                self.guest.advance(5, self.town.check)
        assert loaded == [None]
        assert self.town.now(name).state in UP


TestLiveTown = LiveTown.TestCase
TestLiveTown.settings = settings(
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
