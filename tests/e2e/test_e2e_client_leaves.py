"""A client that leaves, at every point: the engine stops at once and slotd keeps nothing of it."""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing
from e2e_tools import (
    CHAT,
    EVENT_STREAM,
    GUARD_S,
    Baseline,
    Later,
    Start,
    Wire,
    alive,
    ask,
    chunk,
    client,
    dial,
    eventually,
    idle_again,
    note,
    path_to,
    scripted,
)
from trio.testing import wait_all_tasks_blocked

from slotd.testing import Harness, Knobs, fake_slot

pytestmark = pytest.mark.usefixtures("express")

ENDLESS = Knobs(tokens=100_000, token_delay_s=0.01)


async def warmed(slotd: Harness) -> Baseline:
    """Load the slot, serve one request, and remember what it looks like when nobody is there."""
    await slotd.load("chat")
    async with await dial(slotd) as wire:
        await wire.post(CHAT, ask(max_tokens=1, stream=True))
        await wire.head()
        await wire.rest()
    await eventually(lambda: slotd.slotd.records.live_count == 0 and slotd.snapshot("chat").leases == 0)
    await eventually(lambda: _connections(slotd) == 0)
    await trio.testing.wait_all_tasks_blocked(0.01)  # the last of the connection's tasks end
    return Baseline(slotd)


def _connections(slotd: Harness) -> int:
    """Connections that clients have to slotd now."""
    local = f":{slotd.slotd.address[1]:04X}"
    with open("/proc/self/net/tcp") as table:
        rows = [line.split() for line in table][1:]
    return sum(row[1].endswith(local) and row[3] in ("01", "08") for row in rows)


async def _hang_up(wire: Wire) -> None:
    await wire.hang_up()


async def _reset(wire: Wire) -> None:
    await wire.reset()


async def _half_close(wire: Wire) -> None:
    await wire.stream.send_eof()


@pytest.mark.parametrize("leave", [_hang_up, _reset, _half_close])
async def test_mid_stream(slotd_harness: Start, leave: Any) -> None:
    with trio.fail_after(GUARD_S):
        async with slotd_harness({"chat": fake_slot(ENDLESS, default=True)}) as slotd:
            before = await warmed(slotd)
            async with await dial(slotd) as wire:
                await wire.post(CHAT, ask(stream=True))
                await wire.head()
                await wire.until(b"word2")
                assert slotd.snapshot("chat").leases == 1
                await leave(wire)
                await idle_again(slotd.fake("chat"), f"mid-stream {leave.__name__}")
            await before.again()
            assert (await slotd.fake("chat").stats())["cancelled"] == 1
            assert slotd.slotd.records.recent()[0].outcome == "client_gone"
            assert await slotd.state("chat") == "ready"


@pytest.mark.parametrize("stream", [True, False])
async def test_mid_prompt(slotd_harness: Start, stream: bool) -> None:
    """Before its first token an engine says nothing; the hang-up must reach it all the same."""
    knobs = Knobs(tokens=4, cancel_nonstream=True)
    with trio.fail_after(GUARD_S):
        async with slotd_harness({"chat": fake_slot(knobs, default=True)}) as slotd:
            before = await warmed(slotd)
            engine = slotd.fake("chat")
            await engine.set(first_token_delay_s=60)
            async with await dial(slotd) as wire:
                await wire.post(CHAT, ask(stream=stream))
                await engine.wait_active(1)
                await wire.hang_up()
                await idle_again(engine, f"mid-prompt, stream={stream}")
            await before.again()
            assert (await engine.stats())["cancelled"] == 1


@pytest.mark.parametrize("phase", ["prompt", "tokens"])
async def test_non_streaming_on_an_engine_that_only_stops_streams(slotd_harness: Start, phase: str) -> None:
    """Like llama.cpp: slotd streams from it and puts the answer together, so that it can stop it."""
    knobs = Knobs(tokens=100_000, token_delay_s=0.01)
    slot = fake_slot(knobs, default=True, nonstream_cancel="assemble")
    with trio.fail_after(GUARD_S):
        async with slotd_harness({"chat": slot}) as slotd:
            before = await warmed(slotd)
            engine = slotd.fake("chat")
            began = (await engine.stats())["tokens_out"]
            if phase == "prompt":
                await engine.set(first_token_delay_s=60)
            async with await dial(slotd) as wire:
                await wire.post(CHAT, ask())
                await engine.wait_active(1)
                if phase == "tokens":
                    while (await engine.stats())["tokens_out"] < began + 3:  # noqa: ASYNC110 # another process
                        await trio.sleep(0.005)
                await wire.hang_up()
                await idle_again(engine, f"non-streaming, assembled, in its {phase}")
            await before.again()
            stats = await engine.stats()
            assert stats["cancelled"] == 1
            assert stats["requests"][-1]["stream"] is True


async def test_without_that_ability_such_an_engine_works_on(slotd_harness: Start) -> None:
    """The contrast that shows what assembling is for: the lease is free, the engine is not."""
    with trio.fail_after(GUARD_S):
        async with slotd_harness({"chat": fake_slot(Knobs(tokens=2), default=True)}) as slotd:
            before = await warmed(slotd)
            engine = slotd.fake("chat")
            await engine.set(first_token_delay_s=0.4)
            async with await dial(slotd) as wire:
                await wire.post(CHAT, ask())
                await engine.wait_active(1)
            await before.again()
            assert (await engine.stats())["active"] == 1
            await engine.wait_active(0)
            assert (await engine.stats())["cancelled"] == 0


async def test_while_queued_behind_others(slotd_harness: Start) -> None:
    with trio.fail_after(GUARD_S):
        slot = fake_slot(ENDLESS, default=True, max_parallel=1)
        async with slotd_harness({"chat": slot}) as slotd:
            before = await warmed(slotd)
            engine = slotd.fake("chat")
            served = (await engine.stats())["started"]
            async with await dial(slotd) as first, await dial(slotd) as second:
                await first.post(CHAT, ask(stream=True))
                await first.head()
                await second.post(CHAT, ask(stream=True))
                await eventually(lambda: slotd.snapshot("chat").queued == 1)
                began = trio.current_time()
                await second.hang_up()
                await eventually(lambda: slotd.snapshot("chat").queued == 0)
                note("queue place free after a queued client left", trio.current_time() - began)
                await first.until(b"word5")
                assert (await engine.stats())["started"] == served + 1
                assert slotd.snapshot("chat").leases == 1
                await first.hang_up()
                await idle_again(engine, "the one ahead left as well")
            await before.again()


async def test_while_loading_with_nobody_else(slotd_harness: Start) -> None:
    slot = fake_slot(Knobs(load_delay_s=60), default=True, abandon_after_s=0.2)
    with trio.fail_after(GUARD_S):
        async with slotd_harness({"chat": slot}) as slotd:
            before = Baseline(slotd)
            with slotd.observe("chat") as seen:
                async with await dial(slotd) as wire:
                    await wire.post(CHAT, ask(stream=True))
                    pid = (await slotd.wait_for("chat", "warming")).pid
                    began = trio.current_time()
                assert pid is not None
                assert await path_to(seen, "offline") == ["starting", "warming", "unloading", "offline"]
            took = trio.current_time() - began
            note("load given up after its only client left (abandon_after_s = 200 ms)", took)
            assert 0.2 <= took < 2
            assert not alive(pid)
            await before.again()


async def test_while_loading_and_another_still_waits(slotd_harness: Start) -> None:
    slot = fake_slot(Knobs(load_delay_s=0.6, tokens=2), default=True, abandon_after_s=0.1)
    with trio.fail_after(GUARD_S):
        async with (
            slotd_harness({"chat": slot}) as slotd,
            client(slotd) as http,
            trio.open_nursery() as nursery,
        ):
            async with await dial(slotd) as wire:
                await wire.post(CHAT, ask(stream=True))
                stays = Later(nursery, lambda: http.post(CHAT, json=ask()))
                await eventually(lambda: slotd.snapshot("chat").queued == 2)
                assert slotd.snapshot("chat").state in ("starting", "warming")
            await eventually(lambda: slotd.snapshot("chat").queued == 1)
            assert (await stays.result()).status_code == 200
            assert slotd.snapshot("chat").starts == 1
            stats = await slotd.fake("chat").stats()
            assert stats["started"] == 1


async def test_a_client_that_comes_back_in_time_keeps_the_load(slotd_harness: Start) -> None:
    slot = fake_slot(Knobs(load_delay_s=0.6, tokens=2), default=True, abandon_after_s=5)
    with trio.fail_after(GUARD_S):
        async with slotd_harness({"chat": slot}) as slotd, client(slotd) as http:
            async with await dial(slotd) as wire:
                await wire.post(CHAT, ask(stream=True))
                await slotd.wait_for("chat", "warming")
            await eventually(lambda: slotd.snapshot("chat").queued == 0)
            assert (await http.post(CHAT, json=ask())).status_code == 200
            assert slotd.snapshot("chat").starts == 1


async def test_behind_the_head(slotd_harness: Start) -> None:
    """The head comes with the first event; who leaves then may find a generator that has not run yet."""
    upstream_closed = trio.Event()

    async def one_event(stream: trio.SocketStream, request: bytes) -> None:
        await stream.send_all(EVENT_STREAM + chunk(b"data: 1\n\n"))
        while await stream.receive_some():
            pass
        upstream_closed.set()

    with trio.fail_after(GUARD_S):
        async with (
            scripted(one_event) as server,
            slotd_harness({"chat": server.slot(default=True)}) as slotd,
        ):
            await slotd.load("chat")
            await wait_all_tasks_blocked(0.01)  # those that watch a new engine have begun
            before = Baseline(slotd)
            async with await dial(slotd) as wire:
                await wire.post(CHAT, ask(stream=True))
                assert (await wire.head()).status == 200
                began = trio.current_time()
                await wire.hang_up()
                with trio.fail_after(1):
                    await upstream_closed.wait()
                note("upstream closed after a client left behind the head", trio.current_time() - began)
            await before.again()


async def test_while_an_engine_has_sent_no_more_than_its_head(slotd_harness: Start) -> None:
    """Nothing of the answer is there, so nothing has been sent: it could still be replayed."""
    upstream_closed = trio.Event()
    asked = trio.Event()

    async def head_only(stream: trio.SocketStream, request: bytes) -> None:
        await stream.send_all(EVENT_STREAM)
        asked.set()
        while await stream.receive_some():
            pass
        upstream_closed.set()

    with trio.fail_after(GUARD_S):
        async with (
            scripted(head_only) as server,
            slotd_harness({"chat": server.slot(default=True)}) as slotd,
        ):
            await slotd.load("chat")
            await wait_all_tasks_blocked(0.01)  # those that watch a new engine have begun
            before = Baseline(slotd)
            async with await dial(slotd) as wire:
                await wire.post(CHAT, ask(stream=True))
                await asked.wait()
                await wire.hang_up()
                with trio.fail_after(1):
                    await upstream_closed.wait()
            await before.again()


async def test_after_the_last_byte(slotd_harness: Start) -> None:
    with trio.fail_after(GUARD_S):
        async with slotd_harness({"chat": fake_slot(Knobs(tokens=3), default=True)}) as slotd:
            before = await warmed(slotd)
            async with await dial(slotd) as wire:
                await wire.post(CHAT, ask(stream=True))
                await wire.head()
                assert (await wire.rest()).endswith(b"data: [DONE]\n\n")
                await wire.hang_up()
                await idle_again(slotd.fake("chat"), "the last byte")
            await before.again()
            assert slotd.slotd.records.recent()[0].outcome == "ok"
            assert (await slotd.fake("chat").stats())["finished"] == 2


async def test_idle_connections_end_with_their_clients(slotd_harness: Start) -> None:
    """A client that connects for each request must not leave a half-closed connection each time."""
    with trio.fail_after(GUARD_S):
        async with slotd_harness({"chat": fake_slot(Knobs(tokens=1), default=True)}) as slotd:
            before = await warmed(slotd)
            for _ in range(10):
                async with await dial(slotd) as wire:
                    await wire.post(CHAT, ask(stream=True))
                    await wire.head()
                    await wire.rest()
            async with await dial(slotd):
                pass  # and one that never asks anything
            await eventually(lambda: _connections(slotd) == 0, "connections of clients that have left")
            await before.again()


async def test_a_crowd_that_leaves_at_every_byte(slotd_harness: Start) -> None:
    """Hang-ups spread over head, first chunk and stream, all at once: none leaves anything behind."""
    with trio.fail_after(GUARD_S):
        slot = fake_slot(
            Knobs(tokens=100_000, token_delay_s=0.002, parallel=64), default=True, max_parallel=6
        )
        async with slotd_harness({"chat": slot}) as slotd:
            before = await warmed(slotd)

            async def visit(number: int) -> None:
                async with await dial(slotd) as wire:
                    await wire.post(CHAT, ask(stream=True))
                    for _ in range(number):
                        if not await wire.stream.receive_some(40):
                            break

            async with trio.open_nursery() as nursery:
                for number in range(30):
                    nursery.start_soon(visit, number)
            await idle_again(slotd.fake("chat"), "a crowd of 30 left")
            await before.again()
            stats = await slotd.fake("chat").stats()
            assert max(r["seat"] for r in stats["requests"] if r["seat"] is not None) < 6


async def test_in_the_middle_of_sending_its_body(slotd_harness: Start) -> None:
    with trio.fail_after(GUARD_S):
        async with slotd_harness({"chat": fake_slot(default=True)}) as slotd:
            before = Baseline(slotd)
            async with await dial(slotd) as wire:
                head = f"POST {CHAT} HTTP/1.1\r\nhost: slotd\r\ncontent-length: 100000\r\n"
                await wire.stream.send_all(f"{head}expect: 100-continue\r\n\r\n".encode())
                assert (await wire.stream.receive_some()).startswith(b"HTTP/1.1 100")  # it is waited for
                await wire.stream.send_all(b"{")
            await before.again()
            assert slotd.snapshot("chat").starts == 0


async def test_chunks_that_come_after_a_client_left_go_nowhere(slotd_harness: Start) -> None:
    """An engine that keeps sending finds its connection closed: nothing is buffered for nobody."""
    refused = trio.Event()

    async def chatter(stream: trio.SocketStream, request: bytes) -> None:
        await stream.send_all(EVENT_STREAM)
        try:
            while True:
                await stream.send_all(chunk(b"data: {}\n\n"))
                await trio.sleep(0.001)
        except trio.BrokenResourceError:
            refused.set()

    with trio.fail_after(GUARD_S):
        async with scripted(chatter) as server, slotd_harness({"chat": server.slot(default=True)}) as slotd:
            async with await dial(slotd) as wire:
                await wire.post(CHAT, ask(stream=True))
                await wire.head()
                await wire.until(b"data: {}\n\n")
            with trio.fail_after(1):
                await refused.wait()
