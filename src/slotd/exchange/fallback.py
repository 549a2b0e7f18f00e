"""Who may answer in a slot's place, and when. Pure."""

from __future__ import annotations

from slotd.errors import (
    ActorGone,
    GpuExclusive,
    OutOfMemory,
    OutputSanityFailed,
    SlotCrashLooping,
    SlotdError,
    SlotLoadFailed,
    SlotLoading,
    SlotQueueFull,
    SlotUnkillable,
    SpawnFailed,
)
from slotd.slot.state import UP, SlotSnapshot

__all__ = ["calls_for_fallback", "can_answer_now", "model_for"]

_CANNOT = (
    ActorGone,
    GpuExclusive,
    OutOfMemory,
    OutputSanityFailed,
    SlotCrashLooping,
    SlotLoadFailed,
    SlotLoading,
    SlotQueueFull,
    SlotUnkillable,
    SpawnFailed,
)


def calls_for_fallback(refusal: SlotdError) -> bool:
    """Whether a slot that refuses so cannot serve, rather than must not or need not.

    :class:`SlotLoading` is a refusal only where the client's own patience
    (``X-Slotd-Wait``) has ended.
    """
    return isinstance(refusal, _CANNOT)


def can_answer_now(slot: SlotSnapshot) -> bool:
    """Whether a request would be served by this slot at once, as far as can be seen from outside."""
    return slot.state in UP and not slot.draining and not slot.queued and slot.leases < slot.max_parallel


def model_for(asked: str | None, listed: tuple[str, ...], served: str) -> str:
    """The model name to put into a request that a fallback answers; "" to leave it as it is.

    ``asked``: what the request bears. ``listed``: what the engine lists.
    ``served``: the model id of the fallback's slot.
    """
    if asked is None or asked in listed:
        return ""
    return listed[0] if listed else served
