"""From the shape of ``slotd.toml`` to what a slot is made of. Pure."""

from __future__ import annotations

from slotd.arbiter.room import Limits
from slotd.config import Config, LlamaCppOptions, LoadedConfig, SlotConfig
from slotd.model.source import ModelRef
from slotd.slot.actor import SlotIdentity
from slotd.slot.machine import SlotSpec

__all__ = ["memory_limits", "model_refs", "slot_identity", "slot_spec", "touched_slots"]


def slot_spec(config: Config, slot: SlotConfig) -> SlotSpec:
    """The numbers of a slot's machine, from the config."""
    return SlotSpec(
        name=slot.name,
        max_parallel=slot.max_parallel,
        max_queue=slot.max_queue,
        queue_timeout_s=config.server.queue_timeout_s,
        pull_stall_s=slot.pull_stall_s,
        ready_timeout_s=slot.ready_timeout_s,
        stop_timeout_s=slot.stop_timeout_s,
        kill_timeout_s=config.process.kill_timeout_s,
        drain_timeout_s=slot.drain_timeout_s,
        abandon_after_s=slot.abandon_after_s,
        idle_after_s=slot.idle_after_s,
        ttl_s=slot.ttl_s,
        max_wait_s=config.server.max_wait_s,
        turn_hold_s=config.server.turn_hold_s,
        liveness_timeout_s=slot.liveness_timeout_s,
        log_lines=config.process.log_tail_lines,
        pinned=slot.pinned,
        keep_up=slot.pinned or slot.autoload,
        check_output=_checks_output(slot),
    )


def _checks_output(slot: SlotConfig) -> bool:
    """Unless it is said: language models that slotd runs itself."""
    if slot.check_output is None:
        return slot.type == "llm" and not slot.attached
    return slot.check_output


def slot_identity(config: Config, slot: SlotConfig) -> SlotIdentity:
    """The facts of a slot; its labels are its own and its model's."""
    model = config.models.get(slot.model)
    labels = dict.fromkeys((*(model.labels if model else ()), *slot.labels))
    return SlotIdentity(
        spec=slot_spec(config, slot),
        type=slot.type,
        engine=slot.engine,
        model=slot.model,
        labels=tuple(labels),
        aliases=tuple(slot.aliases),
        default=slot.default,
        priority=slot.priority,
        device=slot.device,
        exclusive=slot.exclusive,
        restore_after_s=slot.restore_after_s,
        owns_memory=not slot.attached,
        system_prompt=slot.system_prompt,
        context=_context(slot),
        variants=tuple(slot.variants),
    )


def _context(slot: SlotConfig) -> int | None:
    """Of llama.cpp's server it is known: the sequences that it decodes share it."""
    options = slot.options
    if not isinstance(options, LlamaCppOptions) or not options.ctx_size:
        return None
    return options.ctx_size // (options.parallel or slot.max_parallel)


def memory_limits(config: Config) -> Limits:
    """The numbers that the arbiter decides by."""
    memory, server = config.memory, config.server
    stops = (slot.stop_timeout_s + 2 * config.process.kill_timeout_s for slot in config.slots.values())
    return Limits(
        budget_mb=memory.budget_mb,
        reserve_mb=memory.reserve_mb,
        gpu_budget_mb=memory.gpu_budget_mb,
        gpu_reserve_mb=memory.gpu_reserve_mb,
        wait_s=memory.wait_s,
        release_timeout_s=memory.release_timeout_s,
        max_wait_s=server.max_wait_s,
        turn_hold_s=server.turn_hold_s,
        stop_bound_s=max(stops, default=30.0),
    )


def model_refs(loaded: LoadedConfig) -> dict[str, ModelRef]:
    """Every model that a slot may be swapped to."""
    return {name: loaded.model_ref(name) for name in loaded.config.models}


def touched_slots(old: LoadedConfig, new: LoadedConfig) -> tuple[str, ...]:
    """The slots of both configurations that are made of something else now.

    Each slot may be swapped to each model, so a change of any model touches all
    that run an engine of ours; those whose launch plan stays the same go on.
    """
    models = (old.config.models, old.base_dir) != (new.config.models, new.base_dir)

    def differs(name: str) -> bool:
        before, after = old.config.slots[name], new.config.slots[name]
        return (
            before != after
            or slot_identity(old.config, before) != slot_identity(new.config, after)
            or (models and not after.attached)
            or old.secrets.slot_keys.get(name) != new.secrets.slot_keys.get(name)
        )

    return tuple(name for name in new.config.slots if name in old.config.slots and differs(name))
