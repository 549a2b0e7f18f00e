"""Running one tool: the request that it is, and what of the answer the model is told."""

from __future__ import annotations

import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, assert_never

import msgspec

from slotd.artifacts import Artifacts, Together
from slotd.capability.choice import LoadedSlot
from slotd.errors import SlotdError
from slotd.exchange.inbound import header
from slotd.omni.child import Child, Collected
from slotd.omni.failure import ToolFailed
from slotd.omni.fetch import FetchRules, fetch
from slotd.omni.form import encode_form
from slotd.omni.media import ARTIFACTS, Media, find, read_data_url, sniff
from slotd.omni.tools import (
    AnalyzeImage,
    Arguments,
    EditImage,
    EmbedText,
    GenerateImage,
    RerankDocuments,
    RouteToChat,
    TextToSpeech,
    TranscribeAudio,
)
from slotd.omni.vectors import likeness

__all__ = ["TEXT_MAX", "Hands", "Kept", "Result"]

TEXT_MAX = 64_000
"""The longest text that a tool gives to the model; characters."""

NUMBERS_MAX = 1024
"""More numbers than these are kept for the client, and not shown to the model."""

URL_MAX = 4096
"""The longest address of a picture that is shown to the model; characters."""

LIKENESS_MAX = 16
"""Of so many texts it is told how alike each two are."""

CHAT = "/v1/chat/completions"


@dataclass(frozen=True, slots=True)
class Kept:
    """A result that the client can fetch for a while."""

    url: str
    content_type: str
    bytes: int

    def as_dict(self) -> dict[str, Any]:
        return {"url": self.url, "content_type": self.content_type, "bytes": self.bytes}


@dataclass(frozen=True, slots=True)
class Result:
    """``message``: for the model, small. ``artifacts``: what of it is kept."""

    message: Mapping[str, Any]
    artifacts: tuple[Kept, ...] = ()


class _Choice(msgspec.Struct):
    message: dict[str, Any] = {}
    finish_reason: str | None = None


class _Chat(msgspec.Struct):
    choices: list[_Choice]
    model: str = ""


class _Picture(msgspec.Struct):
    b64_json: str | None = None
    url: str | None = None
    revised_prompt: str | None = None


class _Pictures(msgspec.Struct):
    data: list[_Picture]


class _Words(msgspec.Struct):
    text: str
    language: str | None = None


class _Vector(msgspec.Struct):
    embedding: list[float]


class _Vectors(msgspec.Struct):
    data: list[_Vector]


class _Rank(msgspec.Struct):
    index: int
    relevance_score: float | None = None
    score: float | None = None


class _Ranks(msgspec.Struct):
    results: list[_Rank]


@dataclass(frozen=True, slots=True)
class Hands:
    """Runs the tools of one chat. What they give is kept in ``together``, and all together."""

    child: Child
    artifacts: Artifacts
    together: Together
    rules: FetchRules

    async def run(self, id: str, args: Arguments, slot: LoadedSlot) -> Result:
        """Have ``slot`` do it, as the request ``id``. Raises :class:`ToolFailed`."""
        try:
            return await self._run(id, args, f"slotd/{slot.name}")
        except SlotdError as error:
            raise ToolFailed(error.message, error.code) from error

    async def _run(self, id: str, args: Arguments, model: str) -> Result:
        match args:
            case GenerateImage():
                return await self._generate(id, args, model)
            case EditImage():
                return await self._edit(id, args, model)
            case TextToSpeech():
                return await self._say(id, args, model)
            case TranscribeAudio():
                return await self._transcribe(id, args, model)
            case AnalyzeImage():
                picture = await self._find(args.image)
                url = f"data:{picture.content_type};base64,{_base64(picture.data)}"
                parts = [{"type": "text", "text": args.question}, _part(url)]
                return await self._chat(id, model, parts)
            case EmbedText():
                return await self._embed(id, args, model)
            case RerankDocuments():
                return await self._rerank(id, args, model)
            case RouteToChat():
                asked = f"{args.context}\n\n{args.prompt}" if args.context else args.prompt
                return await self._chat(id, model, asked)
            case _:
                assert_never(args)

    # --- pictures ------------------------------------------------------------------

    async def _generate(self, id: str, args: GenerateImage, model: str) -> Result:
        document: dict[str, Any] = {
            "model": model,
            "prompt": args.prompt,
            "n": args.n,
            "response_format": "b64_json",
        }
        if args.size:
            document["size"] = args.size
        return self._pictures(await self.child.post_json(id, "/v1/images/generations", document))

    async def _edit(self, id: str, args: EditImage, model: str) -> Result:
        picture = await self._find(args.image)
        fields = {"model": model, "prompt": args.prompt, "response_format": "b64_json"}
        if args.size:
            fields["size"] = args.size
        return self._pictures(await self._post_file(id, "/v1/images/edits", fields, "image", picture))

    def _pictures(self, answer: Collected) -> Result:
        found: list[Media] = []
        elsewhere: list[dict[str, Any]] = []
        for picture in _read(answer, _Pictures).data:
            if picture.b64_json:
                try:
                    data = binascii.a2b_base64(picture.b64_json)
                except ValueError as error:  # a bare one for what is not ASCII
                    raise ToolFailed(f"the engine's picture cannot be read: {error}") from error
                found.append(Media(data, sniff(data, "image/png")))
            elif picture.url and picture.url[:5].lower() == "data:":
                # Megabytes that are called an address are still not for the model to read.
                found.append(read_data_url(picture.url))
            elif picture.url and len(picture.url) <= URL_MAX:
                elsewhere.append({"url": picture.url})
        if not found and not elsewhere:
            raise ToolFailed("the engine gave no picture")
        kept = self._keep(*found)
        return Result({"images": [*(k.as_dict() for k in kept), *elsewhere]}, kept)

    # --- sounds --------------------------------------------------------------------

    async def _say(self, id: str, args: TextToSpeech, model: str) -> Result:
        document = {"model": model, "input": args.input}
        if args.voice:
            document["voice"] = args.voice
        answer = await self.child.post_json(id, "/v1/audio/speech", document)
        if not answer.body:
            raise ToolFailed("the engine gave no sound")
        kept = self._keep(Media(answer.body, sniff(answer.body, answer.content_type or "audio/mpeg")))
        return Result({"audio": kept[0].as_dict()}, kept)

    async def _transcribe(self, id: str, args: TranscribeAudio, model: str) -> Result:
        sound = await self._find(args.audio)
        fields = {"model": model, "response_format": "json"}
        if args.language:
            fields["language"] = args.language
        answer = await self._post_file(id, "/v1/audio/transcriptions", fields, "file", sound)
        words = _read(answer, _Words)
        return Result(_cut(words.text) | ({"language": words.language} if words.language else {}))

    # --- texts ---------------------------------------------------------------------

    async def _chat(self, id: str, model: str, content: str | list[dict[str, Any]]) -> Result:
        """One question to a model that knows nothing of this conversation, and has no tools."""
        document = {"model": model, "messages": [{"role": "user", "content": content}], "stream": False}
        chat = _read(await self.child.post_json(id, CHAT, document), _Chat)
        if not chat.choices:
            raise ToolFailed("the model gave no answer")
        choice = chat.choices[0]
        text = choice.message.get("content")
        message = _cut(text if isinstance(text, str) else "")
        if choice.finish_reason == "length":
            message["cut"] = True
        return Result({"model": model.removeprefix("slotd/"), **message})

    async def _embed(self, id: str, args: EmbedText, model: str) -> Result:
        document = {"model": model, "input": args.input, "encoding_format": "float"}
        answer = await self.child.post_json(id, "/v1/embeddings", document)
        vectors = [item.embedding for item in _read(answer, _Vectors).data]
        if not vectors:
            raise ToolFailed("the engine gave no vectors")
        message: dict[str, Any] = {"count": len(vectors), "dimensions": len(vectors[0])}
        kept: tuple[Kept, ...] = ()
        if sum(map(len, vectors)) <= NUMBERS_MAX:
            message["embeddings"] = [[round(x, 5) for x in vector] for vector in vectors]
        else:
            kept = self._keep(Media(msgspec.json.encode(vectors), "application/json"))
            message["embeddings"] = kept[0].as_dict()
        if 1 < len(vectors) <= LIKENESS_MAX:
            message["cosine_similarity"] = likeness(vectors)
        return Result(message, kept)

    async def _rerank(self, id: str, args: RerankDocuments, model: str) -> Result:
        document: dict[str, Any] = {"model": model, "query": args.query, "documents": args.documents}
        if args.top_n:
            document["top_n"] = args.top_n
        ranks = _read(await self.child.post_json(id, "/v1/rerank", document), _Ranks).results
        told: list[dict[str, Any]] = []
        for rank in sorted(ranks, key=lambda r: -_score(r))[: args.top_n or None]:
            if not 0 <= rank.index < len(args.documents):
                raise ToolFailed("the engine ranked a text that it was not given")
            told.append(
                {"index": rank.index, "score": _score(rank), "document": args.documents[rank.index][:200]}
            )
        return Result({"results": told})

    # --- what they share -----------------------------------------------------------

    async def _find(self, given: str) -> Media:
        return await find(given, self.artifacts, lambda url: fetch(url, self.rules))

    async def _post_file(
        self, id: str, path: str, fields: Mapping[str, str], name: str, media: Media
    ) -> Collected:
        filename = f"{name}.{media.ending}"
        content_type, body = encode_form(fields, name, filename, media.content_type, media.data)
        return await self.child.post(id, path, content_type, body)

    def _keep(self, *found: Media) -> tuple[Kept, ...]:
        """All or none. Raises :class:`slotd.errors.AnswerTooLarge`."""
        ids = self.together.put_all(*((media.data, media.content_type) for media in found))
        host = (header(self.child.parent.headers, b"host") or b"").decode("latin-1")
        place = f"http://{host}{ARTIFACTS}" if host else ARTIFACTS
        return tuple(
            Kept(place + id, media.content_type, len(media.data))
            for id, media in zip(ids, found, strict=True)
        )


def _read(answer: Collected, shape: type[Any]) -> Any:
    try:
        return msgspec.json.decode(answer.body, type=shape)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ToolFailed(f"the engine's answer cannot be read: {error}") from error


def _part(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def _score(rank: _Rank) -> float:
    return next((s for s in (rank.relevance_score, rank.score) if s is not None), 0.0)


def _base64(data: bytes) -> str:
    return binascii.b2a_base64(data, newline=False).decode()


def _cut(text: str) -> dict[str, Any]:
    if len(text) <= TEXT_MAX:
        return {"text": text}
    return {"text": text[:TEXT_MAX], "cut": True, "characters": len(text)}
