"""slotd for tests: in this process, or as a process of its own, with fake engines.

The in-process harness is for everything that wants to look inside (states,
transitions, leases); the process is for what only a process can show
(signals, exit codes, being killed).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import structlog
import trio

from slotd.app import Slotd
from slotd.config import ConfigFile
from slotd.events import Subscription
from slotd.logs import configure
from slotd.slot.state import SlotSnapshot, SlotState
from slotd.testing.fake_knobs import Knobs, command
from slotd.wire.http1 import Http1Pool

__all__ = [
    "FakeEngine",
    "FakeServer",
    "Harness",
    "SlotdProcess",
    "config_text",
    "fake_slot",
    "run_harness",
    "toml",
]


FIRST_PORT, WINDOWS, WINDOW = 20_000, 300, 40
"""Each process that runs harnesses has a window of ports: slotds that start at the same moment and
share a range reach for the same port. Below what the kernel gives to outgoing connections."""


# --- configuration ------------------------------------------------------------------


def toml(value: Any) -> str:
    """A value as TOML: strings, numbers, booleans, lists, and flat tables."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return str(value)
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{json.dumps(k)} = {toml(v)}" for k, v in value.items()) + " }"
    return "[" + ", ".join(toml(v) for v in value) + "]"


def fake_slot(knobs: Knobs | None = None, **settings: Any) -> dict[str, Any]:
    """The table of a slot that runs the fake engine; ``settings`` are its config keys.

    Its output is not checked unless they say so: a test counts the requests it made itself.
    """
    return {
        "type": "llm",
        "engine": "command",
        "command": command(knobs or Knobs()),
        "health_path": "/health",
        "stop_timeout_s": 2,
        "check_output": False,
        **settings,
    }


def config_text(
    slots: Mapping[str, Mapping[str, Any]],
    *,
    server: Mapping[str, Any] | None = None,
    more: str = "",
) -> str:
    """A configuration on a free port with these slots; ``more`` is appended as it is."""
    sections = [("server", {"port": 0, **(server or {})})]
    sections += [(f"slots.{name}", dict(slot)) for name, slot in slots.items()]
    lines: list[str] = []
    for title, table in sections:
        lines.append(f"[{title}]")
        lines += [f"{key} = {toml(value)}" for key, value in table.items()]
    return "\n".join(lines) + "\n" + more


# --- the fake engine, from outside ------------------------------------------------------


@dataclass(frozen=True, slots=True)
class FakeEngine:
    """The control surface of a running fake engine."""

    host: str
    port: int

    async def stats(self) -> dict[str, Any]:
        """What it has seen: active, started, finished and cancelled requests, tokens out."""
        return await self._call(b"GET", b"/fake/stats", b"")

    async def set(self, **knobs: Any) -> dict[str, Any]:
        """Turn knobs while it runs."""
        return await self._call(b"POST", b"/fake/knobs", json.dumps(knobs).encode())

    async def wait_active(self, count: int) -> None:
        """Wait until exactly ``count`` requests are under way; give a deadline yourself."""
        while (await self.stats())["active"] != count:  # noqa: ASYNC110 # another process: no event to wait for
            await trio.sleep(0.005)

    async def _call(self, method: bytes, path: bytes, body: bytes) -> dict[str, Any]:
        pool = Http1Pool(self.host, self.port, max_idle=0)
        try:
            response = await pool.request(method, path, [(b"content-type", b"application/json")], body)
            try:
                data = b""
                while chunk := await response.receive_some():
                    data += chunk
            finally:
                response.abort()
        finally:
            pool.close()
        document: dict[str, Any] = json.loads(data)
        return document


class _Bomb:
    """A message that no actor knows: handling it raises."""


# --- in this process -------------------------------------------------------------------


class Harness:
    """A running slotd whose insides a test may look at and break."""

    def __init__(self, slotd: Slotd, file: Path) -> None:
        self.slotd = slotd
        self.file = file

    @property
    def url(self) -> str:
        """Its address without ``/v1``."""
        return self.slotd.url

    def snapshot(self, name: str) -> SlotSnapshot:
        """The slot as it last published itself."""
        return self.slotd.slots.snapshot(name)

    async def state(self, name: str) -> SlotState:
        """The slot's state, asked from its owner."""
        return await self.slotd.slots.state(name)

    async def wait_for(self, name: str, *states: SlotState | str) -> SlotSnapshot:
        """Wait until the slot is in one of ``states``; give a deadline yourself."""
        return await self.slotd.slots.wait_for(name, [SlotState(s) for s in states])

    def observe(self, name: str) -> AbstractContextManager[Subscription]:
        """The slot's transitions from now on: ``with slotd.observe("chat") as seen: async for ...``."""
        return self.slotd.slots.observe(name)

    def fake(self, name: str) -> FakeEngine:
        """The control surface of the fake engine that runs in the slot now."""
        address = self.snapshot(name).address
        if address is None:
            raise RuntimeError(f"slot {name!r} has no engine now ({self.snapshot(name).state})")
        return FakeEngine(address.host, address.port)

    def rewrite(self, text: str) -> None:
        """Put another text into the configuration file, for a reload to find."""
        self.file.write_text(_completed(text, self.file.parent))

    async def load(self, name: str) -> SlotSnapshot:
        await self.slotd.slots.load(name)
        return self.snapshot(name)

    async def stop(self, name: str) -> None:
        """Unload the slot as an operator would."""
        await self.slotd.slots.unload(name)

    def kill(self, name: str) -> int:
        """SIGKILL the engine's process group behind slotd's back; returns the pid."""
        return self._signal(name, signal.SIGKILL)

    def freeze(self, name: str) -> int:
        """SIGSTOP the engine's process group."""
        return self._signal(name, signal.SIGSTOP)

    def thaw(self, name: str) -> int:
        """SIGCONT the engine's process group."""
        return self._signal(name, signal.SIGCONT)

    def crash_actor(self, name: str) -> None:
        """Make the slot's actor raise at its next message: a bug on purpose."""
        self.slotd.slots.mailbox(name).post(_Bomb())  # type: ignore[arg-type] # that is the bug

    def crash_dispatcher(self) -> None:
        """The same for the dispatcher."""
        self.slotd.dispatcher.mailbox.post(_Bomb())  # type: ignore[arg-type] # that is the bug

    def _signal(self, name: str, number: signal.Signals) -> int:
        pid = self.snapshot(name).pid
        if pid is None:
            raise RuntimeError(f"slot {name!r} has no process now ({self.snapshot(name).state})")
        os.killpg(pid, number)
        return pid


@asynccontextmanager
async def run_harness(
    text: str, base_dir: Path, env: Mapping[str, str] | None = None
) -> AsyncIterator[Harness]:
    """A slotd from a configuration text, stopped gracefully at the end of the block.

    Its state directory is ``base_dir/state`` unless the text says otherwise,
    and its engines' ports are not those of other test processes. The text is
    written to ``base_dir/slotd.toml``, where a reload reads it; ``env`` is read
    again then, too.
    """
    path = base_dir / "slotd.toml"
    path.write_text(_completed(text, base_dir))
    file = ConfigFile(path, env={} if env is None else env)
    if not structlog.is_configured():
        # Its default renders tracebacks with locals, which holds the loop for 100 ms and more.
        configure("warning")
    slotd = Slotd(file.load(), file)
    async with trio.open_nursery() as nursery:
        await nursery.start(slotd.run)
        try:
            yield Harness(slotd, path)
        finally:
            slotd.stop()


def _completed(text: str, base_dir: Path) -> str:
    """The text with what every harness needs."""
    if "state_dir" not in text:
        text = text.replace("[server]\n", f"[server]\nstate_dir = {toml(str(base_dir / 'state'))}\n", 1)
    if "[process]" not in text:
        first = FIRST_PORT + os.getpid() % WINDOWS * WINDOW
        text += f"\n[process]\nport_first = {first}\nport_last = {first + WINDOW - 1}\n"
    return text


class _Drained:
    """Reads a child's output on, so that it never blocks on a full pipe; the newest lines are kept."""

    def __init__(self, process: subprocess.Popen[str], lines: deque[str]) -> None:
        self._process = process
        self._lines = lines
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        self._lines.extend(self._process.stdout)

    def end(self) -> None:
        """Kill the child if it lives, and close everything."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._thread.join(5)
        if self._process.stdout is not None:
            self._process.stdout.close()


OUTPUT_LINES = 10_000


class FakeServer:
    """A fake engine that slotd did not start: an upstream, or the server of an ``external`` slot.

    ``argv``: of another fake that prints where it listens. A context manager;
    blocks for its start, a fraction of a second.
    """

    def __init__(self, knobs: Knobs | None = None, *, argv: Sequence[str] | None = None) -> None:
        self._argv = argv or command(knobs, port="0")
        self._process: subprocess.Popen[str] | None = None
        self._drained: _Drained | None = None
        self.engine = FakeEngine("", 0)

    @property
    def url(self) -> str:
        """Its address without ``/v1``."""
        return f"http://{self.engine.host}:{self.engine.port}"

    def __enter__(self) -> FakeServer:
        self._process = subprocess.Popen(
            self._argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if "listening on http://" in line:
                host, _, port = line.split("http://")[1].strip().rpartition(":")
                self.engine = FakeEngine(host, int(port))
                self._drained = _Drained(self._process, deque(maxlen=OUTPUT_LINES))
                return self
        self._process.wait()
        self._process.stdout.close()
        raise RuntimeError("the fake engine ended before it listened")

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        if self._drained is not None:
            self._drained.end()

    def kill(self) -> None:
        """SIGKILL, now. Returns when it has ended."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()


# --- as a process ------------------------------------------------------------------------


class SlotdProcess:
    """``slotd serve`` as a child process; a context manager that leaves nothing behind."""

    def __init__(
        self, config: Path, *, env: Mapping[str, str] | None = None, args: Iterable[str] = ()
    ) -> None:
        self._argv = [sys.executable, "-m", "slotd", "serve", "-c", str(config), *args]
        self._env = {**os.environ, **(env or {})}
        self.url = ""
        self.output: deque[str] = deque(maxlen=OUTPUT_LINES)
        self._process: subprocess.Popen[str] | None = None
        self._drained: _Drained | None = None

    def __enter__(self) -> SlotdProcess:
        self._process = subprocess.Popen(
            self._argv, env=self._env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.output.append(line)
            if line.startswith("slotd listens on "):
                self.url = line.split()[-1]
                self._drained = _Drained(self._process, self.output)
                return self
        code = self._process.wait()
        self._process.stdout.close()
        raise RuntimeError(f"slotd ended with {code} before it listened:\n{''.join(self.output)}")

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        if self._drained is not None:
            self._drained.end()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def send(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def wait(self, timeout_s: float) -> int:
        """The exit code. Raises ``subprocess.TimeoutExpired``."""
        assert self._process is not None
        return self._process.wait(timeout_s)
