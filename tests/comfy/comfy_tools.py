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
from slotd.comfy.workflow import Workflow, read_workflow
from slotd.testing import ComfyKnobs, FakeEngine, FakeServer, comfy_command
from slotd.wire.http1 import Http1Pool

WORKFLOWS = Path(__file__).resolve().parents[2] / "config" / "workflows"
GUARD_S = 20

SDXL = read_workflow(WORKFLOWS / "sdxl.json", edits=False)
PLAIN = read_workflow(WORKFLOWS / "plain.json", edits=False)
PLAIN_EDIT = read_workflow(WORKFLOWS / "plain-edit.json", edits=True)


@dataclass
class Told:
    """Implements :class:`slotd.adapt.Reply`: remembers everything."""

    words: list[str] = field(default_factory=list)
    kept: list[tuple[bytes, str]] = field(default_factory=list)
    answer: dict[str, Any] = field(default_factory=dict)
    changed: trio.Event = field(default_factory=trio.Event)

    def progressed(self) -> None:
        self.changed.set()
        self.changed = trio.Event()

    def says(self, words: str) -> None:
        self.words.append(words)
        self.progressed()

    def keep(self, data: bytes, content_type: str) -> str:
        self.kept.append((data, content_type))
        return f"http://slotd/api/artifacts/{len(self.kept)}"

    async def begin(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        raise AssertionError("the answer is one document")

    async def send(self, data: bytes) -> None:
        raise AssertionError("the answer is one document")

    async def document(self, body: bytes, *, content_type: str = "application/json") -> None:
        assert not self.answer
        assert content_type == "application/json"
        self.answer = json.loads(body)

    async def until_said(self, words: str) -> None:
        while not any(words in said for said in self.words):
            await self.changed.wait()


@dataclass
class Studio:
    """A running fake ComfyUI, and an adapter to it."""

    server: FakeServer

    @property
    def engine(self) -> FakeEngine:
        return self.server.engine

    async def draw(
        self,
        body: Mapping[str, Any] | bytes,
        told: Told | None = None,
        *,
        workflow: Workflow = SDXL,
        content_type: str = "application/json",
        queue_timeout_s: float = 600,
    ) -> Told:
        """One request through an adapter."""
        told = told or Told()
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        http = Http1Pool(self.engine.host, self.engine.port)
        adapter = ComfyAdapter(Shelf({"sdxl": workflow}, frozenset({"image"})), queue_timeout_s, 16)
        try:
            await adapter.serve(Call("1", "/v1/images/generations", content_type, data), http, told)
        finally:
            http.close()
        return told


@contextmanager
def studio(knobs: ComfyKnobs | None = None) -> Iterator[Studio]:
    with FakeServer(argv=comfy_command(knobs, host="127.0.0.1", port="0")) as server:
        yield Studio(server)


def graph_of(texts: Mapping[str, str]) -> dict[str, Any]:
    """The graph that a picture carries."""
    found: dict[str, Any] = json.loads(texts["prompt"])
    return found
