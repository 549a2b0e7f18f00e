"""A BERT of Hugging Face's as a GGUF file, for llama.cpp.

    python -m slotd.model.bert_gguf FOLDER OUT.gguf

``FOLDER`` holds ``config.json``, ``model.safetensors`` and ``vocab.txt``, as a
sentence-transformers model does (all-MiniLM-L6-v2, say), or a cross-encoder
made for reranking. The tensors are copied as they are stored, F32 or F16, so
neither numpy nor torch is needed. Only plain BERT with a WordPiece vocabulary
is understood; anything else is refused with a word on why.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NoReturn, TypeVar

import msgspec

from slotd.model.gguf_write import F16, F32, TensorCopy, Uint32, Value, write_gguf
from slotd.model.safetensors import SafetensorsUnreadable, StoredTensor, read_safetensors

__all__ = ["NotConvertible", "convert", "main", "tensor_name", "words"]

T = TypeVar("T")

POOLING_NONE, POOLING_MEAN, POOLING_CLS, POOLING_RANK = 0, 1, 2, 4
"""llama.cpp's numbers."""

_NORMAL, _CONTROL = 1, 3
"""Kinds of token."""


class NotConvertible(Exception):
    """The model is of another kind, or a part of it is missing. The message says which."""


class _Config(msgspec.Struct):
    model_type: str = ""
    hidden_act: str = "gelu"
    position_embedding_type: str | None = "absolute"
    hidden_size: int = 0
    intermediate_size: int = 0
    num_hidden_layers: int = 0
    num_attention_heads: int = 0
    max_position_embeddings: int = 0
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    name_or_path: str = msgspec.field(default="", name="_name_or_path")


class _Pooling(msgspec.Struct):
    pooling_mode_cls_token: bool = False
    pooling_mode_mean_tokens: bool = False


_WHOLE: Mapping[str, str] = {
    "embeddings.word_embeddings.weight": "token_embd.weight",
    "embeddings.position_embeddings.weight": "position_embd.weight",
    "embeddings.token_type_embeddings.weight": "token_types.weight",
    "embeddings.LayerNorm.weight": "token_embd_norm.weight",
    "embeddings.LayerNorm.bias": "token_embd_norm.bias",
    "classifier.weight": "cls.output.weight",
    "classifier.bias": "cls.output.bias",
}
_OF_BLOCK: Mapping[str, str] = {
    "attention.self.query": "attn_q",
    "attention.self.key": "attn_k",
    "attention.self.value": "attn_v",
    "attention.output.dense": "attn_output",
    "attention.output.LayerNorm": "attn_output_norm",
    "intermediate.dense": "ffn_up",
    "output.dense": "ffn_down",
    "output.LayerNorm": "layer_output_norm",
}
_POOLER: Mapping[str, str] = {"pooler.dense.weight": "cls.weight", "pooler.dense.bias": "cls.bias"}
"""Made for the classifier; a model without one is pooled without it."""

_BLOCK = re.compile(r"encoder\.layer\.(\d+)\.(.+)\.(weight|bias)")


def tensor_name(name: str, *, classifies: bool = False) -> str | None:
    """llama.cpp's name for a tensor of BERT's; None for one that it has no use for."""
    name = name.removeprefix("bert.")
    if classifies and name in _POOLER:
        return _POOLER[name]
    if match := _BLOCK.fullmatch(name):
        part = _OF_BLOCK.get(match[2])
        return f"blk.{match[1]}.{part}.{match[3]}" if part else None
    return _WHOLE.get(name)


def words(vocabulary: Sequence[str]) -> Iterator[tuple[str, int]]:
    """Each piece as llama.cpp spells it, and its kind.

    There the beginning of a word is marked, in BERT's vocabulary its
    continuation (##).
    """
    for piece in vocabulary:
        if re.fullmatch(r"\[[^\]]+\]", piece):
            special = re.fullmatch(r"\[(CLS|SEP|PAD|UNK|MASK|unused\d+)\]", piece)
            yield piece, _CONTROL if special else _NORMAL
        elif piece.startswith("##") and len(piece) > 2:
            yield piece[2:], _NORMAL
        else:
            yield f"\N{LOWER ONE EIGHTH BLOCK}{piece}", _NORMAL


def convert(folder: Path, out: Path) -> None:
    """Write ``out``, whole or not at all. Blocks. Raises :class:`NotConvertible` and OSError."""
    config = _read(folder / "config.json", _Config)
    if config.model_type != "bert":
        raise NotConvertible(f"{folder}: the model is of type {config.model_type!r}, not 'bert'")
    if config.hidden_act != "gelu" or (config.position_embedding_type or "absolute") != "absolute":
        raise NotConvertible(f"{folder}: only BERT with gelu and absolute positions is understood")
    weights = folder / "model.safetensors"
    try:
        stored = read_safetensors(weights)
    except SafetensorsUnreadable as error:
        raise NotConvertible(str(error)) from error
    vocabulary = (folder / "vocab.txt").read_text(encoding="utf-8").split("\n")
    if vocabulary[-1] == "":
        vocabulary.pop()
    classifies = "classifier.weight" in stored
    tensors = list(_tensors(stored, classifies))
    _check_whole(folder, config, tensors, len(vocabulary))
    values = _values(config, vocabulary, folder.name, _pooling(folder, classifies=classifies))
    part = out.with_name(f"{out.name}.part")
    try:
        with open(part, "wb") as file:
            write_gguf(file, values, tensors, weights)
        os.replace(part, out)
    finally:
        part.unlink(missing_ok=True)


def _tensors(stored: Mapping[str, StoredTensor], classifies: bool) -> Iterator[TensorCopy]:
    kinds = {"F32": F32, "F16": F16}
    for name, tensor in stored.items():
        wanted = tensor_name(name, classifies=classifies)
        if wanted is None:
            continue
        if tensor.dtype not in kinds:
            raise NotConvertible(f"the tensor {name!r} is stored as {tensor.dtype}, not as F32 or F16")
        yield TensorCopy(wanted, tensor.shape, kinds[tensor.dtype], tensor.offset, tensor.size)


def _check_whole(folder: Path, config: _Config, tensors: Sequence[TensorCopy], vocabulary: int) -> None:
    found = {tensor.name: tensor for tensor in tensors}
    needed = [name for name in _WHOLE.values() if not name.startswith("cls.")]
    for block in range(config.num_hidden_layers):
        needed += [f"blk.{block}.{part}.{leaf}" for part in _OF_BLOCK.values() for leaf in ("weight", "bias")]
    missing = [name for name in needed if name not in found]
    if missing or not config.num_hidden_layers:
        raise NotConvertible(f"{folder}: the model has no {', '.join(missing[:3]) or 'layers'}")
    rows = found["token_embd.weight"].shape[0]
    if rows != vocabulary:
        raise NotConvertible(f"{folder}: vocab.txt has {vocabulary} words, the model {rows}")


def _pooling(folder: Path, *, classifies: bool) -> int:
    if classifies:
        return POOLING_RANK
    try:
        pooling = _read(folder / "1_Pooling" / "config.json", _Pooling)
    except FileNotFoundError:
        return POOLING_NONE  # a bare BERT: who launches it says how
    if pooling.pooling_mode_mean_tokens:
        return POOLING_MEAN
    return POOLING_CLS if pooling.pooling_mode_cls_token else POOLING_NONE


def _values(config: _Config, vocabulary: Sequence[str], name: str, pooling: int) -> dict[str, Value]:
    spelt = tuple(words(vocabulary))
    marks = {
        key: Uint32(vocabulary.index(piece))
        for key, piece in (
            ("bos", "[CLS]"),
            ("eos", "[SEP]"),
            ("unknown", "[UNK]"),
            ("seperator", "[SEP]"),  # so spelt in the format
            ("padding", "[PAD]"),
            ("cls", "[CLS]"),
            ("mask", "[MASK]"),
        )
        if piece in vocabulary
    }
    if not {"bos", "eos", "unknown"} <= marks.keys():
        raise NotConvertible(f"{name}: vocab.txt lacks [CLS], [SEP] or [UNK]")
    values: dict[str, Value] = {
        "general.architecture": "bert",
        "general.name": config.name_or_path or name,
        "bert.block_count": Uint32(config.num_hidden_layers),
        "bert.context_length": Uint32(config.max_position_embeddings),
        "bert.embedding_length": Uint32(config.hidden_size),
        "bert.feed_forward_length": Uint32(config.intermediate_size),
        "bert.attention.head_count": Uint32(config.num_attention_heads),
        "bert.attention.layer_norm_epsilon": config.layer_norm_eps,
        "bert.attention.causal": False,
        "tokenizer.ggml.model": "bert",
        "tokenizer.ggml.token_type_count": Uint32(config.type_vocab_size),
        "tokenizer.ggml.tokens": [word for word, _ in spelt],
        "tokenizer.ggml.token_type": [kind for _, kind in spelt],
        **{f"tokenizer.ggml.{key}_token_id": id for key, id in marks.items()},
    }
    if pooling != POOLING_NONE:
        values["bert.pooling_type"] = Uint32(pooling)
    return values


def _read(path: Path, shape: type[T]) -> T:
    try:
        return msgspec.json.decode(path.read_bytes(), type=shape)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise NotConvertible(f"{path}: {error}") from error


def main(argv: Sequence[str]) -> int:
    if len(argv) != 2:
        _leave("usage: python -m slotd.model.bert_gguf FOLDER OUT.gguf", 2)
    try:
        convert(Path(argv[0]), Path(argv[1]))
    except (NotConvertible, OSError, EOFError) as error:
        _leave(f"slotd.model.bert_gguf: {error}", 1)
    return 0


def _leave(message: str, status: int) -> NoReturn:
    sys.stderr.write(f"{message}\n")
    sys.exit(status)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
