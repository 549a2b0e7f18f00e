"""What llama.cpp takes up for a model: arithmetic, fitted to what it was seen to take.

Weights, KV cache and compute buffers follow llama.cpp's own sizes. What its
process takes besides (program, vocabulary) was measured on CPU with models of
49 k, 152 k and 262 k tokens: see ``tests/real/test_real_estimate.py``, which
measures again. A mapped file counts with all its pages, though the kernel could
take those back; weights that llama.cpp rearranges for the CPU count twice,
since it leaves the mapped ones where they are. The parts on a GPU are
llama.cpp's sizes too, but the runtime's own share there is a guess.

The estimate is for an engine at work, after prompts that fill a batch, and errs
upward; it stands only until the engine has been measured. What grows with use
is not in it beyond a first share: a model with windowed attention keeps up to
32 checkpoints of each conversation.

Pure.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from slotd.arbiter.tenant import Need
from slotd.model.gguf import GgufFacts

__all__ = ["LlamaSettings", "estimate_mb", "estimate_mb_by_size"]

MIB = 1 << 20

BASE = 48 * MIB
"""The worker with its libraries, threads and tables, for no model at all."""
PER_TOKEN_OF_VOCABULARY = 256
"""The tokenizer's tables."""
GPU_RUNTIME_HOST = 256 * MIB
GPU_RUNTIME_DEVICE = 384 * MIB
"""A CUDA context, in RAM and on the GPU."""
VOCABULARY = 150_000
"""Assumed where the file does not tell."""
CELLS = 256
"""A cache has a multiple of so many cells."""

BYTES_OF_TYPE = {
    "f32": 4.0,
    "f16": 2.0,
    "bf16": 2.0,
    "q8_0": 34 / 32,
    "q5_1": 24 / 32,
    "q5_0": 22 / 32,
    "q4_1": 20 / 32,
    "q4_0": 18 / 32,
    "iq4_nl": 18 / 32,
}
"""Bytes of a cached number: a block of 32 and its scales. An unknown type counts as f16."""

KEPT_AS_STORED = frozenset({0, 1, 3, 7, 8, 9, 32})
"""File types (f32, f16, q4_1, q8_0, q5_0, q5_1, bf16) of which no tensor is rearranged."""
REARRANGED = 0.8
"""Of the weights, in other types: a mix holds some tensors that are not."""
SUPERBLOCK = 256
"""Rows of another length are not stored in the types that are rearranged."""

PERIOD_OF = {"gemma2": 2, "gemma3": 6, "cohere2": 4, "gpt-oss": 2}
"""Where the file leaves it to llama.cpp: each n-th block sees everything, the others a window.

With any other architecture every block counts as seeing everything, which errs upward.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaSettings:
    """How llama.cpp is launched, as far as memory is concerned.

    ``ctx_size``: tokens of context over all sequences; 0 = as the model was
    trained. ``unified``: the sequences share one cache. ``embeds``: every token
    of a batch yields an output, not just the last of each prompt. ``mmap``: the
    file is mapped. ``repack``: weights may be rearranged for the CPU.
    ``gpu_layers``: -1 = all. ``companion_bytes``: adapters and a projector.
    ``cache_ram_mb``: what finished prompts may take; -1 = no limit, counted as 0.
    """

    ctx_size: int = 4096
    parallel: int = 4
    ubatch: int = 512
    cache_type_k: str = "f16"
    cache_type_v: str = "f16"
    unified: bool = False
    flash_attn: bool = True
    swa_full: bool = False
    mmap: bool = True
    repack: bool = True
    kv_on_gpu: bool = True
    embeds: bool = False
    gpu_layers: int = -1
    cache_ram_mb: int = 0
    companion_bytes: int = 0


def estimate_mb(
    facts: GgufFacts, settings: LlamaSettings, *, gpu_present: bool, weights_bytes: int = 0
) -> Need:
    """What a model of this shape takes. ``weights_bytes``: of all its files, if more than the one."""
    weights = float(weights_bytes or facts.file_bytes)
    vocabulary = facts.vocab_size or VOCABULARY
    if not facts.block_count:
        return estimate_mb_by_size(weights, settings, gpu_present=gpu_present)
    cache = _Cache.of(facts, settings)
    outputs = 4.0 * vocabulary * settings.parallel
    on_host = min(vocabulary * facts.embedding_length, weights)  # token embeddings stay in RAM
    rearranged = 0.0
    if facts.file_type not in KEPT_AS_STORED and facts.embedding_length % SUPERBLOCK == 0:
        rearranged = REARRANGED * (weights - 0.6 * on_host)
    return _shared_out(
        settings,
        gpu_present=gpu_present,
        layers=facts.block_count + 1,
        weights=weights,
        on_host=on_host,
        rearranged=rearranged,
        cache=cache.bytes,
        compute=_compute(facts, settings, cache, vocabulary) + outputs,
        base=BASE + PER_TOKEN_OF_VOCABULARY * vocabulary,
    )


def estimate_mb_by_size(weights: float, settings: LlamaSettings, *, gpu_present: bool) -> Need:
    """The same for a model of which only the size in bytes is known.

    A token's cache grows with the square root of the weights: 23 KiB at 94 MiB,
    some 150 KiB at 4 GiB, for models whose heads share keys, as nearly all do.
    """
    per_token = 2.4 * 1024 * math.sqrt(weights / MIB)
    context = settings.ctx_size or 4096
    return _shared_out(
        settings,
        gpu_present=gpu_present,
        layers=32,
        weights=weights,
        on_host=weights / 16,
        rearranged=REARRANGED * weights,
        cache=per_token * context,
        compute=96.0 * MIB * settings.ubatch / 512,
        base=BASE + PER_TOKEN_OF_VOCABULARY * VOCABULARY,
    )


def _shared_out(
    settings: LlamaSettings,
    *,
    gpu_present: bool,
    layers: int,
    weights: float,
    on_host: float,
    rearranged: float,
    cache: float,
    compute: float,
    base: float,
) -> Need:
    """The parts, each where it lies: by layers between RAM and GPU."""
    offloaded = settings.gpu_layers if settings.gpu_layers >= 0 else layers
    share = min(offloaded, layers) / layers if gpu_present else 0.0
    cache_share = share if settings.kv_on_gpu else 0.0
    ram = base + (1 - share) * weights + (1 - cache_share) * cache
    ram += max(settings.cache_ram_mb, 0) * MIB
    if settings.mmap and settings.repack:
        ram += (1 - share) * rearranged
    gpu = share * weights + cache_share * cache
    if share:
        ram += GPU_RUNTIME_HOST + share * on_host
        gpu += GPU_RUNTIME_DEVICE + compute + settings.companion_bytes
    else:
        ram += compute + settings.companion_bytes
    return Need(math.ceil(ram / MIB), math.ceil(gpu / MIB), "estimated")


# --- llama.cpp's buffers ----------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Cache:
    """``cells`` and ``windowed_cells``: of each stream; ``streams``: caches side by side."""

    cells: int
    windowed_cells: int
    streams: int
    bytes: float

    @classmethod
    def of(cls, facts: GgufFacts, settings: LlamaSettings) -> _Cache:
        streams = 1 if settings.unified else settings.parallel
        context = settings.ctx_size or facts.context_length or 4096
        cells = _padded(-(-context // streams))
        windowed = 0
        pattern = _windowed(facts)
        if any(pattern):
            sharers = settings.parallel if settings.unified else 1
            windowed = min(cells, _padded(facts.sliding_window * sharers + settings.ubatch))
            if settings.swa_full:
                windowed = cells
        if not facts.causal:
            return cls(cells, windowed, streams, 0.0)  # an encoder remembers nothing
        per_head = facts.key_length * BYTES_OF_TYPE.get(settings.cache_type_k, 2.0)
        per_head += facts.value_length * BYTES_OF_TYPE.get(settings.cache_type_v, 2.0)
        interval = facts.full_attention_interval
        total = 0.0
        for block, heads in enumerate(facts.head_count_kv):
            if interval and (block + 1) % interval:
                continue  # attends without a cache
            rows = windowed if pattern[block] else cells
            total += rows * streams * heads * per_head
            if pattern[block]:
                total += rows * streams * heads * per_head  # a first checkpoint of each sequence
        if facts.state_size and facts.inner_size:
            total += 4.0 * facts.state_size * facts.inner_size * facts.block_count * settings.parallel
        return cls(cells, windowed, streams, total)


def _windowed(facts: GgufFacts) -> tuple[bool, ...]:
    """Which blocks see a window only."""
    blocks = facts.block_count
    if not facts.sliding_window:
        return (False,) * blocks
    if isinstance(facts.sliding_pattern, tuple):
        return facts.sliding_pattern
    period = facts.sliding_pattern or PERIOD_OF.get(facts.architecture, 1)
    return tuple(block % period < period - 1 for block in range(blocks))


def _compute(facts: GgufFacts, settings: LlamaSettings, cache: _Cache, vocabulary: int) -> float:
    """The buffer for one batch's intermediate results."""
    batch = min(settings.ubatch, cache.cells * cache.streams)
    width = max(facts.feed_forward_length, facts.expert_used_count * facts.expert_feed_forward_length)
    values = 4.0 * batch * (4 * width + 2.5 * facts.embedding_length)
    if settings.embeds and facts.causal:
        # A score of every word for every token, and the same again when they are
        # handed out: twice this for an input that fills the batch, which few do.
        values = max(values, 4.0 * batch * vocabulary)
    masks = 2.0 * batch * (cache.cells + cache.windowed_cells)
    if not settings.flash_attn:
        masks += 4.0 * batch * cache.cells * facts.head_count
    return values + masks


def _padded(cells: int) -> int:
    return -(-cells // CELLS) * CELLS
