"""Stopping slotd: who is being answered may finish, who only waits is told at once."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import httpx
import trio

from slotd.errors import ServerStopping
from slotd.testing import Harness, Knobs, fake_slot

Start = Callable[..., AbstractAsyncContextManager[Harness]]
BODY = {"model": "chat", "messages": [{"role": "user", "content": "hi"}]}


async def test_a_stop_does_not_wait_for_a_slow_load(slotd_harness: Start) -> None:
    """Were the drain to wait for requests that only queue, it would take its whole time-out."""
    slots = {"chat": fake_slot(Knobs(load_delay_s=60), abandon_after_s=0.2)}
    with trio.fail_after(20):
        async with slotd_harness(slots, server={"shutdown_timeout_s": 60}) as slotd:
            answers: list[httpx.Response] = []

            async def post() -> None:
                async with httpx.AsyncClient(base_url=slotd.url, trust_env=False, timeout=30) as client:
                    answers.append(await client.post("/v1/chat/completions", json=BODY))

            refused: list[ServerStopping] = []

            async def load() -> None:
                try:
                    await slotd.load("chat")
                except ServerStopping as error:
                    refused.append(error)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(post)
                nursery.start_soon(load)
                await slotd.wait_for("chat", "warming")
                slotd.slotd.stop()
            assert answers[0].status_code == 503
            assert answers[0].json()["error"]["code"] == "server.stopping"
            assert len(refused) == 1
