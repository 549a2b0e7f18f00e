"""What every benchmark says at its end: on what it ran, its numbers, and which bars they reach."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

__all__ = [
    "QUICK_RESULTS",
    "RESULTS",
    "Bar",
    "describe",
    "machine",
    "median",
    "quantile",
    "save",
    "show_bars",
]

RESULTS = Path(__file__).parent.parent / "results"
QUICK_RESULTS = Path(__file__).parents[2] / ".cache" / "benchmarks"
_TOLD = ("trio", "httptools", "msgspec", "httpx", "hypercorn", "quart", "quart-trio")


@dataclass(frozen=True, slots=True)
class Bar:
    """A promise: ``value`` is to be at least, or at most, ``limit``. None: not measured in this run."""

    what: str
    value: float | None
    limit: float
    sense: Literal["at least", "at most"]
    unit: str = ""

    @property
    def reached(self) -> bool | None:
        if self.value is None:
            return None
        return self.value >= self.limit if self.sense == "at least" else self.value <= self.limit


def show_bars(console: Console, bars: Sequence[Bar]) -> None:
    table = Table("", "measured", "bar", "", title="bars")
    words = {True: "reached", False: "[red]missed[/red]", None: "not measured"}
    for bar in bars:
        value = "-" if bar.value is None else f"{bar.value:.3g} {bar.unit}".strip()
        table.add_row(bar.what, value, f"{bar.sense} {bar.limit:g} {bar.unit}".strip(), words[bar.reached])
    console.print(table)


def median(values: Iterable[float | None]) -> float | None:
    """The median of those that are there."""
    found = [v for v in values if v is not None]
    return statistics.median(found) if found else None


def quantile(values: Sequence[float], part: float) -> float:
    """The smallest value that so large a part of ``values`` does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]


def machine() -> dict[str, Any]:
    """What it ran on, without saying whose it is."""
    versions = {}
    for name in ("slotd", *_TOLD):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "arch": platform.machine(),
        "python": platform.python_version(),
        "load_at_start": round(os.getloadavg()[0], 2),
        "versions": versions,
    }


def describe(found: dict[str, Any]) -> str:
    """The machine in a line."""
    return (
        f"{found['cpu'] or found['arch']}, {found['cores']} cores, {found['memory_gib']:g} GiB, "
        f"{found['system']}, Python {found['python']}; load at the start {found['load_at_start']:g}"
    )


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return ""


def save(out: Path, name: str, document: dict[str, Any], bars: Sequence[Bar]) -> Path:
    """Write ``NAME.json``; the bars go into it."""
    out.mkdir(parents=True, exist_ok=True)
    told = [{**asdict(bar), "reached": bar.reached} for bar in bars]
    path = out / f"{name}.json"
    path.write_text(json.dumps({"benchmark": name, **document, "bars": told}, indent=1) + "\n")
    return path
