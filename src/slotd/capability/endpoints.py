"""The inference endpoints: what type of slot serves each, and in which dialect.

One explicit row per path. The gateway serves exactly these paths, the
dispatcher takes its per-endpoint defaults from them, and the exchange learns
from them which body shape to expect.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["ENDPOINTS", "TYPES", "Endpoint", "endpoint_for"]

TYPES: tuple[str, ...] = ("llm", "embedding", "reranking", "transcription", "tts", "image")
"""What a slot can do, in the order in which lists show them."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One relayed path.

    ``upstream_path`` is what the engine is asked (spellings of rerank are
    rewritten). ``chat``: a named model that no tier knows is a 404 here,
    elsewhere the type's default slot takes it. ``body`` is the request's
    shape, ``dialect`` the shape of slotd's own errors. ``prefers``: labels by
    which a default is chosen where some slot has them.
    """

    path: str
    type: str
    upstream_path: str
    chat: bool = False
    body: Literal["json", "multipart"] = "json"
    prefers: tuple[str, ...] = ()
    dialect: Literal["openai", "anthropic"] = "openai"


def _rows() -> tuple[Endpoint, ...]:
    def llm(
        path: str,
        *,
        dialect: Literal["openai", "anthropic"] = "openai",
        prefers: tuple[str, ...] = (),
    ) -> Endpoint:
        return Endpoint(path, "llm", path, chat=True, dialect=dialect, prefers=prefers)

    rerank = "/v1/rerank"
    return (
        llm("/v1/chat/completions"),
        llm("/v1/completions"),
        llm("/v1/responses"),
        llm("/v1/messages", dialect="anthropic"),
        llm("/v1/messages/count_tokens", dialect="anthropic"),
        llm("/infill", prefers=("infill",)),  # few models have the tokens, and editors name none
        llm("/tokenize"),
        llm("/detokenize"),
        llm("/apply-template"),
        Endpoint("/v1/embeddings", "embedding", "/v1/embeddings"),
        Endpoint(rerank, "reranking", rerank),
        Endpoint("/v1/rerankings", "reranking", rerank),
        Endpoint("/v1/reranking", "reranking", rerank),
        Endpoint("/rerank", "reranking", rerank),
        Endpoint("/reranking", "reranking", rerank),
        Endpoint("/v1/audio/speech", "tts", "/v1/audio/speech"),
        Endpoint("/v1/audio/transcriptions", "transcription", "/v1/audio/transcriptions", body="multipart"),
        Endpoint("/v1/audio/translations", "transcription", "/v1/audio/translations", body="multipart"),
        Endpoint("/v1/images/generations", "image", "/v1/images/generations"),
        Endpoint("/v1/images/edits", "image", "/v1/images/edits", body="multipart", prefers=("edit",)),
    )


ENDPOINTS: dict[str, Endpoint] = {e.path: e for e in _rows()}


def endpoint_for(path: str) -> Endpoint | None:
    """The row of a path as a client spells it, without query; None if it is not relayed."""
    return ENDPOINTS.get(path)
