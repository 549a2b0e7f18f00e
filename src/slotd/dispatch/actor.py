"""The dispatcher's actor, and the handle through which others ask it.

The actor decides nothing: each message becomes an event for
:func:`slotd.dispatch.machine.step`, and the effects are carried out here
without awaiting. Fetches and writes run in child tasks.
"""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import assert_never

import trio

from slotd.actor import Actor, Mailbox, Reply, Snapshot
from slotd.dispatch import messages as ev
from slotd.dispatch.bindings import RouteTable
from slotd.dispatch.catalog import CatalogUnavailable, SavedCatalog, Upstream, UpstreamSnapshot
from slotd.dispatch.entries import UpstreamEntry
from slotd.dispatch.machine import step
from slotd.dispatch.policy import SlotView
from slotd.dispatch.route import Explanation, Route, SlotTarget
from slotd.dispatch.state import begin, explain
from slotd.dispatch.store import CatalogStore, StoreTrouble
from slotd.errors import RegistryBroken
from slotd.slot.state import SlotSnapshot

__all__ = ["Dispatcher", "DispatcherActor", "Fetch", "Outside", "ReadSlots"]

Fetch = Callable[[UpstreamEntry], Awaitable[tuple[str, ...]]]
"""Gets a remote's list of models. Raises :class:`CatalogUnavailable`; may be cancelled."""

ReadSlots = Callable[[], Mapping[str, SlotSnapshot]]


MAX_KNOWN = 1024
"""Answers that are remembered."""


def _ignore(_: object) -> None:
    """What happens to reports that nobody asked for."""


@dataclass(frozen=True, slots=True)
class Outside:
    """What the dispatcher works with.

    ``slots``: the slots' snapshots, read at each question, or, with ``routing``, when
    the number that it gives has changed. ``on_decision``
    and ``on_trouble`` (a store that does not work, in words) are called in
    the actor's loop; they must not block or raise.
    """

    fetch: Fetch
    slots: ReadSlots
    store: CatalogStore | None = None
    on_decision: Callable[[ev.DecisionInfo], None] = _ignore
    on_trouble: Callable[[str], None] = _ignore
    routing: Callable[[], int] | None = None


@dataclass(frozen=True, slots=True)
class View:
    """What the actor publishes. ``waiting``: queries that wait for catalogs."""

    table: RouteTable
    upstreams: Mapping[str, Upstream]
    waiting: int = 0


class DispatcherActor(Actor[ev.Message]):
    """Owner of the catalogs and of the queries that wait for them."""

    def __init__(
        self, mailbox: Mailbox[ev.Message], table: RouteTable, outside: Outside, view: Snapshot[View]
    ) -> None:
        super().__init__(mailbox)
        self._outside = outside
        self._view = view
        self._table = table
        self._state = begin(table, {}, 0.0)
        self._replies: dict[int, Reply[Route]] = {}
        self._flights: dict[tuple[str, int], trio.CancelScope] = {}
        self._snapshots: Mapping[str, SlotSnapshot] = {}
        self._slots: dict[str, SlotView] = {}
        self._routing: int | None = None
        self._unsaved: Mapping[str, Upstream] | None = None
        self._saving = False

    async def run(self) -> None:
        """Read the kept catalogs, then live until cancelled or a crash."""
        saved: Mapping[str, SavedCatalog] = {}
        if self._outside.store is not None:
            try:
                saved = await self._outside.store.load()
            except StoreTrouble as exc:
                self._outside.on_trouble(str(exc))
        self._state = begin(self._table, saved, trio.current_time())
        await super().run()

    # --- the loop ---

    def started(self) -> None:
        self._publish()

    def handle(self, message: ev.Message) -> None:
        match message:
            case ev.Asked(event, reply):
                if reply.abandoned:
                    return
                if self._see_slots(reply):
                    self._replies[event.id] = reply
                    self._step(event)
            case ev.AskedToExplain(model, path, reply):
                if self._see_slots(reply):
                    reply.answer(explain(self._state, model, path, trio.current_time()))
            case ev.Withdraw(id):
                self._replies.pop(id, None)
                self._step(message)
            case ev.TableReplaced():
                self._step(message)
                self._snapshots, self._routing = (
                    {},
                    None,
                )  # the new table may know slots that the old one did not
            case _:
                self._step(message)

    def next_deadline(self) -> float:
        return self._state.next_due

    def on_deadline(self, now: float) -> None:
        self._step(ev.Due())

    def _step(self, event: ev.Event) -> None:
        before = self._state
        self._state, effects = step(before, event, trio.current_time())
        for effect in effects:
            self._perform(effect)
        if self._state is not before:
            self._publish()

    def _see_slots(self, reply: Reply[Route] | Reply[Explanation]) -> bool:
        """Take in what the slots publish now. If they cannot be read, that is the answer: no miss."""
        routing = None if self._outside.routing is None else self._outside.routing()
        if routing is not None and routing == self._routing:
            return True
        try:
            snapshots = self._outside.slots()
        except Exception as exc:  # whatever it is, this question has no answer, and others may have
            broken = RegistryBroken(f"the slots cannot be read: {exc}", retry_after_s=1.0)
            broken.__cause__ = exc
            reply.refuse(broken)
            return False
        old = self._snapshots
        if len(snapshots) != len(old) or any(old.get(n) is not s for n, s in snapshots.items()):
            # Snapshots change with every lease; only what routing needs makes a step.
            self._slots = {
                n: self._slots[n] if old.get(n) is s else SlotView.of(s) for n, s in snapshots.items()
            }
            self._snapshots = snapshots
            self._step(ev.SlotsChanged(self._slots))
        self._routing = routing
        return True

    def _publish(self) -> None:
        world = self._state.world
        self._view.publish(View(world.table, world.upstreams, len(self._state.queries)))

    # --- effects ---

    def _perform(self, effect: ev.Effect) -> None:
        match effect:
            case ev.Answer(id, route):
                reply = self._replies.pop(id, None)
                if reply is not None:
                    reply.answer(route)
            case ev.Refuse(id, error):
                reply = self._replies.pop(id, None)
                if reply is not None:
                    reply.refuse(error)
            case ev.Fetch(upstream, flight):
                scope = self._flights[upstream, flight] = trio.CancelScope()
                entry = self._state.world.upstreams[upstream].entry
                self.children.start_soon(self._fly, entry, flight, scope)
            case ev.CancelFetch(upstream, flight):
                running = self._flights.get((upstream, flight))
                if running is not None:
                    running.cancel()
            case ev.Persist(upstreams):
                self._unsaved = upstreams
                if self._outside.store is not None and not self._saving:
                    self._saving = True
                    self.children.start_soon(self._save, self._outside.store)
            case ev.Publish(decision):
                self._outside.on_decision(decision)
            case _:
                assert_never(effect)

    async def _fly(self, entry: UpstreamEntry, flight: int, scope: trio.CancelScope) -> None:
        """One fetch. Posts its outcome, unless the machine has given it up."""
        try:
            with scope:
                try:
                    models = await self._outside.fetch(entry)
                except CatalogUnavailable as exc:
                    self.mailbox.post(ev.FetchFailed(entry.name, flight, str(exc)))
                else:
                    self.mailbox.post(ev.Fetched(entry.name, flight, models))
        finally:
            del self._flights[entry.name, flight]

    async def _save(self, store: CatalogStore) -> None:
        """Keep the newest catalogs; those that come while it writes are written next, all at once."""
        while self._unsaved is not None:
            upstreams, self._unsaved = self._unsaved, None
            now = trio.current_time()
            saved = {
                name: SavedCatalog(u.entry.url, u.catalog.models, max(0.0, now - u.catalog.fetched_at))
                for name, u in upstreams.items()
                if u.catalog is not None and not u.static
            }
            try:
                await store.save(saved)
            except StoreTrouble as exc:
                self._outside.on_trouble(str(exc))
        self._saving = False


def _rests_on_slots(route: Route) -> bool:
    """Whether the answer holds until a slot, the table or a catalog changes: remotes come back with time."""
    targets = (route.target, *(c.target for c in route.considered))
    return all(isinstance(target, SlotTarget) for target in targets)


class Dispatcher:
    """The way to the dispatcher's actor, which outlives its crashes.

    Reads (:meth:`routes`, :meth:`upstreams`, :meth:`listed`) come from what
    the actor published and never wait.
    """

    def __init__(self, table: RouteTable, outside: Outside) -> None:
        self._table = table
        self._outside = outside
        self._mailbox: Mailbox[ev.Message] = Mailbox("dispatcher")
        self._view = Snapshot(View(table, begin(table, {}, 0.0).world.upstreams))
        self._ids = itertools.count(1)
        self._known: dict[tuple[str | None, str], Route] = {}
        self._known_at: tuple[int, int] | None = None

    @property
    def mailbox(self) -> Mailbox[ev.Message]:
        """The actor's mailbox, for tests that drive or break it."""
        return self._mailbox

    async def run(self) -> None:
        """Be the actor, once: until cancelled or a crash. For a supervisor to call."""
        await DispatcherActor(self._mailbox, self._table, self._outside, self._view).run()

    # --- asks ---

    async def resolve(self, model: str | None, path: str) -> Route:
        """Where a request for ``model`` on ``path`` goes.

        ``path`` as :data:`slotd.capability.ENDPOINTS` has it. ``model`` None or
        empty: the request names none.

        Raises the typed refusals of the dispatcher (``NoRouteFound``,
        ``CapabilityMismatch``, ``UnknownUpstream``, ``UpstreamUnavailable``,
        ``ModelMissing``, ``RegistryBroken``, ``SlotQueueFull``), or ``ActorGone``.
        A question that was asked before is answered as before, without the actor,
        while nothing has changed that its answer rests on: a route is a proposal,
        and the slot decides.

        Waits for remotes at most ``prefetch_timeout_s``, and only if neither the
        registry nor a warm catalog knows the name. Cancelled: the query is withdrawn.
        """
        if (known := self.known(model, path)) is not None:
            await trio.lowlevel.checkpoint_if_cancelled()
            return known
        now = self._now()
        found = await self._ask(model, path)
        if now is not None and now == self._now() and _rests_on_slots(found):
            if len(self._known) >= MAX_KNOWN:
                self._known.clear()
            self._known[model, path] = found
        return found

    def known(self, model: str | None, path: str) -> Route | None:
        """The answer of :meth:`resolve` where it needs nobody to be asked; None: ask."""
        now = self._now()
        if now is None or now != self._known_at:
            self._known.clear()
            self._known_at = now
            return None
        return self._known.get((model, path))

    def _now(self) -> tuple[int, int] | None:
        """What changes when anything does that an answer may rest on, but for the time of day."""
        if self._outside.routing is None or not self._mailbox.is_open:
            return None
        return self._outside.routing(), self._view.version

    async def _ask(self, model: str | None, path: str) -> Route:
        event = ev.Resolve(next(self._ids), model or None, path)

        def asked(reply: Reply[Route]) -> ev.Message:
            return ev.Asked(event, reply)

        route: Route | None = None
        try:
            route = await self._mailbox.ask(asked)
        finally:
            if route is None:  # also after a refusal, where it does nothing
                self._mailbox.post(ev.Withdraw(event.id))
        return route

    async def explain(self, model: str | None, path: str) -> Explanation:
        """What :meth:`resolve` would come to now. Asks no remote and waits for none."""
        return await self._mailbox.ask(lambda reply: ev.AskedToExplain(model or None, path, reply))

    # --- posts ---

    def report_failure(self, upstream: str) -> None:
        """A request could not connect to the remote: nothing goes there until its back-off is over."""
        self._mailbox.post(ev.ReportFailure(upstream))

    def refresh(self) -> None:
        """Have remotes asked whose catalogs are cold or stale, without waiting for them."""
        self._mailbox.post(ev.Refresh())

    def replace(self, table: RouteTable) -> None:
        """Route by another table from now on. What is known of remotes that it keeps is kept."""
        self._table = table  # also for an actor that is restarted after it missed the message
        self._mailbox.post(ev.TableReplaced(table))

    # --- reads ---

    def routes(self) -> RouteTable:
        """The table in force."""
        return self._view.value.table

    def upstreams(self) -> tuple[UpstreamSnapshot, ...]:
        """Every remote, in declared order. Ages are those of this moment."""
        view, now = self._view.value, trio.current_time()
        ttl_s = view.table.limits.catalog_ttl_s
        return tuple(UpstreamSnapshot.of(u, now, ttl_s) for u in view.upstreams.values())

    def listed(self) -> dict[str, tuple[str, ...]]:
        """Remote → the names it lists, for those that are known and not offline."""
        return {u.name: u.models for u in self.upstreams() if u.models and u.status != "offline"}

    def waiting(self) -> int:
        """How many questions wait for remotes."""
        return self._view.value.waiting
