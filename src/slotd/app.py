"""The composition root: what is started inside what, and how it all stops.

Nesting is the stop order. Each layer's nursery lies inside the one it depends
on, so that what asks is gone before what answers::

    guardian, model store           kill leftovers; downloads
    └── slots (supervisor)          one actor per slot, with its engine
        └── dispatcher (supervisor) routes
            └── gateway             hypercorn and Quart
"""

from __future__ import annotations

import random
import socket
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

import httpx
import structlog
import trio

from slotd.actor import ChildCrashed, ChildSpec, Supervisor
from slotd.config import Config, LoadedConfig, SlotConfig, auth_header
from slotd.dispatch import Dispatcher, FileStore, Outside
from slotd.dispatch.from_config import compile_config
from slotd.dispatch.remote import CatalogFetcher, new_client
from slotd.engine.backend import make_backend
from slotd.errors import SlotdError
from slotd.events import EventBus, Gap, types
from slotd.exchange.exchange import Exchange
from slotd.exchange.record import RecordBook, RequestRecord
from slotd.exchange.relay import StallLimits
from slotd.exchange.transport import Remote, RemoteTransport
from slotd.gateway.app import build_app
from slotd.gateway.metrics import Metrics
from slotd.gateway.server import bind, run_server
from slotd.gateway.services import Services
from slotd.model.store import ModelStore
from slotd.process.guardian import Guardian
from slotd.process.identity import Ledger, run_marker, sweep_leftovers
from slotd.process.local import LocalLauncher
from slotd.process.ports import PortPool
from slotd.slot.actor import SlotIdentity
from slotd.slot.machine import SlotSpec
from slotd.slot.manager import SlotManager
from slotd.statedir import StateDir
from slotd.version import VERSION

__all__ = ["Slotd", "StopSummary"]

log = structlog.get_logger("slotd")


@dataclass(frozen=True, slots=True)
class StopSummary:
    """What a stop left behind: processes and slots that would not end in time."""

    stuck_slots: tuple[str, ...] = ()


def slot_spec(config: Config, slot: SlotConfig) -> SlotSpec:
    """The numbers of a slot's machine, from the config."""
    return SlotSpec(
        name=slot.name,
        max_parallel=slot.max_parallel,
        max_queue=slot.max_queue,
        queue_timeout_s=config.server.queue_timeout_s,
        pull_stall_s=slot.pull_stall_s,
        ready_timeout_s=slot.ready_timeout_s,
        stop_timeout_s=slot.stop_timeout_s,
        kill_timeout_s=config.process.kill_timeout_s,
        drain_timeout_s=slot.drain_timeout_s,
        abandon_after_s=slot.abandon_after_s,
        idle_after_s=slot.idle_after_s,
        ttl_s=slot.ttl_s,
        pinned=slot.pinned,
    )


def slot_identity(config: Config, slot: SlotConfig) -> SlotIdentity:
    """The facts of a slot; its labels are its own and its model's."""
    model = config.models.get(slot.model)
    labels = dict.fromkeys((*(model.labels if model else ()), *slot.labels))
    return SlotIdentity(
        spec=slot_spec(config, slot),
        type=slot.type,
        engine=slot.engine,
        model=slot.model,
        labels=tuple(labels),
        aliases=tuple(slot.aliases),
        default=slot.default,
        log_tail_lines=config.process.log_tail_lines,
    )


class Slotd:
    """One slotd: built from a config, run once.

    :meth:`run` owns everything; :meth:`stop` (any task, synchronous) begins a
    graceful stop, and a second call makes it immediate.
    """

    def __init__(self, loaded: LoadedConfig) -> None:
        self.config = loaded.config
        self._loaded = loaded
        server = self.config.server
        self.run_id = uuid.uuid4().hex
        self.bus = EventBus(server.event_buffer)
        self.slots = SlotManager(self.bus)
        self.records = RecordBook(server.recent_requests, self._finished)
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
            with StateDir(self._loaded.state_dir) as state:
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
        self._add_slots(store, launcher)
        async with trio.open_nursery() as base:
            base.start_soon(self._narrate)
            await base.start(guardian.run)
            await base.start(store.run)
            summary = await self._run_slots(state, sock, task_status)
            base.cancel_scope.cancel()
        return summary

    def _add_slots(self, store: ModelStore, launcher: LocalLauncher) -> None:
        config = self.config
        models = {name: self._loaded.model_ref(name) for name in config.models}
        for slot in config.slots.values():
            backend = make_backend(slot, models, store, launcher, self._loaded.path)
            self.slots.add(slot_identity(config, slot), backend, log_kb=config.process.log_kb)

    async def _run_slots(
        self, state: Path, sock: socket.socket, task_status: trio.TaskStatus[None]
    ) -> StopSummary:
        async with trio.open_nursery() as nursery:
            await nursery.start(self.slots.run)
            for slot in self.config.slots.values():
                if slot.autoload:
                    nursery.start_soon(self._autoload, slot.name)
            async with new_client() as client:
                await self._run_dispatcher(state, client, sock, task_status)
            stuck = await self._stop_slots()
            nursery.cancel_scope.cancel()
        return StopSummary(stuck)

    async def _autoload(self, name: str) -> None:
        try:
            await self.slots.load(name)
        except SlotdError as error:
            log.warning("autoload failed", slot=name, code=error.code, error=error.message)

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
        client: httpx.AsyncClient,
        sock: socket.socket,
        task_status: trio.TaskStatus[None],
    ) -> None:
        config, server = self.config, self.config.server
        secrets = self._loaded.secrets
        auth: dict[str, dict[str, str]] = {}
        keys: dict[str, str] = {}
        for name, u in config.upstreams.items():
            key = secrets.upstream_keys.get(name)
            shown = auth_header(u.auth, key)
            auth[name] = {} if shown is None else {shown[0]: shown[1]}
            if key is not None:
                keys[u.key_env] = key.get_secret_value()
        outside = Outside(
            fetch=CatalogFetcher(client, keys),
            slots=self.slots.snapshots,
            store=FileStore(state / "catalogs.json"),
            on_trouble=lambda words: log.warning(words),
        )
        self.dispatcher = Dispatcher(compile_config(config), outside)

        def transport(upstream: str) -> RemoteTransport:
            u = config.upstreams[upstream]
            return RemoteTransport(client, Remote(upstream, u.url, auth[upstream], u.connect_timeout_s))

        exchange = Exchange(
            self.slots,
            self.dispatcher,
            transport,
            self.records,
            StallLimits(server.first_byte_timeout_s, server.idle_timeout_s, server.total_timeout_s),
        )
        services = Services(
            config=config,
            api_keys=frozenset(key.get_secret_value() for key in secrets.api_keys),
            slots=self.slots,
            dispatcher=self.dispatcher,
            exchange=exchange,
            records=self.records,
            bus=self.bus,
            metrics=self.metrics,
            run_id=self.run_id,
            started_unix=time.time(),
            version=VERSION,
        )
        async with trio.open_nursery() as nursery:
            await nursery.start(self._supervisor.run)
            self._supervisor.start(ChildSpec("dispatcher", self.dispatcher.run))
            await self.dispatcher.mailbox.wait_open()
            self.dispatcher.refresh()
            await self._serve(services, sock, task_status)
            nursery.cancel_scope.cancel()

    async def _serve(
        self, services: Services, sock: socket.socket, task_status: trio.TaskStatus[None]
    ) -> None:
        """The gateway, until asked to stop and drained."""
        self.address = sock.getsockname()[:2]
        async with trio.open_nursery() as nursery:

            async def hurry() -> None:
                await self._now.wait()
                nursery.cancel_scope.cancel()

            async def serve(*, task_status: trio.TaskStatus[None]) -> None:
                await run_server(
                    build_app(services), sock, self.config.server, self._stop.wait, task_status=task_status
                )
                nursery.cancel_scope.cancel()

            nursery.start_soon(hurry)
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

    async def _narrate(self) -> None:
        """Tell the log what happened, for whoever watches the console."""
        with self.bus.subscribe(max_buffered=self.config.server.event_buffer) as events:
            async for event in events:
                if isinstance(event, Gap):
                    continue
                data = event.data
                match event.kind:
                    case types.SLOT_LOADED:
                        log.info(
                            "loaded", slot=event.slot, model=data["model"], load_s=round(data["load_s"], 2)
                        )
                    case types.SLOT_FAULT:
                        log.warning("fault", slot=event.slot, reason=data["reason"], message=data["message"])
                    case types.SLOT_STOPPED:
                        log.info("engine ended", slot=event.slot, exit=data["exit"])
                    case types.SERVER_STOPPING:
                        live = self.records.live_count
                        log.info("stopping: requests may finish; a second signal stops now", live=live)
                    case types.REQUEST_FINISHED:
                        shown = ("id", "path", "model", "target", "status", "outcome", "error", "tokens_out")
                        fields = {key: data[key] for key in shown if data[key] is not None}
                        log.info("request", **fields, total_s=round(data["total_s"], 3))

    def _finished(self, record: RequestRecord) -> None:
        self.metrics.count(record)
        self.bus.publish(types.REQUEST_FINISHED, record.as_dict())

    def _crashed(self, crash: ChildCrashed) -> None:
        error = f"{type(crash.error).__name__}: {crash.error}"
        log.error("actor crashed", actor=crash.name, restart_in_s=crash.restart_in_s, exc_info=crash.error)
        self.bus.publish(
            types.ACTOR_CRASHED, {"actor": crash.name, "error": error, "restart_in_s": crash.restart_in_s}
        )
