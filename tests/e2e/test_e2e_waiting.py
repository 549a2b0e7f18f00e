"""Long waits, told truthfully: comments in streams, patience of clients, fallbacks, priorities."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import anthropic
import openai
import pytest
import trio
from e2e_tools import CHAT, GUARD_S, Later, Start, ask, client, code, dial, eventually, frames

from slotd.exchange.record import RequestRecord
from slotd.testing import Harness, Knobs, fake_slot

SOON = {"heartbeat_after_s": 0.2, "heartbeat_every_s": 0.15}
SLOW = Knobs(load_delay_s=1.0, tokens=3)
MESSAGES: list[Any] = [{"role": "user", "content": "hi"}]


def comments(body: bytes) -> list[str]:
    return [line[2:] for line in body.decode().split("\n") if line.startswith(": ")]


@pytest.mark.usefixtures("express")
async def test_a_stream_hears_what_it_waits_for(slotd_harness: Start) -> None:
    with trio.fail_after(GUARD_S):
        async with slotd_harness({"chat": fake_slot(SLOW, default=True)}, server=SOON) as slotd:
            async with await dial(slotd) as wire:
                began = trio.current_time()
                await wire.post(CHAT, ask(stream=True))
                head = await wire.head()
                assert 0.15 < trio.current_time() - began < 0.8, "long before the slot is ready"
                assert (head.status, head.headers["content-type"]) == (200, "text/event-stream")
                assert head.headers["x-slotd-route"].startswith("slot:chat; tier=1")
                body = await wire.rest()
            assert len(comments(body)) >= 3
            # The last of them only where the first token takes long.
            known = ("is starting", "is about to start", "is working on it")
            assert set(comments(body)) <= {f"slotd: chat {words}" for words in known}
            assert "slotd: chat is starting" in comments(body)
            assert frames(body)[-1].data == "[DONE]"
            assert slotd.slotd.records.recent()[0].outcome == "ok"
            async with client(slotd) as http:
                again = await http.post(CHAT, json=ask(stream=True))
            assert comments(again.content) == []


def openai_stream(url: str) -> str:
    with (
        openai.OpenAI(base_url=f"{url}/v1", api_key="-", max_retries=0) as api,
        api.chat.completions.create(model="chat", messages=MESSAGES, stream=True) as stream,
    ):
        return "".join(c.choices[0].delta.content or "" for c in stream if c.choices)


def openai_responses(url: str) -> str:
    with (
        openai.OpenAI(base_url=f"{url}/v1", api_key="-", max_retries=0) as api,
        api.responses.create(model="chat", input="hi", stream=True) as stream,
    ):
        return "".join(e.delta for e in stream if e.type == "response.output_text.delta")


def anthropic_stream(url: str) -> str:
    with (
        anthropic.Anthropic(base_url=url, api_key="-", max_retries=0) as api,
        api.messages.stream(model="chat", max_tokens=5, messages=MESSAGES) as stream,
    ):
        return "".join(stream.text_stream)


async def the_record(slotd: Harness) -> RequestRecord:
    """Of the one request there was; its client may have hung up before it was closed."""
    records = slotd.slotd.records
    await eventually(lambda: len(records.recent()) == 1)
    return records.recent()[0]


@pytest.mark.parametrize("ask_by", [openai_stream, openai_responses, anthropic_stream])
async def test_the_official_clients_do_not_mind(slotd_harness: Start, ask_by: Callable[[str], str]) -> None:
    with trio.fail_after(GUARD_S):
        async with slotd_harness({"chat": fake_slot(SLOW, default=True)}, server=SOON) as slotd:
            assert (await trio.to_thread.run_sync(ask_by, slotd.url)).startswith("word0")


@pytest.mark.parametrize(
    ("ask_by", "error"),
    [
        (openai_stream, openai.APIError),
        (openai_responses, openai.APIError),
        (anthropic_stream, anthropic.APIStatusError),
    ],
)
async def test_they_raise_on_what_comes_instead_of_an_answer(
    slotd_harness: Start, ask_by: Callable[[str], str], error: type[Exception]
) -> None:
    dies = Knobs(crash_at_start=True, startup_delay_s=0.7, last_words="no such tensor")
    refuses = Knobs(load_delay_s=0.7, error_status=400)
    with trio.fail_after(GUARD_S):
        for knobs, told in ((dies, "could not be loaded"), (refuses, "")):
            async with slotd_harness({"chat": fake_slot(knobs, default=True)}, server=SOON) as slotd:
                with pytest.raises(error) as raised:
                    await trio.to_thread.run_sync(ask_by, slotd.url)
                assert told in str(raised.value)
                record = await the_record(slotd)
                assert (record.status, record.outcome) == (200, "error")
                assert record.error in ("slot.load_failed", "engine.error")


@pytest.mark.usefixtures("express")
async def test_a_client_says_how_long_it_waits(slotd_harness: Start) -> None:
    slot = fake_slot(Knobs(load_delay_s=1.2), default=True, abandon_after_s=0.1)
    with trio.fail_after(GUARD_S):
        async with slotd_harness({"chat": slot}) as slotd, client(slotd) as http:
            began = trio.current_time()
            answer = await http.post(CHAT, json=ask(), headers={"x-slotd-wait": "0.3"})
            assert 0.3 <= trio.current_time() - began < 1
            assert (answer.status_code, code(answer)) == (503, "slot.loading")
            assert int(answer.headers["retry-after"]) >= 1
            answer = await http.post(CHAT, json=ask(), headers={"x-slotd-wait": "0"})
            assert (answer.status_code, code(answer)) == (503, "slot.loading")
            await slotd.wait_for("chat", "ready")
            assert slotd.snapshot("chat").starts == 1, "the load has gone on"
            answer = await http.post(CHAT, json=ask(), headers={"x-slotd-wait": "0"})
            assert answer.status_code == 200
            for header in ("x-slotd-wait", "x-slotd-priority"):
                answer = await http.post(CHAT, json=ask(), headers={header: "much"})
                assert (answer.status_code, code(answer)) == (400, "request.invalid")


@pytest.mark.usefixtures("express")
async def test_a_full_queue_says_when_to_come_back(slotd_harness: Start) -> None:
    slot = fake_slot(Knobs(load_delay_s=60), default=True, max_queue=1, abandon_after_s=0.1)
    with trio.fail_after(GUARD_S):
        async with (
            slotd_harness({"chat": slot}) as slotd,
            client(slotd) as http,
            trio.open_nursery() as nursery,
        ):
            Later(nursery, lambda: http.post(CHAT, json=ask()))
            await eventually(lambda: slotd.snapshot("chat").queued == 1)
            answer = await http.post(CHAT, json=ask())
            assert (answer.status_code, code(answer)) == (429, "slot.queue_full")
            assert int(answer.headers["retry-after"]) >= 1
            nursery.cancel_scope.cancel()


# --- fallbacks ---------------------------------------------------------------------------


def two(chat: Knobs, small: Knobs | None = None) -> dict[str, Any]:
    return {
        "chat": fake_slot(chat, default=True, fallbacks=["small"], fallback_after_s=0.3),
        "small": fake_slot(small or Knobs(tokens=2, models=("tiny",), strict_model=True)),
    }


async def test_another_slot_answers_while_one_loads(slotd_harness: Start) -> None:
    with trio.fail_after(GUARD_S):
        async with (
            slotd_harness(two(Knobs(load_delay_s=1.5))) as slotd,
            client(slotd) as http,
        ):
            await slotd.load("small")
            began = trio.current_time()
            answer = await http.post(CHAT, json=ask("chat"))
            assert 0.3 <= trio.current_time() - began < 1.2
            assert answer.status_code == 200, answer.text
            assert answer.json()["model"] == "tiny"
            route = answer.headers["x-slotd-route"]
            assert route.startswith("slot:small; ")
            assert route.endswith("; fallback-for=chat")
            record = (await http.get(f"/api/requests/{answer.headers['x-request-id']}")).json()
            assert (record["target"], record["fallback_from"]) == ("slot:small", "chat")
            await slotd.wait_for("chat", "ready")
            assert slotd.snapshot("chat").starts == 1, "the load went on without it"
            answer = await http.post(CHAT, json=ask("chat"))
            assert "fallback" not in answer.headers["x-slotd-route"]


async def test_another_slot_answers_where_one_cannot(slotd_harness: Start) -> None:
    """Though it has to be loaded itself."""
    with trio.fail_after(GUARD_S):
        async with (
            slotd_harness(two(Knobs(crash_at_start=True, last_words="no such tensor"))) as slotd,
            client(slotd) as http,
        ):
            answer = await http.post(CHAT, json=ask("chat"))
            assert answer.status_code == 200, answer.text
            record = slotd.slotd.records.recent()[0]
            assert (record.fallback_from, record.error) == ("chat", None)
            assert record.fallback_error in ("slot.load_failed", "slot.crash_looping")
            # The fallback fails too: what the slot itself says is the answer.
        both = two(Knobs(crash_at_start=True), Knobs(crash_at_start=True))
        async with slotd_harness(both) as slotd, client(slotd) as http:
            answer = await http.post(CHAT, json=ask("chat"))
            assert answer.status_code >= 500
            assert "'chat'" in answer.json()["error"]["message"]


# --- priorities -----------------------------------------------------------------------------


async def test_the_more_urgent_is_served_first(slotd_harness: Start) -> None:
    slot = fake_slot(Knobs(tokens=100_000, token_delay_s=0.01), default=True, max_parallel=1)
    env = {"SLOTD_API_KEYS": "plain,urgent;priority=50,modest;priority=-10"}
    clients = {
        "modest": {"authorization": "Bearer modest", "x-slotd-priority": "100"},
        "plain": {"authorization": "Bearer plain"},
        "header": {"authorization": "Bearer plain", "x-slotd-priority": "10"},
        "urgent": {"authorization": "Bearer urgent"},
    }
    served: list[str] = []
    with trio.fail_after(GUARD_S):
        async with slotd_harness({"chat": slot}, env=env) as slotd, client(slotd) as http:

            async def post(name: str) -> None:
                answer = await http.post(CHAT, json=ask(max_tokens=1), headers=clients[name])
                assert answer.status_code == 200
                served.append(name)

            async with trio.open_nursery() as nursery, await dial(slotd) as wire:
                await wire.post(CHAT, ask(stream=True), authorization="Bearer plain")
                await wire.head()
                await wire.until(b"word1")
                for queued, name in enumerate(clients):
                    nursery.start_soon(post, name)
                    await eventually(partial(_queued, slotd, queued + 1))
                assert {r.priority for r in slotd.slotd.records.live()} == {0, -10, 10, 50}
                # The holder has left.
    assert served == ["urgent", "header", "plain", "modest"]


def _queued(slotd: Harness, count: int) -> bool:
    return slotd.snapshot("chat").queued == count
