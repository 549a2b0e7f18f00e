"""What an engine is expected to take up, and who says so. The measured truth is in tests/real."""

from __future__ import annotations

import dataclasses
import os
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slotd.arbiter.tenant import Need
from slotd.config import SlotConfig
from slotd.engine import command, llama_cpp, need
from slotd.engine.backend import make_backend
from slotd.engine.estimate import LlamaSettings, estimate_mb, estimate_mb_by_size
from slotd.engine.need import Headers, identities, llama_settings, need_for
from slotd.model.gguf import GgufFacts
from slotd.model.source import ModelRef
from slotd.model.store import ModelStore
from slotd.process.local import LocalLauncher
from slotd.process.ports import PortPool

MIB = 1 << 20

SMALL = GgufFacts(
    file_bytes=98_362_432,
    tensor_count=272,
    architecture="llama",
    block_count=30,
    context_length=8192,
    embedding_length=576,
    feed_forward_length=1536,
    head_count=9,
    head_count_kv=(3,) * 30,
    key_length=64,
    value_length=64,
    vocab_size=49_152,
    file_type=3,
)
"""SmolLM2-135M in q4_1."""

WINDOWED = GgufFacts(
    file_bytes=253_113_024,
    tensor_count=236,
    architecture="gemma3",
    block_count=18,
    context_length=32_768,
    embedding_length=640,
    feed_forward_length=2048,
    head_count=4,
    head_count_kv=(1,) * 18,
    key_length=256,
    value_length=256,
    sliding_window=512,
    vocab_size=262_144,
)
"""Gemma-3-270M: five blocks of six see 512 tokens."""

REARRANGED = GgufFacts(
    file_bytes=1_117_320_768,
    tensor_count=339,
    architecture="qwen2",
    block_count=28,
    context_length=32_768,
    embedding_length=1536,
    feed_forward_length=8960,
    head_count=12,
    head_count_kv=(2,) * 28,
    key_length=128,
    value_length=128,
    vocab_size=151_936,
    file_type=15,
)
"""Qwen2.5-1.5B in q4_k_m: 597 MiB of it are kept a second time, rearranged."""


def ram(facts: GgufFacts, **settings: Any) -> int:
    return estimate_mb(facts, LlamaSettings(**settings), gpu_present=False).ram_mb


# --- llama.cpp, as it was measured ------------------------------------------------------


@pytest.mark.parametrize(
    ("facts", "settings", "pss_mb"),
    [
        # After one short completion on CPU; measured, MiB.
        (SMALL, {"ctx_size": 512}, 168),
        (SMALL, {"ctx_size": 2048}, 191),
        (SMALL, {"ctx_size": 8192}, 326),
        (SMALL, {"ctx_size": 16384}, 506),
        (SMALL, {"ctx_size": 32768, "parallel": 1}, 866),
        (SMALL, {"ctx_size": 8192, "ubatch": 128}, 326),
        (SMALL, {"ctx_size": 8192, "cache_type_k": "q8_0", "cache_type_v": "q8_0"}, 241),
        (WINDOWED, {"ctx_size": 2048}, 370),
        (WINDOWED, {"ctx_size": 8192}, 418),
        (WINDOWED, {"ctx_size": 32768}, 490),
        (WINDOWED, {"ctx_size": 32768, "parallel": 1}, 451),
        (REARRANGED, {"ctx_size": 2048}, 1809),
        (REARRANGED, {"ctx_size": 8192}, 1972),
        (REARRANGED, {"ctx_size": 32768}, 2649),
        (REARRANGED, {"ctx_size": 8192, "mmap": False}, 1386),
        # After prompts that fill every sequence.
        (SMALL, {"ctx_size": 8192, "ubatch": 2048}, 381),
        (SMALL, {"ctx_size": 8192, "flash_attn": False}, 378),
        (SMALL, {"ctx_size": 8192, "unified": True, "embeds": True}, 485),
        (WINDOWED, {"ctx_size": 32768}, 586),
        (REARRANGED, {"ctx_size": 2048}, 1882),
    ],
)
def test_the_estimate_brackets_what_was_measured(
    facts: GgufFacts, settings: dict[str, Any], pss_mb: int
) -> None:
    assert 0.9 * pss_mb <= ram(facts, **settings) <= 1.4 * pss_mb


def test_the_cache_is_llama_cpps_to_the_byte() -> None:
    def cache_mb(facts: GgufFacts, ctx: int, **settings: Any) -> int:
        """Two settings that differ in the cache alone."""
        none = dataclasses.replace(facts, head_count_kv=(0,) * facts.block_count)
        return ram(facts, ctx_size=ctx, **settings) - ram(none, ctx_size=ctx, **settings)

    assert cache_mb(SMALL, 8192) == pytest.approx(180, abs=1)
    assert cache_mb(SMALL, 32768, parallel=1) == pytest.approx(720, abs=1)
    assert cache_mb(SMALL, 512) == pytest.approx(22.5, abs=1), "each of four sequences has 256 at least"
    # 24 MiB for three blocks that see all; 60 for the others, and 60 of their checkpoints.
    assert cache_mb(WINDOWED, 8192) == pytest.approx(24 + 60 + 60, abs=1)
    assert cache_mb(WINDOWED, 8192, ubatch=128) == pytest.approx(24 + 45 + 45, abs=1)
    assert cache_mb(WINDOWED, 32768, unified=True) == pytest.approx(96 + 37.5 + 37.5, abs=1)
    assert cache_mb(WINDOWED, 8192, swa_full=True) == pytest.approx(24 + 120 + 120, abs=1)


def test_who_sees_a_window_is_the_files_word_before_the_architectures() -> None:
    def with_(**changes: Any) -> int:
        return ram(dataclasses.replace(WINDOWED, **changes), ctx_size=32768)

    every_block = with_(architecture="unheard-of")
    assert every_block > with_() + 300
    assert with_(architecture="unheard-of", sliding_pattern=6) == with_()
    listed = tuple(block % 6 < 5 for block in range(18))
    assert with_(architecture="unheard-of", sliding_pattern=listed) == with_()
    assert with_(sliding_window=0) > every_block - 100


def test_blocks_that_attend_without_a_cache() -> None:
    hybrid = dataclasses.replace(SMALL, full_attention_interval=3)
    assert ram(SMALL, ctx_size=8192) - ram(hybrid, ctx_size=8192) == pytest.approx(120, abs=1)
    blank = dataclasses.replace(SMALL, head_count_kv=(0,) * 30)
    recurrent = dataclasses.replace(blank, state_size=128, inner_size=4096)
    assert ram(recurrent, parallel=4) - ram(blank, parallel=4) == 4 * 60


def test_an_encoder_has_no_cache_and_scores_no_words() -> None:
    encoder = dataclasses.replace(SMALL, causal=False)
    embeds = {"unified": True, "embeds": True, "ubatch": 2048}
    assert ram(encoder, ctx_size=8192, **embeds) < ram(SMALL, ctx_size=8192, **embeds) - 180 - 200


def test_context_0_is_what_the_model_was_trained_for() -> None:
    assert ram(SMALL, ctx_size=0) == ram(SMALL, ctx_size=8192)


def test_what_is_rearranged_for_the_cpu_counts_twice() -> None:
    def with_(**changes: Any) -> int:
        return ram(dataclasses.replace(REARRANGED, **changes))

    twice = with_()
    once = with_(file_type=7)
    assert 597 <= twice - once <= 800
    assert with_(file_type=None) == twice, "most files are of such a kind"
    assert ram(REARRANGED, mmap=False) == ram(REARRANGED, repack=False) == once
    odd = dataclasses.replace(REARRANGED, embedding_length=1500)
    assert ram(odd) == ram(odd, repack=False)


def test_companions_and_further_parts_count() -> None:
    plain = ram(SMALL)
    assert ram(SMALL, companion_bytes=100 * MIB) == plain + 100
    parts = estimate_mb(SMALL, LlamaSettings(), gpu_present=False, weights_bytes=SMALL.file_bytes + 200 * MIB)
    assert parts.ram_mb == plain + 200
    assert ram(SMALL, cache_ram_mb=64) == plain + 64


def test_layers_on_a_gpu_take_their_weights_and_cache_with_them() -> None:
    def on_gpu(**settings: Any) -> Need:
        return estimate_mb(SMALL, LlamaSettings(ctx_size=16384, **settings), gpu_present=True)

    whole, half, none = on_gpu(), on_gpu(gpu_layers=15), on_gpu(gpu_layers=0)
    assert (none.ram_mb, none.gpu_mb) == (ram(SMALL, ctx_size=16384), 0)
    assert whole.gpu_mb > half.gpu_mb > (93 + 360) * 0.5
    assert whole.gpu_mb > 93 + 360
    assert whole.ram_mb < half.ram_mb
    assert on_gpu(kv_on_gpu=False).gpu_mb == pytest.approx(whole.gpu_mb - 360, abs=1)


facts = st.builds(
    GgufFacts,
    file_bytes=st.integers(0, 1 << 42),
    tensor_count=st.just(1),
    architecture=st.sampled_from(["llama", "gemma3"]),
    block_count=st.just(4),
    context_length=st.integers(0, 1 << 32),
    embedding_length=st.integers(0, 1 << 32),
    feed_forward_length=st.integers(0, 1 << 32),
    head_count=st.integers(0, 1 << 32),
    head_count_kv=st.tuples(*[st.integers(0, 1 << 32)] * 4),
    key_length=st.integers(0, 1 << 32),
    value_length=st.integers(0, 1 << 32),
    causal=st.booleans(),
    sliding_window=st.integers(0, 1 << 32),
    sliding_pattern=st.integers(0, 1 << 32) | st.tuples(*[st.booleans()] * 4),
    full_attention_interval=st.integers(0, 9),
    vocab_size=st.integers(0, 1 << 32),
)
settings = st.builds(
    LlamaSettings,
    ctx_size=st.integers(0, 1 << 31),
    parallel=st.integers(1, 4096),
    ubatch=st.integers(1, 1 << 31),
    cache_type_k=st.sampled_from(["f16", "q4_0", "strange"]),
    unified=st.booleans(),
    flash_attn=st.booleans(),
    embeds=st.booleans(),
    gpu_layers=st.integers(-1, 1000),
    cache_ram_mb=st.integers(-1, 1 << 31),
)


@given(facts=facts, settings=settings, gpu=st.booleans())
def test_any_shape_has_an_estimate_with_its_weights_in_it(
    facts: GgufFacts, settings: LlamaSettings, gpu: bool
) -> None:
    found = estimate_mb(facts, settings, gpu_present=gpu)
    assert found.source == "estimated"
    assert found.ram_mb > 0
    assert found.ram_mb + found.gpu_mb >= facts.file_bytes // MIB
    assert gpu or found.gpu_mb == 0
    more = dataclasses.replace(settings, ctx_size=settings.ctx_size * 2)
    if settings.ctx_size:
        bigger = estimate_mb(facts, more, gpu_present=gpu)
        assert bigger.ram_mb + bigger.gpu_mb >= found.ram_mb + found.gpu_mb


# --- a slot ----------------------------------------------------------------------------


def slot(**settings: Any) -> SlotConfig:
    return SlotConfig.model_validate({"name": "s", **settings})


def llama(type: str = "llm", *, options: dict[str, Any] | None = None, **settings: Any) -> SlotConfig:
    return slot(type=type, engine="llama-cpp", model="m", options=options or {}, **settings)


def serve(**settings: Any) -> SlotConfig:
    return slot(type="tts", engine="command", command=["serve"], **settings)


def a_file(path: Path, megabytes: int) -> Path:
    with path.open("wb") as file:
        file.truncate(megabytes * MIB)
    return path


def test_what_is_configured_wins() -> None:
    assert need_for(llama(memory_mb=300, gpu_memory_mb=20), None) == Need(300, 20, "configured")
    assert need_for(serve(memory_mb=300), None) == Need(300, 0, "configured")


def test_what_is_configured_of_one_leaves_the_other_estimated(tmp_path: Path) -> None:
    path = a_file(tmp_path / "m.gguf", 93)
    estimated = need_for(llama(), path, gpu_present=True, read=lambda _: SMALL)
    assert estimated.gpu_mb > 0
    found = need_for(llama(memory_mb=300), path, gpu_present=True, read=lambda _: SMALL)
    assert found == Need(300, estimated.gpu_mb, "configured")


def test_a_server_that_slotd_does_not_run_takes_nothing() -> None:
    assert need_for(slot(type="llm", engine="external", url="http://127.0.0.1:1"), None).ram_mb == 0


def test_a_llama_slot_goes_by_its_files_header(tmp_path: Path) -> None:
    path = a_file(tmp_path / "m.gguf", 200)
    config = llama(options={"ctx_size": 8192})
    expected = estimate_mb(SMALL, LlamaSettings(ctx_size=8192), gpu_present=False, weights_bytes=200 * MIB)
    assert need_for(config, path, read=lambda _: SMALL) == expected
    by_size = estimate_mb_by_size(200 * MIB, LlamaSettings(ctx_size=8192), gpu_present=False)
    assert need_for(config, path) == by_size, "no header: by its size"


def test_before_the_file_is_here_its_configured_size_counts() -> None:
    config = llama(options={"ctx_size": 8192})
    found = need_for(config, None, size_mb=98)
    assert found.source == "estimated"
    assert 0.9 * 326 <= found.ram_mb <= 1.7 * 326, "it may be of a kind that is rearranged"
    assert need_for(config, None) == Need(need.UNKNOWN_MB, 0, "unknown")


def test_a_command_counts_its_models_file_and_a_margin(tmp_path: Path) -> None:
    found = need_for(serve(), a_file(tmp_path / "m.bin", 100))
    assert found == Need(120 + need.COMMAND_MB, 0, "estimated")
    assert need_for(serve(), None) == Need(need.UNKNOWN_MB, 0, "unknown")


def test_a_model_in_parts_counts_all_that_are_there(tmp_path: Path) -> None:
    parts = [a_file(tmp_path / f"m [1]-0000{n}-of-00003.gguf", 100) for n in (1, 2, 3)]
    a_file(tmp_path / "m [1]-00001-of-00009.gguf", 100)
    assert need_for(serve(), parts[0]).ram_mb == 360 + need.COMMAND_MB
    assert need_for(serve(), parts[1]).ram_mb == 120 + need.COMMAND_MB


def test_a_projector_and_adapters_count(tmp_path: Path) -> None:
    a_file(tmp_path / "eye.gguf", 50)
    a_file(tmp_path / "style.gguf", 25)
    config = llama(options={"mmproj": "eye.gguf", "lora": ["style.gguf", "absent.gguf"]})
    assert llama_settings(config, lambda name: tmp_path / name).companion_bytes == 75 * MIB


def test_settings_follow_the_launch() -> None:
    config = llama(
        max_parallel=3,
        options={
            "ctx_size": 100,
            "ubatch_size": 64,
            "gpu_layers": 2,
            "flash_attn": "off",
            "cache_ram_mib": 5,
        },
    )
    assert llama_settings(config) == LlamaSettings(
        ctx_size=100, parallel=3, ubatch=64, gpu_layers=2, flash_attn=False, cache_ram_mb=5
    )
    embed = llama_settings(llama("embedding", options={"batch_size": 1024}))
    assert (embed.ubatch, embed.unified, embed.embeds) == (1024, True, True)


def test_further_arguments_win() -> None:
    words = "-c 9 -np 2 -ub 32 -ctk Q8_0 -ctv q4_0 -ngl all -cram 7 -fa off -kvu -nkvo --swa-full --no-mmap"
    config = llama(options={"ctx_size": 100, "gpu_layers": 0, "extra_args": words.split()})
    assert llama_settings(config) == LlamaSettings(
        ctx_size=9,
        parallel=2,
        ubatch=32,
        cache_type_k="q8_0",
        cache_type_v="q4_0",
        gpu_layers=-1,
        cache_ram_mb=7,
        flash_attn=False,
        unified=True,
        kv_on_gpu=False,
        swa_full=True,
        mmap=False,
    )


def test_further_arguments_that_make_no_sense_change_nothing() -> None:
    config = llama(options={"extra_args": ["-c", "many", "-np", "0", "--parallel"]})
    assert llama_settings(config) == dataclasses.replace(LlamaSettings(), parallel=1)


# --- files that stay and files that are replaced -------------------------------------------


def tiny_gguf(blocks: int) -> bytes:
    def text(value: bytes) -> bytes:
        return struct.pack("<Q", len(value)) + value

    return (
        b"GGUF"
        + struct.pack("<IQQ", 3, 0, 2)
        + (text(b"general.architecture") + struct.pack("<I", 8) + text(b"x"))
        + (text(b"x.block_count") + struct.pack("<II", 4, blocks))
    )


def test_a_header_is_read_again_only_when_the_file_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(tiny_gguf(3))
    reads: list[Path] = []
    really = need._read

    def read(path: Path) -> GgufFacts | None:
        reads.append(path)
        return really(path)

    monkeypatch.setattr(need, "_read", read)
    headers = Headers()
    found = [headers(path), headers(path)]
    assert [f.block_count for f in found if f] == [3, 3]
    assert len(reads) == 1
    path.write_bytes(tiny_gguf(4))
    os.utime(path, ns=(1, 1))
    again = headers(path)
    assert again is not None
    assert again.block_count == 4
    path.write_text("no model")
    assert headers(path) is None
    assert headers(path) is None
    assert len(reads) == 3
    path.unlink()
    assert headers(path) is None


def test_replaced_weights_are_another_launch(tmp_path: Path) -> None:
    path = a_file(tmp_path / "m.gguf", 1)
    eye = a_file(tmp_path / "eye.gguf", 1)

    def digests() -> tuple[str, str]:
        chat = llama_cpp.launch_plan(
            llama(options={"mmproj": "eye.gguf"}), "m", path, lambda name: tmp_path / name
        )
        return chat.digest(), command.launch_plan(serve(), "m", path).digest()

    first = digests()
    assert digests() == first
    os.utime(path, ns=(5, 5))
    second = digests()
    assert not set(second) & set(first)
    os.utime(eye, ns=(5, 5))
    third = digests()
    assert third[0] != second[0]
    assert third[1] == second[1]
    path.unlink()
    assert digests()[0] not in (first[0], second[0], third[0])


def test_a_file_that_is_not_there_has_an_identity_too(tmp_path: Path) -> None:
    os.utime(a_file(tmp_path / "one", 1), ns=(7, 7))
    assert identities(tmp_path / "one", tmp_path / "none") == (f"{MIB}:7", "absent")


# --- the backend ---------------------------------------------------------------------------


def test_a_backend_knows_what_its_slot_needs(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    models = {
        "m": ModelRef("m", f"file:{path}", size_mb=98),
        "bad": ModelRef("bad", "nowhere"),
    }
    launcher = LocalLauncher(PortPool(42000, 42001), run_id="test", guardian=None, ledger=None)
    backend = make_backend(llama(), models, ModelStore(tmp_path), launcher, Path)
    before = backend.need("m")
    assert before == need_for(llama(), None, size_mb=98)
    a_file(path, 500)
    assert backend.need("m").ram_mb > before.ram_mb + 300
    assert backend.need("bad") == backend.need("unheard-of") == Need(need.UNKNOWN_MB, 0, "unknown")
