"""The HTTP/1.1 client when all goes well: requests, reuse, bodies of any size."""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import pytest
import trio
import trio.testing
from http1_peer import BIG, CHUNKED, OK, Peer, against, body_of, fetch, get, post, says
from hypothesis import given, settings
from hypothesis import strategies as st

from slotd.wire.http1 import Http1Pool, UpstreamBroken

EVENTS = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"9\r\ndata: x\n\n\r\n0\r\n\r\n"
)
TAIL = b"Content-Length: 1\r\n\r\nx"


# --- the request ---------------------------------------------------------------


async def test_bad_header_opens_nothing() -> None:
    pool = Http1Pool("127.0.0.1", 1)
    with pytest.raises(ValueError, match="CR, LF"):
        await pool.request(b"GET", b"/", [(b"a", b"b\r\nc: d")], b"")
    assert (pool.in_use, pool.opened) == (0, 0)


async def test_request_as_the_engine_sees_it() -> None:
    async def script(peer: Peer) -> None:
        head, body = await peer.read_request()
        assert head.split(b"\r\n") == [
            b"POST /v1/x HTTP/1.1",
            b"Host: 127.0.0.1:%d" % peer.stream.socket.getsockname()[1],
            b"Content-Type: application/json",
            b"Content-Length: 2",
        ]
        assert body == b"{}"
        await peer.stream.send_all(OK)
        await peer.see_close()

    async def client(pool: Http1Pool) -> None:
        assert await fetch(pool) == b"ok"

    await against(client, script)


async def test_ipv6_host_is_bracketed() -> None:
    pool = Http1Pool("::1", 8080)
    assert pool._host_header == b"[::1]:8080"


# --- reuse --------------------------------------------------------------------


async def test_connection_is_reused() -> None:
    async def client(pool: Http1Pool) -> None:
        for _ in range(3):
            assert await fetch(pool) == b"ok"
            assert (pool.in_use, pool.idle) == (0, 1)
        assert (pool.opened, pool.reused) == (1, 2)
        assert pool.bytes_received == len(OK + CHUNKED + b"2\r\nok\r\n0\r\n\r\n" + OK)

    await against(client, says(OK, CHUNKED + b"2\r\nok\r\n0\r\n\r\n", OK))


async def test_connection_is_free_as_soon_as_the_response_has_ended() -> None:
    async def client(pool: Http1Pool) -> None:
        first = await post(pool)
        assert not first.complete  # the end has been seen, but not handed out
        assert (pool.in_use, pool.idle) == (0, 1)
        second = await post(pool)
        first.abort()  # must not touch what is no longer its own
        assert await body_of(second) == b"ok"
        assert await body_of(first) == b"ok"
        assert pool.opened == 1

    await against(client, says(OK, OK))


@pytest.mark.parametrize(
    ("method", "raw", "body"),
    [
        pytest.param(b"POST", EVENTS, b"data: x\n\n", id="event stream"),
        pytest.param(b"GET", b"HTTP/1.1 500 E\r\nConnection: close\r\n" + TAIL, b"x", id="connection: close"),
        pytest.param(b"GET", b"HTTP/1.0 200 OK\r\n" + TAIL, b"x", id="HTTP/1.0"),
        pytest.param(b"HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n", b"", id="HEAD"),
    ],
)
async def test_connection_is_closed_after_these(method: bytes, raw: bytes, body: bytes) -> None:
    closed = trio.Event()

    async def script(peer: Peer) -> None:
        await peer.answer(raw)
        await peer.see_close()
        closed.set()

    async def client(pool: Http1Pool) -> None:
        async with await get(pool, method=method) as response:
            assert await body_of(response) == body
            await closed.wait()
        assert pool.idle == 0
        assert await fetch(pool) == b"ok"
        assert (pool.opened, pool.reused) == (2, 0)

    await against(client, script, says(OK))


async def test_until_eof_body() -> None:
    raw = b"HTTP/1.1 200 OK\r\n\r\nall there is"

    async def client(pool: Http1Pool) -> None:
        async with await get(pool) as response:
            assert await body_of(response) == b"all there is"
        assert (pool.in_use, pool.idle) == (0, 0)

    await against(client, says(raw, then_close=True))


async def test_bodyless_response_is_complete_at_once() -> None:
    async def client(pool: Http1Pool) -> None:
        response = await get(pool)
        assert (response.status, response.complete, pool.idle) == (204, True, 1)
        assert await response.receive_some() == b""

    await against(client, says(b"HTTP/1.1 204 No Content\r\n\r\n"))


@pytest.mark.parametrize("stray", [b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n", b""])
async def test_idle_connection_that_spoke_or_closed_is_dropped(stray: bytes) -> None:
    spoken = trio.Event()
    dropped = trio.Event()

    async def script(peer: Peer) -> None:
        await peer.answer(OK)
        await read_by_client.wait()
        if stray:
            await peer.stream.send_all(stray)
        else:
            await peer.stream.send_eof()
        spoken.set()
        await peer.see_close()
        dropped.set()

    read_by_client = trio.Event()

    async def client(pool: Http1Pool) -> None:
        assert await fetch(pool) == b"ok"
        assert pool.idle == 1
        read_by_client.set()
        await spoken.wait()  # loopback: what was sent has arrived
        assert await fetch(pool) == b"two"
        await dropped.wait()
        assert (pool.opened, pool.reused) == (2, 0)

    await against(client, script, says(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\ntwo"))


async def test_surplus_behind_a_response_closes_the_connection() -> None:
    async def client(pool: Http1Pool) -> None:
        assert await fetch(pool) == b"ok"
        assert pool.idle == 0
        assert await fetch(pool) == b"ok"

    await against(client, says(OK + b"junk"), says(OK))


async def test_idle_connections_are_bounded_in_number() -> None:
    async def client(pool: Http1Pool) -> None:
        async def one() -> None:
            async with await post(pool) as response:
                await reached.receive()
                await body_of(response)

        send, reached = trio.open_memory_channel[None](4)
        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(one)
            while pool.in_use < 4:
                await trio.testing.wait_all_tasks_blocked()
            for _ in range(4):
                send.send_nowait(None)
        assert (pool.in_use, pool.idle, pool.opened) == (0, 2, 4)

    async def slow(peer: Peer) -> None:
        await peer.answer(OK[:-1])
        await trio.testing.wait_all_tasks_blocked()
        await peer.stream.send_all(OK[-1:])
        await peer.see_close()

    await against(client, *[slow] * 4, max_idle=2)


async def test_old_idle_connections_are_not_reused(mock_clock: trio.testing.MockClock) -> None:
    async def client(pool: Http1Pool) -> None:
        await fetch(pool)
        mock_clock.jump(2.9)
        await fetch(pool)
        assert (pool.opened, pool.reused) == (1, 1)
        mock_clock.jump(3.1)
        await fetch(pool)
        assert (pool.opened, pool.reused, pool.idle) == (2, 1, 1)

    async def patient(peer: Peer) -> None:
        while await peer.stream.receive_some():
            await peer.stream.send_all(OK)

    await against(client, patient, patient, idle_s=3)


# --- bodies as they come ------------------------------------------------------


@given(cuts=st.sets(st.integers(1, len(CHUNKED) + 30), max_size=6))
@settings(max_examples=25, deadline=None)
def test_stream_cut_anywhere_on_a_real_socket(cuts: set[int]) -> None:
    raw = CHUNKED + b"6\r\nabcdef\r\n4;x=y\r\nghij\r\n0\r\nT: t\r\n\r\n"
    marks = [0, *sorted(cut for cut in cuts if cut < len(raw)), len(raw)]

    async def script(peer: Peer) -> None:
        await peer.read_request()
        for start, end in pairwise(marks):
            await peer.stream.send_all(raw[start:end])
            await trio.testing.wait_all_tasks_blocked()
        await peer.answer(OK)
        await peer.see_close()

    async def client(pool: Http1Pool) -> None:
        assert await fetch(pool) == b"abcdefghij"
        assert await fetch(pool) == b"ok"
        assert pool.opened == 1

    trio.run(partial(against, client, script))


async def test_what_arrived_together_comes_in_one_piece() -> None:
    async def client(pool: Http1Pool) -> None:
        async with await post(pool) as response:
            assert await response.receive_some() == b"abcd"
            assert response.complete

    await against(client, says(CHUNKED + b"1\r\na\r\n2\r\nbc\r\n1\r\nd\r\n0\r\n\r\n"))


async def test_chunks_come_as_they_are_sent() -> None:
    got = [trio.Event() for _ in range(3)]

    async def script(peer: Peer) -> None:
        await peer.answer(CHUNKED)
        for i, event in enumerate(got):
            await peer.stream.send_all(b"1\r\n%d\r\n" % i)
            await event.wait()
        await peer.stream.send_all(b"0\r\n\r\n")
        await peer.see_close()

    async def client(pool: Http1Pool) -> None:
        async with await post(pool) as response:
            for i, event in enumerate(got):
                assert await response.receive_some() == b"%d" % i
                event.set()
            assert await response.receive_some() == b""

    await against(client, script)


# --- big requests -------------------------------------------------------------


async def test_big_body_arrives_whole() -> None:
    body = bytes(range(256)) * (BIG // 256)

    async def script(peer: Peer) -> None:
        assert await peer.read_big() == body
        await peer.stream.send_all(OK)
        await peer.answer(OK)
        await peer.see_close()

    async def client(pool: Http1Pool) -> None:
        async with await post(pool, body) as response:
            assert await body_of(response) == b"ok"
        assert await fetch(pool) == b"ok"
        assert pool.opened == 1

    await against(client, script)


EARLY = b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 2\r\n\r\nno"


@pytest.mark.parametrize("then", ["hold", "close"])
async def test_early_answer_to_a_big_body(then: str) -> None:
    """The engine answers from the head alone and reads no further."""

    async def script(peer: Peer) -> None:
        await peer.read_head()
        await peer.stream.send_all(EARLY)
        if then == "close":
            await peer.stream.send_eof()
        await answered.wait()

    answered = trio.Event()

    async def client(pool: Http1Pool) -> None:
        async with await post(pool, bytes(BIG)) as response:
            assert response.status == 413
            assert await body_of(response) == b"no"
        answered.set()
        # The rest of the body never went out: nothing may follow on this connection.
        assert (pool.in_use, pool.idle) == (0, 0)

    await against(client, script)


async def test_answer_while_the_body_is_still_read() -> None:
    """Both sides write more than the buffers hold before either has read all."""
    answer = bytes(BIG)

    async def script(peer: Peer) -> None:
        await peer.read_head()
        await peer.stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % BIG)
        await peer.stream.send_all(answer)  # reads nothing until all of it has gone out
        await peer.see_close()

    async def client(pool: Http1Pool) -> None:
        async with await post(pool, bytes(BIG)) as response:
            assert len(await body_of(response)) == BIG
        assert pool.idle == 0

    await against(client, script)


async def test_answer_left_behind_by_an_engine_that_stopped_listening() -> None:
    """Sending fails, yet the answer is there to be read."""

    async def script(peer: Peer) -> None:
        await peer.read_head()
        await peer.stream.send_all(EARLY)
        # Closing with unread bytes resets the connection; the answer has already arrived.

    async def client(pool: Http1Pool) -> None:
        try:
            async with await post(pool, bytes(BIG)) as response:
                assert response.status == 413
                assert await body_of(response) == b"no"
        except UpstreamBroken:
            pytest.fail("the answer was there")
        assert (pool.in_use, pool.idle) == (0, 0)

    await against(client, script)


async def test_big_body_to_an_engine_that_dies() -> None:
    async def script(peer: Peer) -> None:
        await peer.read_head()
        peer.reset()

    async def client(pool: Http1Pool) -> None:
        with pytest.raises(UpstreamBroken) as caught:
            await post(pool, bytes(BIG))
        assert not caught.value.bytes_received
        assert (pool.in_use, pool.idle) == (0, 0)

    await against(client, script)


async def test_big_body_is_sent_again_at_the_retry() -> None:
    async def dies(peer: Peer) -> None:
        await peer.answer(OK)
        await peer.read_head()
        peer.reset()

    async def lives(peer: Peer) -> None:
        assert len(await peer.read_big()) == BIG
        await peer.stream.send_all(OK)
        await peer.see_close()

    async def client(pool: Http1Pool) -> None:
        assert await fetch(pool) == b"ok"
        async with await post(pool, bytes(BIG)) as response:
            assert await body_of(response) == b"ok"

    await against(client, dies, lives)
