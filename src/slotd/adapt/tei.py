"""``/v1/rerank`` for Hugging Face's text-embeddings-inference. Pure."""

from __future__ import annotations

from functools import partial

import msgspec

from slotd.adapt.contract import Call
from slotd.adapt.ranking import Wanted, ranked, read_wanted
from slotd.adapt.translated import Ask, Document
from slotd.errors import EngineError

__all__ = ["rerank"]


class _Rank(msgspec.Struct):
    index: int
    score: float


def rerank(call: Call) -> Ask:
    """``POST /rerank``. See :data:`slotd.adapt.Translation`.

    A text that is too long for the model is cut, as Cohere and Jina do, unless
    the client says ``"truncate": false``; ``raw_scores`` goes through.
    """
    wanted = read_wanted(call)
    rest = wanted.rest or {}
    asked = {
        "query": wanted.query,
        "texts": wanted.documents,
        "raw_scores": rest.get("raw_scores") is True,
        "truncate": rest.get("truncate") is not False,
    }
    return Ask("/rerank", msgspec.json.encode(asked), convert=partial(_convert, wanted))


def _convert(wanted: Wanted, answer: bytes) -> Document:
    try:
        ranks = msgspec.json.decode(answer, type=list[_Rank])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise EngineError(f"the engine's answer cannot be read: {exc}") from exc
    return ranked(wanted, [(rank.index, rank.score) for rank in ranks])
