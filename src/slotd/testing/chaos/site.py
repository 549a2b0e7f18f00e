"""slotd as a process, with slots that can be told to misbehave, on a directory of its own."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import subprocess
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio

from slotd.testing.chaos import table
from slotd.testing.chaos.asks import Service
from slotd.testing.fake_knobs import Knobs, command
from slotd.testing.harness import FakeEngine, SlotdProcess, config_text
from slotd.wire.http1 import Broken, Http1Pool

__all__ = ["Limits", "Outage", "Reply", "Site", "SiteDown", "SlotPlan", "moody_slot"]

_MOODY = 'if [ -s "$0" ]; then mood=$(cat "$0"); rm -f "$0"; exec "$@" "--knobs=$mood"; fi; exec "$@"'
"""Runs an engine; a file tells the knobs of its next start, and of that one only."""


class SiteDown(Exception):
    """slotd does not answer just now, or ended before it had answered."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The time limits that the site's slotd runs with, in seconds; an oracle derives its own from them."""

    queue_s: float = 15
    first_byte_s: float = 8
    idle_s: float = 5
    total_s: float = 20
    write_s: float = 4
    ready_s: float = 10
    stop_s: float = 1
    kill_s: float = 3
    drain_s: float = 3
    shutdown_s: float = 4
    liveness_s: float = 3
    max_replays: int = 2

    @property
    def hang_s(self) -> float:
        """A request that has not ended after so long hangs."""
        return self.queue_s + self.total_s + 15


@dataclass(frozen=True, slots=True)
class SlotPlan:
    """A slot of the site: its table in the configuration, and what clients need to know of it."""

    table: Mapping[str, Any]
    service: Service


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer of the management surface."""

    status: int
    document: Any


@dataclass(slots=True)
class Outage:
    """slotd was killed (or asked to stop) at ``began``, and answered again at ``ended``; wall clock."""

    how: str
    began: float
    ended: float = float("inf")


class Site:
    """One slotd after another on one configuration and one state directory.

    ``pid`` and ``url`` are those of the present one; ``outages`` tells when
    there was none.
    """

    def __init__(
        self,
        base: Path,
        slots: Mapping[str, SlotPlan],
        limits: Limits,
        *,
        ports: tuple[int, int],
        more: str = "",
    ) -> None:
        self.base = base
        self.slots = slots
        self.limits = limits
        self.ports = range(ports[0], ports[1] + 1)
        self.mark = uuid.uuid4().hex
        self.state_dir = base / "state"
        self.config = base / "slotd.toml"
        self.outages: list[Outage] = []
        self.incarnation = 0
        self._more = more
        self._edits: dict[str, dict[str, Any]] = {}
        self._process: SlotdProcess | None = None
        self._up = trio.Event()
        self.write_config()

    # --- the configuration ------------------------------------------------------------

    def write_config(self, *, broken: str = "") -> None:
        """Write the file; ``broken`` is text that makes it invalid."""
        lim = self.limits
        server = {
            "state_dir": str(self.state_dir),
            "queue_timeout_s": lim.queue_s,
            "first_byte_timeout_s": lim.first_byte_s,
            "idle_timeout_s": lim.idle_s,
            "total_timeout_s": lim.total_s,
            "write_timeout_s": lim.write_s,
            "shutdown_timeout_s": lim.shutdown_s,
            "heartbeat_after_s": 1,
            "heartbeat_every_s": 0.5,
            "max_wait_s": 5,
            "turn_hold_s": 0.3,
            "max_replays": lim.max_replays,
            "recent_requests": 128,
            "event_buffer": 2000,
            "log_level": "warning",
        }
        slots = {name: {**plan.table, **self._edits.get(name, {})} for name, plan in self.slots.items()}
        text = config_text(slots, server=server, more=self._more + broken)
        draft = self.config.with_suffix(".new")
        draft.write_text(text)
        draft.replace(self.config)

    def edit(self, slot: str, **settings: Any) -> None:
        """Change a slot's table in the file."""
        self._edits.setdefault(slot, {}).update(settings)
        self.write_config()

    def mood(self, slot: str, **knobs: Any) -> None:
        """The knobs of the next start of a slot's fake engine."""
        path = mood_file(self.base, slot)
        draft = path.with_suffix(".new")
        draft.write_text(json.dumps(knobs))
        draft.replace(path)

    def good_mood(self, slot: str) -> None:
        """Take back a mood that no start has seen."""
        mood_file(self.base, slot).unlink(missing_ok=True)

    # --- the process --------------------------------------------------------------------

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def url(self) -> str:
        assert self._process is not None
        return self._process.url

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.url.removeprefix("http://").rpartition(":")
        return host, int(port)

    @property
    def is_up(self) -> bool:
        return self._up.is_set()

    async def wait_up(self) -> None:
        """Wait until a slotd answers."""
        await self._up.wait()

    def output(self) -> list[str]:
        """The newest lines that the present slotd has written."""
        return [] if self._process is None else list(self._process.output)

    async def start(self) -> float:
        """Start slotd; returns the seconds until it listened. Raises RuntimeError if it does not come up."""
        process = SlotdProcess(self.config, env={table.MARK: self.mark})
        began = time.monotonic()
        await trio.to_thread.run_sync(process.__enter__)
        self._process = process
        self.incarnation += 1
        if self.outages:
            self.outages[-1].ended = time.time()
        self._up.set()
        return time.monotonic() - began

    def _down(self, how: str) -> SlotdProcess:
        assert self._process is not None
        self._up = trio.Event()
        self.outages.append(Outage(how, time.time()))
        return self._process

    async def kill(self) -> list[str]:
        """SIGKILL slotd; returns what it had written last."""
        process = self._down("kill")
        process.send(signal.SIGKILL)
        await trio.to_thread.run_sync(process.__exit__, None, None, None)
        return list(process.output)

    async def stop(self) -> tuple[int | None, list[str]]:
        """SIGTERM, and wait; the exit code is None if it did not end in time and was killed."""
        process = self._down("stop")
        process.send(signal.SIGTERM)
        bound = self.limits.shutdown_s + self.limits.stop_s + 2 * self.limits.kill_s + 5
        code: int | None = None
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = await trio.to_thread.run_sync(process.wait, bound)
        await trio.to_thread.run_sync(process.__exit__, None, None, None)
        return code, list(process.output)

    def end(self) -> None:
        """Kill slotd if it lives, and whatever carries the run's mark. Blocking; for the way out."""
        if self._process is not None:
            self._process.__exit__(None, None, None)
        for marked in table.look(self.mark).values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(marked.pid, signal.SIGKILL)

    def limit_files(self, size: int) -> None:
        """No file of slotd can grow beyond so many bytes; -1: no limit.

        What a full disk is to a writer, without filling one.
        """
        _, hard = resource.prlimit(self.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(self.pid, resource.RLIMIT_FSIZE, (hard if size < 0 else size, hard))

    # --- the management surface --------------------------------------------------------------

    async def call(self, method: str, path: str, document: Any = None, *, timeout_s: float = 20.0) -> Reply:
        """Ask the management surface. Raises :class:`SiteDown`, or TimeoutError after ``timeout_s``."""
        if not self.is_up:
            raise SiteDown("slotd is down")
        host, port = self.address
        body = b"" if document is None else json.dumps(document).encode()
        pool = Http1Pool(host, port, max_idle=0)
        data = b""
        try:
            with trio.move_on_after(timeout_s) as scope:
                response = await pool.request(
                    method.encode(), path.encode(), [(b"content-type", b"application/json")], body
                )
                while chunk := await response.receive_some():
                    data += chunk
        except Broken as exc:
            raise SiteDown(str(exc)) from exc
        finally:
            pool.close()
        if scope.cancelled_caught:
            raise TimeoutError(f"{method} {path} was not answered in {timeout_s} s")
        return Reply(response.status, json.loads(data))

    async def slot(self, name: str) -> dict[str, Any]:
        """The slot as the management surface shows it. Raises :class:`SiteDown`."""
        view: dict[str, Any] = (await self.call("GET", f"/api/slots/{name}")).document
        return view

    async def fake(self, name: str) -> FakeEngine | None:
        """The controls of the fake engine that runs in the slot now; None if none is up."""
        view = await self.slot(name)
        if view["state"] not in ("ready", "serving", "idle") or not view["address"]:
            return None
        host, _, port = view["address"].rpartition(":")
        return FakeEngine(host, int(port))


def mood_file(base: Path, slot: str) -> Path:
    return base / f"{slot}.mood"


def moody_slot(base: Path, name: str, knobs: Knobs, **settings: Any) -> dict[str, Any]:
    """The table of a slot whose fake engine reads the knobs of its next start from a file."""
    argv = ["/bin/sh", "-c", _MOODY, str(mood_file(base, name)), *command(knobs)]
    return {
        "type": "llm",
        "engine": "command",
        "command": argv,
        "health_path": "/health",
        **settings,
    }
