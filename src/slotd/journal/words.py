"""Events in words: one short line each, the same for the story of a request and for the terminal. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["duration", "tell"]

Data = Mapping[str, Any]

MAX_CHARS = 300


def duration(seconds: float) -> str:
    """``0.4 ms``, ``12 ms``, ``1.25 s``, ``3.5 min``."""
    if seconds < 0.01:
        return f"{seconds * 1000:.1f} ms"
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 120:
        return f"{seconds:.2f} s"
    return f"{seconds / 60:.1f} min"


def tell(kind: str, data: Data) -> str:
    """What an event of this kind says, without its slot. Fields that are missing or odd do no harm."""
    words = _WORDS.get(kind, _plain)
    try:
        text = words(data)
    except (KeyError, TypeError, ValueError, AttributeError):  # written by another version
        text = _plain(data)
    text = " ".join(text.split())
    return text if len(text) <= MAX_CHARS else text[:MAX_CHARS] + "…"


_OWN = ("run", "seq", "time", "kind", "slot", "t", "log")


def _plain(d: Data) -> str:
    return " ".join(f"{k}={v}" for k, v in d.items() if k not in _OWN and v is not None)


def _transition(d: Data) -> str:
    why = f": {d['why']}" if d.get("why") else ""
    return f"{d['from']} -> {d['to']}{why}"


def _fault(d: Data) -> str:
    ended = f" ({d['exit']})" if d.get("exit") and d["exit"] not in d["message"] else ""
    return f"{d['reason']}: {d['message']}{ended}"


def _loaded(d: Data) -> str:
    took = "" if d.get("load_s") is None else f" in {duration(d['load_s'])}"
    return f"loaded {d.get('model') or 'its engine'}{took} (generation {d['generation']})"


def _stopped(d: Data) -> str:
    parts = [f"its engine ended ({d['exit']})"]
    if d.get("killed"):
        parts.append("SIGKILL was needed")
    if d.get("swept"):
        parts.append(f"{d['swept']} left-over processes killed")
    if d.get("survivors"):
        parts.append(f"would not die: {d['survivors']}")
    return ", ".join(parts)


def _crashed(d: Data) -> str:
    wait = d.get("restart_in_s")
    then = "it is not restarted" if wait is None else f"restarted in {duration(wait)}"
    who = f"{d['actor']} " if d.get("actor") else ""
    return f"{who}crashed, a bug of slotd's: {d['error']}; {then}"


def _mb(d: Data) -> str:
    parts = [f"{d['ram_mb']} MB"] if d.get("ram_mb") else []
    parts += [f"{d['gpu_mb']} MB GPU"] if d.get("gpu_mb") else []
    return " + ".join(parts)


def _evicting(d: Data) -> str:
    whom = f" for {d['for']}" if d.get("for") else ""
    how = " when its requests are done" if d.get("drain") else ""
    size = f" ({_mb(d)})" if _mb(d) else ""
    return f"is told to leave{whom}{how}{size}: {d['why']}"


def _released(d: Data) -> str:
    whom = f" for {d['for']}" if d.get("for") else ""
    seen = "" if d.get("seen") else ", without having shown as free"
    return f"has left its memory{whom} after {duration(d['waited_s'])}{seen}"


def _mode(d: Data) -> str:
    words = {
        "entering": "drives the others out of",
        "exclusive": "has for itself",
        "shared": "shares again",
    }
    losers = f" (out: {', '.join(d['losers'])})" if d.get("losers") else ""
    return f"{words.get(d['mode'], d['mode'])} {d['device']}{losers}: {d['why']}"


def _finished(d: Data) -> str:
    what = f"{d['id']} {d['path']}"
    to = f" to {d['target']}" if d.get("target") else ""
    model = f" for {d['model']!r}" if d.get("model") else ""
    if d["outcome"] == "lost":
        return f"{what}{model}{to}: was under way when slotd ended"
    end = d["outcome"] if not d.get("error") else f"{d['outcome']} ({d['error']})"
    status = f" {d['status']}" if d.get("status") else ""
    if d.get("error") and status and d["status"] < 400:
        status = f", the answer had begun (status{status}),"
    tokens = f", {d['tokens_out']} tokens" if d.get("tokens_out") is not None else ""
    return f"{what}{model}{to}: {end}{status} after {duration(d['total_s'])}{tokens}"


def _replayed(d: Data) -> str:
    return f"{d['id']} lost its engine and is sent again (replay {d['replays']}): {d['message']}"


def _reloaded(d: Data) -> str:
    return "; ".join(d["lines"]) or "nothing changed"


_WORDS: Mapping[str, Callable[[Data], str]] = {
    "slot.transition": _transition,
    "slot.fault": _fault,
    "slot.loaded": _loaded,
    "slot.stopped": _stopped,
    "actor.crashed": _crashed,
    "arbiter.waiting": lambda d: str(d["why"]),
    "arbiter.evicting": _evicting,
    "arbiter.released": _released,
    "arbiter.denied": lambda d: f"no room: {d['message']}",
    "arbiter.mode": _mode,
    "request.started": lambda d: f"{d['id']} {d['path']} from {d.get('client') or 'a client'}",
    "request.finished": _finished,
    "request.replayed": _replayed,
    "config.reloaded": _reloaded,
    "config.refused": lambda d: f"refused, nothing has changed: {d['message']}",
    "server.started": lambda d: f"slotd {d['version']} listens on {d['url']}",
    "server.stopping": lambda d: "a stop has begun",
    "journal.gap": lambda d: f"{d['missed']} events came too fast to be kept",
}
