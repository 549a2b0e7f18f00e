"""What many slots, bindings and remotes cost: start, memory, routing, and the list of slots.

    python benchmarks/scale.py            # about two minutes
    python benchmarks/scale.py --quick    # fewer cells, one round

Nothing is loaded: these are configurations. See ``benchmarks/README.md``.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import trio
from rich.console import Console
from rich.table import Table

from rig import scale_plot
from rig.ask import Where, free_port
from rig.processes import Cores, Running, pss_mib, rss_mib
from rig.report import QUICK_RESULTS, RESULTS, Bar, describe, machine, quantile, save, show_bars
from slotd.errors import NoRouteFound
from slotd.testing.harness import run_harness

NAME = "scale"
CHAT = "/v1/chat/completions"
CATALOG = 50
"""Models that each remote lists."""
WARM = 50
"""Questions that are not counted."""


@dataclass(frozen=True, slots=True)
class Cell:
    """A configuration. Half of the bindings name a model, half are patterns."""

    slots: int
    bindings: int = 0
    remotes: int = 0

    def __str__(self) -> str:
        parts = [f"{self.slots:,} slots"]
        parts += [f"{self.bindings:,} bindings"] if self.bindings else []
        parts += [f"{self.remotes:,} remotes"] if self.remotes else []
        return ", ".join(parts)

    def text(self, port: int, state: Path, engine: str) -> str:
        lines = ["[server]", f"port = {port}", f"state_dir = {json.dumps(str(state))}"]
        lines += ["[process]", "port_first = 21000", "port_last = 22999"]
        for i in range(self.slots):
            lines += [f"[slots.s{i:04}]", 'type = "llm"', 'engine = "command"', f'aliases = ["alias-{i}"]']
            lines += ['command = ["engine", "--port", "{port}"]', f"priority = {i % 100}"]
        for i in range(self.remotes):
            lines += [f"[upstreams.r{i:03}]", f'url = "{engine}/r{i:03}/v1"']
        for i in range(self.bindings):
            name = f"named-{i:05}" if i % 2 else f"family-{i:05}*"
            lines += ["[[bindings]]", f'match = "{name}"', f'slot = "s{i % self.slots:04}"']
        return "\n".join(lines) + "\n"

    def names(self, count: int, seed: int) -> list[str]:
        """Models to ask for, each of them somewhere in the configuration."""
        chance = random.Random(seed)
        found = []
        for _ in range(count):
            kind = chance.choice(
                ["slot", "alias", *["binding"] * bool(self.bindings), *["remote"] * bool(self.remotes)]
            )
            i = chance.randrange({"binding": self.bindings, "remote": self.remotes}.get(kind, self.slots))
            binding = f"named-{i:05}" if i % 2 else f"family-{i:05}-7b"
            remote = f"r{i:03}-{chance.randrange(CATALOG)}"
            found.append(
                {"slot": f"s{i:04}", "alias": f"alias-{i}", "binding": binding, "remote": remote}[kind]
            )
        return found


@dataclass(frozen=True, slots=True)
class Found:
    """One round of a cell. Times in milliseconds, memory in MiB."""

    start_ms: float
    rss_mib: float
    pss_mib: float
    list_p50_ms: float
    list_p99_ms: float
    explain_p50_ms: float
    """``/api/explain``: the routing of a name, asked over HTTP."""
    explain_p99_ms: float
    resolve_p50_ms: float
    """The routing of a request, asked of the dispatcher inside slotd."""
    resolve_p99_ms: float
    miss_p99_ms: float
    """The same for names that nobody has."""
    cold_ms: float | None
    """A request for a model of the last remote, when none has been asked yet."""


FULL = [Cell(10), Cell(100), Cell(1000), Cell(1000, 10_000), Cell(10, 0, 200)]
QUICK = [Cell(10), Cell(1000, 10_000), Cell(10, 0, 200)]
LARGEST = Cell(1000, 10_000)
"""The bars are of this one: the hardest of those with 1,000 slots."""


def measure(cell: Cell, folder: Path, cores: Cores, engine: str, asks: int, seed: int) -> Found:
    folder.mkdir()
    where = Where("127.0.0.1", free_port())
    config = folder / "slotd.toml"
    config.write_text(cell.text(where.port, folder / "state", engine))
    argv = [sys.executable, "-m", "slotd", "serve", "-c", str(config)]
    cold: float | None = None
    with Running(argv, folder / "slotd.log", core=cores.measured) as slotd:
        start = where.until_answers() - slotd.began
        if cell.remotes:
            began = time.monotonic()
            where.first_token(f"r{cell.remotes - 1:03}-7")
            cold = (time.monotonic() - began) * 1000
        where.times("/api/slots", 5)
        listed = where.times("/api/slots", max(20, asks // 20))
        explained: list[float] = []
        for name in cell.names(max(20, asks // 20), seed):
            explained += where.times(f"/api/explain?model={name}&path={CHAT}", 1)
        rss, pss = rss_mib(slotd.pid), pss_mib([slotd.pid])
    # In a process of its own, and on its core: this one is busy with other things.
    inner = [sys.executable, __file__, "--inner", json.dumps([asdict(cell), engine, asks, seed])]
    argv = inner if cores.measured is None else ["taskset", "-c", str(cores.measured), *inner]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    resolved, missed = json.loads(done.stdout)
    return Found(
        start_ms=start * 1000,
        rss_mib=rss,
        pss_mib=pss,
        list_p50_ms=quantile(listed, 0.5) * 1000,
        list_p99_ms=quantile(listed, 0.99) * 1000,
        explain_p50_ms=quantile(explained, 0.5) * 1000,
        explain_p99_ms=quantile(explained, 0.99) * 1000,
        resolve_p50_ms=quantile(resolved, 0.5) * 1000,
        resolve_p99_ms=quantile(resolved, 0.99) * 1000,
        miss_p99_ms=quantile(missed, 0.99) * 1000,
        cold_ms=cold,
    )


async def resolve(cell: Cell, engine: str, asks: int, seed: int) -> tuple[list[float], list[float]]:
    """How long routing takes inside slotd, in seconds: names that are there, and names that are not."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        async with run_harness(cell.text(0, path / "state", engine), path) as harness:
            dispatcher = harness.slotd.dispatcher
            if cell.remotes:
                for i in range(cell.remotes):  # every catalog is warm, then
                    await dispatcher.resolve(f"r{i:03}-0", CHAT)
            names = cell.names(asks + WARM, seed)
            hits: list[float] = []
            misses: list[float] = []
            for i, name in enumerate(names):
                began = time.perf_counter()
                await dispatcher.resolve(name, CHAT)
                took = time.perf_counter() - began
                began = time.perf_counter()
                with suppress(NoRouteFound):
                    await dispatcher.resolve(f"nobody-has-{i % 16}", CHAT)
                if i >= WARM:
                    hits.append(took)
                    misses.append(time.perf_counter() - began)
                await trio.lowlevel.checkpoint()  # whatever else slotd has to do
    return hits, misses


def middle(rounds: Sequence[Found], name: str) -> float | None:
    values = [getattr(r, name) for r in rounds if getattr(r, name) is not None]
    return statistics.median(values) if values else None


COLUMNS = {
    "start_ms": ("start ms", 0),
    "rss_mib": ("RSS MiB", 0),
    "pss_mib": ("PSS MiB", 0),
    "resolve_p50_ms": ("resolve p50 ms", 3),
    "resolve_p99_ms": ("p99 ms", 3),
    "miss_p99_ms": ("miss p99 ms", 3),
    "explain_p99_ms": ("/api/explain p99 ms", 1),
    "list_p50_ms": ("/api/slots p50 ms", 1),
    "list_p99_ms": ("p99 ms", 1),
    "cold_ms": ("cold remote ms", 0),
}


def show(console: Console, found: dict[Cell, list[Found]]) -> None:
    table = Table("", title=NAME)
    for title, _ in COLUMNS.values():
        table.add_column(title, justify="right")
    for cell, rounds in found.items():
        values = [(middle(rounds, name), digits) for name, (_, digits) in COLUMNS.items()]
        table.add_row(str(cell), *("" if v is None else f"{v:,.{d}f}" for v, d in values))
    console.print(table)


def bars(found: dict[Cell, list[Found]]) -> list[Bar]:
    rounds = found.get(LARGEST, [])

    def of(name: str) -> float | None:
        return middle(rounds, name)

    return [
        Bar(f"RSS, {LARGEST}", of("rss_mib"), 120, "at most", "MiB"),
        Bar(f"resolve p99, {LARGEST}", of("resolve_p99_ms"), 1, "at most", "ms"),
        Bar(f"/api/slots p99, {LARGEST}", of("list_p99_ms"), 50, "at most", "ms"),
        Bar("start, 10 slots", middle(found.get(Cell(10), []), "start_ms"), 800, "at most", "ms"),
    ]


def main() -> None:
    options = _options()
    if options.inner:
        cell, engine, asks, seed = json.loads(options.inner)
        print(json.dumps(trio.run(resolve, Cell(**cell), engine, asks, seed)))
        return
    console = Console(width=None if Console().is_terminal else 170)
    cells = QUICK if options.quick else FULL
    machine_found, cores, began = machine(), Cores.found(), time.monotonic()
    found: dict[Cell, list[Found]] = {cell: [] for cell in cells}
    stub = [sys.executable, str(Path(__file__).parent / "rig/engine_stub.py"), "--catalog", str(CATALOG)]
    with (
        tempfile.TemporaryDirectory() as folder,
        Running(stub, Path(folder) / "stub.log", core=cores.others) as remote,
        console.status("starting") as status,
    ):
        engine = remote.word("listening on ")
        for turn in range(options.rounds):
            for i, cell in enumerate(cells):
                status.update(f"round {turn + 1} of {options.rounds}: {cell}")
                place = Path(folder) / f"{turn}-{i}"
                found[cell].append(measure(cell, place, cores, engine, options.asks, turn))
    took = time.monotonic() - began
    told = bars(found)
    show(console, found)
    show_bars(console, told)
    console.print(describe(machine_found), f"slotd on core {cores.measured}", sep="\n")
    document: dict[str, Any] = {
        "machine": machine_found,
        "took_s": round(took),
        "rounds": options.rounds,
        "asks": options.asks,
        "catalog": CATALOG,
        "cells": [
            {
                **asdict(cell),
                "medians": {name: middle(rounds, name) for name in COLUMNS},
                "rounds": [asdict(r) for r in rounds],
            }
            for cell, rounds in found.items()
        ],
    }
    written = save(options.out, NAME, document, told)
    lines = {str(cell): {n: middle(rounds, n) or 0.0 for n in COLUMNS} for cell, rounds in found.items()}
    if not scale_plot.draw(lines, options.out / f"{NAME}.png"):
        console.print("no plot: matplotlib is not installed (the extra is called bench)")
    console.print(f"{len(cells)} cells in {took:.0f} s: {written}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer cells, one round, fewer questions")
    parser.add_argument("--rounds", type=int, help="default 5; 1 with --quick")
    parser.add_argument(
        "--asks", type=int, help="resolves per cell and round (default 10,000; 1,000 if quick)"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="where results go")
    parser.add_argument("--inner", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.rounds = options.rounds or (1 if options.quick else 5)
    options.asks = options.asks or (1_000 if options.quick else 10_000)
    options.out = options.out or (QUICK_RESULTS if options.quick else RESULTS)
    if options.rounds < 1 or options.asks < 1:
        parser.error("--rounds and --asks must be positive")
    return options


if __name__ == "__main__":
    main()
