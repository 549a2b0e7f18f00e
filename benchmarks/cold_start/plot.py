"""The picture: time to route over the number of remotes, one panel per fault."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cold_start.matrix import FAULTS, LATENCIES, SIZES, Latency
from cold_start.report import CellSummary, PolicySummary, by_fault

__all__ = ["draw"]

SLOTD, BASELINE = "#0b6e4f", "#b8401f"
LATENCY: Latency = "uniform"


def draw(cells: Sequence[CellSummary], path: Path, timeout_s: float) -> bool:
    """Write the PNG. False if matplotlib (the ``bench`` extra) is not installed."""
    try:
        import matplotlib
    except ModuleNotFoundError:
        return False
    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.lines import Line2D
    from matplotlib.ticker import FuncFormatter, NullFormatter

    crowds = sorted({c.requests for c in cells})
    figure, grid = pyplot.subplots(
        len(crowds),
        len(FAULTS),
        figsize=(15, 3.3 * len(crowds) + 0.9),
        sharex=True,
        sharey=True,
        squeeze=False,
    )
    for row, requests in zip(grid, crowds, strict=True):
        for axes, fault in zip(row, FAULTS, strict=True):
            line = by_fault(cells, fault, LATENCY, requests)
            _line(axes, line, [c.baseline for c in line], BASELINE, "s", "wait for all, 4 at a time")
            _line(axes, line, [c.slotd for c in line], SLOTD, "o", "slotd")
            axes.axhline(timeout_s * 1000, color="0.6", linewidth=0.8, linestyle=":")
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
            axes.set_xticks(SIZES)
            axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
            axes.xaxis.set_minor_formatter(NullFormatter())
            axes.yaxis.set_major_formatter(FuncFormatter(_time))
            axes.grid(visible=True, which="major", linewidth=0.4, color="0.85")
            axes.spines[["top", "right"]].set_visible(False)
        row[0].set_ylabel("1 request" if requests == 1 else f"{requests} requests at once")
    for axes, fault in zip(grid[0], FAULTS, strict=True):
        axes.set_title("all remotes live" if fault == "none" else fault, fontsize=11)
    for axes in grid[-1]:
        axes.set_xlabel("remotes")
    handles, labels = grid[0][0].get_legend_handles_labels()
    handles.append(Line2D([], [], linestyle="", marker="o", markersize=11, color="0.3", fillstyle="none"))
    labels.append("found no route")
    figure.suptitle(
        f"Cold start: time to route (median, bar up to p95); remotes answer in {LATENCIES[LATENCY]}; "
        f"dotted: the baseline's time-out, {timeout_s:g} s",
        fontsize=12,
    )
    figure.legend(handles, labels, loc="lower center", ncols=3, frameon=False)
    figure.tight_layout(rect=(0, 0.05, 1, 1))
    figure.savefig(path, dpi=90, metadata={"Software": None})
    pyplot.close(figure)
    return True


def _line(
    axes: Any,
    cells: Sequence[CellSummary],
    found: Sequence[PolicySummary],
    color: str,
    marker: str,
    label: str,
) -> None:
    if not cells:
        return
    medians = [p.median_ms for p in found]
    above = [max(0.0, p.p95_ms - p.median_ms) for p in found]
    axes.errorbar(
        [c.remotes for c in cells],
        medians,
        yerr=[[0.0] * len(found), above],
        color=color,
        marker=marker,
        markersize=5,
        linewidth=1.6,
        capsize=3,
        label=label,
    )
    missed = [(c.remotes, p.median_ms) for c, p in zip(cells, found, strict=True) if p.missed]
    if missed:
        axes.scatter(*zip(*missed, strict=True), s=140, facecolors="none", edgecolors=color, zorder=3)


def _time(ms: float, _: object) -> str:
    return f"{ms / 1000:g} s" if ms >= 1000 else f"{ms:g} ms"
