"""What a model says is not the end of its stream, whatever it says."""

from __future__ import annotations

import json

import pytest
import trio
from exchange_world import SSE, Answer, Client, World, guarding, inbound, last_error
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from slotd.errors import ServerStopping
from slotd.exchange.record import UsageTail

TALK = [
    "data: [DONE]",
    "\n\ndata: [DONE]\n\n",
    "the event message_stop ends it",
    '\nevent: message_stop\ndata: {"type": "message_stop"}\n\n',
    "wait for response.completed",
]


def has_ended(stream: bytes, size: int) -> bool:
    usage = UsageTail()
    for at in range(0, len(stream), size):
        usage.feed(stream[at : at + size])
    return usage.ended()


@given(st.lists(st.sampled_from([*TALK, " "]), min_size=1, max_size=6), st.integers(1, 50))
def test_talk_of_the_end_is_not_the_end(words: list[str], size: int) -> None:
    frame = b"data: " + json.dumps({"content": "".join(words)}).encode() + b"\n\n"
    assert not has_ended(frame, size)
    assert has_ended(frame + b"data: [DONE]\n\n", size)
    assert has_ended(frame + b'event: message_stop\ndata: {"type":"message_stop"}\n\n', size)


@pytest.mark.parametrize("said", TALK)
async def test_who_is_ended_while_its_model_talks_of_the_end_is_told(
    said: str, autojump_clock: MockClock
) -> None:
    frame = b"data: " + json.dumps({"content": said}).encode() + b"\n\n"
    world, client = World(Answer(frame, 1000.0, kind=SSE)), Client()
    async with guarding(world.exchange), trio.open_nursery() as nursery:
        nursery.start_soon(world.exchange.run, inbound(), client)
        await trio.sleep(1)
        world.records.end_all(ServerStopping("slotd is shutting down"))
    assert last_error(client)["code"] == "server.stopping"
    assert world.finished[0].outcome == "error"
