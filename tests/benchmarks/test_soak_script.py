"""The soak's command line and its report; the run itself is tested in ``tests/chaos``."""

from __future__ import annotations

import importlib.util
import io
import json
import subprocess
import sys
from collections import Counter
from functools import partial
from pathlib import Path
from types import ModuleType

import trio
from rich.console import Console

from slotd.testing.chaos.oracle import Recovery, Struck, Violation
from slotd.testing.chaos.soak import Memory, Result, Settings

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"

RESULT = Result(
    settings=Settings(seed=7),
    took_s=12.3,
    violations=[Violation("a promise was broken", 3, 0.0)],
    faults=Counter({"kill engine": 2}),
    missed=Counter({"hog": 1}),
    outcomes=Counter({"ok": 10, "503 slot.stopped": 1}),
    latencies=[0.1, 0.2, 0.3],
    recoveries=[
        Recovery("kill engine", "chat", 0.01, 0.5, 0.4),
        Recovery("kill engine", "chat", 0.03, 0.9, 0.4),
    ],
    struck=Struck(Counter({"ok": 5}), Counter({"502 slot.load_failed": 1})),
    restarts_s=[0.9],
    swept_s=[0.05],
    memory=[Memory(1, n * 1000, 70_000 + n * 100, 13) for n in range(6)],
)


def report() -> ModuleType:
    spec = importlib.util.spec_from_file_location("soak_report", BENCHMARKS / "soak_report.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


async def run(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, str(BENCHMARKS / "soak.py"), *arguments]
    with trio.fail_after(60):
        call = partial(trio.run_process, command, capture_stdout=True, capture_stderr=True, check=False)
        done: subprocess.CompletedProcess[bytes] = await call()
        return done


async def test_a_plan_can_be_seen_before_it_is_carried_out() -> None:
    first, again, other = [
        await run("--plan", "--faults", "40", "--minutes", "1", "--seed", seed) for seed in ("3", "3", "4")
    ]
    assert first.returncode == 0, first.stderr.decode()
    assert first.stdout == again.stdout != other.stdout
    assert len(first.stdout.splitlines()) >= 40


async def test_the_real_engine_needs_a_model() -> None:
    done = await run("--engine", "llama-cpp", "--plan")
    assert done.returncode == 2
    assert b"--model" in done.stderr


def test_the_table_and_the_document_tell_the_same() -> None:
    module = report()
    console = Console(width=140, record=True, file=io.StringIO())
    module.show(console, RESULT)
    shown = console.export_text()
    for words in ("kill engine", "503 slot.stopped", "VIOLATION after fault 3: a promise", "0.10"):
        assert words in shown
    document = json.loads(module.as_json(RESULT, ["--seed", "7"]))
    assert document["recoveries"]["kill engine"]["seen"] == {
        "median_ms": 30.0,
        "p95_ms": 30.0,
        "max_ms": 30.0,
    }
    assert document["violations"] == [{"fault": 3, "what": "a promise was broken"}]
    assert document["struck"]["plain"] == {"ok": 5}


def test_memory_counts_over_the_longest_life_without_its_first_quiet_moment() -> None:
    growth = RESULT.growth_mb_per_1000
    assert growth is not None
    assert abs(growth - 100 / 1024) < 1e-9
    assert Result(settings=Settings(), memory=RESULT.memory[:3]).growth_mb_per_1000 is None
