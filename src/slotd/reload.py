"""Reloading the configuration: all of it or nothing, one after the other, without dropping a request.

The reloader owns "the configuration in force". Its order is what makes a reload
safe: everything is read, checked and built before the first thing changes; slots
are added before the route table knows them and removed after it has forgotten
them; what a request began with, it finishes with.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import structlog
import trio

from slotd.actor import Mailbox, Reply, Snapshot
from slotd.arbiter.actor import Arbiter
from slotd.blueprint import memory_limits, slot_identity, touched_slots
from slotd.config import ConfigFile, LoadedConfig, SlotConfig
from slotd.config.reread import Reading, reread
from slotd.dispatch import Dispatcher
from slotd.dispatch.bindings import RouteTable
from slotd.dispatch.from_config import compile_config
from slotd.errors import ConfigInvalid, ServerBusy, ServerStopping, SlotdError
from slotd.events import EventBus, types
from slotd.logs import set_level
from slotd.settings import Settings
from slotd.slot.actor import SlotIdentity
from slotd.slot.backend import Backend
from slotd.slot.manager import SlotManager

__all__ = ["Reach", "Reloader"]

log = structlog.get_logger("slotd")

READ_TIMEOUT_S = 10.0
"""Longest that the files may take to be read."""

START_TIMEOUT_S = 1.0
"""Longest wait until the actors of new slots listen; they take one turn of the loop unless they crash."""

MAX_WAITING = 16
"""So many may wait for a reload; further ones are refused."""

MAX_TOLD = 100
"""Faults and warnings that an event or the log carries."""


@dataclass(frozen=True, slots=True)
class Reach:
    """What a reload works on.

    ``backend`` builds what a slot runs on, without side effects; it raises a typed
    error if it cannot. ``autoload`` loads a slot that is new, and reports by itself.
    ``stopping`` tells whether slotd is about to end.
    """

    slots: SlotManager
    dispatcher: Dispatcher
    arbiter: Arbiter
    bus: EventBus
    backend: Callable[[LoadedConfig, SlotConfig], Backend]
    autoload: Callable[[str], Awaitable[None]]
    stopping: Callable[[], bool]


@dataclass(frozen=True, slots=True)
class _Ask:
    reply: Reply[Reading]


@dataclass(frozen=True, slots=True)
class _Nudge:
    """Somebody wants a reload and waits for no answer."""


@dataclass(frozen=True, slots=True)
class _Built:
    """All that a reload needs, made before anything changes."""

    added: tuple[tuple[SlotIdentity, Backend], ...]
    touched: tuple[tuple[SlotIdentity, Backend], ...]
    removed: tuple[str, ...]
    settings: Settings
    table: RouteTable


class Reloader:
    """Owner of the configuration in force, and the way to ask for another.

    It is no :class:`slotd.actor.Actor`: its loop waits for one reload to be done
    before it takes up the next, which is the point of it. Removed slots drain
    beside the loop.
    """

    def __init__(self, loaded: LoadedConfig, file: ConfigFile | None = None) -> None:
        self._loaded = loaded
        self._file = file
        self._mailbox: Mailbox[_Ask | _Nudge] = Mailbox("reloader")
        self._nudged = False
        self._leaving: dict[str, trio.Event] = {}
        self.settings = Snapshot(Settings.of(loaded))

    @property
    def loaded(self) -> LoadedConfig:
        """The configuration in force."""
        return self._loaded

    # --- asking -----------------------------------------------------------------------

    async def reload(self) -> Reading:
        """Read the configuration again and put it in force; returns what changed.

        Raises :class:`ConfigInvalid` with every fault, and nothing has changed. Slots
        that were removed may still drain, and changed ones be loaded again, when
        this returns; a name that is used again is waited for. Cancelled: a reload
        that has begun is finished all the same.
        """
        if self._mailbox.open_asks >= MAX_WAITING:
            raise ServerBusy(f"{MAX_WAITING} ask for a reload already", retry_after_s=1)
        return await self._mailbox.ask(_Ask)

    def nudge(self) -> None:
        """The same without an answer, as soon as it can be done. Synchronous; for signals.

        Nudges that come while one waits are one: it reads what there is then.
        """
        if not self._nudged:
            self._nudged = True
            self._mailbox.post(_Nudge())

    # --- the task -----------------------------------------------------------------------

    async def run(self, reach: Reach) -> None:
        """Serve reloads until cancelled. May be run again after a crash: what is in force is remembered."""
        async with trio.open_nursery() as children:
            self._mailbox.open()
            try:
                while True:
                    if self._nudged:  # also by a signal that came before the mailbox was open
                        self._nudged = False
                        with suppress(SlotdError):  # it has been logged
                            await self._reload(reach, children)
                    message = await self._mailbox.receive()
                    if isinstance(message, _Ask) and not message.reply.abandoned:
                        try:
                            message.reply.answer(await self._reload(reach, children))
                        except SlotdError as error:
                            message.reply.refuse(error)
            except Exception as error:
                self._mailbox.close(error)
                raise
            finally:
                self._mailbox.close()

    async def _reload(self, reach: Reach, children: trio.Nursery) -> Reading:
        if reach.stopping():
            raise ServerStopping("slotd is shutting down")
        try:
            reading = await self._read()
            # A name on its way out is not free yet: room, device and history go by
            # names. The slot's own time-outs bound this.
            for name in reading.loaded.config.slots:
                if name in self._leaving:
                    await self._leaving[name].wait()
            built = self._build(reach, reading.loaded)
        except ConfigInvalid as error:
            log.error("config refused; nothing has changed", problems=error.problems[:MAX_TOLD])
            told = {"message": error.message, "problems": error.problems[:MAX_TOLD]}
            reach.bus.publish(types.CONFIG_REFUSED, told)
            raise
        if reading.diff:
            await self._apply(reach, children, reading.loaded, built)
        self._tell(reach.bus, reading)
        return reading

    async def _read(self) -> Reading:
        file, source = self._file, self._loaded.source
        if file is None:
            raise ConfigInvalid(source, ["this configuration came from no file, so it cannot be read again"])
        with trio.move_on_after(READ_TIMEOUT_S):
            return await trio.to_thread.run_sync(reread, file, self._loaded, abandon_on_cancel=True)
        raise ConfigInvalid(source, [f"could not be read within {READ_TIMEOUT_S:g} s"])

    def _build(self, reach: Reach, new: LoadedConfig) -> _Built:
        """Make everything. What there is decides, not what was configured: a crash may have come between."""
        config = new.config
        there = reach.slots.names()
        touched = frozenset(touched_slots(self._loaded, new))
        problems: list[str] = []

        def made(slot: SlotConfig) -> tuple[SlotIdentity, Backend] | None:
            try:
                return slot_identity(config, slot), reach.backend(new, slot)
            except SlotdError as error:
                problems.append(f"slots.{slot.name}: {error.message}")
                return None

        added = [made(slot) for name, slot in config.slots.items() if name not in there]
        changed = [made(slot) for name, slot in config.slots.items() if name in there and name in touched]
        if problems:
            raise ConfigInvalid(new.source, problems)
        return _Built(
            added=tuple(pair for pair in added if pair is not None),
            touched=tuple(pair for pair in changed if pair is not None),
            removed=tuple(n for n in there if n not in config.slots),
            settings=Settings.of(new),
            table=compile_config(config),
        )

    async def _apply(self, reach: Reach, children: trio.Nursery, new: LoadedConfig, built: _Built) -> None:
        """Put it in force. Nothing here can be refused."""
        slots, config = reach.slots, new.config
        for identity, backend in built.added:
            slots.add(identity, backend, log_kb=config.process.log_kb)
        with trio.move_on_after(START_TIMEOUT_S):
            for identity, _ in built.added:
                await slots.mailbox(identity.spec.name).wait_open()
        # No checkpoint from here on: whoever looks sees all of the old or all of the new.
        for identity, backend in built.touched:
            slots.reconfigure(identity.spec.name, identity, backend)
        if config.server.log_level != self._loaded.config.server.log_level:
            set_level(config.server.log_level)
        slots.arrange(config.slots)
        self.settings.publish(built.settings)
        reach.arbiter.reconfigure(memory_limits(config))
        reach.dispatcher.replace(built.table)
        self._loaded = new
        for name in built.removed:
            self._leaving[name] = trio.Event()
            children.start_soon(self._remove, slots, name)
        for identity, _ in built.added:
            if config.slots[identity.spec.name].autoload:
                children.start_soon(reach.autoload, identity.spec.name)

    async def _remove(self, slots: SlotManager, name: str) -> None:
        try:
            await slots.remove(name)
            log.info("slot removed", slot=name)
        except SlotdError as error:
            log.warning("slot removed, not as it should", slot=name, code=error.code, error=error.message)
        finally:
            self._leaving.pop(name).set()

    def _tell(self, bus: EventBus, reading: Reading) -> None:
        document: Mapping[str, Any] = reading.diff.as_dict()
        log.info("config reloaded", changes=list(document["lines"]) or "none")
        for warning in reading.loaded.warnings[:MAX_TOLD]:
            log.warning("config", warning=warning)
        bus.publish(
            types.CONFIG_RELOADED, {key: document[key] for key in ("lines", "slots", "needs_restart")}
        )
