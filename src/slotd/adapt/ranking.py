"""``/v1/rerank`` in the shape of Cohere and Jina, which llama.cpp has too: read and written. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from slotd.adapt.contract import Call
from slotd.adapt.fields import read_object, text
from slotd.adapt.translated import Document
from slotd.errors import EngineError, RequestUnprocessable

__all__ = ["Wanted", "ranked", "read_wanted"]


@dataclass(frozen=True, slots=True)
class Wanted:
    """A request to rank ``documents`` by ``query``.

    ``top_n``: as many as are wanted of them, None for all. ``shown``: the
    documents' texts are wanted in the answer. ``rest``: the whole request.
    """

    query: str
    documents: tuple[str, ...]
    model: str
    top_n: int | None = None
    shown: bool = False
    rest: Mapping[str, Any] | None = None


def read_wanted(call: Call) -> Wanted:
    """Raises :class:`RequestUnprocessable`. ``texts`` is read where there are no ``documents``."""
    document = read_object(call)
    query = text(document, "query")
    name = "texts" if "documents" not in document and "texts" in document else "documents"
    given = document.get(name)
    if not isinstance(given, list) or not given:
        raise RequestUnprocessable(f"`{name}` is missing: give a list of texts that is not empty", param=name)
    documents = tuple(_text_of(item, name, index) for index, item in enumerate(given))
    top_n = document.get("top_n")
    if top_n is not None and (isinstance(top_n, bool) or not isinstance(top_n, int) or top_n < 1):
        raise RequestUnprocessable("`top_n` must be a whole number of at least 1", param="top_n")
    shown = document.get("return_documents") is True or document.get("return_text") is True
    model = document.get("model")
    return Wanted(
        query,
        documents,
        call.model or (model if isinstance(model, str) else ""),
        top_n,
        shown,
        document,
    )


def _text_of(item: Any, name: str, index: int) -> str:
    value = item.get("text") if isinstance(item, dict) else item
    if not isinstance(value, str):
        raise RequestUnprocessable(
            f"`{name}[{index}]` must be a text, or an object with a `text`", param=name
        )
    return value


def ranked(
    wanted: Wanted, scores: Sequence[tuple[int, float]], usage: Mapping[str, int] | None = None
) -> Document:
    """The answer: of each document its index and its score, the best first; as they came where they are even.

    Raises :class:`EngineError` if the engine's scores are not of these documents.
    """
    count = len(wanted.documents)
    if len({index for index, _ in scores}) != count or any(
        not 0 <= index < count or not math.isfinite(score) for index, score in scores
    ):
        raise EngineError(f"the engine's ranking is not one of the {count} documents that it was given")
    best = sorted(scores, key=lambda pair: (-pair[1], pair[0]))[: wanted.top_n]
    results: list[dict[str, Any]] = []
    for index, score in best:
        row: dict[str, Any] = {"index": index, "relevance_score": score}
        if wanted.shown:
            row["document"] = {"text": wanted.documents[index]}
        results.append(row)
    body: dict[str, Any] = {"model": wanted.model, "object": "list"}
    if usage is not None:
        body["usage"] = usage
    return Document(msgspec.json.encode({**body, "results": results}))
