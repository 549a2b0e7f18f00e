"""The gateway on a real socket, with whatever the test puts behind it."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import httpx
import trio

from slotd.actor import Snapshot
from slotd.arbiter.actor import Arbiter
from slotd.arbiter.footprints import Footprints
from slotd.arbiter.meter import Meter
from slotd.arbiter.room import Limits
from slotd.artifacts import Artifacts
from slotd.config import parse_config
from slotd.config.reread import Reading
from slotd.errors import ConfigInvalid
from slotd.events import EventBus
from slotd.exchange.inbound import Inbound, Outbound
from slotd.exchange.record import RecordBook
from slotd.gateway.app import build_app
from slotd.gateway.express.lane import Lane
from slotd.gateway.intake import Intake
from slotd.gateway.metrics import Metrics
from slotd.gateway.server import Stopping, bind, run_server
from slotd.gateway.services import Services
from slotd.gateway.uploads import Uploads
from slotd.journal.journal import Journal
from slotd.settings import Settings
from slotd.slot.manager import SlotManager

Behaviour = Callable[[Inbound, Outbound], Awaitable[None]]


@dataclass
class Behind:
    """Stands for the exchange and the dispatcher."""

    behave: Behaviour
    seen: list[Inbound] = field(default_factory=list)

    async def run(self, inbound: Inbound, out: Outbound) -> None:
        self.seen.append(inbound)
        with nullcontext() if inbound.scope_entered else inbound.scope:
            await self.behave(inbound, out)

    def listed(self) -> dict[str, tuple[str, ...]]:
        return {}

    def refresh(self) -> None: ...

    def routes(self) -> Any:
        raise KeyError("a bug of ours")


@dataclass(frozen=True)
class Gateway:
    client: httpx.AsyncClient
    port: int
    behind: Behind
    services: Services
    stop: Callable[[], None]
    """As by a signal; the test's end does it, too."""

    async def connect(self) -> trio.SocketStream:
        return await trio.open_tcp_stream("127.0.0.1", self.port)


async def with_gateway(
    test: Callable[[Gateway], Awaitable[None]],
    behave: Behaviour,
    *,
    keys: Mapping[str, int | None] = MappingProxyType({}),
    server: str = "",
    express: bool = True,
    tmp_path: Any = None,
) -> None:
    """Run ``test`` against a gateway in this process; it is stopped afterwards.

    ``express``: with that lane before hypercorn.
    """
    loaded = parse_config(f"[server]\nport = 0\n{server}", "test", tmp_path, env={})
    bus = EventBus(100)
    slots = SlotManager(bus)
    records = RecordBook(10, lambda record: None)
    behind = Behind(behave)
    settings = Snapshot(replace(Settings.of(loaded), api_keys=keys))

    async def reload() -> Reading:
        raise ConfigInvalid("test", ["no file"])

    uploads = Uploads()
    services = Services(
        settings=settings,
        reload=reload,
        slots=slots,
        arbiter=Arbiter(Limits(), bus, footprints=Footprints(Path(os.devnull)), measure=Meter().read),
        dispatcher=cast(Any, behind),
        exchange=cast(Any, behind),
        records=records,
        bus=bus,
        journal=Journal(Path(":memory:"), 10, 10, 10, bus, "0123456789"),
        artifacts=Artifacts(),
        metrics=Metrics(slots.snapshots, lambda: records.live_count),
        uploads=uploads,
        intake=Intake(settings, records, uploads),
        run_id="0123456789",
        started_unix=0.0,
        version="test",
    )
    lane = Lane(services.exchange, services.intake, uploads, settings) if express else None
    sock = bind(loaded.config.server)
    port = sock.getsockname()[1]
    stop = trio.Event()
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            await nursery.start(run_server, build_app(services), sock, settings, Stopping(stop.wait), lane)
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
                await test(Gateway(client, port, behind, services, stop.set))
            stop.set()
