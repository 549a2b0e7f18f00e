"""The whole of slotd with a fake engine, over real sockets."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import httpx
import trio

from slotd.testing import Harness, Knobs, fake_slot

Start = Callable[..., AbstractAsyncContextManager[Harness]]


async def test_a_request_loads_the_slot_and_is_answered(slotd_harness: Start) -> None:
    with trio.fail_after(20):
        async with slotd_harness({"chat": fake_slot(Knobs(tokens=3), default=True)}) as slotd:
            assert await slotd.state("chat") == "offline"
            async with httpx.AsyncClient(base_url=slotd.url, trust_env=False) as client:
                answer = await client.post(
                    "/v1/chat/completions", json={"messages": [{"role": "user", "content": "hi"}]}
                )
            assert answer.status_code == 200
            assert answer.json()["choices"][0]["message"]["content"] == "word0 word1 word2"
            await slotd.wait_for("chat", "ready")
