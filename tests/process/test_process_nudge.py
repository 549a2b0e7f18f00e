"""Asking twice: engines that take their second SIGTERM seriously."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import trio
import trio.testing
from process_tools import Running, plan, run_engine

from slotd.config import parse_config
from slotd.engine import command, llama_cpp
from slotd.process import handle
from slotd.process.local import LocalLauncher
from slotd.process.plan import ExitStatus, LaunchPlan

STUBBORN = """
seen = []
def term(*_):
    seen.append(1)
    say('asked', len(seen))
    if len(seen) >= int(sys.argv[1]):
        os._exit(7)
signal.signal(signal.SIGTERM, term)
say('up')
wait()
"""


def stubborn(obeys_at: int, nudge_after_s: float | None) -> LaunchPlan:
    """An engine that leaves at its SIGTERM number ``obeys_at``."""
    return dataclasses.replace(plan(STUBBORN, str(obeys_at)), nudge_after_s=nudge_after_s)


async def test_who_ignores_the_first_request_is_asked_again(launcher: LocalLauncher) -> None:
    async with trio.open_nursery() as nursery:
        with trio.fail_after(10):
            running: Running = await nursery.start(run_engine, launcher, stubborn(2, 0.05))
            assert await running.line() == "up"
            report = await running.stop(60)
    assert report.exit == ExitStatus(code=7)
    assert not report.killed
    assert running.handle.logs.tail(9) == ("up", "asked 1", "asked 2")


async def test_it_is_asked_a_few_times_at_most_then_killed(launcher: LocalLauncher) -> None:
    async with trio.open_nursery() as nursery:
        with trio.fail_after(10):
            running: Running = await nursery.start(run_engine, launcher, stubborn(99, 0.02))
            assert await running.line() == "up"
            report = await running.stop(0.5)
    assert report.killed
    assert running.handle.logs.tail(99)[1:] == tuple(f"asked {n + 1}" for n in range(1 + handle.NUDGES))


async def test_no_more_requests_once_the_grace_is_over(launcher: LocalLauncher) -> None:
    async with trio.open_nursery() as nursery:
        with trio.fail_after(10):
            running: Running = await nursery.start(run_engine, launcher, stubborn(99, 5.0))
            assert await running.line() == "up"
            report = await running.stop(0.05)
    assert report.killed
    assert running.handle.logs.tail(9) == ("up", "asked 1")


async def test_others_are_asked_once(launcher: LocalLauncher) -> None:
    async with trio.open_nursery() as nursery:
        with trio.fail_after(10):
            running: Running = await nursery.start(run_engine, launcher, stubborn(2, None))
            assert await running.line() == "up"
            report = await running.stop(0.3)
    assert report.killed
    assert running.handle.logs.tail(9) == ("up", "asked 1")


async def test_nobody_is_asked_before_a_stop_is_wanted(launcher: LocalLauncher) -> None:
    async with trio.open_nursery() as nursery:
        with trio.fail_after(10):
            running: Running = await nursery.start(run_engine, launcher, stubborn(1, 0.0))
            assert await running.line() == "up"
            await trio.testing.wait_all_tasks_blocked()
            assert running.exit is None
            report = await running.stop(60)
    assert report.exit == ExitStatus(code=7)
    assert running.handle.logs.tail(9)[:2] == ("up", "asked 1")


@pytest.mark.parametrize(
    ("engine", "nudged"),
    [
        ("engine = 'llama-cpp'\nmodel = 'm'", True),
        ("engine = 'command'\ncommand = ['/opt/llama/llama-server', '--port', '{port}']", True),
        ("engine = 'command'\ncommand = ['python', '-m', 'server', '{port}']", False),
    ],
)
def test_which_engines_are_asked_twice(engine: str, nudged: bool) -> None:
    text = f"[models.m]\nsource = 'file:/models/m.gguf'\n[slots.s]\ntype = 'llm'\n{engine}\n"
    slot = parse_config(text, "test", Path("/conf"), env={}).config.slots["s"]
    if slot.engine == "llama-cpp":
        made = llama_cpp.launch_plan(slot, "m", Path("/models/m.gguf"), Path)
    else:
        made = command.launch_plan(slot, "", None)
    assert made.nudge_after_s == (llama_cpp.NUDGE_AFTER_S if nudged else None)
    assert made.digest() == dataclasses.replace(made, nudge_after_s=9.0).digest()
