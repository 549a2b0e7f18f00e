"""Snapshots and records as the JSON that the management surface shows."""

from __future__ import annotations

from typing import Any

import trio

from slotd.slot.state import UP, SlotSnapshot

__all__ = ["model_list", "slot_view"]


def slot_view(s: SlotSnapshot) -> dict[str, Any]:
    """One slot. Ages are seconds; byte counts are bytes."""
    now = trio.current_time()
    return {
        "name": s.name,
        "type": s.type,
        "engine": s.engine,
        "state": str(s.state),
        "for_s": round(now - s.since, 3),
        "generation": s.generation,
        "model": s.model,
        "models": list(s.models),
        "labels": list(s.labels),
        "aliases": list(s.aliases),
        "variants": list(s.variants),
        "context_length": s.context,
        "default": s.default,
        "pinned": s.pinned,
        "draining": s.draining,
        "drift": s.drift,
        "address": str(s.address) if s.address else None,
        "pid": s.pid,
        "leases": s.leases,
        "max_parallel": s.max_parallel,
        "queued": s.queued,
        "progress": None
        if s.progress is None
        else {"phase": s.progress_phase, "done_bytes": s.progress[0], "total_bytes": s.progress[1]},
        "load_s": s.load_s,
        "idle_for_s": round(now - s.last_used, 3) if s.last_used is not None and s.leases == 0 else None,
        "starts": s.starts,
        "plan": s.plan_digest or None,
        "nonstream_cancel": s.nonstream_cancel,
        "notes": list(s.notes),
        "priority": s.priority,
        "device": s.device,
        "exclusive": s.exclusive,
        "ram_mb": s.ram_mb,
        "gpu_mb": s.gpu_mb,
        "blocked": s.blocked or None,
        "probe": s.probe or None,
        "failures": s.failures,
        "retry_in_s": None if s.retry_at is None else round(max(s.retry_at - now, 0.0), 3),
        "checked": s.checked or None,
        "fault": None if s.fault is None else {"message": s.fault.message, **s.fault.details()},
    }


def model_item(id: str, s: SlotSnapshot, created: int) -> dict[str, Any]:
    return {
        "id": id,
        "object": "model",
        "created": created,
        "owned_by": "slotd",
        "type": s.type,
        "labels": list(s.labels),
        "aliases": list(s.aliases),
        "variants": list(s.variants),
        "context_length": s.context,
        "slot": s.name,
        "status": {"value": "loaded" if s.state in UP else "unloaded", "state": str(s.state)},
    }


def model_list(
    slots: dict[str, SlotSnapshot],
    upstream_models: dict[str, tuple[str, ...]],
    created: int,
    *,
    aliases: bool = False,
) -> list[dict[str, Any]]:
    """``/v1/models``: what configured slots serve, then what warm catalogs of upstreams list.

    A model served by several slots is listed once, under the first. ``aliases``:
    after the slots' models come their names, aliases and variants, each with the model that
    it means as ``alias_of``.
    """
    items: dict[str, dict[str, Any]] = {}
    for s in slots.values():
        for id in (s.model or s.name, *s.models):
            items.setdefault(id, model_item(id, s, created))
    for s in slots.values() if aliases else ():
        names = (s.name, *s.aliases)
        variants = (f"{name}:{variant}" for name in (s.model or s.name, *names) for variant in s.variants)
        for id in (*names, *variants):
            items.setdefault(id, {**model_item(id, s, created), "alias_of": s.model or s.name})
    for upstream, models in upstream_models.items():
        for id in models:
            items.setdefault(
                id,
                {"id": id, "object": "model", "created": created, "owned_by": upstream, "upstream": upstream},
            )
    return list(items.values())
