"""After many connections of each kind, in either lane, nothing is left of any of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

import pytest
import trio
from e2e_tools import CHAT, GUARD_S, Baseline, Start, Wire, ask, dial

from slotd.testing import FakeEngine, Harness, Knobs, fake_slot

pytestmark = pytest.mark.usefixtures("express")

MANY = 25
LONG = Knobs(tokens=100_000, token_delay_s=0.001, parallel=64, cancel_nonstream=True)
HEAD = f"POST {CHAT} HTTP/1.1\r\nhost: slotd\r\n".encode()
Kind = Callable[[Wire, FakeEngine], Awaitable[None]]


async def to_the_end(wire: Wire) -> bytes:
    """What comes until slotd ends the connection."""
    got = b""
    try:
        while data := await wire.stream.receive_some():
            got += data
    except trio.BrokenResourceError:
        return got  # it ended over what we sent
    return got


async def answered(wire: Wire, engine: FakeEngine) -> None:
    for stream in (False, True):
        await wire.post(CHAT, ask(stream=stream, max_tokens=2))
        assert (await wire.head()).status == 200
        await wire.rest()


async def answered_at_length(wire: Wire, engine: FakeEngine) -> None:
    await wire.post(CHAT, ask(max_tokens=100))
    await wire.head()
    await wire.rest()


async def handed_over(wire: Wire, engine: FakeEngine) -> None:
    await wire.post(CHAT, ask(max_tokens=1))
    assert (await wire.head()).status == 200
    await wire.rest()
    await wire.get("/health")
    assert (await wire.head()).status == 200
    await wire.rest()


async def handed_over_in_the_head(wire: Wire, engine: FakeEngine) -> None:
    await wire.stream.send_all(b"GET /hea")


async def handed_over_in_a_body(wire: Wire, engine: FakeEngine) -> None:
    await wire.stream.send_all(HEAD.replace(b"1.1", b"1.0") + b"content-length: 10\r\n\r\n{")


async def refused(wire: Wire, engine: FakeEngine) -> None:
    await wire.stream.send_all(HEAD + b"content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n")
    assert b" 400 " in await to_the_end(wire)


async def refused_in_a_body(wire: Wire, engine: FakeEngine) -> None:
    await wire.stream.send_all(HEAD + b"transfer-encoding: chunked\r\n\r\nnone\r\n")
    assert b" 400 " in await to_the_end(wire)


async def too_large(wire: Wire, engine: FakeEngine) -> None:
    await wire.stream.send_all(HEAD + b"content-length: 99999999\r\n\r\n" + bytes(5000))
    assert (await wire.head()).status == 413
    await wire.rest()


async def overdue(wire: Wire, engine: FakeEngine) -> None:
    await wire.stream.send_all(HEAD)
    assert b" 408 " in await to_the_end(wire)


async def left_at_once(wire: Wire, engine: FakeEngine) -> None:
    return


async def left_in_the_head(wire: Wire, engine: FakeEngine) -> None:
    await wire.stream.send_all(HEAD)


async def left_in_the_body(wire: Wire, engine: FakeEngine) -> None:
    await wire.stream.send_all(HEAD + b"content-length: 10\r\n\r\n{")


async def left_in_a_chunk(wire: Wire, engine: FakeEngine) -> None:
    await wire.stream.send_all(HEAD + b"transfer-encoding: chunked\r\n\r\na\r\n{")


async def left_before_its_leave(wire: Wire, engine: FakeEngine) -> None:
    await wire.stream.send_all(HEAD + b"content-length: 10\r\nexpect: 100-continue\r\n\r\n")
    assert b" 100 " in await wire.stream.receive_some()


async def left_with_its_request(wire: Wire, engine: FakeEngine) -> None:
    await wire.post(CHAT, ask())


async def left_while_it_was_worked_on(wire: Wire, engine: FakeEngine) -> None:
    await wire.post(CHAT, ask())
    while not (await engine.stats())["active"]:  # noqa: ASYNC110 # another process
        await trio.sleep(0.005)


async def left_in_a_stream(wire: Wire, engine: FakeEngine) -> None:
    await wire.post(CHAT, ask(stream=True))
    await wire.head()
    await wire.until(b"data: ")


async def left_with_more_sent_ahead(wire: Wire, engine: FakeEngine) -> None:
    await left_in_a_stream(wire, engine)
    await wire.post(CHAT, ask())


async def left_after_its_answer(wire: Wire, engine: FakeEngine) -> None:
    await answered(wire, engine)


async def reset_in_a_stream(wire: Wire, engine: FakeEngine) -> None:
    await left_in_a_stream(wire, engine)
    await wire.reset()


KINDS: list[Kind] = [
    answered,
    handed_over,
    handed_over_in_the_head,
    handed_over_in_a_body,
    refused,
    refused_in_a_body,
    too_large,
    left_at_once,
    left_in_the_head,
    left_in_the_body,
    left_in_a_chunk,
    left_before_its_leave,
    left_with_its_request,
    left_while_it_was_worked_on,
    left_in_a_stream,
    left_with_more_sent_ahead,
    left_after_its_answer,
    reset_in_a_stream,
]


async def many(slotd: Harness, kind: Kind, engine: FakeEngine) -> None:
    async def one() -> None:
        async with await dial(slotd) as wire:
            await kind(wire, engine)

    async with trio.open_nursery() as nursery:
        for _ in range(MANY):
            nursery.start_soon(one)


async def test_nothing_is_left_of_any_kind(slotd_harness: Start) -> None:
    """Tasks, sockets, leases, places in the queue, records, bodies under way; and the engine rests."""
    slot = fake_slot(LONG, default=True, max_parallel=8)
    with trio.fail_after(GUARD_S):
        async with slotd_harness({"chat": slot}, server={"max_body_mb": 1}) as slotd:
            await slotd.load("chat")
            engine = slotd.fake("chat")
            await many(slotd, answered_at_length, engine)  # as many kept connections as there will be
            before = Baseline(slotd)
            for kind in KINDS:
                await many(slotd, kind, engine)
                await before.again()
                await engine.wait_active(0)


async def test_nothing_is_left_of_heads_that_never_end(slotd_harness: Start) -> None:
    server = {"head_timeout_s": 0.3}
    with trio.fail_after(GUARD_S):
        async with slotd_harness({"chat": fake_slot(default=True)}, server=server) as slotd:
            before = Baseline(slotd)
            await many(slotd, overdue, FakeEngine("", 0))
            await before.again()


async def test_a_stop_in_the_middle_of_all_of_it_leaves_nothing(slotd_harness: Start) -> None:
    """slotd's nursery ends, so each connection's task has; and each client is told or cut off."""
    slot = fake_slot(LONG, default=True, max_parallel=64)
    server = {"shutdown_timeout_s": 0.3, "max_body_mb": 1}
    endless = (left_in_the_head, left_in_the_body, left_with_its_request, left_in_a_stream, handed_over)
    with trio.fail_after(GUARD_S):
        async with trio.open_nursery() as nursery:
            async with slotd_harness({"chat": slot}, server=server) as slotd:
                await slotd.load("chat")
                engine = slotd.fake("chat")

                async def one(kind: Kind, *, task_status: trio.TaskStatus[None]) -> None:
                    async with await dial(slotd) as wire:
                        await kind(wire, engine)
                        task_status.started()
                        await to_the_end(wire)

                async with trio.open_nursery() as coming:
                    for kind in endless * 4:
                        coming.start_soon(nursery.start, partial(one, kind))
                slotd.slotd.stop()
            assert slotd.slotd.records.live_count == 0
