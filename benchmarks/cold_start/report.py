"""What came out: a summary of each cell, the table, the headlines and the JSON. Pure but for printing."""

from __future__ import annotations

import math
import os
import platform
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

import httpx
import msgspec
import trio
from rich.console import Console
from rich.table import Table

from cold_start.matrix import LATENCIES, Fault
from cold_start.measure import CellRun, Settings, Trial
from cold_start.policies import BASELINE_PARALLEL
from slotd.version import VERSION

__all__ = [
    "CellSummary",
    "PolicySummary",
    "as_json",
    "by_fault",
    "headlines",
    "machine",
    "show",
    "summarise",
    "table",
]


class PolicySummary(msgspec.Struct, frozen=True):
    """One policy in one cell. Times in milliseconds over all requests of all trials.

    ``calls_per_remote``: mean over trials and reachable remotes, and the most
    that any of them got in one trial. ``missed``: share of the requests that
    found no route, though a live remote lists the model.
    """

    trials: int
    median_ms: float
    p95_ms: float
    calls_per_remote: float
    most_calls: int
    missed: float


class CellSummary(msgspec.Struct, frozen=True):
    """``ratio``: the baseline's median over slotd's. ``alone_ms``: median of one fetch from the wanted
    remote by itself. ``over_alone``: median over slotd's trials of its median time as a multiple
    of that trial's ``alone``. ``over_alone_net``: the same, less the wait that the rule of declared
    order allows."""

    remotes: int
    latency: str
    fault: str
    requests: int
    slotd: PolicySummary
    baseline: PolicySummary
    ratio: float
    alone_ms: float
    over_alone: float
    over_alone_net: float


def summarise(run: CellRun) -> CellSummary:
    cell = run.cell
    ours, theirs = run.trials["slotd"], run.trials["wait for all"]
    slotd, baseline = _policy(ours, cell.requests), _policy(theirs, cell.requests)
    medians = [(statistics.median(t.times), t) for t in ours]
    return CellSummary(
        cell.remotes,
        cell.latency,
        cell.fault,
        cell.requests,
        slotd,
        baseline,
        ratio=_round(baseline.median_ms / slotd.median_ms),
        alone_ms=_round(1000 * statistics.median(t.alone_s for t in ours)),
        over_alone=_round(statistics.median(m / t.alone_s for m, t in medians)),
        over_alone_net=_round(statistics.median((m - t.owed_s) / t.alone_s for m, t in medians)),
    )


def _policy(trials: Sequence[Trial], requests: int) -> PolicySummary:
    times = sorted(t for trial in trials for t in trial.times)
    calls = [c for trial in trials for c in trial.calls]
    return PolicySummary(
        trials=len(trials),
        median_ms=_round(1000 * statistics.median(times)),
        p95_ms=_round(1000 * times[math.ceil(0.95 * len(times)) - 1]),
        calls_per_remote=_round(statistics.mean(calls)),
        most_calls=max(calls),
        missed=_round(sum(t.missed for t in trials) / (len(trials) * requests)),
    )


def _round(value: float) -> float:
    return float(f"{value:.4g}")


def table(cells: Iterable[CellSummary]) -> Table:
    shown = Table(
        title="Cold start: time from a request's arrival to its route",
        caption="calls: requests that each reachable remote got, per trial. "
        "/alone: slotd's time over one fetch from the wanted remote by itself, as measured and "
        "less the wait for declared order. missed: found no route.",
    )
    for name in ("remotes", "latency", "fault", "requests"):
        shown.add_column(name, justify="right" if name in ("remotes", "requests") else "left")
    for name in ("slotd\nmedian", "\np95", "wait for all\nmedian", "\np95", "ratio"):
        shown.add_column(name, justify="right")
    for name in ("calls\nslotd", "\nwait for all", "slotd\n/alone", "wait for all\nmissed"):
        shown.add_column(name, justify="right")
    before: tuple[str, int] | None = None
    for c in cells:
        if before is not None and before != (c.latency, c.requests):
            shown.add_section()
        before = (c.latency, c.requests)
        shown.add_row(
            str(c.remotes),
            c.latency,
            c.fault,
            str(c.requests),
            _ms(c.slotd.median_ms),
            _ms(c.slotd.p95_ms),
            _ms(c.baseline.median_ms),
            _ms(c.baseline.p95_ms),
            f"{c.ratio:,.1f}",
            f"{c.slotd.calls_per_remote:.2g}",
            f"{c.baseline.calls_per_remote:.3g}",
            f"{c.over_alone:.2f} ({c.over_alone_net:.2f})",
            f"{c.baseline.missed:.0%}" if c.baseline.missed else "",
        )
    return shown


def _ms(value: float) -> str:
    return f"{value:,.0f} ms" if value >= 100 else f"{value:.1f} ms"


def headlines(cells: Sequence[CellSummary]) -> list[str]:
    """What the design claims of a cold start, with what was measured."""
    lines = []
    for c in cells:
        if (c.remotes, c.fault, c.requests) == (8, "1 blackholed", 1):
            lines.append(
                f"one blackholed remote among eight, {c.latency} latency: {_ms(c.slotd.median_ms)} "
                f"against {_ms(c.baseline.median_ms)} ({c.ratio:.0f} times); "
                f"{c.over_alone:.2f} times the live remote's own round trip, "
                f"{c.over_alone_net:.2f} less the wait for declared order"
            )
        if c.requests > 1 and c.remotes > 1 and c.fault == "none":
            lines.append(
                f"{c.requests} identical cold requests, {c.remotes} remotes: at most {c.slotd.most_calls} "
                f"call per remote (mean {c.slotd.calls_per_remote:.2g}) against {c.baseline.most_calls} "
                f"(mean {c.baseline.calls_per_remote:.3g}); median {_ms(c.slotd.median_ms)} "
                f"against {_ms(c.baseline.median_ms)} ({c.ratio:.0f} times)"
            )
    hard = [c for c in cells if c.fault == "half blackholed"]
    if hard:
        share = statistics.mean(c.baseline.missed for c in hard)
        ours = statistics.mean(c.slotd.missed for c in hard)
        lines.append(
            f"half of the remotes blackholed: no route found for {share:.0%} of the baseline's requests "
            f"and {ours:.0%} of slotd's (mean of {len(hard)} cells)"
        )
    return lines


def machine() -> dict[str, Any]:
    """What it ran on, without saying whose it is."""
    return {
        "cores": len(os.sched_getaffinity(0)),
        "load_at_start": _round(os.getloadavg()[0]),
        "system": platform.system(),
        "arch": platform.machine(),
        "python": platform.python_version(),
        "slotd": VERSION,
        "trio": trio.__version__,
        "httpx": httpx.__version__,
    }


def as_json(
    cells: Sequence[CellSummary], settings: Settings, machine: dict[str, Any], took_s: float
) -> bytes:
    limits = settings.limits
    doc = {
        "benchmark": "cold_start_prefetch",
        "machine": machine,
        "took_s": _round(took_s),
        "seed": settings.seed,
        "repeats": settings.repeats,
        "latencies": dict(LATENCIES),
        "slotd": {k: v for k, v in asdict(limits).items() if k in _TELLING},
        "baseline": {"parallel": BASELINE_PARALLEL, "timeout_s": settings.baseline_timeout_s},
        "headlines": headlines(cells),
        "cells": cells,
    }
    return msgspec.json.format(msgspec.json.encode(doc), indent=1) + b"\n"


_TELLING = ("prefetch_timeout_s", "prefetch_parallel", "prefetch_grace_s", "slow_flight_s", "fetch_timeout_s")


def show(console: Console, cells: Sequence[CellSummary]) -> None:
    console.print(table(cells))
    for line in headlines(cells):
        console.print(f"• {line}", highlight=False)


def by_fault(cells: Iterable[CellSummary], fault: Fault, latency: str, requests: int) -> list[CellSummary]:
    """The cells of one line of the plot, smallest first."""
    found = [c for c in cells if (c.fault, c.latency, c.requests) == (fault, latency, requests)]
    return sorted(found, key=lambda c: c.remotes)
