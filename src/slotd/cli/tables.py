"""Tables and lines of the command line, from the management surface's JSON."""

from __future__ import annotations

import time
from typing import Any

from rich.table import Table
from rich.text import Text

from slotd.journal.words import duration, tell

__all__ = [
    "events_line",
    "explain_lines",
    "memory_line",
    "memory_table",
    "requests_table",
    "routes_table",
    "slot_table",
    "story_lines",
    "upstreams_table",
]

_STATE_STYLE = {
    "ready": "green",
    "idle": "green",
    "serving": "bold green",
    "error": "bold red",
    "offline": "dim",
}


_FOLDED = frozenset({"NOTE", "MODEL", "TARGETS", "MATCH", "STANDING"})


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column in columns:
        # Names, states and numbers are read as a whole or not at all; what explains may be folded.
        table.add_column(column, overflow="fold", no_wrap=column not in _FOLDED)
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
    """One event on one line: time, kind, slot, and what it says."""
    slot = f" {data['slot']}" if data.get("slot") else ""
    return f"{_at(data.get('time'))} {kind}{slot} {tell(kind, data)}".rstrip()


def _at(when: float | None) -> str:
    """The local time of day; with the date unless that is today."""
    then, now = time.localtime(when or 0), time.localtime()
    today = (then.tm_year, then.tm_yday) == (now.tm_year, now.tm_yday)
    return time.strftime("%H:%M:%S" if today else "%Y-%m-%d %H:%M:%S", then)


def story_lines(request: dict[str, Any]) -> list[str]:
    """What happened to a request, with seconds since it came in."""
    record = request["record"]
    lines = [f"{record['id']}, {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(record['began_unix']))}"]
    return lines + [f"  {line['after_s']:9.3f} s  {line['text']}" for line in request["story"]]


def requests_table(records: list[dict[str, Any]]) -> Table:
    table = _table("REQUEST", "AT", "PATH", "MODEL", "TARGET", "OUTCOME", "WAIT", "FIRST", "TOTAL", "TOKENS")
    for r in records:
        end = r["phase"] if r["outcome"] == "live" else r["error"] or r["outcome"]
        style = {"live": "yellow", "ok": "green", "error": "red"}.get(r["outcome"], "dim")
        tokens = "" if r["tokens_out"] is None else f"{r['tokens_in'] or 0} + {r['tokens_out']}"
        again = f", sent {r['replays'] + 1} times" if r.get("replays") else ""
        table.add_row(
            r["id"],
            _at(r["began_unix"]),
            r["path"],
            r["model"] or "-",
            r["target"] or "-",
            Text(f"{end}{again}", style=style),
            *("" if r[key] is None else duration(r[key]) for key in ("wait_s", "first_byte_s", "total_s")),
            tokens,
        )
    return table


def upstreams_table(upstreams: list[dict[str, Any]]) -> Table:
    table = _table("UPSTREAM", "STATUS", "MODELS", "AGE", "URL", "NOTE")
    for u in upstreams:
        retry = f"asked again in {_seconds(u['retry_in_s'])}" if u.get("retry_in_s") is not None else ""
        note = "is being asked" if u["asking"] else "; ".join(filter(None, (u["reason"], retry)))
        status = Text(u["status"], style="red" if u["failures"] else "")
        table.add_row(u["name"], status, str(len(u["models"])), _seconds(u["age_s"]) or "-", u["url"], note)
    return table


def explain_lines(e: dict[str, Any]) -> list[str]:
    """Where a request would go and why, in words."""
    asked = f"model {e['model']!r}" if e["model"] else "no model"
    lines = [f"{asked} at {e['path']}"]
    if route := e["route"]:
        name = f" as {route['model']!r}" if route["model"] else ""
        lines.append(f"goes to {route['target']}{name}")
        cache = f", catalog {route['cache']}" if route["cache"] not in ("", "none") else ""
        lines.append(f"because of tier {route['tier']}, rule {route['rule']}{cache}")
    elif error := e["error"]:
        lines.append(f"is refused: {error['code']}: {error['message']}")
    elif e["would_ask"]:
        lines.append(f"is known only after asking {', '.join(e['would_ask'])}")
    for c in e["considered"]:
        rank = "ruled out" if c["rank"] is None else f"health {c['rank']}"
        lines.append(f"  {c['target']}: {rank}{': ' + c['why'] if c['why'] else ''}")
    return lines
