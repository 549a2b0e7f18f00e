"""ComfyUI's HTTP API, call by call. Every answer is bounded; what is no sense raises.

Each call raises the wire's exceptions (:mod:`slotd.wire.http1`), which mean
that the engine is lost, and :class:`slotd.errors.EngineError` for its refusals.
None has a time-out of its own: the caller's stall guard is around them.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Literal, TypeVar
from urllib.parse import quote, urlencode

import msgspec
import trio

from slotd.comfy.words import Message, refused, said_of_nodes
from slotd.comfy.workflow import Graph
from slotd.errors import AnswerTooLarge, EngineError
from slotd.wire.fields import Fields
from slotd.wire.transport import EngineTransport

__all__ = ["Api", "Entry", "Picture", "Place"]

DOCUMENT_MAX = 32 << 20
"""The longest queue or history that is read; both carry graphs."""

STOP_LOOK_S, STOP_LOOK_MAX_S = 0.01, 0.25
"""The pause before the first look at whether an interrupt has helped; it doubles."""

Place = Literal["running", "pending", "absent"]


@dataclass(frozen=True, slots=True)
class Picture:
    """Where ComfyUI keeps a picture."""

    filename: str
    subfolder: str
    type: str


@dataclass(frozen=True, slots=True)
class Entry:
    """What became of a prompt. ``pictures``: by the id of the node that put them out.

    ``messages``: what was said on the way, (event, data) in order.
    """

    succeeded: bool
    pictures: Mapping[str, tuple[Picture, ...]]
    messages: tuple[Message, ...] = ()


class _Status(msgspec.Struct):
    status_str: str = ""
    completed: bool = True
    messages: list[Any] = []


class _History(msgspec.Struct):
    outputs: dict[str, dict[str, Any]] = {}
    status: _Status | None = None


class _Queue(msgspec.Struct):
    queue_running: list[list[Any]] = []
    queue_pending: list[list[Any]] = []


class _Queued(msgspec.Struct):
    node_errors: Any = None


class _Kept(msgspec.Struct):
    name: str
    subfolder: str = ""
    type: str = "input"


class Api:
    """The calls, over the connections of one engine."""

    def __init__(self, http: EngineTransport) -> None:
        self._http = http

    async def submit(self, graph: Graph, *, prompt_id: str, client_id: str) -> str:
        """Queue a prompt under an id of our own.

        Returns what is wrong with some of its nodes, "" for nothing: ComfyUI
        takes a prompt of which at least one output can be made, and leaves out
        the others.
        """
        body = msgspec.json.encode({"prompt": graph, "prompt_id": prompt_id, "client_id": client_id})
        answer = await self._post("/prompt", body)
        try:
            return said_of_nodes(msgspec.json.decode(answer, type=_Queued).node_errors)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return ""  # it has been taken all the same

    async def history(self, prompt_id: str) -> Entry | None:
        """The prompt's result; None while it has none."""
        data = await self._get(f"/history/{quote(prompt_id, safe='')}")
        found = _decode(data, dict[str, _History]).get(prompt_id)
        if found is None:
            return None
        status = found.status or _Status()
        pictures = {node: _pictures(output) for node, output in found.outputs.items()}
        messages = _messages(status.messages)
        # Of a workflow with a circle it says "success", beside the error.
        wrong = any(kind in ("execution_error", "execution_interrupted") for kind, _ in messages)
        return Entry(status.status_str != "error" and not wrong, pictures, messages)

    async def place(self, prompt_id: str) -> Place:
        """Where in its queue the prompt is."""
        queue = _decode(await self._get("/queue"), _Queue)
        if any(prompt_id in item[1:2] for item in queue.queue_running):
            return "running"
        if any(prompt_id in item[1:2] for item in queue.queue_pending):
            return "pending"
        return "absent"

    async def stop(self, prompt_id: str) -> None:
        """Have the prompt not be worked on, whether it waits or runs; returns when it is not.

        Nobody else's is touched. It cannot slip through: once it is not in the
        queue, it can only run or be over. The look before the interrupt is for
        versions that interrupt whatever runs; the one after it, since ComfyUI
        forgets an interrupt that comes while it begins with the prompt, and a
        node that is not looking works on. For how long this goes on is the
        caller's to bound.
        """
        await self._post("/queue", msgspec.json.encode({"delete": [prompt_id]}))
        pause = STOP_LOOK_S
        while await self.place(prompt_id) == "running":
            await self._post("/interrupt", msgspec.json.encode({"prompt_id": prompt_id}))
            await trio.sleep(pause)
            pause = min(2 * pause, STOP_LOOK_MAX_S)

    async def view(self, picture: Picture, most: int) -> tuple[bytes, str]:
        """A picture and its content type. Raises :class:`AnswerTooLarge` beyond ``most`` bytes."""
        query = urlencode(
            {"filename": picture.filename, "subfolder": picture.subfolder, "type": picture.type}
        )
        return await self._call(b"GET", f"/view?{query}", b"", most=most)

    async def upload(self, data: bytes, name: str) -> str:
        """Give it a picture to work on; returns what a node that loads pictures calls it.

        It goes where ComfyUI keeps what it throws away when it starts, and takes
        the place of what was there under this name.
        """
        boundary = secrets.token_hex(16)
        fields = {"type": "temp", "subfolder": "slotd", "overwrite": "true"}
        body = b"".join(
            f'--{boundary}\r\nContent-Disposition: form-data; name="{key}"\r\n\r\n{value}\r\n'.encode()
            for key, value in fields.items()
        )
        body += (
            f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n'
            "Content-Type: application/octet-stream\r\n\r\n"
        ).encode()
        body += data + f"\r\n--{boundary}--\r\n".encode()
        answer, _ = await self._call(
            b"POST", "/upload/image", body, content_type=f"multipart/form-data; boundary={boundary}"
        )
        kept = _decode(answer, _Kept)
        path = f"{kept.subfolder}/{kept.name}" if kept.subfolder else kept.name
        return path if kept.type == "input" else f"{path} [{kept.type}]"

    # --- inside --------------------------------------------------------------------

    async def _get(self, target: str) -> bytes:
        return (await self._call(b"GET", target, b""))[0]

    async def _post(self, target: str, body: bytes) -> bytes:
        return (await self._call(b"POST", target, body))[0]

    async def _call(
        self,
        method: bytes,
        target: str,
        body: bytes,
        *,
        content_type: str = "application/json",
        most: int = DOCUMENT_MAX,
    ) -> tuple[bytes, str]:
        headers = [(b"content-type", content_type.encode())] if body else []
        async with aclosing(
            await self._http.request(method, target.encode("ascii"), Fields(headers), body)
        ) as response:
            data = bytearray()
            while some := await response.receive_some():
                data += some
                if len(data) > most:
                    raise AnswerTooLarge(f"ComfyUI's answer to {_shown(target)} is larger than {most} bytes")
            if response.status >= 300:
                raise refused(_shown(target), response.status, bytes(data))
            kinds = (value for name, value in response.headers if name.lower() == b"content-type")
            return bytes(data), next(kinds, b"").decode("latin-1")


T = TypeVar("T")


def _decode(data: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise EngineError(f"ComfyUI's answer is not as expected: {exc}") from exc


def _messages(given: list[Any]) -> tuple[Message, ...]:
    """Those that have the shape of one."""
    pairs = (item for item in given if isinstance(item, list) and len(item) == 2)
    return tuple((kind, about) for kind, about in pairs if isinstance(kind, str) and isinstance(about, dict))


def _pictures(output: Mapping[str, Any]) -> tuple[Picture, ...]:
    found = output.get("images")
    if not isinstance(found, list):
        return ()  # what other nodes put out: text, for example
    return tuple(
        Picture(str(item["filename"]), str(item.get("subfolder", "")), str(item.get("type", "output")))
        for item in found
        if isinstance(item, dict) and item.get("filename")
    )


def _shown(target: str) -> str:
    return target.partition("?")[0]
