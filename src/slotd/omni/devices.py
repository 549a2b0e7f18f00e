"""After a round: a device that its tools took for themselves goes back to the model that called them."""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

import trio

from slotd.actor import Snapshot
from slotd.arbiter.exclusive import Phase
from slotd.arbiter.snapshot import ArbiterSnapshot, ModeShown
from slotd.capability.choice import LoadedSlot

__all__ = ["Devices", "give_back", "let_go"]


class Devices(Protocol):
    """The arbiter, as the tool loop needs it."""

    @property
    def changes(self) -> Snapshot[ArbiterSnapshot]: ...

    def release_device(self, device: str) -> None: ...


def _taken(shown: ArbiterSnapshot, caller: LoadedSlot, used: Collection[str]) -> list[ModeShown]:
    """The devices that slots in ``used`` have for themselves, and that keep the caller out."""
    return [
        mode
        for mode in shown.modes
        if mode.owner in used
        and mode.owner != caller.name
        and mode.phase != Phase.RESTORING.value
        and (caller.name in mode.losers or caller.device == mode.device)
    ]


def let_go(devices: Devices, caller: LoadedSlot, used: Collection[str]) -> None:
    """:func:`give_back` for a chat that has ended: nobody waits for the caller, but others will want it."""
    for mode in _taken(devices.changes.value, caller, used):
        devices.release_device(mode.device)


async def give_back(devices: Devices, caller: LoadedSlot, used: Collection[str], within_s: float) -> None:
    """End the exclusive use that ``used`` slots have made of the caller's device; returns when it has ended.

    Their other clients come first: a busy slot leaves when it is quiet. So this
    may take until ``within_s``, and then the caller is refused, and says why.
    Nothing happens, and nothing is waited for, where no such slot is in the
    caller's way.
    """
    cell = devices.changes
    version = cell.version
    taken = _taken(cell.value, caller, used)
    for mode in taken:
        devices.release_device(mode.device)
    with trio.move_on_after(within_s):
        while taken:
            version = await cell.wait_change(version)
            taken = _taken(cell.value, caller, used)
