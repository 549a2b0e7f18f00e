"""What servers speak that are not OpenAI's: ``api`` in a slot, for ``command`` and ``external``.

One row for each name: which endpoints are translated, and what the server
offers for a look at it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from slotd.adapt import Adapter, Translated, likeness, piper, tei, whisper_cpp
from slotd.config.slot import ApiName

__all__ = ["APIS", "LIKENESS", "Api"]


@dataclass(frozen=True, slots=True)
class Api:
    """``adapters``: by endpoint; all others are relayed as they come.

    ``health_path``: answers 200 when the server is well. ``lists_models``: it
    has OpenAI's ``/v1/models``.
    """

    adapters: Mapping[str, Adapter] = field(default_factory=dict)
    health_path: str = "/health"
    lists_models: bool = True


LIKENESS: Mapping[str, Adapter] = {"/v1/rerank": Translated(likeness.rerank)}
"""Reranking by a server that only makes vectors."""

APIS: Mapping[ApiName, Api] = {
    "openai": Api(),
    "piper": Api({"/v1/audio/speech": Translated(piper.speech)}, "/voices", False),
    "whisper.cpp": Api(
        {
            "/v1/audio/transcriptions": Translated(whisper_cpp.transcription),
            "/v1/audio/translations": Translated(whisper_cpp.translation),
        },
        lists_models=False,
    ),
    "tei": Api({"/v1/rerank": Translated(tei.rerank)}, lists_models=False),
}
