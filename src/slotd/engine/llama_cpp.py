"""The ``llama-cpp`` engine: ``llama-server``, or the same server inside a wheel."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from slotd.config import LlamaCppOptions, SlotConfig
from slotd.engine.apis import LIKENESS
from slotd.engine.need import identities
from slotd.errors import SpawnFailed
from slotd.process.plan import LaunchPlan
from slotd.slot.backend import Abilities, Readiness

__all__ = ["NUDGE_AFTER_S", "abilities", "launch_plan", "program", "ranks_by_likeness", "readiness"]

NUDGE_AFTER_S = 0.3
"""llama-server leaves at once on its second SIGTERM.

The first only asks it to: with an answer under way it looks once a second
whether that one's client has gone, and between two batches at that. slotd has
closed its connections before it asks, so there is nothing left to wait for.
"""

readiness = Readiness(health_path="/health", models_path="/v1/models")


def abilities(slot: SlotConfig) -> Abilities:
    # Chat and completions: closing a stream stops it at once, closing a
    # non-streaming request does not. Embeddings and reranking have no stream.
    natural: Literal["assemble", "none"] = "assemble" if slot.type == "llm" else "none"
    return Abilities(
        nonstream_cancel=slot.nonstream_cancel or natural,
        model_name=slot.model_name,
        adapters=LIKENESS if ranks_by_likeness(slot) else {},
    )


def ranks_by_likeness(slot: SlotConfig) -> bool:
    """Whether a reranking slot's model is one that makes vectors, which are compared for it."""
    options = slot.options
    return (
        slot.type == "reranking"
        and isinstance(options, LlamaCppOptions)
        and options.pooling not in ("", "rank")
    )


def program() -> tuple[str, ...]:
    """How to run llama.cpp's server here. Raises :class:`SpawnFailed` if there is no way."""
    found = shutil.which("llama-server")
    if found:
        return (found,)
    if importlib.util.find_spec("xllamacpp") is not None:
        return (sys.executable, "-m", "slotd.engine.llama_worker")
    raise SpawnFailed("the llama-cpp engine needs llama-server in PATH, or: pip install 'slotd[llama-cpp]'")


def launch_plan(slot: SlotConfig, model: str, model_path: Path, resolve: Callable[[str], Path]) -> LaunchPlan:
    """The command line, in flags that ``llama-server`` and the worker share.

    The alias makes answers and ``/v1/models`` show the configured model's name
    instead of a file's path. ``resolve`` makes the config's paths absolute.
    Looks at the files (a stat each), whether or not they are there.
    """
    options = slot.options
    if not isinstance(options, LlamaCppOptions):
        options = LlamaCppOptions()
    argv: list[str] = [
        *program(),
        *("--model", str(model_path), "--alias", model),
        *("--host", "{host}", "--port", "{port}"),
        *("--ctx-size", str(options.ctx_size)),
        *("--parallel", str(options.parallel or slot.max_parallel)),
        *("--n-gpu-layers", str(options.gpu_layers)) * (options.gpu_layers >= 0),
        *("--threads-http", str(options.http_threads)),
        *("--cache-ram", str(options.cache_ram_mib)),
        "--slots",
        "--metrics",
        "--jinja" if options.jinja else "--no-jinja",
    ]
    for flag, number in (
        ("--threads", options.threads),
        ("--batch-size", options.batch_size),
        ("--ubatch-size", options.computed_at_once(slot.type)),
    ):
        if number:
            argv += [flag, str(number)]
    pooling = options.pooling
    pools = slot.type in ("embedding", "reranking")
    if pools if options.embedding is None else options.embedding:
        # With a cache for each sequence, inputs of different lengths that are
        # computed together are cut into batches of equal lengths, and a vector
        # is then pooled from the last cut alone: wrong, without any error.
        argv += ["--embeddings", "--kv-unified"]
    if slot.type == "reranking" and not ranks_by_likeness(slot):
        argv += ["--reranking"]
        pooling = pooling or "rank"
    if pooling:
        argv += ["--pooling", pooling]
    argv += ["--flash-attn", options.flash_attn]
    files = [model_path]
    if options.mmproj:
        files.append(resolve(options.mmproj))
        argv += ["--mmproj", str(files[-1])]
    for adapter in options.lora:
        files.append(resolve(adapter))
        argv += ["--lora", str(files[-1])]
    if options.chat_template:
        inline = "{%" in options.chat_template or "{{" in options.chat_template
        if inline:
            argv += ["--chat-template", options.chat_template]
        else:
            files.append(resolve(options.chat_template))
            argv += ["--chat-template-file", str(files[-1])]
    argv += options.extra_args
    return LaunchPlan(
        slot=slot.name,
        argv=tuple(argv),
        # When ggml aborts it has its own stack printed by a debugger, at length: no help in a log.
        env={"GGML_NO_BACKTRACE": "1", **slot.env},
        cwd=slot.cwd or None,
        nudge_after_s=NUDGE_AFTER_S,
        inputs=identities(*files),
    )
