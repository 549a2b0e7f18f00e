"""What the head of a GGUF file says of its model: shapes, without a byte of its tensors.

A GGUF file (versions 2 and 3, little endian) begins with named values: the
model's, then its tokenizer's. Everything wanted here comes before the
tokenizer's word lists, which make up nearly all of a header, so reading ends
where they begin; only an oddly ordered file is read through them. What is not
read is not judged: whether the file is whole is for the engine to say.

Own code, since the format's reference package brings numpy and builds every
word of the vocabulary, and no other maintained one reads just this.
"""

from __future__ import annotations

import os
import stat
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

__all__ = ["GgufFacts", "GgufUnreadable", "parse_gguf", "read_gguf"]

MAX_HEADER_BYTES: Final = 64 << 20
"""A header that has not said what is wanted by then is given up."""
MAX_STRINGS: Final = 1_000_000
"""Texts passed over one by one; bounds the time, as their lengths have to be read."""
MAX_VALUES: Final = 4096
MAX_TEXT: Final = 65_535
MAX_LAYERS: Final = 4096
MAX_NUMBER: Final = 2**32

_STRING, _ARRAY = 8, 9
_SCALARS: Final[dict[int, struct.Struct]] = {
    kind: struct.Struct("<" + code) for kind, code in zip((*range(8), 10, 11, 12), "BbHhIif?Qqd", strict=True)
}
_U32, _U64 = _SCALARS[4], _SCALARS[10]
_WORDS: Final = "tokenizer.ggml.tokens"
_STORED: Final = "general.file_type"
_PER_LAYER: Final = (
    ".attention.head_count",
    ".attention.head_count_kv",
    ".attention.sliding_window_pattern",
    ".feed_forward_length",
)

_Value = int | float | bool | str | tuple[int | float | bool, ...]


class GgufUnreadable(Exception):
    """The header cannot be read or makes no sense. The message says what is wrong."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufFacts:
    """A model's shape. A number that the file does not give is 0, unless said otherwise.

    ``head_count_kv`` has an entry for each block, and so has ``sliding_pattern``
    if the file lists which blocks see a window only; a number there is the
    period (each n-th block sees all), 0 means that the file does not say.
    ``key_length`` and ``value_length`` fall back to an equal share of the
    embedding, as the format has it. ``feed_forward_length`` is the widest
    block's. ``causal`` is False for encoders. ``vocab_size`` counts tokens.
    ``file_type`` is llama.cpp's number for how most tensors are stored; None if
    that is not said before the words.
    """

    file_bytes: int
    tensor_count: int
    architecture: str
    block_count: int = 0
    context_length: int = 0
    embedding_length: int = 0
    feed_forward_length: int = 0
    head_count: int = 0
    head_count_kv: tuple[int, ...] = ()
    key_length: int = 0
    value_length: int = 0
    causal: bool = True
    sliding_window: int = 0
    sliding_pattern: int | tuple[bool, ...] = 0
    full_attention_interval: int = 0
    state_size: int = 0
    inner_size: int = 0
    expert_count: int = 0
    expert_used_count: int = 0
    expert_feed_forward_length: int = 0
    vocab_size: int = 0
    split_count: int = 0
    file_type: int | None = None


def read_gguf(path: Path) -> GgufFacts:
    """The facts of a file. Blocks for one short read. Raises :class:`GgufUnreadable`."""
    try:
        # Not to hang on a pipe that somebody calls a model.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb", buffering=1 << 16) as file:
            info = os.fstat(descriptor)
            if not stat.S_ISREG(info.st_mode):
                raise GgufUnreadable(f"{path} is not a file")
            return parse_gguf(file, info.st_size)
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        raise GgufUnreadable(f"{path}: {error}") from error
    except GgufUnreadable as error:
        raise GgufUnreadable(f"{path}: {error}") from error


def parse_gguf(stream: BinaryIO, size: int) -> GgufFacts:
    """The facts of the ``size`` bytes of ``stream``; buffered, since it is read in small bites.

    Reads at most :data:`MAX_HEADER_BYTES`, and nothing is allocated by a length
    that the file could not hold. Raises :class:`GgufUnreadable` (and OSError
    for the stream's own trouble).
    """
    cursor = _Cursor(stream, min(size, MAX_HEADER_BYTES))
    if cursor.take(4) != b"GGUF":
        raise GgufUnreadable("it is no GGUF file")
    version = cursor.number(_U32)
    if version not in (2, 3):
        raise GgufUnreadable(f"version {version} of the format is not known here; 2 and 3 are")
    tensors, count = cursor.number(_U64), cursor.number(_U64)
    if tensors > size or count > MAX_VALUES:
        raise GgufUnreadable(f"{tensors} tensors and {count} values cannot be right")
    values: dict[str, _Value] = {}
    for _ in range(count):
        key, kind = cursor.text(), cursor.number(_U32)
        if kind != _ARRAY:
            values[key] = cursor.value(kind)
            continue
        element, length = cursor.number(_U32), cursor.length_of_array()
        if key == _WORDS:
            values[key] = length
            if f"{values.get('general.architecture')}.block_count" in values:
                break
        if element in _SCALARS and length <= MAX_LAYERS and key.endswith(_PER_LAYER):
            values[key] = tuple(cursor.scalar(element) for _ in range(length))
        else:
            cursor.pass_over(element, length)
    return _facts(values, size, tensors)


class _Cursor:
    """Reads forward, and never past ``left`` bytes."""

    def __init__(self, stream: BinaryIO, left: int) -> None:
        self._stream = stream
        self._left = left
        self._strings = MAX_STRINGS

    def take(self, count: int) -> bytes:
        self._spend(count)
        data = self._stream.read(count)
        if len(data) != count:
            raise GgufUnreadable("it ends inside its header")
        return data

    def _spend(self, count: int) -> None:
        if count > self._left:
            raise GgufUnreadable("its header does not end where it should")
        self._left -= count

    def number(self, form: struct.Struct) -> int:
        (value,) = form.unpack(self.take(form.size))
        return int(value)

    def scalar(self, kind: int) -> int | float | bool:
        form = _SCALARS[kind]
        value: int | float | bool
        (value,) = form.unpack(self.take(form.size))
        return value

    def text(self) -> str:
        """A name, or a short value."""
        length = self.number(_U64)
        if length > MAX_TEXT:
            raise GgufUnreadable(f"a name of {length} bytes cannot be right")
        return self.take(length).decode("utf-8", "replace")

    def value(self, kind: int) -> _Value:
        """A value that is no array; a long text (a chat template) is passed over and reads as ""."""
        if kind in _SCALARS:
            return self.scalar(kind)
        if kind != _STRING:
            raise GgufUnreadable(f"there is no value of kind {kind}")
        length = self.number(_U64)
        if length <= 256:
            return self.take(length).decode("utf-8", "replace")
        self._skip(length)
        return ""

    def length_of_array(self) -> int:
        """How many elements an array has; each takes a byte at least."""
        length = self.number(_U64)
        if length > self._left:
            raise GgufUnreadable(f"an array of {length} elements cannot be right")
        return length

    def pass_over(self, element: int, length: int) -> None:
        if element in _SCALARS:
            self._skip(_SCALARS[element].size * length)
        elif element == _STRING:
            self._strings -= length
            if self._strings < 0:
                raise GgufUnreadable("it holds too many texts before the model's own values")
            for _ in range(length):
                self._skip(self.number(_U64))
        else:
            raise GgufUnreadable(f"there is no array of kind {element}")

    def _skip(self, count: int) -> None:
        self._spend(count)
        self._stream.seek(count, os.SEEK_CUR)


def _facts(values: dict[str, _Value], size: int, tensors: int) -> GgufFacts:
    architecture = values.get("general.architecture")
    if not isinstance(architecture, str) or not architecture:
        raise GgufUnreadable("it does not say its architecture")

    def row(key: str) -> tuple[int, ...]:
        """A number or a list of them."""
        value = values.get(f"{architecture}.{key}", 0)
        found = value if isinstance(value, tuple) else (value,)
        return tuple(_whole(key, number) for number in found)

    def one(key: str) -> int:
        value = row(key)
        return max(value, default=0)

    blocks = one("block_count")
    if blocks > MAX_LAYERS:
        raise GgufUnreadable(f"{blocks} blocks cannot be right")

    def each_block(key: str, found: tuple[int, ...]) -> tuple[int, ...]:
        if len(found) == 1:
            return found * blocks
        if len(found) < blocks:
            raise GgufUnreadable(f"{key} has {len(found)} entries for {blocks} blocks")
        return found[:blocks]

    heads = one("attention.head_count")
    has_kv = f"{architecture}.attention.head_count_kv" in values
    share = one("embedding_length") // heads if heads else 0
    listed = isinstance(values.get(f"{architecture}.attention.sliding_window_pattern"), tuple)
    window = row("attention.sliding_window_pattern")
    return GgufFacts(
        file_bytes=size,
        tensor_count=tensors,
        architecture=architecture,
        block_count=blocks,
        context_length=one("context_length"),
        embedding_length=one("embedding_length"),
        feed_forward_length=one("feed_forward_length"),
        head_count=heads,
        head_count_kv=each_block("head_count_kv", row("attention.head_count_kv") if has_kv else (heads,)),
        key_length=one("attention.key_length") or share,
        value_length=one("attention.value_length") or share,
        causal=values.get(f"{architecture}.attention.causal") is not False,
        sliding_window=one("attention.sliding_window"),
        sliding_pattern=tuple(map(bool, each_block("sliding_window_pattern", window)))
        if listed
        else window[0],
        full_attention_interval=one("full_attention_interval"),
        state_size=one("ssm.state_size"),
        inner_size=one("ssm.inner_size"),
        expert_count=one("expert_count"),
        expert_used_count=one("expert_used_count"),
        expert_feed_forward_length=one("expert_feed_forward_length"),
        vocab_size=_whole(_WORDS, values.get(_WORDS, 0)) or one("vocab_size"),
        split_count=_whole("split.count", values.get("split.count", 0)),
        file_type=_whole(_STORED, values[_STORED]) if _STORED in values else None,
    )


def _whole(key: str, value: object) -> int:
    if not isinstance(value, int) or not 0 <= value < MAX_NUMBER:
        raise GgufUnreadable(f"{key} = {value!r} cannot be right")
    return int(value)
