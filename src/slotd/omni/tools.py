"""The tools: what each takes, which slot it needs, and which are offered in a chat. Pure."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, TypeAlias

import msgspec
from msgspec import Meta

from slotd.capability.choice import LoadedSlot, choose

__all__ = [
    "NO_OFFER",
    "TOOLS",
    "AnalyzeImage",
    "Arguments",
    "BadArguments",
    "EditImage",
    "EmbedText",
    "GenerateImage",
    "Offer",
    "RerankDocuments",
    "RouteToChat",
    "TextToSpeech",
    "Tool",
    "TranscribeAudio",
    "offered",
]

ROUTE = "route_to_chat"


class BadArguments(Exception):
    """What the model gave a tool is not what it takes; the text says why."""


def _says(words: str) -> Meta:
    return Meta(description=words)


_PICTURE = "The picture: a URL, such as another tool's result, or base64."
_SIZE = _says('Width and height, such as "1024x1024".')
_size = re.compile(r"\d{2,5}x\d{2,5}", re.ASCII)


class GenerateImage(msgspec.Struct, frozen=True):
    prompt: Annotated[str, _says("What the picture shows.")]
    size: Annotated[str, _SIZE] = ""
    n: Annotated[int, Meta(ge=1, le=4, description="How many pictures.")] = 1


class EditImage(msgspec.Struct, frozen=True):
    image: Annotated[str, _says(_PICTURE)]
    prompt: Annotated[str, _says("What is to be changed.")]
    size: Annotated[str, _SIZE] = ""


class TextToSpeech(msgspec.Struct, frozen=True):
    input: Annotated[str, _says("What is to be said.")]
    voice: Annotated[str, _says("The name of a voice.")] = ""


class TranscribeAudio(msgspec.Struct, frozen=True):
    audio: Annotated[str, _says("The recording: a URL, such as another tool's result, or base64.")]
    language: Annotated[str, _says('The language that is spoken, such as "en".')] = ""


class AnalyzeImage(msgspec.Struct, frozen=True):
    image: Annotated[str, _says(_PICTURE)]
    question: Annotated[str, _says("What is to be found out about the picture.")]


class EmbedText(msgspec.Struct, frozen=True):
    input: Annotated[list[str], Meta(min_length=1, description="The texts.")]


class RerankDocuments(msgspec.Struct, frozen=True):
    query: Annotated[str, _says("What is looked for.")]
    documents: Annotated[list[str], Meta(min_length=1, description="The texts to put in order.")]
    top_n: Annotated[int, Meta(ge=0, description="How many of the best to return; 0 = all.")] = 0


class RouteToChat(msgspec.Struct, frozen=True):
    target: Annotated[str, _says("Who is to answer.")]
    prompt: Annotated[str, _says("The whole task: nothing of this conversation is known there.")]
    context: Annotated[str, _says("What is needed to know for it.")] = ""


Arguments: TypeAlias = (
    GenerateImage
    | EditImage
    | TextToSpeech
    | TranscribeAudio
    | AnalyzeImage
    | EmbedText
    | RerankDocuments
    | RouteToChat
)


@dataclass(frozen=True, slots=True)
class Tool:
    """One tool. Its slot has this type and this label (none: any of the type).

    ``plain``: a slot of the type that has no labels at all will do too.
    """

    name: str
    does: str
    takes: type[Arguments]
    type: str
    label: str = ""
    plain: bool = True

    def slot(self, slots: Iterable[LoadedSlot]) -> LoadedSlot | None:
        """The slot that would serve it, or None."""
        label = (self.label,) if self.label else ()
        if self.plain:
            slots = (slot if slot.labels else replace(slot, labels=label) for slot in slots)
        return choose(slots, self.type, label)

    def read(self, arguments: Mapping[str, Any]) -> Arguments:
        """What the model gave, checked. What it gave beyond that is ignored. Raises :class:`BadArguments`."""
        given = {key: value for key, value in arguments.items() if value is not None}
        for key in ("input", "documents"):  # a list of one is often given as that one
            if self.takes in (EmbedText, RerankDocuments) and isinstance(given.get(key), str):
                given[key] = [given[key]]
        try:
            args = msgspec.convert(given, self.takes, strict=False)
        except msgspec.ValidationError as error:
            raise BadArguments(f"{self.name}: {error}") from error
        size = getattr(args, "size", "")
        if size and not _size.fullmatch(size):
            raise BadArguments(f'{self.name}: size is a width and a height such as "1024x1024"')
        return args

    def definition(self, targets: Collection[LoadedSlot] = ()) -> dict[str, Any]:
        """As a chat request offers it. ``targets``: whom to choose from, for the tool that delegates."""
        schema = msgspec.json.schema(self.takes)["$defs"][self.takes.__name__]
        properties = {key: dict(value) for key, value in schema["properties"].items()}
        for value in properties.values():
            if value.get("default") == "":
                del value["default"]
        if targets:
            properties["target"]["enum"] = [slot.name for slot in targets]
        parameters = {"type": "object", "properties": properties, "required": schema["required"]}
        does = self.does
        if targets:
            does += " There are: " + "; ".join(_who(slot) for slot in targets) + "."
        return {
            "type": "function",
            "function": {"name": self.name, "description": does, "parameters": parameters},
        }


def _who(slot: LoadedSlot) -> str:
    words = slot.name if slot.model_id == slot.name else f"{slot.name} ({slot.model_id})"
    return f"{words}: {', '.join(slot.labels)}" if slot.labels else words


TOOLS: dict[str, Tool] = {
    tool.name: tool
    for tool in (
        Tool("generate_image", "Draw pictures. Returns their URLs.", GenerateImage, "image", "image"),
        Tool(
            "edit_image",
            "Change a picture. Returns the URL of the new one.",
            EditImage,
            "image",
            "edit",
            False,
        ),
        Tool("text_to_speech", "Say a text aloud. Returns the URL of the sound.", TextToSpeech, "tts", "tts"),
        Tool(
            "transcribe_audio",
            "Write down what is said in a recording.",
            TranscribeAudio,
            "transcription",
            "transcription",
        ),
        Tool("analyze_image", "Look at a picture.", AnalyzeImage, "llm", "vision", False),
        Tool(
            "embed_text",
            "Turn texts into vectors, and tell how alike they are.",
            EmbedText,
            "embedding",
            "embeddings",
        ),
        Tool(
            "rerank_documents",
            "Put texts in order by how well they answer a query.",
            RerankDocuments,
            "reranking",
            "reranking",
        ),
        Tool(ROUTE, "Have another model answer.", RouteToChat, "llm"),
    )
}
"""In the order in which they are offered."""


@dataclass(frozen=True, slots=True)
class Offer:
    """The tools of one chat: each with the slot that serves it.

    ``peers``: to whom ``route_to_chat`` may lead; its own slot is one of them
    and no more than an example.
    """

    slots: Mapping[str, LoadedSlot] = field(default_factory=dict)
    peers: tuple[LoadedSlot, ...] = ()

    @property
    def names(self) -> frozenset[str]:
        return frozenset(self.slots)

    def definitions(self) -> list[dict[str, Any]]:
        """As a chat request offers them."""
        return [TOOLS[name].definition(self.peers if name == ROUTE else ()) for name in self.slots]

    def target(self, name: str) -> LoadedSlot:
        """The peer of this name, a slot's or its model's. Raises :class:`BadArguments`."""
        for peer in self.peers:
            if name in (peer.name, f"slotd/{peer.name}"):
                return peer
        for peer in self.peers:
            if name == peer.model_id:
                return peer
        known = ", ".join(peer.name for peer in self.peers)
        raise BadArguments(f"{ROUTE}: there is nobody called {name!r} to ask; there are: {known}")


NO_OFFER = Offer()


def offered(slots: Collection[LoadedSlot], caller: LoadedSlot | None, theirs: Collection[str] = ()) -> Offer:
    """What a chat with ``caller`` is offered. ``theirs``: names that the client's own tools have.

    None: the caller is no slot of ours, so nothing is known of what it can do.
    A model that is not labelled as one that calls tools gets none.
    """
    if caller is None or not caller.tool_calling:
        return NO_OFFER
    peers = tuple(slot for slot in slots if slot.type == "llm" and slot.name != caller.name)
    found: dict[str, LoadedSlot] = {}
    for name, tool in TOOLS.items():
        slot = (peers[0] if peers else None) if name == ROUTE else tool.slot(slots)
        if slot is not None and name not in theirs:
            found[name] = slot
    return Offer(found, peers)
