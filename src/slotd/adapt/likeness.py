"""``/v1/rerank`` by a model that makes vectors: the nearer a document's to the query's, the better. Pure.

A model made for reranking reads query and document together and judges better;
this needs none, and serves where vectors serve for searching.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import msgspec

from slotd.adapt.contract import Call
from slotd.adapt.ranking import Wanted, ranked, read_wanted
from slotd.adapt.translated import Ask, Document
from slotd.errors import EngineError

__all__ = ["rerank"]


class _Item(msgspec.Struct):
    index: int
    embedding: list[float]


class _Answer(msgspec.Struct):
    data: list[_Item]
    usage: dict[str, Any] | None = None
    """Some engines have more than counts in it: details, null."""


def rerank(call: Call) -> Ask:
    """``POST /v1/embeddings``. See :data:`slotd.adapt.Translation`. A score is the cosine: from -1 to 1."""
    wanted = read_wanted(call)
    asked = {
        "model": wanted.model,
        "input": [wanted.query, *wanted.documents],
        "encoding_format": "float",
    }
    return Ask("/v1/embeddings", msgspec.json.encode(asked), convert=partial(_convert, wanted))


def _convert(wanted: Wanted, answer: bytes) -> Document:
    try:
        said = msgspec.json.decode(answer, type=_Answer)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise EngineError(f"the engine's answer cannot be read: {exc}") from exc
    vectors = {item.index: item.embedding for item in said.data}
    query = vectors.pop(0, None)
    if query is None or any(len(vector) != len(query) for vector in vectors.values()):
        raise EngineError("the engine's vectors are not those of the texts that it was given")
    scores = [(index - 1, _cosine(query, vector)) for index, vector in vectors.items()]
    usage = None
    if said.usage is not None:
        usage = {name: count for name, count in said.usage.items() if type(count) is int}
    return ranked(wanted, scores, usage)


def _cosine(a: Sequence[float], b: Sequence[float]) -> float:
    length = math.hypot(*a) * math.hypot(*b)
    return sum(x * y for x, y in zip(a, b, strict=True)) / length if length else 0.0
