"""What a configured slot will take up: configured, or estimated from its files."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from slotd.arbiter.tenant import Need
from slotd.config import LlamaCppOptions, SlotConfig
from slotd.engine.estimate import LlamaSettings, estimate_mb, estimate_mb_by_size
from slotd.model.files import stat_key
from slotd.model.gguf import GgufFacts, GgufUnreadable, read_gguf

__all__ = ["Headers", "identities", "llama_settings", "need_for"]

MIB = 1 << 20
MB = 1_000_000
UNKNOWN_MB = 512
"""For an engine of which nothing is known: more than a small server, less than a machine."""
COMMAND_MB = 256
COMMAND_SHARE = 1.2
"""Besides its model's file: a server in Python, and what it makes of the weights."""

_PART = re.compile(r"(.*)-00001-of-(\d{5})(\.gguf)", re.IGNORECASE)


class Headers:
    """What model files say of themselves, read once as long as they stay the same.

    Called with a path: its facts, or None if it is no readable GGUF. At most
    one short read; remembers as many files as it was asked about, which is as
    many as a slot has models.
    """

    def __init__(self) -> None:
        self._known: dict[Path, tuple[tuple[int, int], GgufFacts | None]] = {}

    def __call__(self, path: Path) -> GgufFacts | None:
        key = stat_key(path)
        if key is None:
            return None
        known = self._known.get(path)
        if known is None or known[0] != key:
            known = self._known[path] = (key, _read(path))
        return known[1]


def _read(path: Path) -> GgufFacts | None:
    try:
        return read_gguf(path)
    except GgufUnreadable:
        return None  # the engine will say what is wrong with it, if anything is


def identities(*paths: Path) -> tuple[str, ...]:
    """Size and modification time of each file: what tells a replaced file from the one before. Stats only."""
    keys = (stat_key(path) for path in paths)
    return tuple("absent" if key is None else f"{key[0]}:{key[1]}" for key in keys)


def need_for(
    slot: SlotConfig,
    path: Path | None,
    *,
    size_mb: int | None = None,
    gpu_present: bool = False,
    resolve: Callable[[str], Path] = Path,
    read: Callable[[Path], GgufFacts | None] = _read,
) -> Need:
    """What the slot will take up with the model at ``path`` (None: it is not here, or there is none).

    What the config says wins, for RAM and GPU each by itself; with either
    said, the source is "configured". ``size_mb``: of the model's file, in
    megabytes, as configured. ``resolve`` makes the config's paths absolute.
    Raises nothing; a model file that makes no sense is estimated by its size.
    """
    if slot.attached:
        return Need(0, 0, "configured")
    if slot.memory_mb and slot.gpu_memory_mb:
        return Need(slot.memory_mb, slot.gpu_memory_mb, "configured")
    guess = _guess(slot, path, (size_mb or 0) * MB, gpu_present, resolve, read)
    if not slot.memory_mb and not slot.gpu_memory_mb:
        return guess
    return Need(slot.memory_mb or guess.ram_mb, slot.gpu_memory_mb or guess.gpu_mb, "configured")


def _guess(
    slot: SlotConfig,
    path: Path | None,
    expected: int,
    gpu_present: bool,
    resolve: Callable[[str], Path],
    read: Callable[[Path], GgufFacts | None],
) -> Need:
    weights = _bytes_of_parts(path) if path is not None else expected
    if not weights:
        return Need(UNKNOWN_MB, 0, "unknown")
    if slot.engine != "llama-cpp":
        # Whether such an engine uses a GPU, nobody knows before it has run.
        return Need(math.ceil(weights * COMMAND_SHARE / MIB) + COMMAND_MB, 0, "estimated")
    settings = llama_settings(slot, resolve)
    facts = read(path) if path is not None else None
    if facts is None:
        return estimate_mb_by_size(weights, settings, gpu_present=gpu_present)
    return estimate_mb(facts, settings, gpu_present=gpu_present, weights_bytes=weights)


def _bytes_of_parts(path: Path) -> int:
    """The size of a model's file, and of the further parts if it is the first of several."""
    parts = [path]
    if match := _PART.fullmatch(path.name):
        stem, count, suffix = match.groups()
        # The parts that are there: a name may promise any number.
        found = path.parent.glob(f"{_literal(stem)}-[0-9][0-9][0-9][0-9][0-9]-of-{count}{suffix}")
        parts = sorted({path, *found})
    return sum(key[0] for part in parts if (key := stat_key(part)) is not None)


def _literal(text: str) -> str:
    """For a glob pattern that means just this text."""
    return re.sub(r"([*?[])", r"[\1]", text)


# --- what the command line says of memory ------------------------------------------


@dataclass(frozen=True, slots=True)
class _Flag:
    """A flag of llama-server: the setting it changes, and how its word is read."""

    setting: str
    read: Callable[[str], int | str | bool] | None = None
    constant: bool = True


def _layers(word: str) -> int:
    return -1 if word in ("auto", "all") else max(int(word), -1)


_FLAGS = {
    name: flag
    for names, flag in (
        (("-c", "--ctx-size"), _Flag("ctx_size", int)),
        (("-np", "--parallel"), _Flag("parallel", int)),
        (("-ub", "--ubatch-size"), _Flag("ubatch", int)),
        (("-ctk", "--cache-type-k"), _Flag("cache_type_k", str.lower)),
        (("-ctv", "--cache-type-v"), _Flag("cache_type_v", str.lower)),
        (("-ngl", "--gpu-layers", "--n-gpu-layers"), _Flag("gpu_layers", _layers)),
        (("-cram", "--cache-ram"), _Flag("cache_ram_mb", int)),
        (("-fa", "--flash-attn"), _Flag("flash_attn", lambda word: word != "off")),
        (("-kvu", "--kv-unified"), _Flag("unified")),
        (("-nkvo", "--no-kv-offload"), _Flag("kv_on_gpu", constant=False)),
        (("--swa-full",), _Flag("swa_full")),
        (("--no-mmap",), _Flag("mmap", constant=False)),
        (("-nr", "--no-repack"), _Flag("repack", constant=False)),
        (("--embedding", "--embeddings", "--reranking", "--rerank"), _Flag("embeds")),
    )
    for name in names
}


def llama_settings(slot: SlotConfig, resolve: Callable[[str], Path] = Path) -> LlamaSettings:
    """How the slot's llama.cpp will be launched: its options, and ``extra_args``, which win."""
    options = slot.options if isinstance(slot.options, LlamaCppOptions) else LlamaCppOptions()
    pools = slot.type in ("embedding", "reranking")
    embeds = pools if options.embedding is None else options.embedding
    files = [resolve(name) for name in (options.mmproj, *options.lora) if name]
    settings = LlamaSettings(
        ctx_size=options.ctx_size,
        parallel=options.parallel or slot.max_parallel,
        ubatch=options.computed_at_once(slot.type),
        unified=embeds,
        embeds=embeds,
        flash_attn=options.flash_attn != "off",
        gpu_layers=options.gpu_layers,
        cache_ram_mb=options.cache_ram_mib,
        companion_bytes=sum(key[0] for file in files if (key := stat_key(file)) is not None),
    )
    return _with_extra(settings, options.extra_args)


def _with_extra(settings: LlamaSettings, words: Sequence[str]) -> LlamaSettings:
    changes: dict[str, int | str | bool] = {}
    for word, following in pairwise((*words, "")):
        flag = _FLAGS.get(word)
        if flag is None:
            continue
        try:
            changes[flag.setting] = flag.constant if flag.read is None else flag.read(following)
        except ValueError:
            continue  # the engine will refuse it
    for name in ("parallel", "ubatch"):
        if name in changes:
            changes[name] = max(int(changes[name]), 1)
    if "ctx_size" in changes:
        changes["ctx_size"] = max(int(changes["ctx_size"]), 0)
    return replace(settings, **changes)  # type: ignore[arg-type]  # each flag's reader gives its setting's type
