"""The composition root: what is started inside what, and how it all stops.

Nesting is the stop order. Each layer's nursery lies inside the one it depends
on, so that what asks is gone before what answers::

    journal, guardian,              what happened; kill leftovers;
    model store, arbiter            downloads; memory and devices
    └── slots (supervisor)          one actor per slot, with its engine
        └── dispatcher (supervisor) routes; beside it the reloader of the configuration
            └── gateway             hypercorn and Quart
"""

from __future__ import annotations

import random
import socket
import time
import uuid
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import structlog
import trio

from slotd.actor import ChildCrashed, ChildSpec, Supervisor
from slotd.arbiter.actor import Arbiter
from slotd.arbiter.footprints import Footprints
from slotd.arbiter.meter import Meter
from slotd.artifacts import ArtifactLimits, Artifacts
from slotd.blueprint import memory_limits, model_refs, slot_identity
from slotd.config import Config, ConfigFile, LoadedConfig, SlotConfig
from slotd.dispatch import Dispatcher, FileStore, Outside
from slotd.dispatch.entries import UpstreamEntry
from slotd.dispatch.from_config import compile_config
from slotd.dispatch.remote import CatalogFetcher, SharedClient
from slotd.engine.backend import make_backend
from slotd.errors import RouteStale, ServerStopping, SlotdError
from slotd.events import EventBus, types
from slotd.exchange.exchange import Exchange
from slotd.exchange.record import RecordBook, RequestRecord
from slotd.exchange.remote import RemoteTransport
from slotd.gateway.app import build_app
from slotd.gateway.express.lane import Lane
from slotd.gateway.intake import Intake
from slotd.gateway.metrics import Metrics
from slotd.gateway.server import Stopping, bind, run_server
from slotd.gateway.services import Services
from slotd.gateway.uploads import Uploads
from slotd.journal.desired import DesiredState
from slotd.journal.journal import Journal
from slotd.model.store import ModelStore
from slotd.narrator import Narrator
from slotd.omni import Omni
from slotd.process.guardian import Guardian
from slotd.process.identity import Ledger, run_marker, sweep_leftovers
from slotd.process.local import LocalLauncher
from slotd.process.ports import PortPool
from slotd.reload import Reach, Reloader
from slotd.slot.backend import Backend
from slotd.slot.manager import SlotManager
from slotd.statedir import StateDir
from slotd.version import VERSION

__all__ = ["Slotd", "StopSummary"]

log = structlog.get_logger("slotd")

MakeBackend = Callable[[LoadedConfig, SlotConfig], Backend]

SAVE_S = 1.0
"""A disk that takes longer at the end costs what was learned in the last seconds."""


@dataclass(frozen=True, slots=True)
class StopSummary:
    """What a stop left behind: processes and slots that would not end in time."""

    stuck_slots: tuple[str, ...] = ()


class Slotd:
    """One slotd: built from a config, run once.

    :meth:`run` owns everything; :meth:`stop` (any task, synchronous) begins a
    graceful stop, and a second call makes it immediate. ``file`` is where
    ``loaded`` came from; without it there is no reload.
    """

    def __init__(self, loaded: LoadedConfig, file: ConfigFile | None = None) -> None:
        self._reloader = Reloader(loaded, file)
        server = loaded.config.server
        self.run_id = uuid.uuid4().hex
        self.bus = EventBus(server.event_buffer)
        kept = loaded.config.journal
        self.journal = Journal(
            loaded.state_dir / "journal.sqlite3",
            kept.max_events,
            kept.max_requests,
            kept.queue,
            self.bus,
            self.run_id,
        )
        self._desired = DesiredState(loaded.state_dir / "desired.json", self.bus, self._configured_model)
        self._footprints = Footprints(loaded.state_dir / "footprints.json")
        self.arbiter = Arbiter(
            memory_limits(loaded.config), self.bus, footprints=self._footprints, measure=Meter().read
        )
        self.slots = SlotManager(self.bus, landlord=self.arbiter)
        self.records = RecordBook(server.recent_requests, self._finished, self._started)
        self.artifacts = Artifacts(self._artifact_limits)
        self.metrics = Metrics(self.slots.snapshots, lambda: self.records.live_count)
        self.dispatcher: Dispatcher
        self.address: tuple[str, int] = (server.host, server.port)
        self._stop = trio.Event()
        self._now = trio.Event()
        self._supervisor = Supervisor(self._crashed)

    @property
    def url(self) -> str:
        """Where it listens, once :meth:`run` has started."""
        host, port = self.address
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    @property
    def config(self) -> Config:
        """The configuration in force."""
        return self._reloader.loaded.config

    def _artifact_limits(self) -> ArtifactLimits:
        omni = self.config.omni
        return ArtifactLimits(omni.artifacts_mb << 20, omni.artifacts_ttl_s)

    def reload(self) -> None:
        """Have the configuration read again, soon. Synchronous; the log tells what came of it."""
        self._reloader.nudge()

    def stop(self) -> None:
        """Stop accepting, drain, stop engines. Called again: do it now."""
        if self._stop.is_set():
            self._now.set()
        self._stop.set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> StopSummary:
        """Serve until stopped.

        ``task_status.started()`` once ``/v1`` answers. Raises a typed error if
        the address or the state directory cannot be had. Cancelled: everything
        below is killed and swept, within a bound, before it returns.
        """
        server = self.config.server
        sock = bind(server)
        try:
            with StateDir(self._reloader.loaded.state_dir) as state:
                return await self._run_in(state.path, sock, task_status)
        finally:
            sock.close()

    async def _run_in(
        self, state: Path, sock: socket.socket, task_status: trio.TaskStatus[None]
    ) -> StopSummary:
        def report(message: str) -> None:
            log.warning(message)

        process = self.config.process
        ledger = Ledger(state / "processes.json", report=report)
        for leftover in await sweep_leftovers(ledger, own_run_id=self.run_id):
            log.warning("swept what an earlier run left", slots=leftover.slots, killed=leftover.killed)
        guardian = Guardian(self.run_id, report=report)
        begin = random.randint(process.port_first, process.port_last)
        ports = PortPool(process.port_first, process.port_last, begin=begin)
        launcher = LocalLauncher(ports, run_id=self.run_id, guardian=guardian, ledger=ledger)
        store = ModelStore(state / "models", tool_env=dict([run_marker(self.run_id).split("=", 1)]))

        def backend(loaded: LoadedConfig, slot: SlotConfig) -> Backend:
            return make_backend(slot, model_refs(loaded), store, launcher, loaded.path)

        self._add_slots(backend)
        narrator = Narrator(self.bus, self.config.server.event_buffer, lambda: self.records.live_count)
        async with trio.open_nursery() as base:
            # First in, so that it has seen all; its last writing outlives what ends with it.
            await base.start(self.journal.run)
            base.start_soon(narrator.run)
            if self.config.server.restore:
                await self._desired.load(self.config.slots)
            await base.start(self._desired.run)
            await base.start(guardian.run)
            await base.start(store.run)
            await self._footprints.load()
            await base.start(self._footprints.run)
            await base.start(self._supervisor.run)
            self._supervisor.start(ChildSpec("arbiter", self.arbiter.run))
            await self.arbiter.mailbox.wait_open()
            summary = await self._run_slots(state, sock, backend, task_status)
            with trio.move_on_after(SAVE_S):
                await self._footprints.save()
            base.cancel_scope.cancel()
        return summary

    def _add_slots(self, backend: MakeBackend) -> None:
        config = self.config
        for slot in config.slots.values():
            made = backend(self._reloader.loaded, slot)
            self.slots.add(slot_identity(config, slot), made, log_kb=config.process.log_kb)

    async def _run_slots(
        self,
        state: Path,
        sock: socket.socket,
        backend: MakeBackend,
        task_status: trio.TaskStatus[None],
    ) -> StopSummary:
        async with trio.open_nursery() as nursery:
            await nursery.start(self.slots.run)
            wanted = self._desired.slots
            for slot in self.config.slots.values():
                if slot.name in wanted:
                    nursery.start_soon(self._restore, slot.name, wanted[slot.name])
                elif slot.autoload:
                    nursery.start_soon(self._autoload, slot.name)
            async with aclosing(SharedClient()) as client:
                await self._run_dispatcher(state, client, sock, backend, task_status)
            stuck = await self._stop_slots()
            nursery.cancel_scope.cancel()
        return StopSummary(stuck)

    async def _autoload(self, name: str) -> None:
        try:
            await self.slots.load(name)
        except SlotdError as error:
            log.warning("autoload failed", slot=name, code=error.code, error=error.message)

    async def _restore(self, name: str, model: str) -> None:
        """Load what was loaded when slotd last ended; ``model``: what it was swapped to, if it was."""
        try:
            if model and model in self.config.models:
                await self.slots.swap(name, model)
            else:
                await self.slots.load(name)
        except SlotdError as error:
            log.warning(
                "what was loaded before could not be", slot=name, code=error.code, error=error.message
            )

    def _configured_model(self, name: str) -> str | None:
        slot = self.config.slots.get(name)
        return None if slot is None else slot.model

    async def _stop_slots(self) -> tuple[str, ...]:
        """Stop every engine, in parallel, within the slots' own bounds; the names of those that stayed."""
        async with trio.open_nursery() as nursery:

            async def hurry() -> None:
                await self._now.wait()
                nursery.cancel_scope.cancel()

            nursery.start_soon(hurry)
            await self.slots.shutdown()
            nursery.cancel_scope.cancel()
        if self._now.is_set():
            return ()  # asked for: the engines are killed on the way out
        stuck = tuple(name for name, s in self.slots.snapshots().items() if s.pid is not None)
        if stuck:
            log.warning("these slots did not stop in time and are killed", slots=stuck)
        return stuck

    async def _run_dispatcher(
        self,
        state: Path,
        client: SharedClient,
        sock: socket.socket,
        backend: MakeBackend,
        task_status: trio.TaskStatus[None],
    ) -> None:
        settings = self._reloader.settings

        async def fetch(upstream: UpstreamEntry) -> tuple[str, ...]:
            return await CatalogFetcher(client.get(), settings.value.upstream_keys)(upstream)

        def transport(upstream: str) -> RemoteTransport:
            remote = settings.value.remotes.get(upstream)
            if remote is None:
                raise RouteStale(f"upstream {upstream!r} was removed since the route was found")
            return RemoteTransport(client.get(), remote)

        outside = Outside(
            fetch=fetch,
            slots=self.slots.snapshots,
            routing=lambda: self.slots.routing,
            store=FileStore(state / "catalogs.json"),
            on_trouble=lambda words: log.warning(words),
        )
        self.dispatcher = Dispatcher(compile_config(self.config), outside)
        exchange = Exchange(
            self.slots,
            self.dispatcher,
            transport,
            self.records,
            lambda: settings.value.policy,
            self.bus,
            self.artifacts.together,
        )
        omni = Omni(
            exchange,
            self.slots,
            self.dispatcher,
            self.arbiter,
            self.records,
            self.artifacts,
            lambda: settings.value.config,
        )
        reach = Reach(
            slots=self.slots,
            dispatcher=self.dispatcher,
            arbiter=self.arbiter,
            bus=self.bus,
            backend=backend,
            autoload=self._autoload,
            stopping=self._stop.is_set,
        )
        uploads = Uploads()
        services = Services(
            settings=settings,
            reload=self._reloader.reload,
            slots=self.slots,
            arbiter=self.arbiter,
            dispatcher=self.dispatcher,
            exchange=omni,
            records=self.records,
            bus=self.bus,
            journal=self.journal,
            artifacts=self.artifacts,
            metrics=self.metrics,
            uploads=uploads,
            intake=Intake(settings, self.records, uploads),
            run_id=self.run_id,
            started_unix=time.time(),
            version=VERSION,
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(exchange.watch)
            self._supervisor.start(ChildSpec("dispatcher", self.dispatcher.run))
            await self.dispatcher.mailbox.wait_open()
            self.dispatcher.refresh()
            self._supervisor.start(ChildSpec("reloader", partial(self._reloader.run, reach)))
            await self._serve(services, sock, task_status)
            nursery.cancel_scope.cancel()

    async def _serve(
        self, services: Services, sock: socket.socket, task_status: trio.TaskStatus[None]
    ) -> None:
        """The gateway, until asked to stop and drained."""
        self.address = sock.getsockname()[:2]

        def end_requests() -> None:
            cause = ServerStopping("slotd is shutting down and could not wait for this answer to end")
            if ended := self.records.end_all(cause) + services.uploads.end_all(cause):
                log.warning("ended requests that were still running", requests=ended)

        stopping = Stopping(self._stop.wait, self._now.wait, end_requests)
        async with trio.open_nursery() as nursery:

            async def serve(*, task_status: trio.TaskStatus[None]) -> None:
                lane = None
                if self.config.server.express:
                    lane = Lane(services.exchange, services.intake, services.uploads, services.settings)
                app, settings = build_app(services), services.settings
                await run_server(app, sock, settings, stopping, lane, task_status=task_status)

            await nursery.start(serve)
            self.bus.publish(types.SERVER_STARTED, {"url": self.url, "version": VERSION})
            task_status.started()
            await self._stop.wait()
            self.bus.publish(types.SERVER_STOPPING, {})
            # The drain is for those who are being answered; who still waits
            # for a slot can be told at once.
            self.slots.close_doors()
            # Event streams never end by themselves and would hold up the drain.
            self.bus.close()

    # --- what others report -------------------------------------------------------

    def _started(self, record: RequestRecord) -> None:
        # Should slotd be killed, this is all that is known of it.
        known = {
            "id": record.id,
            "path": record.path,
            "client": record.client,
            "began_unix": record.began_unix,
            "bytes_in": record.bytes_in,
        }
        self.bus.publish(types.REQUEST_STARTED, known)

    def _finished(self, record: RequestRecord) -> None:
        self.metrics.count(record)
        self.bus.publish(types.REQUEST_FINISHED, record.as_dict())

    def _crashed(self, crash: ChildCrashed) -> None:
        error = f"{type(crash.error).__name__}: {crash.error}"
        log.error("actor crashed", actor=crash.name, restart_in_s=crash.restart_in_s, exc_info=crash.error)
        self.bus.publish(
            types.ACTOR_CRASHED, {"actor": crash.name, "error": error, "restart_in_s": crash.restart_in_s}
        )
