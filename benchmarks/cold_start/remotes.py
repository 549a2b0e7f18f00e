"""The client's end of the remotes' process: starts it, scripts it, reads its counts."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path

import msgspec
import trio

from cold_start.matrix import Plan
from cold_start.remote_server import Behaviour, Count, Counts, Hello, Script
from slotd.dispatch import UpstreamEntry

__all__ = ["WANTED", "Remotes", "start_remotes"]

WANTED = "wanted-model"
SERVER = Path(__file__).with_name("remote_server.py")
MAX_LINE_BYTES = 1 << 20
ANSWER_S = 20.0


class Remotes:
    """A pool of ports that take the parts of a trial's remotes. One order at a time."""

    def __init__(self, process: trio.Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._orders, self._answers = process.stdin, process.stdout
        self._buffer = bytearray()
        self._hello = Hello((), ())

    async def ready(self) -> None:
        """Wait until the ports are there. Raises ``TooSlowError``."""
        self._hello = msgspec.json.decode(await self._line(), type=Hello)

    async def script(self, trial: Plan) -> tuple[UpstreamEntry, ...]:
        """Have the ports play this trial. Returns its remotes, as slotd is configured with them."""
        live, dead = iter(self._hello.live), iter(self._hello.dead)
        behaviours: list[Behaviour] = []
        entries: list[UpstreamEntry] = []
        for i, remote in enumerate(trial.remotes):
            port = next(dead if remote.kind == "dead" else live)
            entries.append(UpstreamEntry(f"remote-{i:03}", f"http://127.0.0.1:{port}/v1"))
            if remote.kind != "dead":
                models = (WANTED,) if i == trial.wanted else (f"model-of-{i}",)
                delay = None if remote.kind == "blackholed" else remote.delay_s
                behaviours.append(Behaviour(delay, models))
        idle = len(self._hello.live) - len(behaviours)
        await self._order(Script((*behaviours, *(Behaviour(None, ()),) * idle)))
        return tuple(entries)

    async def counts(self, trial: Plan) -> list[int]:
        """Requests that each remote of the trial has got since it was scripted, but for the dead ones."""
        answer = await self._order(Count())
        reachable = sum(1 for r in trial.remotes if r.kind != "dead")
        return list(answer.calls[:reachable])

    async def close(self) -> None:
        """Let the process end."""
        await self._orders.aclose()

    async def _order(self, order: Script | Count) -> Counts:
        with trio.fail_after(ANSWER_S):
            await self._orders.send_all(msgspec.json.encode(order) + b"\n")
            return msgspec.json.decode(await self._line(), type=Counts)

    async def _line(self) -> bytes:
        with trio.fail_after(ANSWER_S):
            while (end := self._buffer.find(b"\n")) < 0:
                data = await self._answers.receive_some(65536)
                if not data or len(self._buffer) > MAX_LINE_BYTES:
                    raise RuntimeError("the process of the remotes has gone")
                self._buffer += data
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return line


async def start_remotes(nursery: trio.Nursery, live: int, dead: int) -> Remotes:
    """Start the process in ``nursery``; cancelling that kills it."""
    command = [sys.executable, str(SERVER), str(live), str(dead)]
    run = partial(trio.run_process, command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    process: trio.Process = await nursery.start(run)
    remotes = Remotes(process)
    await remotes.ready()
    return remotes
