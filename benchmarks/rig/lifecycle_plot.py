"""The picture of ``lifecycle.py``: the engine's own load, and what came on top of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

__all__ = ["draw"]


def draw(
    loads: Mapping[str, Sequence[tuple[str, float, float]]], own: Sequence[tuple[str, float]], path: Path
) -> bool:
    """Write the PNG. False if matplotlib (the ``bench`` extra) is not installed.

    ``loads``: per engine (what, by hand, added by slotd), ``own``: (what, how long), all in seconds.
    """
    try:
        import matplotlib
    except ModuleNotFoundError:
        return False
    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = len(own) + sum(len(x) for x in loads.values())
    heights = [*(len(x) for x in loads.values()), len(own)]
    figure, grid = pyplot.subplots(
        len(heights), 1, figsize=(11, 0.42 * rows + 2.6), height_ratios=heights, squeeze=False
    )
    panels = [*grid.flat]
    for axes, (engine, found) in zip(panels, loads.items(), strict=False):
        words = [what for what, _, _ in found]
        alone = [a * 1000 for _, a, _ in found]
        added = [max(0.0, more) * 1000 for _, _, more in found]
        axes.barh(words, alone, color="0.75", label="the engine's own load, by hand")
        axes.barh(words, added, left=alone, color="#0b6e4f", label="on top of it")
        for i, (_, a, more) in enumerate(found):
            axes.text((a + max(0.0, more)) * 1000, i, f" {more * 1000:+.0f} ms", va="center", fontsize=9)
        axes.set_title(f"{engine} engine", fontsize=11, loc="left")
    panels[0].legend(loc="upper right", frameon=False, fontsize=9, bbox_to_anchor=(1, 1.5))
    last = panels[-1]
    last.barh([what for what, _ in own], [t * 1000 for _, t in own], color="#0b6e4f")
    last.set_title("slotd itself", fontsize=11, loc="left")
    last.set_xlabel("ms")
    for axes in panels:
        axes.invert_yaxis()
        axes.margins(x=0.12)
        axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=90, metadata={"Software": None})
    pyplot.close(figure)
    return True
