"""Why there is no room, in words for people and numbers for programs."""

from __future__ import annotations

from collections.abc import Iterable

from slotd.arbiter.exclusive import Mode
from slotd.arbiter.room import Room
from slotd.arbiter.state import Demand, Hold, State
from slotd.errors import GpuExclusive, OutOfMemory, SlotdError, SlotPinned

__all__ = ["device_busy", "exclusive", "never_fits", "pinned_on_device", "strangers", "waited_too_long"]

RETRY_S = 5.0


def _details(state: State, demand: Demand) -> dict[str, object]:
    room, reading = state.capacity(), state.reading
    return {
        "need": {**demand.room.as_dict(), "source": demand.need.source},
        "budget": None if room is None else room.as_dict(),
        "free": None if reading is None else reading.free.as_dict(),
        "reserve": {"ram_mb": state.limits.reserve_mb, "gpu_mb": state.limits.gpu_reserve_mb},
        "held": {name: hold.room.as_dict() for name, hold in state.holds.items()},
    }


def _holders(holds: Iterable[Hold]) -> str:
    return ", ".join(f"{h.slot!r} ({h.room})" for h in holds) or "nothing of slotd's"


def _needs(demand: Demand) -> str:
    return f"slot {demand.slot!r} needs {demand.room} ({demand.need.source})"


def never_fits(state: State, demand: Demand, room: Room, kept: Iterable[Hold]) -> SlotdError:
    """More than the budget leaves it, whoever else goes."""
    budget = state.capacity()
    kept = tuple(kept)
    shown = "" if budget is None else f"; models may take up {_limited(budget, demand.room)} in all"
    if kept:
        shown += f", of which {_holders(kept)} is pinned or cannot be ended"
    short = demand.room.beyond(room)
    return OutOfMemory(
        f"{_needs(demand)}{shown}: {short} too much. Choose a smaller model or context, "
        "raise memory.budget_mb (or gpu_budget_mb), lower memory.reserve_mb, or correct the slot's "
        "memory_mb / gpu_memory_mb",
        details={**_details(state, demand), "short": short.as_dict()},
    )


def _limited(budget: Room, need: Room) -> str:
    """The budget, of the kinds of memory that matter and are counted."""
    shown = budget.where(need).as_dict()
    words = []
    if need.ram_mb > 0 and shown["ram_mb"] is not None:
        words.append(f"{shown['ram_mb']} MiB")
    if need.gpu_mb > 0 and shown["gpu_mb"] is not None:
        words.append(f"{shown['gpu_mb']} MiB of GPU memory")
    return " and ".join(words)


def strangers(state: State, demand: Demand) -> SlotdError:
    """Other programs hold the memory; the end of all of ours would not do."""
    limits, reading = state.limits, state.reading
    free = Room() if reading is None else reading.free
    return OutOfMemory(
        f"{_needs(demand)}, and other programs than slotd's hold the memory: {_limited(free, demand.room)} "
        f"free, {limits.reserve_mb} MiB (GPU: {limits.gpu_reserve_mb}) of it reserved; "
        f"loaded: {_holders(state.holds.values())}. End other programs, or lower memory.reserve_mb",
        details=_details(state, demand),
        retry_after_s=RETRY_S,
    )


def waited_too_long(state: State, demand: Demand) -> SlotdError:
    """``memory.wait_s`` is over."""
    return OutOfMemory(
        f"{_needs(demand)} and has waited for it for memory.wait_s = {state.limits.wait_s:g} s; "
        f"it {demand.why or 'waits its turn'}; loaded: {_holders(state.holds.values())}",
        details={**_details(state, demand), "waits": demand.why},
        retry_after_s=RETRY_S,
    )


def exclusive(mode: Mode, slot: str, retry_after_s: float) -> SlotdError:
    """The device is another slot's alone."""
    return GpuExclusive(
        f"slot {slot!r} cannot use device {mode.device!r} now: slot {mode.owner!r} has it for itself "
        f"({mode.phase.value}); try again later, or end its turn with 'slotd release {mode.device}'",
        details={"device": mode.device, "owner": mode.owner, "mode": mode.phase.value},
        retry_after_s=retry_after_s,
    )


def device_busy(state: State, demand: Demand, device: str) -> SlotdError:
    """The claim of a device has waited for too long."""
    return GpuExclusive(
        f"slot {demand.slot!r} has waited for device {device!r} for memory.wait_s = "
        f"{state.limits.wait_s:g} s; it {demand.why or 'waits its turn'}",
        details={"device": device, "waits": demand.why},
        retry_after_s=RETRY_S,
    )


def pinned_on_device(demand: Demand, device: str, pinned: Iterable[str]) -> SlotdError:
    """A pinned slot is loaded on the device that is claimed."""
    names = tuple(pinned)
    shown = ", ".join(repr(n) for n in names)
    return SlotPinned(
        f"slot {demand.slot!r} needs device {device!r} for itself, but {shown} is loaded there and pinned; "
        "unpin it, or give it another device",
        details={"device": device, "pinned": list(names)},
    )
