"""The tool loop with an exchange that plays a script, its client included."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from email.parser import BytesParser
from typing import Any, cast

import trio

from slotd.actor import Snapshot
from slotd.arbiter.snapshot import ArbiterSnapshot, ModeShown
from slotd.artifacts import Artifacts
from slotd.capability.choice import LoadedSlot
from slotd.capability.endpoints import ENDPOINTS
from slotd.config import Config, OmniConfig
from slotd.dispatch import Route, SlotTarget, UpstreamTarget
from slotd.errors import SlotdError
from slotd.exchange.accounted import accounted
from slotd.exchange.answer import EVENTS, Answer
from slotd.exchange.inbound import ClientGone, Headers, Inbound, Outbound, all_headers
from slotd.exchange.record import RecordBook, RequestRecord
from slotd.exchange.render import error_response, sse_error
from slotd.omni import Omni
from slotd.wire.fields import Fields

CHAT = "/v1/chat/completions"
IMAGES = "/v1/images/generations"
SPEECH = "/v1/audio/speech"
EMBED = "/v1/embeddings"
PNG = b"\x89PNG\r\n\x1a\n and more"
PNG_BASE64 = "iVBORw0KGgogYW5kIG1vcmU="
RECORDS = 100

Do = Callable[[Inbound, Outbound], Awaitable[None]]

SLOTS = (
    LoadedSlot("chat", "m", "llm", device="gpu0", labels=("tool-calling",), default=True),
    LoadedSlot("eyes", "eyes", "llm", labels=("vision",)),
    LoadedSlot("draw", "draw", "image", labels=("image", "edit")),
    LoadedSlot("voice", "voice", "tts"),
    LoadedSlot("ears", "ears", "transcription"),
    LoadedSlot("vectors", "vectors", "embedding", labels=("embeddings",)),
    LoadedSlot("order", "order", "reranking"),
)


# --- what is said --------------------------------------------------------------------


def call(name: str, arguments: Any = None, id: str = "c1") -> dict[str, Any]:
    text = arguments if isinstance(arguments, str) else json.dumps(arguments or {})
    return {"id": id, "type": "function", "function": {"name": name, "arguments": text}}


def says(content: str | None = None, *calls: dict[str, Any], finish: str = "", tokens: int = 3) -> Do:
    """A turn of the model, as a document or a stream, as it is asked for."""

    async def do(inbound: Inbound, out: Outbound) -> None:
        finish_reason = finish or ("tool_calls" if calls else "stop")
        usage = {
            "prompt_tokens": 10,
            "completion_tokens": tokens,
            "total_tokens": 10 + tokens,
            "prompt_tokens_details": {"cached_tokens": 1},
        }
        head = {"id": f"id-of-{inbound.id}", "created": 5, "model": "engine's name"}
        if not json.loads(inbound.body).get("stream"):
            message: dict[str, Any] = {"role": "assistant", "content": content}
            if calls:
                message["tool_calls"] = list(calls)
            choice = {"index": 0, "message": message, "finish_reason": finish_reason}
            await document({**head, "object": "chat.completion", "choices": [choice], "usage": usage}, out)
            return
        deltas: list[dict[str, Any]] = [{"role": "assistant", "content": None}]
        deltas += [{"content": word} for word in (content or "").split(" ") if word]
        for n, made in enumerate(calls):
            name, arguments = made["function"]["name"], made["function"]["arguments"]
            first = {**made, "index": n, "function": {"name": name, "arguments": ""}}
            deltas.append({"tool_calls": [first]})
            deltas += [
                {"tool_calls": [{"index": n, "function": {"arguments": piece}}]}
                for piece in (arguments[:3], arguments[3:])
            ]
        out.start(200, [EVENTS])
        for delta in deltas:
            await out.send(sse({**head, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]}))
        await out.send(sse({**head, "choices": [{"index": 0, "delta": {}, "finish_reason": finish_reason}]}))
        await out.send(sse({**head, "choices": [], "usage": usage}) + b"data: [DONE]\n\n")

    return do


def sse(document: Any) -> bytes:
    return b"data: " + json.dumps(document).encode() + b"\n\n"


async def document(content: Any, out: Outbound, kind: bytes = b"application/json") -> None:
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    out.start(200, [(b"content-type", kind), (b"content-length", str(len(data)).encode())])
    await out.send(data)


def gives(content: Any, *, after_s: float = 0.0, kind: bytes = b"application/json") -> Do:
    """A tool's engine that answers with this."""

    async def do(inbound: Inbound, out: Outbound) -> None:
        await trio.sleep(after_s)
        await document(content, out, kind)

    return do


def picture(after_s: float = 0.0) -> Do:
    return gives({"created": 0, "data": [{"b64_json": PNG_BASE64}]}, after_s=after_s)


def carried(do: Do, records: RecordBook, slot: str) -> Do:
    """With a record of its own, as by the exchange, which says that ``slot`` has done it."""

    async def carry(inbound: Inbound, out: Outbound) -> None:
        now = trio.current_time()
        record = RequestRecord(
            inbound.id, inbound.path, "", now, 0.0, parent=inbound.parent, scope=inbound.scope
        )
        record.target = str(SlotTarget(slot))
        answer = Answer(out, record, inbound.endpoint.dialect)
        await accounted(records, answer, lambda: do(inbound, out))

    return carry


def refuses(error: SlotdError, *, streamed: bool = False) -> Do:
    """As the exchange does: a response, or the last event of a stream that has begun with comments."""

    async def do(inbound: Inbound, out: Outbound) -> None:
        await trio.lowlevel.checkpoint()
        if streamed:
            out.start(200, [EVENTS])
            await out.send(b": slotd: chat is starting\n\n")
            await out.send(sse_error(error))
            return
        status, headers, body = error_response(error)
        out.start(status, [*headers, (b"x-request-id", inbound.id.encode())])
        await out.send(body)

    return do


# --- who is asked --------------------------------------------------------------------


@dataclass
class Mode:
    """What is wrong with the caller's device, and who was asked to end it."""

    cell: Snapshot[ArbiterSnapshot] = field(default_factory=lambda: Snapshot(ArbiterSnapshot()))
    released: list[str] = field(default_factory=list)

    @property
    def changes(self) -> Snapshot[ArbiterSnapshot]:
        return self.cell

    def release_device(self, device: str) -> None:
        self.released.append(device)

    def show(self, *modes: ModeShown) -> None:
        self.cell.publish(ArbiterSnapshot(modes=modes))


class World:
    """``turns``: what the caller's model says, in turn, the last for ever; ``tools``: so too, by path."""

    def __init__(
        self,
        *turns: Do,
        slots: Sequence[LoadedSlot] = SLOTS,
        remote: bool = False,
        omni: dict[str, Any] | None = None,
        artifacts: Artifacts | None = None,
        **tools: Sequence[Do],
    ) -> None:
        self.turns = list(turns)
        self.tools = {path: list(do) for path, do in tools.items()}
        self.slots = slots
        self.remote = remote
        self.seen: list[Inbound] = []
        self.finished: list[RequestRecord] = []
        self.records = RecordBook(RECORDS, self.finished.append)
        self.devices = Mode()
        self.artifacts = artifacts or Artifacts()
        self.running = self.most = 0
        config = Config(omni=OmniConfig(**(omni or {})))
        self.omni = Omni(
            self, cast(Any, self), cast(Any, self), self.devices, self.records, self.artifacts, lambda: config
        )

    def loaded_slots(self) -> tuple[LoadedSlot, ...]:
        return tuple(self.slots)

    async def resolve(self, model: str | None, path: str) -> Route:
        await trio.lowlevel.checkpoint()
        target = UpstreamTarget("far") if self.remote else SlotTarget("chat")
        return Route(target, "m", "m", 1, "slot name", slot_model="m")

    async def run(self, inbound: Inbound, out: Outbound) -> None:
        """The exchange."""
        self.seen.append(inbound)
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await self._do(inbound)(inbound, out)
        finally:
            self.running -= 1

    def _do(self, inbound: Inbound) -> Do:
        name = {IMAGES: "images", SPEECH: "speech", EMBED: "embed"}.get(inbound.path)
        name = name or inbound.path.rpartition("/")[2]
        if (inbound.path == CHAT and inbound.id.rpartition(".")[2].isdigit()) or not inbound.parent:
            return self.turns.pop(0) if len(self.turns) > 1 else self.turns[0]
        todo = self.tools[name]
        return todo.pop(0) if len(todo) > 1 else todo[0]

    def bodies(self, path: str = CHAT) -> list[Any]:
        """Of the model's turns, or of the tools that ask on this path."""
        turns = [i for i in self.seen if i.path == path]
        if path == CHAT:
            turns = [i for i in turns if i.id.rpartition(".")[2].isdigit()]
        return [json.loads(i.body) for i in turns]

    def told(self, turn: int) -> list[Any]:
        """What the tools said to the model before this turn (from 0)."""
        messages = self.bodies()[turn]["messages"]
        return [json.loads(m["content"]) for m in messages if m["role"] == "tool"]


class Client:
    """Reads the answer; ``leaves_after``: takes so many pieces and is then gone."""

    def __init__(self, leaves_after: int | None = None) -> None:
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self.body = b""
        self.pieces: list[tuple[float, bytes]] = []
        self._left = leaves_after

    def start(self, status: int, headers: Headers, length: int | None = None, own: bytes = b"") -> None:
        assert not self.status, "one head only"
        self.status, self.headers = status, dict(all_headers(headers, length, own))

    async def send(self, data: bytes) -> None:
        assert self.status
        await trio.lowlevel.checkpoint()
        if self._left is not None:
            self._left -= 1
            if self._left < 0:
                raise ClientGone("left")
        self.body += data
        self.pieces.append((trio.current_time(), data))

    @property
    def document(self) -> Any:
        assert int(self.headers[b"content-length"]) == len(self.body)
        return json.loads(self.body)

    @property
    def frames(self) -> list[str]:
        assert self.body.endswith(b"\n\n")
        return self.body.decode().removesuffix("\n\n").split("\n\n")

    @property
    def comments(self) -> list[str]:
        return [frame[2:] for frame in self.frames if frame.startswith(":")]

    @property
    def chunks(self) -> list[Any]:
        """Every chunk, of a stream that ends as one should."""
        data = [frame[6:] for frame in self.frames if frame.startswith("data: ")]
        assert data[-1] == "[DONE]"
        assert data.count("[DONE]") == 1
        chunks = [json.loads(item) for item in data[:-1]]
        assert len({(c["id"], c["created"], c["model"]) for c in chunks}) == 1
        ends = [c for c in chunks if c["choices"] and c["choices"][0]["finish_reason"]]
        assert len(ends) == 1
        return chunks

    @property
    def text(self) -> str:
        deltas = [c["choices"][0]["delta"] for c in self.chunks if c["choices"]]
        assert [d["role"] for d in deltas if "role" in d] == ["assistant"]
        return "".join(d.get("content") or "" for d in deltas)

    @property
    def end(self) -> Any:
        return next(c for c in self.chunks if c["choices"] and c["choices"][0]["finish_reason"])


def asked(**more: Any) -> bytes:
    document = {"model": "m", "omni": True, "messages": [{"role": "user", "content": "hi"}], **more}
    return json.dumps(document).encode()


def inbound(body: bytes, **headers: str) -> Inbound:
    given = [(k.replace("_", "-").encode(), v.encode()) for k, v in {"host": "here", **headers}.items()]
    return Inbound("req-1", "POST", CHAT, b"", Fields(given), body, ENDPOINTS[CHAT])


async def run(
    world: World, body: bytes | None = None, client: Client | None = None, **headers: str
) -> Client:
    """One chat, after which nothing runs, whatever came of it."""
    client = client or Client()
    try:
        with trio.fail_after(10_000):
            await world.omni.run(inbound(asked() if body is None else body, **headers), client)
    finally:
        assert world.running == 0
        assert world.records.live_count == 0
    return client


def form(inbound: Inbound) -> dict[str, tuple[str, bytes]]:
    """A multipart body: name → file name and content."""
    content_type = dict(inbound.headers)[b"content-type"]
    message = BytesParser().parsebytes(b"content-type: " + content_type + b"\r\n\r\n" + inbound.body)
    found = {}
    for part in message.get_payload():
        name = part.get_param("name", header="content-disposition")  # type: ignore[union-attr] # a message
        data = part.get_payload(decode=True)  # type: ignore[union-attr] # a message
        found[str(name)] = (part.get_filename() or "", data)  # type: ignore[union-attr] # a message
    return found  # type: ignore[return-value] # the payload of a leaf is bytes
