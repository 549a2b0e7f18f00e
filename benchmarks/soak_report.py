"""What a soak came to: as tables, and as JSON. Part of ``soak.py``."""

from __future__ import annotations

import json
import os
import platform
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from slotd.testing.chaos.oracle import Recovery
from slotd.testing.chaos.soak import Result

__all__ = ["as_json", "show"]


def quantile(values: Sequence[float], part: float) -> float:
    """The smallest value that so large a part of ``values`` does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, 95th percentile and maximum, in milliseconds."""
    if not values:
        return {}
    return {
        "median_ms": round(quantile(values, 0.5) * 1000, 1),
        "p95_ms": round(quantile(values, 0.95) * 1000, 1),
        "max_ms": round(max(values) * 1000, 1),
    }


def _cells(values: Sequence[float]) -> tuple[str, str, str]:
    found = spread(values)
    if not found:
        return ("-", "-", "-")
    return (f"{found['median_ms']:.0f}", f"{found['p95_ms']:.0f}", f"{found['max_ms']:.0f}")


def _by_kind(recoveries: Iterable[Recovery]) -> dict[str, list[Recovery]]:
    found: dict[str, list[Recovery]] = {}
    for recovery in recoveries:
        found.setdefault(recovery.kind, []).append(recovery)
    return dict(sorted(found.items()))


def show(console: Console, result: Result) -> None:
    """The tables of a run, and its violations."""
    console.print(_faults(result), _outcomes(result), _recoveries(result), _whole(result))
    for violation in result.violations:
        console.print(f"VIOLATION after fault {violation.fault}: {violation.what}", markup=False, style="red")


def _faults(result: Result) -> Table:
    table = Table(title="faults")
    table.add_column("kind")
    table.add_column("carried out", justify="right")
    table.add_column("nothing to act on", justify="right")
    for kind in sorted(result.faults | result.missed):
        table.add_row(kind, str(result.faults[kind]), str(result.missed[kind] or ""))
    table.add_row("all", str(result.faults.total()), str(result.missed.total()), style="bold")
    return table


def _outcomes(result: Result) -> Table:
    table = Table(title="requests")
    table.add_column("outcome")
    table.add_column("number", justify="right")
    for outcome, number in result.outcomes.most_common():
        table.add_row(outcome, str(number))
    table.add_row("all", str(result.outcomes.total()), style="bold")
    return table


def _recoveries(result: Result) -> Table:
    table = Table(title="recoveries with requests under way (ms: median, p95, max)")
    table.add_column("fault")
    table.add_column("number", justify="right")
    for name in ("seen", "ready again", "of that not the engine's load"):
        table.add_column(name, justify="right")
    for kind, found in _by_kind(result.recoveries).items():
        columns = ([r.seen_s for r in found], [r.up_s for r in found], [r.overhead_s for r in found])
        table.add_row(kind, str(len(found)), *(" ".join(_cells(values)) for values in columns))
    return table


def _listed(outcomes: Counter[str]) -> str:
    return ", ".join(f"{number} {what}" for what, number in outcomes.most_common()) or "-"


def _whole(result: Result) -> Table:
    table = Table(title="the whole", show_header=False)
    struck = result.struck
    growth = result.growth_mb_per_1000
    rss = [m.rss_kb / 1024 for m in result.memory]
    rows = [
        ("seed", str(result.settings.seed)),
        ("took", f"{result.took_s:.0f} s"),
        ("non-streaming requests whose engine was killed", f"{struck.plain.total()}"),
        ("  what came of them", _listed(struck.plain)),
        ("  others, to whose slot more was done meanwhile", _listed(struck.disturbed)),
        ("request, ms: median, p95, max", " ".join(_cells(result.latencies))),
        ("slotd dead and restarted", f"{len(result.restarts_s)}"),
        ("  everything gone, ms: median, p95, max", " ".join(_cells(result.swept_s))),
        ("  start, ms: median, p95, max", " ".join(_cells(result.restarts_s))),
        ("memory of slotd at rest, MiB", f"{rss[0]:.1f} to {max(rss):.1f}" if rss else "-"),
        ("  growth of the longest-lived, MiB per 1,000 requests", "-" if growth is None else f"{growth:.2f}"),
        ("looks at the process table", str(result.looks)),
        ("events", str(result.events)),
        ("violations", str(len(result.violations))),
    ]
    for row in rows:
        table.add_row(*row)
    return table


def as_json(result: Result, command: Sequence[str]) -> bytes:
    """All of it, for a machine to read."""
    settings = result.settings
    recoveries: dict[str, Any] = {
        kind: {
            "number": len(found),
            "seen": spread([r.seen_s for r in found]),
            "ready": spread([r.up_s for r in found]),
            "overhead": spread([r.overhead_s for r in found]),
        }
        for kind, found in _by_kind(result.recoveries).items()
    }
    document = {
        "command": list(command),
        "machine": {"cores": os.cpu_count(), "python": platform.python_version()},
        "seed": settings.seed,
        "engine": settings.engine,
        "clients": settings.clients,
        "took_s": round(result.took_s, 1),
        "faults": dict(sorted(result.faults.items())),
        "missed": dict(sorted(result.missed.items())),
        "outcomes": dict(result.outcomes.most_common()),
        "latency": spread(result.latencies),
        "struck": {
            "plain": dict(result.struck.plain),
            "disturbed": dict(result.struck.disturbed),
        },
        "recoveries": recoveries,
        "restarts": spread(result.restarts_s),
        "swept": spread(result.swept_s),
        "memory": [
            {"slotd": m.incarnation, "requests": m.requests, "rss_kb": m.rss_kb, "files": m.files}
            for m in result.memory
        ],
        "growth_mb_per_1000": result.growth_mb_per_1000,
        "looks": result.looks,
        "events": result.events,
        "violations": [{"fault": v.fault, "what": v.what} for v in result.violations],
    }
    return json.dumps(document, indent=1).encode() + b"\n"
