"""Tables and lines of the command line, from the management surface's JSON."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from rich.text import Text

from slotd.cli.sheet import Column, Note, Sheet, middle_cut
from slotd.journal.words import duration, tell

__all__ = [
    "events_line",
    "explain_lines",
    "held_by",
    "memory_lines",
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


LONGEST_NAME = 32
"""A client can send a model name of any length."""

ESTIMATES = "~: estimated, until it has been measured"


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


def _memory(slot: dict[str, Any], *, estimated: bool = False) -> str:
    parts = [_mb(slot.get("ram_mb")), _mb(slot.get("gpu_mb"))]
    mark = "~" if estimated else ""
    return " + ".join(f"{mark}{p}{' GPU' if n else ''}" for n, p in enumerate(parts) if p) or "-"


def memory_table(memory: dict[str, Any]) -> Sheet:
    """Who holds memory, who waits for it and what for."""
    table = Sheet([Column("SLOT"), Column("MEMORY"), Column("KNOWN", 2), Column("STANDING", 1, "is")])
    for h in memory["held"]:
        standing = "leaving" if h["leaving"] else "loaded" if h["up"] else "loading"
        table.add(h["slot"], _memory(h, estimated=_guessed(h)), h["source"], standing)
    for w in memory["waiting"]:
        table.add(w["slot"], _memory(w, estimated=_guessed(w)), w["source"], Text("waiting", style="yellow"))
        table.notes.append(Note(w["slot"], w["why"], "yellow"))
    for d in memory["devices"]:
        left = "" if d["ends_in_s"] is None else f", ends in {_seconds(d['ends_in_s'])}"
        table.notes.append(Note(d["owner"], f"has {d['device']} for itself ({d['phase']}{left})"))
    return table


def memory_lines(memory: dict[str, Any]) -> list[str]:
    """The totals, each with what it means."""
    ago = memory.get("measured_ago_s")
    measured = "" if ago is None else f" (measured {_seconds(ago)} ago)"
    # What is kept of GPU memory means nothing where there is none.
    kept = {"gpu_mb": 0} if not (memory["free"] or {}).get("gpu_mb") else {}
    rows = (
        ("budget", memory["budget"], "what all slots together may take up"),
        ("reserved", memory["reserved"], "of the budget, for slots that are loaded or loading"),
        ("free", memory["free"], f"what this machine has left{measured}"),
        ("kept free", {**memory["reserve"], **kept}, "of that, for other programs (memory.reserve_mb)"),
    )
    width = max(len(_total(room)) for _, room, _ in rows)
    return [f"{name:<9}  {_total(room):>{width}}  {meaning}" for name, room, meaning in rows]


def _total(room: dict[str, Any] | None) -> str:
    """Of the kinds of memory that are counted; main memory always, GPU memory where there is some."""
    if room is None or (room.get("ram_mb") is None and not room.get("gpu_mb")):
        return "not known"
    shown = [] if room.get("ram_mb") is None else [_mb(room["ram_mb"]) or "0 MB"]
    shown += [f"{_mb(room['gpu_mb'])} GPU"] if room.get("gpu_mb") else []
    return " + ".join(shown)


def held_by(memory: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What is reserved, by slot, with how it is known."""
    return {h["slot"]: h for h in memory["held"]}


def _guessed(need: dict[str, Any] | None) -> bool:
    return need is not None and need["source"] in ("estimated", "unknown")


_SLOT_COLUMNS = (
    Column("SLOT"),
    Column("STATE"),
    Column("FOR", 4),
    Column("TYPE", 6),
    Column("MODEL", 5, "model"),
    Column("LEASES", 2),
    Column("QUEUED", 3),
    Column("MEMORY", 1),
    Column("PID", 7),
)


def slot_table(slots: list[dict[str, Any]], held: Mapping[str, dict[str, Any]]) -> Sheet:
    """The slots, with what is ``held`` for them. What there is to say of one comes below."""
    table = Sheet(_SLOT_COLUMNS)
    for s in slots:
        need = held.get(s["name"]) if s["pid"] else None
        table.add(
            s["name"] + ("*" if s["default"] else ""),
            Text(s["state"], style=_STATE_STYLE.get(s["state"], "yellow")),
            _seconds(s["for_s"]),
            s["type"],
            s["model"] or "-",
            f"{s['leases']}/{s['max_parallel']}",
            str(s["queued"]),
            # What has been measured shows there first.
            _memory(need if need and need["source"] == "measured" else s, estimated=_guessed(need)),
            str(s["pid"] or "-"),
        )
        if note := _note(s):
            table.notes.append(Note(s["name"], note, "red" if s["state"] == "error" else "yellow"))
    if any("~" in row[7].plain for row in table.rows):
        table.legend = ESTIMATES
    return table


def routes_table(rules: list[dict[str, Any]]) -> Sheet:
    titles = (("KIND", 1), ("MATCH", 0), ("TARGETS", 0), ("MODEL", 2), ("ENDPOINT", 0))
    table = Sheet([Column(title, rank) for title, rank in titles])
    for r in rules:
        targets = ", ".join(map(str, r["targets"]))
        table.add(r["kind"], r["match"] or "-", targets, r.get("model") or "", r.get("endpoint") or "")
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


_REQUEST_COLUMNS = (
    Column("REQUEST"),
    Column("AT", 2),
    Column("PATH", 9),
    Column("MODEL", 4),
    Column("TARGET", 3),
    Column("OUTCOME", 1),
    Column("WAIT", 8),
    Column("FIRST", 7),
    Column("TOTAL", 5),
    Column("TOKENS", 6),
)


def requests_table(records: list[dict[str, Any]]) -> Sheet:
    """Requests by their ids, which ``slotd why`` takes."""
    table = Sheet(_REQUEST_COLUMNS)
    for r in records:
        end = r["phase"] if r["outcome"] == "live" else r.get("error") or r["outcome"]
        style = {"live": "yellow", "ok": "green", "error": "red", "lost": "red"}.get(r["outcome"], "dim")
        tokens = "" if r.get("tokens_out") is None else f"{r['tokens_in'] or 0} + {r['tokens_out']}"
        again = f", sent {r['replays'] + 1} times" if r.get("replays") else ""
        times = [r.get(key) for key in ("wait_s", "first_byte_s", "total_s")]
        if r["outcome"] == "lost":
            times = [None] * 3  # nobody knows when it ended
        table.add(
            r["id"],
            _at(r["began_unix"]),
            r["path"],
            middle_cut(r.get("model") or "-", LONGEST_NAME),
            r.get("target") or "-",
            Text(f"{end}{again}", style=style),
            *("" if time is None else duration(time) for time in times),
            tokens,
        )
    return table


def upstreams_table(upstreams: list[dict[str, Any]]) -> Sheet:
    titles = (("UPSTREAM", 0), ("STATUS", 0), ("MODELS", 1), ("AGE", 2), ("URL", 3))
    table = Sheet([Column(title, rank) for title, rank in titles])
    for u in upstreams:
        retry = f"asked again in {_seconds(u['retry_in_s'])}" if u.get("retry_in_s") is not None else ""
        note = "is being asked" if u["asking"] else "; ".join(filter(None, (u["reason"], retry)))
        status = Text(u["status"], style="red" if u["failures"] else "")
        table.add(u["name"], status, str(len(u["models"])), _seconds(u["age_s"]) or "-", u["url"])
        if note:
            table.notes.append(Note(u["name"], note))
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
