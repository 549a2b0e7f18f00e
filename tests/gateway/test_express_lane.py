"""The express lane: cuts, order, time limits, leave to send, leaving, stopping, handing over."""

from __future__ import annotations

import socket
import struct

import pytest
import trio
from express_world import PATH, Peer, World, echo, post, tcp_pair, with_lane
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from slotd.exchange.inbound import Inbound, Outbound
from slotd.gateway.express.client import ClientSocket
from slotd.gateway.express.lane import LAST_HEAD_S, LINGER_S, LOOK_S

HEALTH = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"


# --- however it comes ---------------------------------------------------------------------

REQUESTS = st.lists(st.tuples(st.binary(max_size=40), st.sampled_from([0, 1, 7, 40])), min_size=1, max_size=4)


@settings(max_examples=60, deadline=None)
@given(REQUESTS, st.data(), st.booleans())
def test_any_cut_of_any_requests_gives_each_its_answer_in_turn(
    requests: list[tuple[bytes, int]], data: st.DataObject, handed: bool
) -> None:
    sent = b"".join(post(body, chunks=size) for body, size in requests) + HEALTH * handed
    cuts = sorted(data.draw(st.sets(st.integers(1, len(sent) - 1), max_size=12)))
    pieces = [sent[a:b] for a, b in zip([0, *cuts], [*cuts, len(sent)], strict=True)]

    async def test(world: World) -> None:
        peer = world.dial()
        await peer.send(*pieces)
        for body, _ in requests:
            answer = await peer.answer()
            assert (answer.status, answer.body, answer.closes) == (200, body, False)
        assert [inbound.body for inbound in world.seen] == [body for body, _ in requests]
        assert world.handed == [HEALTH] * handed

    trio.run(with_lane, test, clock=MockClock(autojump_threshold=0))


async def test_what_is_handed_over_begins_with_the_bytes_that_were_read() -> None:
    odd = post(b"{}").replace(b"POST", b"PUT")

    async def test(world: World) -> None:
        peer = world.dial()
        await peer.send(post(b"one") + odd + post(b"two"))
        assert (await peer.answer()).body == b"one"
        assert world.handed == [odd + post(b"two")]
        assert len(world.seen) == 1

    await with_lane(test)


@pytest.mark.parametrize("cut", [False, True])
async def test_a_head_that_is_too_large_is_handed_over(cut: bool) -> None:
    large = post(b"", b"X-Large: " + b"x" * 1024)

    async def test(world: World) -> None:
        peer = world.dial()
        await peer.send(*([large[:1100], large[1100:]] if cut else [large]))
        assert world.handed == [large]

    await with_lane(test, server="max_head_kb = 1")


async def test_a_connection_ends_with_its_answer_if_the_client_wants_that() -> None:
    async def test(world: World) -> None:
        for body in (b"", b"{}"):
            peer = world.dial()
            await peer.send(post(body, b"Connection: close") + post(b"late"))
            assert (await peer.answer()).closes
            assert await peer.ended() or True  # or reset: we sent more than was wanted
        assert [inbound.body for inbound in world.seen] == [b"", b"{}"]

    await with_lane(test)


async def test_an_answer_without_a_length_comes_in_chunks_and_keeps_the_connection() -> None:
    async def streams(inbound: Inbound, out: Outbound) -> None:
        out.start(200, [(b"content-type", b"text/event-stream")])
        for piece in (b"data: 1\n\n", b"", b"data: 2\n\n"):
            await out.send(piece)

    async def test(world: World) -> None:
        peer = world.dial()
        for _ in range(2):
            await peer.send(post())
            got = await peer.stream.receive_some()
            assert got.endswith(b"\r\n\r\n9\r\ndata: 1\n\n\r\n9\r\ndata: 2\n\n\r\n0\r\n\r\n")
            assert b"transfer-encoding: chunked\r\n" in got

    await with_lane(test, streams)


# --- leave to send ------------------------------------------------------------------------

EXPECT = b"Expect: 100-continue"


@pytest.mark.parametrize("chunks", [0, 3])
async def test_a_client_that_waits_for_leave_gets_it(chunks: int) -> None:
    whole = post(b"abcdef", EXPECT, chunks=chunks)
    head, _, body = whole.partition(b"\r\n\r\n")

    async def test(world: World) -> None:
        peer = world.dial()
        await peer.send(head + b"\r\n\r\n")
        assert (await peer.answer()).status == 100
        assert world.seen == []
        await peer.send(body)
        assert (await peer.answer()).body == b"abcdef"
        await peer.send(whole)
        answer = await peer.answer()
        assert (answer.status, answer.body) == (200, b"abcdef"), "no leave for what is here"

    await with_lane(test)


async def test_no_leave_is_given_to_send_what_is_refused_or_nothing() -> None:
    async def test(world: World) -> None:
        peer = world.dial()
        await peer.send(post(b"", EXPECT))
        assert (await peer.answer()).status == 200
        await peer.send(post(b"", EXPECT).replace(b"Length: 0", b"Length: 1048577"))
        refused = await peer.answer()
        assert (refused.status, refused.code, refused.closes) == (413, "request.too_large", True)
        assert await peer.ended()

    await with_lane(test, server="max_body_mb = 1")


# --- bodies -------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [b"x\r\n", b"-1\r\n", b"2\r\nabc\r\n", b"1;" + b"e" * 2000, b"2\nab\n0\n\n"])
async def test_chunks_that_are_none_are_refused(bad: bytes) -> None:
    async def test(world: World) -> None:
        peer = world.dial()
        head, _, _ = post(b"z", chunks=1).partition(b"\r\n\r\n")
        await peer.send(head + b"\r\n\r\n", bad)
        refused = await peer.answer()
        assert (refused.status, refused.code, refused.closes) == (400, "request.invalid_http", True)
        assert world.seen == []
        assert world.uploads.count == 0

    await with_lane(test)


async def test_chunks_without_end_are_refused_at_the_limit() -> None:
    async def test(world: World) -> None:
        peer = world.dial()
        head, _, _ = post(b"z", chunks=1).partition(b"\r\n\r\n")
        await peer.send(head + b"\r\n\r\n")
        chunk = b"8000\r\n" + b"x" * 0x8000 + b"\r\n"
        await peer.send(*[chunk] * 33)
        refused = await peer.answer()
        assert (refused.status, refused.code, refused.closes) == (413, "request.too_large", True)
        assert world.uploads.count == 0

    await with_lane(test, server="max_body_mb = 1")


# --- time limits, on virtual time -----------------------------------------------------------


async def test_a_head_has_its_time_and_no_more(autojump_clock: MockClock) -> None:
    async def test(world: World) -> None:
        began = trio.current_time()
        trickles = world.dial()
        with trio.move_on_after(9.9):
            for byte in post(b"", b"X-Slow: " + b"x" * 1000):
                await trickles.send(bytes([byte]))
                await trio.sleep(0.5)
        refused = await trickles.answer()
        assert (refused.status, refused.code, refused.closes) == (408, "request.head_timeout", True)
        assert 10 <= trio.current_time() - began < 10.5
        silent = world.dial()
        began = trio.current_time()
        assert await silent.ended(), "without a word: it has asked for nothing"
        assert 10 <= trio.current_time() - began < 10.5
        await wait_all_tasks_blocked()
        assert world.serving <= 1  # the first may still be lingered for

    await with_lane(test, server="head_timeout_s = 10")


async def test_a_further_head_has_its_time_from_its_first_byte(autojump_clock: MockClock) -> None:
    async def test(world: World) -> None:
        peer = world.dial()
        await peer.send(post(b"1"))
        assert (await peer.answer()).body == b"1"
        await trio.sleep(70)
        await peer.send(post(b"2")[:20])
        await trio.sleep(8)
        await peer.send(post(b"2")[20:])
        assert (await peer.answer()).body == b"2"
        await peer.send(post(b"3")[:20])
        began = trio.current_time()
        assert (await peer.answer()).code == "request.head_timeout"
        assert 10 <= trio.current_time() - began < 10.5

    await with_lane(test, server="head_timeout_s = 10")


async def test_a_connection_that_is_not_used_ends_after_a_while(autojump_clock: MockClock) -> None:
    async def test(world: World) -> None:
        peer = world.dial()
        await peer.send(post(b"1"))
        await peer.answer()
        began = trio.current_time()
        assert await peer.ended()
        assert 75 <= trio.current_time() - began < 76
        assert world.serving == 0

    await with_lane(test)


@pytest.mark.parametrize("chunks", [0, 1])
async def test_a_body_has_its_time_however_it_trickles(chunks: int, autojump_clock: MockClock) -> None:
    async def test(world: World) -> None:
        peer = world.dial()
        whole = post(b"x" * 100, chunks=chunks)
        head, _, body = whole.partition(b"\r\n\r\n")
        await peer.send(head + b"\r\n\r\n")
        began = trio.current_time()
        with trio.move_on_after(9.5):
            for byte in body:
                await peer.send(bytes([byte]))
                await trio.sleep(1)
        assert world.uploads.count == 1
        refused = await peer.answer()
        assert (refused.status, refused.code, refused.closes) == (408, "request.body_timeout", True)
        assert 10 <= trio.current_time() - began < 10.5
        assert world.uploads.count == 0
        assert world.seen == []

    await with_lane(test, server="idle_timeout_s = 10")


async def test_only_heads_and_bodies_are_waited_for_so_briefly(autojump_clock: MockClock) -> None:
    async def slow(inbound: Inbound, out: Outbound) -> None:
        await trio.sleep(200)
        await echo(inbound, out)

    async def test(world: World) -> None:
        peer = world.dial()
        await peer.send(post(b"1") + post(b"2")[:20])
        assert (await peer.answer()).body == b"1"
        await peer.send(post(b"2")[20:])
        assert (await peer.answer()).body == b"2"

    await with_lane(test, slow, server="head_timeout_s = 10\nidle_timeout_s = 10")


# --- leaving ------------------------------------------------------------------------------


async def leave(peer: Peer, how: str) -> None:
    if how == "close":
        await peer.stream.aclose()
    else:
        await peer.stream.send_eof()


@pytest.mark.parametrize("how", ["close", "half-close"])
@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"P",
        post(b"abc")[:30],
        post(b"abc")[:-1],
        post(b"abc", chunks=2)[:-3],
        post(b"abc", EXPECT)[:-3],
        post(b"abc") + post(b"def")[:-1],
    ],
)
async def test_who_leaves_before_all_has_come_is_forgotten(
    sent: bytes, how: str, autojump_clock: MockClock
) -> None:
    async def test(world: World) -> None:
        peer = world.dial()
        await peer.send(sent)
        await leave(peer, how)
        await wait_all_tasks_blocked()
        assert (world.serving, world.uploads.count) == (0, 0)
        assert [inbound.body for inbound in world.seen] == [b"abc"] * sent.count(b"Length: 3\r\n\r\nabcPOST")

    await with_lane(test)


@pytest.mark.parametrize("how", ["close", "half-close"])
@pytest.mark.parametrize("ahead", [b"", b"\r\n", post(b"ahead")])
@pytest.mark.parametrize("begun", [False, True])
async def test_who_leaves_while_it_is_answered_ends_its_answer(
    how: str, ahead: bytes, begun: bool, autojump_clock: MockClock
) -> None:
    ended: list[bytes] = []

    async def endless(inbound: Inbound, out: Outbound) -> None:
        try:
            if begun:
                out.start(200, [(b"content-type", b"text/event-stream")])
                await out.send(b"data: 1\n\n")
            await trio.sleep_forever()
        finally:
            ended.append(inbound.body)

    async def test(world: World) -> None:
        for wait_s in (0.0, 1.0):  # before it is watched, and when it is
            peer = world.dial()
            await peer.send(post(b"first"), ahead)
            await trio.sleep(wait_s)
            ended.clear()
            await leave(peer, how)
            await trio.sleep(0.1)
            assert ended == [b"first"]
            assert world.serving == 0
        assert [inbound.body for inbound in world.seen] == [b"first"] * 2

    await with_lane(test, endless)


async def test_a_reader_for_hang_ups_leaves_what_is_sent_ahead_for_its_turn(
    autojump_clock: MockClock,
) -> None:
    go = trio.Event()

    async def slow(inbound: Inbound, out: Outbound) -> None:
        await go.wait()
        await echo(inbound, out)

    async def test(world: World) -> None:
        peer = world.dial()
        await peer.send(post(b"one"))
        await trio.sleep(1)  # it is watched now
        await peer.send(*(bytes([b]) for b in post(b"two") + post(b"three", chunks=2)))
        go.set()
        assert [(await peer.answer()).body for _ in range(3)] == [b"one", b"two", b"three"]

    await with_lane(test, slow)


async def test_who_has_left_when_it_is_given_leave_ends_only_its_own_connection() -> None:
    """An error that nobody expects would end slotd: each connection's task is a child of its server."""
    peers: list[Peer] = []

    async def answers_and_is_reset(inbound: Inbound, out: Outbound) -> None:
        await echo(inbound, out)
        stream = peers[0].stream
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await stream.aclose()

    async def test(world: World) -> None:
        peers.append(world.dial())
        # Both in one piece: the second head is not read again from a socket that says it is gone.
        await peers[0].send(post(b"1") + post(b"22", EXPECT)[:-2])
        assert (world.serving, len(world.seen)) == (0, 1)

    await with_lane(test, answers_and_is_reset)


# --- stopping -----------------------------------------------------------------------------


async def test_a_stop_ends_connections_with_the_answers_that_are_under_way() -> None:
    go = trio.Event()

    async def slow(inbound: Inbound, out: Outbound) -> None:
        if inbound.body == b"slow":
            await go.wait()
        await echo(inbound, out)

    async def test(world: World) -> None:
        fresh, kept, busy, reading = (world.dial() for _ in range(4))
        await kept.send(post(b"1"))
        await kept.answer()
        await busy.send(post(b"slow"))
        await reading.send(post(b"2")[:-1])
        world.lane.stop()
        assert await fresh.ended()
        assert await kept.ended()
        assert world.serving == 2
        await reading.send(post(b"2")[-1:])
        answer = await reading.answer()
        assert (answer.body, answer.closes) == (b"2", True)
        go.set()
        assert (await busy.answer()).body == b"slow"
        assert await busy.ended()
        await wait_all_tasks_blocked()
        assert world.serving == 0

    await with_lane(test, slow)


async def test_half_a_head_does_not_hold_up_a_stop(autojump_clock: MockClock) -> None:
    async def test(world: World) -> None:
        peer = world.dial()
        await peer.send(post(b"1")[:20])
        world.lane.stop()
        told = b""
        with trio.fail_after(5):
            while data := await peer.stream.receive_some():
                told += data
        assert told.startswith(b"HTTP/1.1 503 ")
        assert b"server.stopping" in told
        await peer.stream.aclose()
        await wait_all_tasks_blocked()
        assert world.serving == 0

    await with_lane(test, server="head_timeout_s = 30")


async def test_nor_does_one_that_was_here_before_anybody_looked(autojump_clock: MockClock) -> None:
    async def test(world: World) -> None:
        ours, theirs = tcp_pair()
        ours.sendall(post(b"1")[:20])
        client = ClientSocket(theirs)
        with ours:
            assert await client.receive()
            world.lane.stop()
            began = trio.current_time()
            await world.serve(client)
        assert trio.current_time() - began <= LAST_HEAD_S + LOOK_S + LINGER_S

    await with_lane(test)


async def test_half_an_answer_ends_its_connection() -> None:
    async def breaks(inbound: Inbound, out: Outbound) -> None:
        out.start(200, [(b"content-length", b"10")])
        await out.send(b"half")
        raise KeyError(inbound.id)

    async def test(world: World) -> None:
        peer = world.dial()
        await peer.send(post())
        assert (await peer.stream.receive_some()).endswith(b"half")
        assert await peer.ended()

    await with_lane(test, breaks)


async def test_paths_carry_their_query() -> None:
    async def test(world: World) -> None:
        peer = world.dial()
        await peer.send(post(b"{}").replace(PATH, PATH + b"?a=b%20c"))
        await peer.answer()
        (seen,) = world.seen
        assert (seen.path.encode(), seen.query, seen.client) == (PATH, b"a=b%20c", "127.0.0.1")

    await with_lane(test)
