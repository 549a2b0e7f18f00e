"""What must hold between the parts of a configuration.

Each check looks at sound parts only (see :meth:`Draft.sound`) and reports
every fault it finds; none depends on another having passed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from slotd.config.draft import Draft, Drafts
from slotd.config.globs import is_glob
from slotd.config.model import SlotConfig, UpstreamConfig
from slotd.config.names import nearest
from slotd.config.options import ComfyOptions, LlamaCppOptions
from slotd.config.problems import Report, no_such
from slotd.config.urls import endpoint, is_loopback

__all__ = ["CHECKS", "Check"]

Check = Callable[[Drafts, Report], None]

OWN_PREFIX = "slotd/"
"""``slotd/<slot>`` always means that slot; nothing else may be called so."""

PLACEHOLDERS = ("port", "host", "model_path", "model")

ENGINE_TYPES: dict[str, tuple[str, ...]] = {
    "llama-cpp": ("llm", "embedding", "reranking"),
    "comfyui": ("image",),
}
"""What an engine can do, where that is known."""

ENGINE_NEEDS: dict[str, tuple[str, ...]] = {
    "llama-cpp": ("model",),
    "command": ("command",),
    "comfyui": (),  # either of command and url
    "external": ("url",),
}

ENGINE_IGNORES: dict[str, tuple[str, ...]] = {
    "llama-cpp": ("command", "url", "auth", "key_env", "api"),
    "command": ("url", "auth", "key_env"),
    "comfyui": ("auth", "key_env", "api"),
    "external": ("command", "env", "cwd", "pinned", "exclusive", "memory_mb", "stop_timeout_s"),
}
"""Keys that would have no effect: whoever wrote one expects what will not happen."""

API_TYPES: dict[str, tuple[str, ...]] = {
    "piper": ("tts",),
    "whisper.cpp": ("transcription",),
    "tei": ("embedding", "reranking"),
}
"""What a server of such an API is for."""


# --- names -------------------------------------------------------------------


def names_are_plain(drafts: Drafts, report: Report) -> None:
    """Names of slots and upstreams stand in URLs and file names, model ids in requests."""
    for section, names in (("slots", drafts.slot_names), ("upstreams", drafts.upstream_names)):
        for name in names:
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
                report.fault(
                    (section, name),
                    "a name is 1 to 64 letters, digits, '.', '_' or '-', the first a letter or digit",
                )
    for name in drafts.model_names:
        fault = _model_id_fault(name)
        if fault:
            report.fault(("models", name), fault)


def _model_id_fault(name: str) -> str | None:
    if is_glob(name):
        return f"{name!r} looks like a glob; globs belong in [[bindings]]"
    if name.startswith(OWN_PREFIX):
        return f"{name!r}: names that begin with '{OWN_PREFIX}' always mean the slot of that name"
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,255}", name):
        return f"{name!r}: a model name is letters, digits and '._:/@+-', the first a letter or digit"
    return None


def upstreams_and_slots_differ(drafts: Drafts, report: Report) -> None:
    for name in drafts.upstream_names:
        if name in drafts.slot_names:
            report.fault(
                ("upstreams", name), "a slot has this name too; routes and errors could not tell them apart"
            )


def slot_names_are_not_foreign_models(drafts: Drafts, report: Report) -> None:
    for name, draft in drafts.slots.items():
        if draft.sound("model") and name in drafts.model_names and draft.value.model != name:
            report.fault(
                draft.path, f"is also the id of a model that this slot does not serve ({_serves(draft)})"
            )


def aliases_are_unambiguous(drafts: Drafts, report: Report) -> None:
    """One alias, one slot. A model id may be served by many, and an alias may pick one of them."""
    taken: dict[str, str] = {}
    for slot, draft in drafts.slots.items():
        if not draft.sound("aliases"):
            continue
        for index, alias in enumerate(draft.value.aliases):
            fault = _model_id_fault(alias)
            if fault is None and alias in drafts.slot_names:
                fault = (
                    f"{alias!r} is the slot's own name"
                    if alias == slot
                    else f"{alias!r} is the name of another slot"
                )
            if fault is None and alias in taken:
                owner = taken[alias]
                fault = (
                    f"{alias!r} is given twice"
                    if owner == slot
                    else f"{alias!r} is an alias of slot {owner!r} too"
                )
            if (
                fault is None
                and alias in drafts.model_names
                and draft.sound("model")
                and draft.value.model != alias
            ):
                fault = f"{alias!r} is the id of a model that this slot does not serve ({_serves(draft)})"
            if fault is not None:
                report.fault(draft.at("aliases", index), fault)
            taken.setdefault(alias, slot)


def _serves(draft: Draft[SlotConfig]) -> str:
    return f"it serves {draft.value.model!r}" if draft.value.model else "it names no model"


# --- slots -------------------------------------------------------------------


def models_exist(drafts: Drafts, report: Report) -> None:
    for draft in drafts.slots.values():
        model = draft.value.model
        if draft.sound("model") and model and model not in drafts.model_names:
            report.fault(draft.at("model"), no_such("model", model, drafts.model_names))


def one_default_per_type(drafts: Drafts, report: Report) -> None:
    first: dict[str, str] = {}
    for name, draft in drafts.slots.items():
        slot = draft.value
        if not draft.sound("type", "default") or not slot.default:
            continue
        if slot.type in first:
            report.fault(
                draft.at("default"), f"slot {first[slot.type]!r} is already the default for {slot.type!r}"
            )
        else:
            first[slot.type] = name


def engines_have_what_they_need(drafts: Drafts, report: Report) -> None:
    for draft in drafts.slots.values():
        if not draft.sound("engine"):
            continue
        slot = draft.value
        types = ENGINE_TYPES.get(slot.engine)
        if types and draft.sound("type") and slot.type not in types:
            report.fault(
                draft.at("type"),
                f"engine {slot.engine!r} cannot serve {slot.type!r}, only {', '.join(types)}",
            )
        apt = API_TYPES.get(slot.api)
        if apt and draft.sound("api", "type") and slot.type not in apt:
            report.fault(draft.at("api"), f"{slot.api!r} serves {' and '.join(apt)}, not {slot.type!r}")
        for key in ENGINE_NEEDS[slot.engine]:
            if draft.sound(key) and not getattr(slot, key):
                report.fault(draft.at(key), f"missing; engine {slot.engine!r} needs it")
        ignored = ENGINE_IGNORES[slot.engine]
        if slot.engine == "comfyui" and draft.sound("command", "url"):
            if bool(slot.command) == bool(slot.url):
                words = "only one of command and url" if slot.url else "a command that runs it, or its url"
                report.fault(draft.at("url" if slot.url else "command"), f"engine 'comfyui' needs {words}")
            elif slot.attached:
                ignored = (*ignored, *(key for key in ENGINE_IGNORES["external"] if key != "command"))
        for key in ignored:
            if draft.sound(key) and key in slot.model_fields_set and getattr(slot, key) != _default(key):
                report.fault(draft.at(key), f"has no effect with engine {slot.engine!r}")


def _default(key: str) -> object:
    return SlotConfig.model_fields[key].get_default(call_default_factory=True)


def prompts_are_there(drafts: Drafts, report: Report) -> None:
    for draft in drafts.slots.values():
        if not draft.sound("request", "system_prompt"):
            continue
        slot = draft.value
        if slot.request.system == "first" and not slot.system_prompt:
            report.warn(draft.at("request", "system"), "has no effect: the slot has no system_prompt")


def placeholders_are_known(drafts: Drafts, report: Report) -> None:
    for draft in drafts.slots.values():
        slot = draft.value
        texts = [(draft.at("command", i), text) for i, text in enumerate(slot.command)]
        texts += [(draft.at("env", key), text) for key, text in slot.env.items()]
        used: set[str] = set()
        for path, text in texts:
            # Braces have other uses (JSON, shells), so only near misses are faults.
            for name in re.findall(r"(?<!\$)\{([a-z_]+)\}", text):
                used.add(name)
                if name not in PLACEHOLDERS and (near := nearest(name, PLACEHOLDERS)):
                    report.fault(path, f"unknown placeholder {{{name}}}; did you mean {{{near}}}?")
        if "model_path" in used and draft.sound("model") and not slot.model:
            report.fault(draft.at("model"), "missing; the command asks for {model_path}")
        if slot.command and "port" not in used and draft.sound("command", "env"):
            report.warn(
                draft.at("command"), "{port} is nowhere in it: the engine must learn the port in another way"
            )


def options_fit(drafts: Drafts, report: Report) -> None:
    for draft in drafts.slots.values():
        options = draft.value.options
        if not draft.sound("options"):
            continue
        if isinstance(options, ComfyOptions) and not (options.workflows or options.edit_workflows):
            report.fault(
                draft.at("options", "workflows"), "missing; without a workflow no request can be served"
            )
        if not isinstance(options, LlamaCppOptions):
            continue
        batch, ubatch = options.batch_size, options.ubatch_size
        if not draft.sound("type") or "ubatch_size" not in options.model_fields_set:
            continue  # unset, it is as much of the batch as there is
        path = draft.at("options", "ubatch_size")
        if draft.value.type != "llm":
            if ubatch != batch:
                report.warn(
                    path,
                    f"has no effect: {draft.value.type} reads an input at once, batch_size ({batch}) of it",
                )
        elif ubatch > batch:
            report.fault(path, f"must be at most batch_size ({batch}), not {ubatch}")


def fallbacks_can_stand_in(drafts: Drafts, report: Report) -> None:
    """Each is another slot of the same type. Their own fallbacks are not followed, so rings are none."""
    for name, draft in drafts.slots.items():
        if not draft.sound("fallbacks"):
            continue
        names = draft.value.fallbacks
        for index, fallback in enumerate(names):
            path = draft.at("fallbacks", index)
            if fallback == name:
                report.fault(path, "a slot cannot stand in for itself")
            elif fallback not in drafts.slot_names:
                report.fault(path, no_such("slot", fallback, drafts.slot_names))
            elif fallback in names[:index]:
                report.fault(path, f"{fallback!r} is given twice")
            elif draft.sound("type") and (other := drafts.slots.get(fallback)) and other.sound("type"):
                own, its = draft.value.type, other.value.type
                if its != own:
                    report.fault(path, f"{fallback!r} is a slot for {its!r}, not for {own!r}")


def memory_suffices(drafts: Drafts, report: Report) -> None:
    budget = drafts.memory.value.budget_mb
    if not drafts.memory.sound("budget_mb") or budget == 0:
        return
    for draft in drafts.slots.values():
        need = draft.value.memory_mb
        if draft.sound("memory_mb") and need > budget:
            report.fault(
                draft.at("memory_mb"),
                f"{need} is more than memory.budget_mb ({budget}): the slot could never load",
            )


# --- bindings ----------------------------------------------------------------


def bindings_have_targets(drafts: Drafts, report: Report) -> None:
    for draft in drafts.bindings:
        binding = draft.value
        if not draft.sound("slot", "upstream"):
            continue
        if binding.slot and binding.upstream:
            report.fault(draft.path, "names both a slot and an upstream; keep one")
        elif not binding.target:
            report.fault(draft.path, 'names no target; give slot = "..." or upstream = "..."')
        # Each name must exist, also where there is one too many.
        for key, names, other in (
            ("slot", drafts.slot_names, drafts.upstream_names),
            ("upstream", drafts.upstream_names, drafts.slot_names),
        ):
            target = getattr(binding, key)
            if not target or target in names:
                continue
            if target in other:
                report.fault(
                    draft.at(key),
                    f"{target!r} is {'an upstream' if key == 'slot' else 'a slot'}; use that key",
                )
            else:
                report.fault(draft.at(key), no_such(key, target, names))


def bindings_are_reachable(drafts: Drafts, report: Report) -> None:
    """A slot never declines, so what comes after it with the same or a narrower glob is dead."""
    deaf: dict[str, int] = {}
    for index, draft in enumerate(drafts.bindings):
        if not draft.sound("match"):
            continue
        match = draft.value.match
        earlier = deaf.get(match, deaf.get("*"))
        if earlier is not None:
            report.warn(draft.path, f"is never reached: bindings[{earlier}] takes all that matches {match!r}")
        if draft.value.slot:
            deaf.setdefault(match, index)


# --- network -----------------------------------------------------------------


def remotes(drafts: Drafts) -> Iterator[Draft[UpstreamConfig] | Draft[SlotConfig]]:
    """Everything that slotd reaches by a URL."""
    yield from drafts.upstreams.values()
    for draft in drafts.slots.values():
        if draft.sound("engine", "url") and draft.value.attached:
            yield draft


def nothing_points_at_slotd(drafts: Drafts, report: Report) -> None:
    """A request that is forwarded to slotd itself would go round until something breaks."""
    server = drafts.server.value
    if not drafts.server.sound("host", "port"):
        return
    for draft in remotes(drafts):
        if not draft.sound("url") or not draft.value.url:
            continue
        host, port = endpoint(draft.value.url)
        if port == server.port and (is_loopback(host) or host == server.host):
            report.fault(draft.at("url"), f"is slotd's own address (server.port is {port})")


def auth_is_whole(drafts: Drafts, report: Report) -> None:
    for draft in remotes(drafts):
        remote = draft.value
        if not draft.sound("auth", "key_env"):
            continue
        if remote.auth != "none" and not remote.key_env:
            report.fault(draft.at("key_env"), f'missing; auth = "{remote.auth}" needs a key')
        elif remote.auth == "none" and remote.key_env:
            report.fault(
                draft.at("auth"), 'is "none", so the key would not be sent; write auth = "bearer" or another'
            )


def ports_suffice(drafts: Drafts, report: Report) -> None:
    draft = drafts.process
    if not draft.sound("port_first", "port_last"):
        return
    first, last = draft.value.port_first, draft.value.port_last
    if last < first:
        report.fault(draft.at("port_last"), f"must be at least port_first ({first}), not {last}")
        return
    own = sum(1 for slot in drafts.slots.values() if slot.sound("engine") and not slot.value.attached)
    if own > last - first + 1:
        report.fault(
            draft.at("port_last"), f"{own} slots need a port each, and {first} to {last} are too few"
        )
    if drafts.server.sound("port") and first <= drafts.server.value.port <= last:
        report.fault(
            drafts.server.at("port"),
            f"lies in the engines' own range, process.port_first to port_last ({first} to {last})",
        )


def backoff_grows(drafts: Drafts, report: Report) -> None:
    draft = drafts.dispatcher
    if draft.sound("backoff_s", "backoff_max_s") and draft.value.backoff_max_s < draft.value.backoff_s:
        report.fault(draft.at("backoff_max_s"), f"must be at least backoff_s ({draft.value.backoff_s:g})")


CHECKS: tuple[Check, ...] = (
    names_are_plain,
    upstreams_and_slots_differ,
    slot_names_are_not_foreign_models,
    aliases_are_unambiguous,
    models_exist,
    one_default_per_type,
    engines_have_what_they_need,
    prompts_are_there,
    placeholders_are_known,
    options_fit,
    fallbacks_can_stand_in,
    memory_suffices,
    bindings_have_targets,
    bindings_are_reachable,
    nothing_points_at_slotd,
    auth_is_whole,
    ports_suffice,
    backoff_grows,
)
