"""Tables and lines of the command line, from the management surface's JSON."""

from __future__ import annotations

import time
from typing import Any

from rich.table import Table
from rich.text import Text

__all__ = ["events_line", "routes_table", "slot_table"]

_STATE_STYLE = {
    "ready": "green",
    "idle": "green",
    "serving": "bold green",
    "error": "bold red",
    "offline": "dim",
}


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _seconds(value: float | None) -> str:
    if value is None:
        return ""
    if value < 60:
        return f"{value:.0f} s"
    if value < 3600:
        return f"{value / 60:.0f} min"
    return f"{value / 3600:.1f} h"


def _note(slot: dict[str, Any]) -> str:
    progress = slot.get("progress")
    if progress and slot["state"] == "pulling":
        done, total = progress["done_bytes"] / 1e6, progress["total_bytes"]
        share = f" of {total / 1e6:.0f} MB" if total else " MB"
        return f"{progress['phase']} {done:.0f}{share}"
    if slot.get("fault"):
        return str(slot["fault"]["message"])
    if slot.get("draining"):
        return "draining"
    return ""


def slot_table(slots: list[dict[str, Any]]) -> Table:
    table = _table("SLOT", "STATE", "FOR", "TYPE", "MODEL", "LEASES", "QUEUED", "PID", "NOTE")
    for s in slots:
        state = Text(s["state"], style=_STATE_STYLE.get(s["state"], "yellow"))
        table.add_row(
            s["name"] + ("*" if s["default"] else ""),
            state,
            _seconds(s["for_s"]),
            s["type"],
            s["model"] or "-",
            f"{s['leases']}/{s['max_parallel']}",
            str(s["queued"]),
            str(s["pid"] or "-"),
            Text(_note(s)),
        )
    return table


def routes_table(rules: list[dict[str, Any]]) -> Table:
    table = _table("KIND", "MATCH", "TARGETS", "MODEL", "ENDPOINT")
    for r in rules:
        targets = ", ".join(map(str, r["targets"]))
        table.add_row(r["kind"], r["match"] or "-", targets, r.get("model") or "", r.get("endpoint") or "")
    return table


def events_line(kind: str, data: dict[str, Any]) -> str:
    """One event on one line: time, kind, slot, and its own fields."""
    at = time.strftime("%H:%M:%S", time.localtime(data.get("time", 0)))
    rest = {k: v for k, v in data.items() if k not in ("seq", "time", "slot", "t", "log") and v is not None}
    fields = " ".join(f"{k}={v}" for k, v in rest.items())
    slot = f" {data['slot']}" if data.get("slot") else ""
    return f"{at} {kind}{slot} {fields}"
