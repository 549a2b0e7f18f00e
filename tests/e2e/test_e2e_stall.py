"""An engine that is given up on because its answers stop coming: who noticed that is told so."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import httpx
import pytest
import trio

from slotd.testing import Harness, Knobs, fake_slot

Start = Callable[..., AbstractAsyncContextManager[Harness]]
CHAT = "/v1/chat/completions"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("express", [False, True])
async def test_the_stall_that_ends_an_engine_is_told_as_a_stall(
    slotd_harness: Start, stream: bool, express: bool
) -> None:
    """Not as the loss of the engine that it leads to, and it is no reason to try again."""
    slot = fake_slot(Knobs(hang_after_tokens=2) if stream else Knobs(hang_requests=True), default=True)
    server = {"first_byte_timeout_s": 0.2, "idle_timeout_s": 0.2, "express": express}
    with trio.fail_after(20):
        async with (
            slotd_harness({"chat": slot}, server=server) as slotd,
            httpx.AsyncClient(base_url=slotd.url, trust_env=False, timeout=15) as http,
        ):
            await slotd.load("chat")
            ask = {"messages": [{"role": "user", "content": "hi"}], "stream": stream}
            for _ in range(2):
                answer = await http.post(CHAT, json=ask)
                assert '"slot.stalled"' in answer.text, answer.text
            records = slotd.slotd.records.recent()
            assert [(r.error, r.replays) for r in records] == [("slot.stalled", 0)] * 2
