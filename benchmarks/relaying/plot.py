"""The picture: throughput, latency and cost over how many ask at a time, one line a target."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from relaying.report import Summary
from relaying.scenarios import PACED, SMALL
from relaying.targets import COMPILED, DIRECT, EXPRESS, QUART, REFERENCE

__all__ = ["draw"]

KNOWN = {DIRECT: "0.6", COMPILED: "#01331f", EXPRESS: "#0b6e4f", QUART: "#6fb98f", REFERENCE: "#b8401f"}
OTHERS = ("#2f5d9b", "#8a5fa8", "#c28a1b", "#444444")
PANELS = (
    (SMALL, "per_s", "requests/s, small JSON", "connections"),
    (SMALL, "p99_ms", "p99 of a request, ms", "connections"),
    (SMALL, "cpu_s", "CPU seconds for 1,000 requests", "connections"),
    (PACED, "first_p99_ms", "time to first token p99, ms (all begun at once)", "streams"),
    (PACED, "gap_p99_ms", f"from token to token p99, ms (sent at {PACED})", "streams"),
    (PACED, "cpu_s", "CPU seconds for a million tokens", "streams"),
)


def draw(summaries: Sequence[Summary], path: Path, title: str) -> bool:
    """Write the PNG. False if matplotlib (the ``bench`` extra) is not installed."""
    try:
        import matplotlib
    except ModuleNotFoundError:
        return False
    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.lines import Line2D
    from matplotlib.ticker import FuncFormatter, NullFormatter

    names = list(dict.fromkeys(s.target for s in summaries))
    others = iter(OTHERS * len(names))
    colors = {n: KNOWN.get(n) or next(others) for n in names}
    figure, grid = pyplot.subplots(2, 3, figsize=(15, 8.2))
    for axes, (what, key, label, unit) in zip(grid.flat, PANELS, strict=True):
        for name in names:
            found = [
                (s.scenario.connections, getattr(s, key))
                for s in summaries
                if s.target == name and s.scenario.what == what and getattr(s, key) is not None
            ]
            if found:
                line = "--" if name == DIRECT else "-"
                axes.plot(*zip(*found, strict=True), line, color=colors[name], marker="o", markersize=4)
        axes.set_xscale("log")
        axes.set_yscale("log")
        counts = sorted({s.scenario.connections for s in summaries if s.scenario.what == what})
        axes.set_xticks(counts)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:,g}"))
        axes.yaxis.set_minor_formatter(FuncFormatter(_at_a_few))
        axes.set_title(label, fontsize=11)
        axes.set_xlabel(unit)
        axes.grid(visible=True, which="both", linewidth=0.4, color="0.88")
        axes.spines[["top", "right"]].set_visible(False)
    handles = [
        Line2D([], [], color=colors[n], marker="o", markersize=4, linestyle="--" if n == DIRECT else "-")
        for n in names
    ]
    figure.legend(handles, names, loc="lower center", ncols=len(names), frameon=False)
    figure.suptitle(title, fontsize=11)
    figure.tight_layout(rect=(0, 0.04, 1, 1))
    figure.savefig(path, dpi=90, metadata={"Software": None})
    pyplot.close(figure)
    return True


def _at_a_few(value: float, _: object) -> str:
    """Labels between the powers of ten, at two and five of them."""
    return f"{value:,g}" if f"{value:e}"[0] in "25" else ""
