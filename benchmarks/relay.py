"""What a request costs on its way through: the engine alone, slotd, the reference proxy, and peers.

    python benchmarks/relay.py                 # all, about half an hour
    python benchmarks/relay.py --quick         # a minute or two; says little
    python benchmarks/relay.py --stub-port 18900 --peer llama-swap=http://127.0.0.1:18901 \\
        --peer-pid llama-swap=4711 --peer-version llama-swap=v250

A peer is a proxy that runs already, in front of the stub engine at ``--stub-port``, on
the same core as slotd (``taskset -c 0``). See ``benchmarks/README.md``.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from relaying import plot, report, scenarios
from relaying.measure import Cells, measure, warm_up
from relaying.targets import COMPILED, MODEL, Peer, start
from rig.processes import Cores, lift_file_limit, pss_mib
from rig.report import QUICK_RESULTS, RESULTS, describe, machine, save, show_bars

NAME = "relay"
SETTING = (
    "slotd as it comes: log level info (its output in a file), decision records, journal and events on; "
    "one external slot, max_parallel 2048"
)


def main() -> None:
    options = _options()
    console = Console(width=None if Console().is_terminal else 150)
    asked = scenarios.quick(options.seconds) if options.quick else scenarios.full(options.seconds)
    asked = [s for s in asked if not options.only or any(o in s.name for o in options.only)]
    found, cores, began = machine(), Cores.found(), time.monotonic()
    lift_file_limit()
    measured: Cells = {}
    fresh: dict[str, float] = {}
    with console.status("starting") as status:
        for turn in range(options.rounds):
            # All that this starts begins anew in each round: none suffers from what it was asked before.
            with (
                tempfile.TemporaryDirectory() as folder,
                start(
                    Path(folder),
                    cores,
                    stub_port=options.stub_port,
                    worker=options.worker,
                    compiled=options.compiled,
                    peers=options.peers,
                    without=frozenset(options.without),
                ) as targets,
            ):
                fresh |= {t.name: round(pss_mib(t.pids), 1) for t in targets if t.pids}
                warm_up(targets, cores)
                measure(measured, asked, targets, cores, turn, status.update)
    cells = [*measured.values()]
    took = time.monotonic() - began
    summaries = [report.summarise(c) for c in cells]
    bars = report.bars(summaries)
    if any(target.name == COMPILED for target in targets):
        bars += report.bars(summaries, COMPILED)
    report.show(console, summaries, targets)
    show_bars(console, bars)
    pinned = f"proxies on core {cores.measured}, engine and load generator on core {cores.others}"
    console.print(
        describe(found), pinned, SETTING, f"reference: hypercorn's {options.worker} worker", sep="\n"
    )
    document: dict[str, Any] = {
        "machine": found,
        "took_s": round(took),
        "rounds": options.rounds,
        "setting": SETTING,
        "pinned": pinned,
        "reference_worker": options.worker,
        "targets": [
            {
                "name": t.name,
                "cores": t.cores,
                "pss_at_start_mib": fresh.get(t.name),
                "version": next((p.version for p in options.peers if p.name == t.name), ""),
            }
            for t in targets
        ],
        **report.as_json(cells, summaries),
    }
    written = save(options.out, NAME, document, bars)
    title = f"slotd as a relay: medians of {options.rounds} interleaved rounds, each proxy on one core"
    if not plot.draw(summaries, options.out / f"{NAME}.png", title):
        console.print("no plot: matplotlib is not installed (the extra is called bench)")
    console.print(f"{len(cells)} cells in {took:.0f} s: {written}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="few scenarios, short, one round")
    parser.add_argument("--rounds", type=int, help="rounds over everything (default 5; 1 with --quick)")
    parser.add_argument("--seconds", type=float, help="of one measurement (default 3; 1 with --quick)")
    parser.add_argument(
        "--only", action="append", default=[], metavar="TEXT", help='scenarios with TEXT: "small JSON, 16"'
    )
    parser.add_argument("--without", action="append", default=[], metavar="NAME", help="leave a target out")
    parser.add_argument("--stub-port", type=int, default=0, help="where the stub engine listens")
    parser.add_argument("--worker", choices=("asyncio", "trio"), default="asyncio", help="of the reference")
    parser.add_argument(
        "--compiled", default="", metavar="PYTHON", help="ask a compiled slotd too: the Python that has it"
    )
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=URL")
    for what, meta in (("pid", "PID"), ("model", "MODEL"), ("key", "KEY"), ("version", "TEXT")):
        parser.add_argument(f"--peer-{what}", action="append", default=[], metavar=f"NAME={meta}")
    parser.add_argument(
        "--peer-small-only", action="append", default=[], metavar="NAME", help="ask it small JSON only"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="where results go")
    options = parser.parse_args()
    options.rounds = options.rounds or (1 if options.quick else 5)
    options.seconds = options.seconds or (1.0 if options.quick else 3.0)
    options.out = options.out or (QUICK_RESULTS if options.quick else RESULTS)
    if options.rounds < 1 or options.seconds <= 0:
        parser.error("--rounds and --seconds must be positive")
    if options.compiled and not _is_compiled(options.compiled):
        parser.error(f"the slotd of {options.compiled} is not compiled; see scripts/test-compiled")
    try:
        options.peers = _peers(options)
    except ValueError as error:
        parser.error(str(error))
    return options


def _is_compiled(python: str) -> bool:
    told = subprocess.run([python, "-m", "slotd", "--version"], capture_output=True, text=True, check=False)
    return told.stdout.strip().endswith("compiled")


def _peers(options: argparse.Namespace) -> list[Peer]:
    peers = {name: Peer(name, url) for name, url in map(_pair, options.peer)}
    given: list[tuple[str, dict[str, Any]]] = [
        *((name, {"pid": int(value)}) for name, value in map(_pair, options.peer_pid)),
        *((name, {"model": value or MODEL}) for name, value in map(_pair, options.peer_model)),
        *((name, {"key": value}) for name, value in map(_pair, options.peer_key)),
        *((name, {"version": value}) for name, value in map(_pair, options.peer_version)),
        *((name, {"small_only": True}) for name in options.peer_small_only),
    ]
    for name, what in given:
        if name not in peers:
            raise ValueError(f"{name} is no --peer")
        peers[name] = replace(peers[name], **what)
    return [*peers.values()]


def _pair(text: str) -> tuple[str, str]:
    name, found, value = text.partition("=")
    if not found or not name:
        raise ValueError(f"write NAME=VALUE, not {text!r}")
    return name, value


if __name__ == "__main__":
    main()
