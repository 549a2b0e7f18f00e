"""The picture of ``scale.py``: four costs, a bar for each configuration."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

__all__ = ["draw"]

PANELS = (
    ("start_ms", "exec to /health, ms", 800.0),
    ("rss_mib", "resident memory, MiB", 120.0),
    ("resolve_p99_ms", "routing of a request, p99, ms", 1.0),
    ("list_p99_ms", "/api/slots, p99, ms", 50.0),
)
"""Each with its bar, drawn dotted where it applies to 1,000 slots."""


def draw(cells: Mapping[str, Mapping[str, float]], path: Path) -> bool:
    """Write the PNG. False if matplotlib (the ``bench`` extra) is not installed."""
    try:
        import matplotlib
    except ModuleNotFoundError:
        return False
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, grid = pyplot.subplots(1, 4, figsize=(15, 0.45 * len(cells) + 1.4), sharey=True)
    for axes, (name, title, limit) in zip(grid.flat, PANELS, strict=True):
        values = [c[name] for c in cells.values()]
        axes.barh([*cells], values, color="#0b6e4f", height=0.6)
        axes.axvline(limit, color="0.5", linestyle=":", linewidth=1)
        for i, value in enumerate(values):
            axes.text(value, i, f" {value:.3g}", va="center", fontsize=9)
        axes.set_title(title, fontsize=10)
        axes.margins(x=0.15)
        axes.spines[["top", "right"]].set_visible(False)
    grid.flat[0].invert_yaxis()
    figure.tight_layout()
    figure.savefig(path, dpi=90, metadata={"Software": None})
    pyplot.close(figure)
    return True
