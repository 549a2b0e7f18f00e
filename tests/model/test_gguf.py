"""The head of GGUF files, well made and not."""

from __future__ import annotations

import io
import os
import struct
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from slotd.model import gguf
from slotd.model.gguf import GgufFacts, GgufUnreadable, parse_gguf, read_gguf

U8, I32, F32, BOOL, STRING, ARRAY, U32, U64 = 0, 5, 6, 7, 8, 9, 4, 10
CODES = {U8: "<B", I32: "<i", F32: "<f", BOOL: "<?", U32: "<I", U64: "<Q"}


def text(value: str) -> bytes:
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def entry(key: str, kind: int, value: object) -> bytes:
    """A named value; a list is written as an array of ``kind``."""
    if isinstance(value, list):
        head = text(key) + struct.pack("<IIQ", ARRAY, kind, len(value))
        return head + b"".join(text(v) if kind == STRING else struct.pack(CODES[kind], v) for v in value)
    body = text(value) if isinstance(value, str) else struct.pack(CODES[kind], value)
    return text(key) + struct.pack("<I", kind) + body


def document(*entries: bytes, version: int = 3, tensors: int = 2, tail: bytes = bytes(64)) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, len(entries)) + b"".join(entries) + tail


def facts_of(data: bytes) -> GgufFacts:
    return parse_gguf(io.BytesIO(data), len(data))


ARCHITECTURE = entry("general.architecture", STRING, "llama")
MODEL = (
    ARCHITECTURE,
    entry("general.name", STRING, "x" * 1000),
    entry("llama.block_count", U32, 2),
    entry("llama.context_length", U32, 8192),
    entry("llama.embedding_length", U64, 64),
    entry("llama.feed_forward_length", U32, 128),
    entry("llama.attention.head_count", U32, 8),
    entry("llama.attention.head_count_kv", U32, 2),
    entry("llama.rope.freq_base", F32, 1e4),
    entry("general.file_type", U32, 15),
)
WORDS = entry("tokenizer.ggml.tokens", STRING, ["a", "b", "c"])


def test_the_shape_of_a_model() -> None:
    data = document(*MODEL, WORDS)
    assert facts_of(data) == GgufFacts(
        file_bytes=len(data),
        tensor_count=2,
        architecture="llama",
        block_count=2,
        context_length=8192,
        embedding_length=64,
        feed_forward_length=128,
        head_count=8,
        head_count_kv=(2, 2),
        key_length=8,
        value_length=8,
        vocab_size=3,
        file_type=15,
    )


def test_version_2_is_read_as_well_and_others_are_not() -> None:
    assert facts_of(document(*MODEL, version=2)) == facts_of(document(*MODEL))
    for version in (1, 4, 3 << 24):
        with pytest.raises(GgufUnreadable, match="version"):
            facts_of(document(*MODEL, version=version))


def test_blocks_may_differ() -> None:
    facts = facts_of(
        document(
            ARCHITECTURE,
            entry("llama.block_count", U32, 3),
            entry("llama.attention.head_count", U32, [8, 8, 4]),
            entry("llama.attention.head_count_kv", I32, [2, 0, 4]),
            entry("llama.feed_forward_length", I32, [10, 30, 20]),
            entry("llama.attention.key_length", U32, 16),
            entry("llama.attention.value_length", U32, 12),
            entry("llama.attention.sliding_window", U32, 512),
            entry("llama.attention.sliding_window_pattern", BOOL, [True, True, False]),
        )
    )
    assert facts.head_count == 8
    assert facts.head_count_kv == (2, 0, 4)
    assert facts.feed_forward_length == 30
    assert (facts.key_length, facts.value_length) == (16, 12)
    assert (facts.sliding_window, facts.sliding_pattern) == (512, (True, True, False))


def test_a_pattern_may_be_a_period() -> None:
    period = entry("llama.attention.sliding_window_pattern", U32, 6)
    assert facts_of(document(*MODEL, period)).sliding_pattern == 6


def test_without_its_own_count_each_head_has_its_keys() -> None:
    facts = facts_of(document(*(e for e in MODEL if b"head_count_kv" not in e)))
    assert facts.head_count_kv == (8, 8)


def test_an_encoder_and_a_file_without_blocks() -> None:
    facts = facts_of(
        document(
            entry("general.architecture", STRING, "bert"),
            entry("bert.attention.causal", BOOL, False),
            entry("bert.vocab_size", U32, 30),
        )
    )
    assert not facts.causal
    assert facts.head_count_kv == ()
    assert facts.vocab_size == 30


def test_reading_ends_where_the_words_begin() -> None:
    """What follows, however wrong, is not looked at."""
    words = entry("tokenizer.ggml.tokens", STRING, ["a"] * 50)
    data = document(*MODEL, words, b"\xff" * 9)
    stream = io.BytesIO(data)
    assert parse_gguf(stream, len(data)).vocab_size == 50
    assert stream.tell() == data.index(text("a"))


def test_words_that_come_first_are_passed_over() -> None:
    scores = entry("tokenizer.ggml.scores", F32, [0.0] * 5)
    facts = facts_of(document(WORDS, scores, *MODEL))
    assert (facts.vocab_size, facts.block_count) == (3, 2)


def test_too_many_words_first_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf, "MAX_STRINGS", 2)
    with pytest.raises(GgufUnreadable, match="too many"):
        facts_of(document(WORDS, *MODEL))


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ((), "architecture"),
        ((entry("general.architecture", U32, 1),), "architecture"),
        ((ARCHITECTURE, entry("llama.block_count", I32, -1)), "block_count = -1"),
        ((ARCHITECTURE, entry("llama.block_count", F32, 2.0)), "block_count = 2.0"),
        ((ARCHITECTURE, entry("llama.block_count", U32, 5000)), "5000 blocks"),
        ((ARCHITECTURE, entry("llama.context_length", U64, 2**40)), "context_length"),
        ((*MODEL[:3], entry("llama.attention.head_count_kv", U32, [1])), None),
        ((*MODEL[:3], entry("llama.attention.head_count_kv", U32, [])), "0 entries for 2 blocks"),
        ((text("x") + struct.pack("<I", 99),), "kind 99"),
        ((text("x") + struct.pack("<IIQ", ARRAY, ARRAY, 1),), "array of kind 9"),
        ((text("x") + struct.pack("<IIQ", ARRAY, U8, 2**60),), "elements"),
        ((text("x") + struct.pack("<IQ", STRING, 2**60),), "does not end"),
        ((struct.pack("<Q", 2**60),), "a name of"),
    ],
)
def test_what_cannot_be_right_is_refused(entries: tuple[bytes, ...], words: str | None) -> None:
    data = document(*entries)
    if words is None:
        assert facts_of(data).head_count_kv == (1, 1), "one entry speaks for all"
        return
    with pytest.raises(GgufUnreadable, match=words):
        facts_of(data)


def test_lying_counts_are_refused() -> None:
    with pytest.raises(GgufUnreadable, match="tensors"):
        facts_of(document(*MODEL, tensors=2**50))
    with pytest.raises(GgufUnreadable, match="values"):
        facts_of(b"GGUF" + struct.pack("<IQQ", 3, 1, 2**50) + bytes(1000))


def test_a_file_that_was_cut_says_so() -> None:
    data = document(*MODEL, WORDS, tail=b"")
    for end in range(data.index(b"llama.rope")):
        with pytest.raises(GgufUnreadable):
            facts_of(data[:end])
        with pytest.raises(GgufUnreadable):
            parse_gguf(io.BytesIO(data[:end]), len(data))


# --- files ---------------------------------------------------------------------------


def test_a_file_on_disk(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    data = document(*MODEL, WORDS)
    path.write_bytes(data)
    assert read_gguf(path) == facts_of(data)


def test_what_is_no_file_is_refused_and_named(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.gguf"
    os.mkfifo(pipe)
    other = tmp_path / "page.gguf"
    other.write_text("<html>")
    for path in (tmp_path / "absent.gguf", tmp_path, pipe, other, Path("a\0b")):
        with pytest.raises(GgufUnreadable):
            read_gguf(path)
    with pytest.raises(GgufUnreadable, match=r"page\.gguf: it is no GGUF file"):
        read_gguf(other)


# --- whatever the bytes ---------------------------------------------------------------


class Meter(io.BytesIO):
    """Knows the largest piece asked for, and how far reading went."""

    largest = 0
    farthest = 0

    def read(self, size: int | None = -1, /) -> bytes:
        assert size is not None
        assert size >= 0, "never all there is"
        self.largest = max(self.largest, size)
        data = super().read(size)
        self.farthest = max(self.farthest, self.tell())
        return data


def damaged() -> st.SearchStrategy[bytes]:
    """A good file with some bytes changed."""
    good = document(*MODEL, entry("llama.x", U32, [1, 2, 3]), WORDS)
    changes = st.lists(st.tuples(st.integers(0, len(good) - 1), st.integers(0, 255)), max_size=8)

    def apply(changes: list[tuple[int, int]]) -> bytes:
        data = bytearray(good)
        for at, byte in changes:
            data[at] = byte
        return bytes(data)

    return changes.map(apply)


@given(
    data=st.one_of(
        st.binary(max_size=200),
        st.binary(max_size=200).map(lambda tail: b"GGUF" + struct.pack("<IQQ", 3, 1, 5) + tail),
        damaged(),
    ),
    claimed=st.none() | st.integers(0, 2**62),
    bound=st.sampled_from([1, 40, 200, gguf.MAX_HEADER_BYTES]),
)
@example(data=document(*MODEL, WORDS), claimed=None, bound=gguf.MAX_HEADER_BYTES)
def test_any_bytes_give_facts_or_the_one_error(data: bytes, claimed: int | None, bound: int) -> None:
    stream = Meter(data)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(gguf, "MAX_HEADER_BYTES", bound)
        try:
            facts = parse_gguf(stream, len(data) if claimed is None else claimed)
        except GgufUnreadable:
            pass
        else:
            assert len(facts.head_count_kv) == facts.block_count
    assert stream.largest <= gguf.MAX_TEXT
    assert stream.farthest <= bound
