"""A load that comes to nothing says what slotd saw of the engine."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import httpx
import pytest
import trio

from slotd.slot.state import SlotState
from slotd.testing import Harness, Knobs, fake_slot

Start = Callable[..., AbstractAsyncContextManager[Harness]]


@pytest.mark.parametrize(
    ("slot", "words"),
    [
        ({"health_path": "/nowhere"}, "GET /nowhere answers 404"),
        ({"ready_path": "/nothing-here", "ready_models": True}, "GET /nothing-here lists no model"),
    ],
)
async def test_a_wrong_path_is_named(slotd_harness: Start, slot: dict[str, Any], words: str) -> None:
    slots = {"chat": {**fake_slot(Knobs()), **slot, "ready_timeout_s": 1.5}}
    with trio.fail_after(30):
        async with slotd_harness(slots) as slotd, httpx.AsyncClient(base_url=slotd.url) as http:
            async with trio.open_nursery() as nursery:
                answers: list[httpx.Response] = []

                async def load() -> None:
                    answers.append(await http.post("/api/slots/chat/load", timeout=20))

                nursery.start_soon(load)
                await slotd.wait_for("chat", SlotState.WARMING)
                shown = slotd.slotd.slots.cell("chat")
                while (version := shown.version) is not None and shown.value.probe != words:
                    await shown.wait_change(version)
                assert (await http.get("/api/slots/chat")).json()["probe"] == words
            assert answers[0].status_code == 502
            assert words in answers[0].json()["error"]["message"]


async def test_an_external_server_that_is_not_there_is_named(slotd_harness: Start) -> None:
    slot = {"type": "llm", "engine": "external", "url": "http://127.0.0.1:9", "ready_timeout_s": 1.0}
    with trio.fail_after(30):
        async with slotd_harness({"far": slot}) as slotd, httpx.AsyncClient(base_url=slotd.url) as http:
            answer = await http.post("/api/slots/far/load", timeout=20)
    assert answer.status_code == 502
    assert "nobody answers GET" in answer.json()["error"]["message"]
    assert "127.0.0.1:9" in answer.json()["error"]["message"]
