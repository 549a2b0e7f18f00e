"""What a request waited for, as its story tells it: a load, memory, a place. Through slotd, and pure."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import httpx
import trio

from slotd.events import types
from slotd.journal.entries import Entry
from slotd.journal.story import story
from slotd.testing import Harness, Knobs, config_text, fake_slot
from slotd.testing.harness import run_harness

GUARD_S = 30
CHAT = "/v1/chat/completions"
LONG = Knobs(tokens=40, token_delay_s=0.02, parallel=4)


async def chat(slotd: Harness, model: str, ids: dict[str, str], key: str) -> None:
    """Ask, and note the request's id under ``key``."""
    body = {"model": model, "messages": [{"role": "user", "content": "hi"}]}
    async with httpx.AsyncClient(base_url=slotd.url, trust_env=False, timeout=GUARD_S) as http:
        answer = await http.post(CHAT, json=body)
    assert answer.status_code == 200, answer.text
    ids[key] = answer.headers["x-request-id"]


async def lines_of(slotd: Harness, id: str) -> list[str]:
    async with httpx.AsyncClient(base_url=slotd.url, trust_env=False, timeout=GUARD_S) as http:
        (told,) = (await http.get(f"/api/why/{id}")).json()["requests"]
    return [line["text"] for line in told["story"]]


async def test_a_wait_for_memory_that_another_slot_uses_is_told(tmp_path: Path) -> None:
    slots = {"a": fake_slot(LONG, memory_mb=60), "b": fake_slot(Knobs(tokens=1), memory_mb=60)}
    config = config_text(
        slots,
        server={"max_wait_s": 20, "turn_hold_s": 0},
        more="[memory]\nbudget_mb = 100\nreserve_mb = 0\n",
    )
    ids: dict[str, str] = {}
    with trio.fail_after(GUARD_S):
        async with run_harness(config, tmp_path) as slotd:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(partial(chat, slotd, "a", ids, "a"))
                await slotd.wait_for("a", "serving")
                nursery.start_soon(partial(chat, slotd, "b", ids, "b"))
            lines = await lines_of(slotd, ids["b"])
            other = await lines_of(slotd, ids["a"])
    assert "slot b: waits for memory: 'a' is in use" in lines
    at = [lines.index(line) for line in lines if line.startswith("slot b: waits for memory: 'a' is in use")]
    (told,) = (n for n, line in enumerate(lines) if line.startswith("slot a: is told to leave for b"))
    assert at[-1] < told < lines.index("slot b takes it (generation 1)")
    assert not any("slot b: waits" in line for line in other)  # that is nothing to who is being served


async def test_a_wait_for_a_place_is_told(tmp_path: Path) -> None:
    config = config_text({"a": fake_slot(LONG, max_parallel=1)})
    ids: dict[str, str] = {}
    with trio.fail_after(GUARD_S):
        async with run_harness(config, tmp_path) as slotd:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(partial(chat, slotd, "a", ids, "first"))
                await slotd.wait_for("a", "serving")
                nursery.start_soon(partial(chat, slotd, "a", ids, "second"))
            second, first = await lines_of(slotd, ids["second"]), await lines_of(slotd, ids["first"])
    (wait,) = (line for line in second if line.startswith("waits for slot a"))
    assert wait.endswith(", until others have been served")
    (wait,) = (line for line in first if line.startswith("waits for slot a"))
    assert "others" not in wait  # it waited for the load


def test_only_who_found_its_engine_up_waited_for_a_place() -> None:
    record: dict[str, Any] = {
        "id": "r",
        "began_unix": 0.0,
        "path": CHAT,
        "bytes_in": 1,
        "target": "slot:a",
        "generation": 1,
        "resolve_s": 0.0,
        "wait_s": 1.0,
        "total_s": 2.0,
        "outcome": "ok",
    }

    def place(*events: Entry, **more: Any) -> bool:
        return any("others" in line.text for line in story({**record, **more}, events))

    def entry(kind: str, slot: str) -> Entry:
        return Entry("run", 1, 0.5, kind, slot, {})

    assert place()
    assert place(entry(types.SLOT_TRANSITION, "b"))
    assert not place(entry(types.SLOT_TRANSITION, "a"))
    assert not place(entry(types.ARBITER_WAITING, "a"))
    assert not place(replays=1)
    assert not place(generation=None, outcome="error")  # nobody knows what it would have got
    assert not place(fallback_from="b")
