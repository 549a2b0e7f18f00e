"""``slotd status --watch``: the slots, redrawn as they change."""

from __future__ import annotations

from rich.live import Live

from slotd.cli.api import Api
from slotd.cli.output import out
from slotd.cli.sheet import Sheet
from slotd.cli.tables import held_by, slot_table

__all__ = ["run"]


def run(api: Api) -> None:
    """Redraw on every event of the server, and at least at each of its quiet comments."""
    try:
        with (
            Live(_slots(api), console=out, auto_refresh=False) as live,
            api.stream("/api/events") as lines,
        ):
            for line in lines:
                if line.startswith(("data: ", ":")):
                    live.update(_slots(api), refresh=True)
    except KeyboardInterrupt:
        return


def _slots(api: Api) -> Sheet:
    return slot_table(api.get("/api/slots")["slots"], held_by(api.get("/api/memory")))
