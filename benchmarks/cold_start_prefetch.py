"""How long a cold dispatcher takes to find the remote that lists a model.

    python benchmarks/cold_start_prefetch.py            # all cells, some minutes
    python benchmarks/cold_start_prefetch.py --quick    # a few cells, seconds

slotd's dispatcher, against the common policy "ask all, four at a time, wait
for all, eight seconds at most". Remotes are real sockets on loopback in a
process of their own, with scripted delays. See ``benchmarks/README.md``.
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import trio
from rich.console import Console

from cold_start import matrix, plot, report
from cold_start.measure import Settings, measure
from cold_start.remotes import start_remotes

RESULTS = Path(__file__).parent / "results"
QUICK_RESULTS = Path(__file__).parent.parent / ".cache" / "benchmarks"
NAME = "cold_start_prefetch"


async def measure_all(
    cells: Sequence[matrix.Cell], settings: Settings, console: Console
) -> list[report.CellSummary]:
    most = max(c.remotes for c in cells)
    gc.freeze()  # imports are not gone through at every collection
    async with trio.open_nursery() as nursery:
        remotes = await start_remotes(nursery, live=most, dead=most // 2)
        with console.status("starting") as status:

            def told(repeat: int, cell: matrix.Cell) -> None:
                status.update(f"round {repeat + 1} of {settings.repeats}: {cell}")

            await measure([matrix.WARM_UP], remotes, replace(settings, repeats=1), told)
            runs = await measure(cells, remotes, settings, told)
        await remotes.close()
    return [report.summarise(run) for run in runs]


def main() -> None:
    options = _options()
    settings = Settings(options.seed, options.repeats, options.baseline_timeout)
    console = Console(width=None if Console().is_terminal else 170)
    machine = report.machine()

    async def timed() -> tuple[list[report.CellSummary], float]:
        started = trio.current_time()
        summaries = await measure_all(options.cells, settings, console)
        return summaries, trio.current_time() - started

    summaries, took_s = trio.run(timed)
    report.show(console, summaries)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / f"{NAME}.json").write_bytes(report.as_json(summaries, settings, machine, took_s))
    if not plot.draw(summaries, options.out / f"{NAME}.png", settings.baseline_timeout_s):
        console.print("no plot: matplotlib is not installed (the extra is called bench)")
    console.print(f"{len(summaries)} cells in {took_s:.0f} s")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a few cells, fewer repeats, a shorter time-out")
    parser.add_argument("--seed", type=int, default=0, help="decides delays, places and faults (default 0)")
    parser.add_argument("--repeats", type=int, help="trials per cell (default 9; 3 with --quick)")
    parser.add_argument(
        "--baseline-timeout",
        type=float,
        metavar="SECONDS",
        help="the baseline's limit (default 8; 2 with --quick)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="where results go (default: results/; with --quick, .cache/benchmarks/)",
    )
    options = parser.parse_args()
    quick = options.quick
    options.cells = matrix.quick() if quick else matrix.full()
    options.repeats = options.repeats or (3 if quick else 9)
    options.baseline_timeout = options.baseline_timeout or (2.0 if quick else 8.0)
    options.out = options.out or (QUICK_RESULTS if quick else RESULTS)
    if options.repeats < 1 or options.baseline_timeout <= 0:
        parser.error("--repeats and --baseline-timeout must be positive")
    return options


if __name__ == "__main__":
    main()
