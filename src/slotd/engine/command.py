"""The ``command`` engine: any server that can be told its port."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path, PurePath

from slotd.config import SlotConfig
from slotd.engine.apis import APIS
from slotd.engine.llama_cpp import NUDGE_AFTER_S
from slotd.engine.need import identities
from slotd.errors import SpawnFailed
from slotd.process.plan import LaunchPlan
from slotd.slot.backend import Abilities, Readiness

__all__ = ["abilities", "at_home", "fill", "launch_plan", "readiness"]

_LISTS_MODELS = frozenset({"llm", "embedding", "reranking"})


def readiness(slot: SlotConfig) -> Readiness:
    """From the slot's own rules, else its API's; servers of text models are expected to list theirs."""
    api = APIS[slot.api]
    wants_models = slot.ready_models
    if wants_models is None:
        wants_models = bool(slot.ready_path) or (slot.type in _LISTS_MODELS and api.lists_models)
    return Readiness(
        health_path=slot.health_path or api.health_path,
        models_path=(slot.ready_path or "/v1/models") if wants_models else "",
    )


def abilities(slot: SlotConfig) -> Abilities:
    return Abilities(
        nonstream_cancel=slot.nonstream_cancel or "close",
        model_name=slot.model_name,
        adapters=APIS[slot.api].adapters,
    )


_PLACEHOLDER = re.compile(r"\{([a-z_]+)\}")


def fill(text: str, values: Mapping[str, str]) -> str:
    """Fill in ``{name}`` placeholders; other braces (JSON, say) stay as they are.

    ``{host}`` and ``{port}`` are left to the launcher. Raises
    :class:`SpawnFailed` for a name that nobody knows.
    """

    def value(match: re.Match[str]) -> str:
        name = match.group(1)
        if name in ("host", "port"):
            return match.group(0)
        if name not in values:
            known = ", ".join("{" + k + "}" for k in (*values, "host", "port"))
            raise SpawnFailed(f"the command has an unknown placeholder {{{name}}}; known are {known}")
        return values[name]

    return _PLACEHOLDER.sub(value, text)


def at_home(word: str) -> str:
    """A word of a command as a shell has it: a leading ``~/`` is the home directory."""
    return os.path.expanduser(word) if word.startswith("~/") else word


def launch_plan(slot: SlotConfig, model: str, model_path: Path | None) -> LaunchPlan:
    """The configured command with ``{model}``, ``{model_path}`` and ``~/`` filled in."""
    values = {"model": model, "slot": slot.name}
    if model_path is not None:
        values["model_path"] = str(model_path)
    argv = tuple(fill(at_home(text), values) for text in slot.command)
    # Of an unknown program it is unknown what a second SIGTERM does to it.
    known = argv != () and PurePath(argv[0]).name == "llama-server"
    return LaunchPlan(
        slot=slot.name,
        argv=argv,
        env={key: fill(at_home(text), values) for key, text in slot.env.items()},
        cwd=at_home(slot.cwd) or None,
        inputs=identities(model_path) if model_path is not None else (),
        nudge_after_s=NUDGE_AFTER_S if known else None,
    )
