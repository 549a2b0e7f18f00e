"""What the tests of the ComfyUI provider share: workflows, a client's side, a fake that runs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio

from slotd.adapt import Call
from slotd.comfy.adapter import ComfyAdapter
from slotd.comfy.asked import Shelf
from slotd.comfy.job import Limits
from slotd.comfy.workflow import Workflow, read_workflow
from slotd.errors import AnswerTooLarge
from slotd.testing import ComfyKnobs, FakeEngine, FakeServer, comfy_command
from slotd.wire.http1 import Http1Pool

WORKFLOWS = Path(__file__).resolve().parents[2] / "config" / "workflows"
GUARD_S = 20
LIMITS = Limits(wait_s=600)

SDXL = read_workflow(WORKFLOWS / "sdxl.json", edits=False)
PLAIN = read_workflow(WORKFLOWS / "plain.json", edits=False)
PLAIN_EDIT = read_workflow(WORKFLOWS / "plain-edit.json", edits=True)


@dataclass
class Told:
    """Implements :class:`slotd.adapt.Reply`: remembers everything. ``room``: for so many pictures."""

    room: int = 1000
    words: list[str] = field(default_factory=list)
    kept: list[tuple[bytes, str]] = field(default_factory=list)
    answer: dict[str, Any] = field(default_factory=dict)
    comments: list[str] = field(default_factory=list)
    begun: bool = False
    body: bytes = b""
    changed: trio.Event = field(default_factory=trio.Event)

    def progressed(self) -> None:
        self.changed.set()
        self.changed = trio.Event()

    def says(self, words: str) -> None:
        self.words.append(words)
        self.progressed()

    def keep(self, data: bytes, content_type: str) -> str:
        if len(self.kept) == self.room:
            raise AnswerTooLarge("there is no room for another")
        self.kept.append((data, content_type))
        return f"http://slotd/api/artifacts/{len(self.kept)}"

    async def comment(self, text: str) -> None:
        assert not self.begun
        self.comments.append(text)
        self.progressed()

    async def begin(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        assert not self.begun
        assert (status, headers[0]) == (200, (b"content-type", b"text/event-stream"))
        self.begun = True

    async def send(self, data: bytes) -> None:
        assert self.begun
        self.body += data
        self.progressed()

    async def document(self, body: bytes, *, content_type: str = "application/json") -> None:
        assert not self.answer
        assert not self.begun
        assert content_type == "application/json"
        self.answer = json.loads(body)

    async def until_said(self, words: str) -> None:
        while not any(words in said for said in self.words):
            await self.changed.wait()


@dataclass
class Studio:
    """A running ComfyUI, and an adapter to it. What ``engine`` can be asked for only a fake one knows."""

    engine: FakeEngine

    async def draw(
        self,
        body: Mapping[str, Any] | bytes,
        told: Told | None = None,
        *,
        workflow: Workflow = SDXL,
        content_type: str = "application/json",
        limits: Limits = LIMITS,
    ) -> Told:
        """One request through an adapter."""
        told = told or Told()
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        http = Http1Pool(self.engine.host, self.engine.port)
        adapter = ComfyAdapter(Shelf({"sdxl": workflow}, frozenset({"image"})), limits, 16)
        try:
            await adapter.serve(Call("1", "/v1/images/generations", content_type, data), http, told)
        finally:
            http.close()
        return told


@contextmanager
def studio(knobs: ComfyKnobs | None = None) -> Iterator[Studio]:
    with FakeServer(argv=comfy_command(knobs, host="127.0.0.1", port="0")) as server:
        yield Studio(server.engine)


def graph_of(texts: Mapping[str, str]) -> dict[str, Any]:
    """The graph that a picture carries."""
    found: dict[str, Any] = json.loads(texts["prompt"])
    return found
