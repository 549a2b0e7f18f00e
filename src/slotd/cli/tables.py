"""Tables and lines of the command line, from the management surface's JSON."""

from __future__ import annotations

import time
from typing import Any

from rich.table import Table
from rich.text import Text

__all__ = [
    "events_line",
    "memory_line",
    "memory_table",
    "routes_table",
    "slot_table",
]

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
    if slot.get("blocked"):
        return str(slot["blocked"])
    if slot.get("probe"):
        return str(slot["probe"])
    if slot.get("fault"):
        return str(slot["fault"]["message"])
    if slot.get("draining"):
        return "draining"
    if slot.get("drift"):
        return "runs what was configured before; is loaded again when it is idle"
    return ""


def _mb(value: int | None) -> str:
    if not value:
        return ""
    return f"{value} MB" if value < 10_000 else f"{value / 1024:.1f} GB"


def _memory(slot: dict[str, Any]) -> str:
    parts = [_mb(slot.get("ram_mb")), _mb(slot.get("gpu_mb"))]
    return " + ".join(f"{p}{' GPU' if n else ''}" for n, p in enumerate(parts) if p) or "-"


def memory_table(memory: dict[str, Any]) -> Table:
    """Who holds memory, who waits for it and what for."""
    table = _table("SLOT", "MEMORY", "KNOWN", "STANDING")
    for h in memory["held"]:
        standing = "leaving" if h["leaving"] else "loaded" if h["up"] else "loading"
        table.add_row(h["slot"], _memory(h), h["source"], standing)
    for w in memory["waiting"]:
        table.add_row(w["slot"], _memory(w), w["source"], Text(w["why"], style="yellow"))
    for d in memory["devices"]:
        left = "" if d["ends_in_s"] is None else f", ends in {_seconds(d['ends_in_s'])}"
        table.add_row(d["owner"], "-", "-", f"has {d['device']} for itself ({d['phase']}{left})")
    return table


def memory_line(memory: dict[str, Any]) -> str:
    """The totals, on one line."""
    parts = []
    for name in ("budget", "reserved", "free"):
        room = memory[name] or {}
        shown = [
            f"{_mb(room.get(key)) or '0 MB'}{unit}"
            for key, unit in (("ram_mb", ""), ("gpu_mb", " GPU"))
            if room.get(key) is not None and (key == "ram_mb" or room[key])
        ]
        if shown:
            parts.append(f"{name} {' + '.join(shown)}")
    return ", ".join(parts)


def slot_table(slots: list[dict[str, Any]]) -> Table:
    table = _table("SLOT", "STATE", "FOR", "TYPE", "MODEL", "LEASES", "QUEUED", "MEMORY", "PID", "NOTE")
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
            _memory(s),
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
