"""A slot's own way with requests: what the engine really gets, through the whole of slotd."""

from __future__ import annotations

import json
from typing import Any

import pytest
import trio
from e2e_tools import CHAT, GUARD_S, Scripted, Start, ask, client, scripted

ANSWER = b'{"choices":[{"message":{"role":"assistant","content":"ok"},"finish_reason":"stop"}]}'


async def _reply(stream: trio.SocketStream, request: bytes) -> None:
    head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(ANSWER)}\r\n"
    await stream.send_all(head.encode() + b"connection: close\r\n\r\n" + ANSWER)


def _got(engine: Scripted) -> tuple[bytes, bytes]:
    """Head and body of the last request that the engine got."""
    head, _, body = engine.requests[-1].partition(b"\r\n\r\n")
    return head, body


RULES: dict[str, Any] = {
    "aliases": ["gpt-4o-mini"],
    "system_prompt": "Be brief.",
    "request": {"strip": ["seed"], "set": {"temperature": 0.5}},
    "variants": {"high": {"set": {"reasoning_effort": "high"}, "defaults": {"max_tokens": 900}}},
}


@pytest.mark.parametrize("name", ["chat:high", "gpt-4o-mini:high", "slotd/chat:high"])
async def test_a_variant_reaches_the_engine_changed_and_under_the_slots_own_name(
    slotd_harness: Start, name: str
) -> None:
    with trio.fail_after(GUARD_S):
        async with (
            scripted(_reply) as engine,
            slotd_harness({"chat": engine.slot(**RULES)}) as slotd,
            client(slotd) as http,
        ):
            answer = await http.post(CHAT, json=ask(name, seed=1, temperature=2))
            assert answer.status_code == 200
            assert f'rule=variant "{name}"' in answer.headers["x-slotd-route"]
            _, body = _got(engine)
            assert json.loads(body) == {
                "model": name.removesuffix(":high"),
                "messages": [
                    {"role": "system", "content": "Be brief."},
                    {"role": "user", "content": "hi"},
                ],
                "temperature": 0.5,
                "reasoning_effort": "high",
                "max_tokens": 900,
            }


async def test_without_rules_the_bytes_are_the_clients(slotd_harness: Start) -> None:
    with trio.fail_after(GUARD_S):
        async with (
            scripted(_reply) as engine,
            slotd_harness({"chat": engine.slot()}) as slotd,
            client(slotd) as http,
        ):
            raw = b'{ "messages" : [{"role":"user", "content":"\\u0068i"}], "x":1.50, "model":"chat" }'
            await http.post(CHAT, content=raw, headers={"content-type": "application/json"})
            assert _got(engine)[1] == raw


async def test_the_rules_of_a_reload_hold_from_the_next_request_on(slotd_harness: Start) -> None:
    with trio.fail_after(GUARD_S):
        async with (
            scripted(_reply) as engine,
            slotd_harness({"chat": engine.slot()}) as slotd,
            client(slotd) as http,
        ):
            await http.post(CHAT, json=ask("chat"))
            generation = slotd.snapshot("chat").generation
            with slotd.file.open("a") as file:
                file.write("\n[slots.chat.variants.cold]\nset = { temperature = 0 }\n")
            assert (await http.post("/api/config/reload")).status_code == 200
            await http.post(CHAT, json=ask("chat:cold"))
            assert json.loads(_got(engine)[1])["temperature"] == 0
            assert slotd.snapshot("chat").generation == generation


async def test_a_strict_engine_reads_its_own_name_in_a_form_too(slotd_harness: Start) -> None:
    with trio.fail_after(GUARD_S):
        async with (
            scripted(_reply) as engine,
            slotd_harness({"stt": engine.slot(type="transcription", model_name="base.en")}) as slotd,
            client(slotd) as http,
        ):
            audio = b"RIFF\x00\r\n--almost" * 1000
            answer = await http.post(
                "/v1/audio/transcriptions",
                files={"file": ("a.wav", audio, "audio/wav")},
                data={"model": "stt", "language": "en"},
            )
            assert answer.status_code == 200
            _, body = _got(engine)
            assert b'name="model"\r\n\r\nbase.en\r\n' in body
            assert body.count(audio) == 1


async def test_the_list_of_models_tells_variants_and_context(slotd_harness: Start) -> None:
    with trio.fail_after(GUARD_S):
        slot = {"type": "llm", "engine": "external", "url": "http://127.0.0.1:9", **RULES}
        async with (
            slotd_harness({"chat": slot}, server={"list_aliases": True}) as slotd,
            client(slotd) as http,
        ):
            items = {item["id"]: item for item in (await http.get("/v1/models")).json()["data"]}
            assert items["chat"]["variants"] == ["high"]
            assert items["chat"]["context_length"] is None
            assert items["gpt-4o-mini:high"]["alias_of"] == "chat"
            assert (await http.get("/v1/models/chat:high")).status_code == 200


async def test_a_slot_that_is_asked_for_by_what_it_can_do(slotd_harness: Start) -> None:
    with trio.fail_after(GUARD_S):
        slot = {"engine": "external", "url": "http://127.0.0.1:9"}
        slots = {
            "a": {"type": "llm", "labels": ["vision"], **slot},
            "b": {"type": "llm", "default": True, "system_prompt": "Be b.", "device": "gpu0", **slot},
        }
        async with slotd_harness(slots) as slotd, client(slotd) as http:
            manager = slotd.slotd.slots
            assert manager.route_for_request("llm") == "b"
            found = manager.resolve_for_request("llm", ["vision"])
            assert (found.name, found.model_id, found.labels) == ("a", "a", ("vision",))
            default = manager.resolve_for_request("llm")
            assert (default.system_prompt, default.device, default.default) == ("Be b.", "gpu0", True)
            text = slotd.file.read_text()
            first = "[slots.first]\ntype = 'llm'\nlabels = ['vision']\nengine = 'external'\nurl = 'http://127.0.0.1:9'\n"
            slotd.file.write_text(text.replace("[slots.a]", first + "[slots.a]"))
            assert (await http.post("/api/config/reload")).status_code == 200
            # Declared order, not the order in which slots came to be.
            assert manager.route_for_request("llm", ["vision"]) == "first"
