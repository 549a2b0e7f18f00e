"""``/api/memory`` and ``/api/devices``: how memory and devices stand, from the arbiter's snapshot."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import trio
from quart import Response
from quart_trio import QuartTrio

from slotd.arbiter.actor import Arbiter
from slotd.arbiter.room import Room
from slotd.arbiter.snapshot import ArbiterSnapshot, ModeShown
from slotd.errors import RequestInvalid
from slotd.slot.manager import SlotManager
from slotd.slot.state import SlotSnapshot

__all__ = ["add_memory", "memory_view"]


def _room(room: Room | None) -> dict[str, int | None] | None:
    return None if room is None else room.as_dict()


def memory_view(s: ArbiterSnapshot) -> dict[str, Any]:
    """MiB throughout; ages and times left in seconds. A bound that does not exist is null."""
    now = trio.current_time()
    return {
        "budget": _room(s.budget),
        "reserve": _room(s.reserve),
        "reserved": _room(s.reserved),
        "free": _room(s.free),
        "measured_ago_s": None if s.measured_at is None else round(now - s.measured_at, 3),
        "held": [
            {
                "slot": h.slot,
                "ram_mb": h.need.ram_mb,
                "gpu_mb": h.need.gpu_mb,
                "source": h.need.source,
                "up": h.up,
                "leaving": h.leaving,
            }
            for h in s.held
        ],
        "waiting": [
            {
                "slot": w.slot,
                "ram_mb": w.need.ram_mb,
                "gpu_mb": w.need.gpu_mb,
                "source": w.need.source,
                "for_s": round(now - w.since, 3),
                "why": w.why,
            }
            for w in s.waiting
        ],
        "devices": [
            {
                "device": m.device,
                "owner": m.owner,
                "phase": m.phase,
                "losers": list(m.losers),
                "ends_in_s": None if m.ends_at is None else round(max(m.ends_at - now, 0.0), 3),
            }
            for m in s.modes
        ],
    }


def add_memory(app: QuartTrio, arbiter: Arbiter, slots: SlotManager, json: Callable[[Any], Response]) -> None:
    """Register the routes. They read snapshots, or post; none of them waits."""

    @app.get("/api/memory")
    async def memory() -> Response:
        return json(memory_view(arbiter.snapshot))

    @app.post("/api/devices/<device>/release")
    async def release(device: str) -> Response:
        modes = {m.device: m for m in arbiter.snapshot.modes}
        if device not in modes:
            raise _not_exclusive(device, modes.values(), slots.snapshots().values())
        arbiter.release_device(device)
        return json({"released": device, "owner": modes[device].owner})


def _not_exclusive(device: str, modes: Iterable[ModeShown], slots: Iterable[SlotSnapshot]) -> RequestInvalid:
    """Nobody has the device for itself: say which devices there are, and who has which."""
    owners = {m.device: m.owner for m in modes}
    known = sorted({d for s in slots for d in (s.device, s.exclusive) if d} | set(owners))
    if device in known:
        words = f"no slot has device {device!r} for itself now, so there is nothing to release"
    else:
        words = f"no slot names a device {device!r}"
        words += "; devices: " if known else "; no slot names any (keys device and exclusive)"
        words += ", ".join(f"{d} ({owners[d]} has it for itself)" if d in owners else d for d in known)
    return RequestInvalid(words, details={"devices": known, "exclusive": list(owners)})
