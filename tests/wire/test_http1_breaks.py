"""The HTTP/1.1 client when it does not go well: breaks, cancellation at every phase, ends on this side."""

from __future__ import annotations

import errno
import socket
from collections.abc import Awaitable, Callable, Iterator
from functools import partial

import pytest
import trio
import trio.testing
from http1_peer import BIG, CHUNKED, OK, Peer, Script, against, body_of, fetch, post, says

from slotd.wire import http1_conn
from slotd.wire.http1 import BadResponse, ConnectFailed, Http1Pool, UpstreamBroken
from slotd.wire.http1_conn import Connection, is_self_connected

# --- half-dead keep-alive -----------------------------------------------------


def dies_on_second(how: str) -> Script:
    async def script(peer: Peer) -> None:
        await peer.answer(OK)
        await peer.read_request()
        if how == "reset":
            peer.reset()
        elif how == "interim":
            await peer.stream.send_all(b"HTTP/1.1 100 Continue\r\n\r\n")
        elif how == "byte":
            await peer.stream.send_all(b"H")

    return script


@pytest.mark.parametrize("how", ["eof", "reset"])
async def test_break_of_a_reused_connection_is_retried_once(how: str) -> None:
    async def client(pool: Http1Pool) -> None:
        assert await fetch(pool) == b"ok"
        assert await fetch(pool) == b"ok"
        assert (pool.opened, pool.reused) == (2, 1)

    await against(client, dies_on_second(how), says(OK))


async def test_retry_is_on_a_fresh_connection_and_only_once() -> None:
    async def dies(peer: Peer) -> None:
        await peer.read_request()

    async def client(pool: Http1Pool) -> None:
        one, two = await post(pool), await post(pool)
        await body_of(one)
        await body_of(two)
        assert pool.idle == 2
        with pytest.raises(UpstreamBroken) as caught:
            await fetch(pool)
        assert not caught.value.bytes_received
        # One of the kept ones broke, the fresh one broke; the other kept one was not tried.
        assert (pool.opened, pool.reused, pool.idle) == (3, 1, 1)

    async def slow(peer: Peer) -> None:
        await peer.answer(OK[:-1])
        await trio.testing.wait_all_tasks_blocked()
        await peer.stream.send_all(OK[-1:])
        # The one that is used again dies on that request, the other sees the pool close.
        data = await peer.stream.receive_some()
        assert data == b"" or data.startswith(b"POST")

    await against(client, slow, slow, dies)


@pytest.mark.parametrize("how", ["interim", "byte"])
async def test_no_retry_once_the_engine_has_said_anything(how: str) -> None:
    async def client(pool: Http1Pool) -> None:
        assert await fetch(pool) == b"ok"
        with pytest.raises(UpstreamBroken) as caught:
            await fetch(pool)
        assert caught.value.bytes_received
        assert pool.opened == 1

    await against(client, dies_on_second(how))


@pytest.mark.parametrize("how", ["eof", "reset"])
async def test_no_retry_on_a_fresh_connection(how: str) -> None:
    async def script(peer: Peer) -> None:
        await peer.read_request()
        if how == "reset":
            peer.reset()

    async def client(pool: Http1Pool) -> None:
        with pytest.raises(UpstreamBroken) as caught:
            await fetch(pool)
        assert not caught.value.bytes_received
        assert (pool.in_use, pool.idle, pool.opened) == (0, 0, 1)

    await against(client, script)


async def test_engine_dead_at_the_retry() -> None:
    with trio.fail_after(10):
        [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        pool = Http1Pool("127.0.0.1", listener.socket.getsockname()[1])

        async def serve() -> None:
            async with await listener.accept() as stream:
                await listener.aclose()
                await dies_on_second("eof")(Peer(stream))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            assert await fetch(pool) == b"ok"
            with pytest.raises(ConnectFailed) as caught:
                await fetch(pool)
        assert isinstance(caught.value.__context__, ConnectionRefusedError)
        assert (pool.in_use, pool.idle) == (0, 0)


# --- broken in the middle -----------------------------------------------------


@pytest.mark.parametrize("sent", [OK[:1], OK[:30], OK[:-1], CHUNKED + b"5\r\nab", CHUNKED + b"2\r\nab\r\n"])
@pytest.mark.parametrize("how", ["eof", "reset"])
async def test_cut_response_is_broken_never_an_end(sent: bytes, how: str) -> None:
    seen = trio.Event()

    async def script(peer: Peer) -> None:
        await peer.answer(sent)
        if how == "reset":
            if b"\r\n\r\n" in sent:
                await seen.wait()  # a reset may overtake what was sent before it
            peer.reset()

    async def client(pool: Http1Pool) -> None:
        async def read() -> None:
            async with await post(pool) as response:
                seen.set()
                await body_of(response)

        with pytest.raises(UpstreamBroken) as caught:
            await read()
        assert caught.value.bytes_received or how == "reset"
        assert (pool.in_use, pool.idle) == (0, 0)

    await against(client, script)


async def test_what_arrived_before_the_break_is_handed_out_first() -> None:
    async def client(pool: Http1Pool) -> None:
        async with await post(pool) as response:
            assert await response.receive_some() == b"ab"
            assert not response.complete
            with pytest.raises(UpstreamBroken):
                await response.receive_some()
            with pytest.raises(UpstreamBroken):
                await response.receive_some()

    await against(client, says(CHUNKED + b"2\r\nab\r\n", then_close=True))


@pytest.mark.parametrize(
    "raw", [b"SSH-2.0-x\r\n", b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 1000, CHUNKED + b"zz\r\n"]
)
async def test_bad_response_closes_the_connection(raw: bytes) -> None:
    async def client(pool: Http1Pool) -> None:
        with pytest.raises(BadResponse):
            async with await post(pool) as response:
                await body_of(response)
        assert (pool.in_use, pool.idle) == (0, 0)

    await against(client, says(raw), max_head_bytes=1000)


@pytest.mark.parametrize("then", ["zz\r\n", ""])
async def test_failed_read_leaves_nothing_to_clean_up(then: str) -> None:
    """Even for a caller that forgets to end the response."""

    async def script(peer: Peer) -> None:
        await peer.answer(CHUNKED)
        await headed.wait()
        await peer.stream.send_all(then.encode())

    headed = trio.Event()

    async def client(pool: Http1Pool) -> None:
        response = await post(pool)
        headed.set()
        with pytest.raises((BadResponse, UpstreamBroken)):
            await response.receive_some()
        assert (pool.in_use, pool.idle) == (0, 0)

    await against(client, script)


# --- connecting ---------------------------------------------------------------


async def test_refused() -> None:
    with socket.socket() as placeholder:  # bound and not listening: refused for sure
        placeholder.bind(("127.0.0.1", 0))
        pool = Http1Pool("127.0.0.1", placeholder.getsockname()[1])
        with pytest.raises(ConnectFailed, match="refused") as caught:
            await fetch(pool)
    assert isinstance(caught.value.__context__, ConnectionRefusedError)
    assert (pool.in_use, pool.opened) == (0, 0)


async def test_name_is_looked_up() -> None:
    async def client(pool: Http1Pool) -> None:
        by_name = Http1Pool("localhost", pool._port)
        assert await fetch(by_name) == b"ok"
        by_name.close()

    await against(client, says(OK))


async def test_unknown_name(monkeypatch: pytest.MonkeyPatch) -> None:
    async def getaddrinfo(*args: object, **kwargs: object) -> list[object]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(trio.socket, "getaddrinfo", getaddrinfo)
    pool = Http1Pool("no-such-engine.invalid", 80)
    with pytest.raises(ConnectFailed, match="not known") as caught:
        await fetch(pool)
    assert isinstance(caught.value.__context__, OSError)


@pytest.fixture
def deaf() -> Iterator[int]:
    """A port whose listener's queue is full: connecting to it hangs."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(0)
    fillers = []
    for _ in range(3):
        filler = socket.socket()
        filler.setblocking(False)
        filler.connect_ex(listener.getsockname())
        fillers.append(filler)
    yield listener.getsockname()[1]
    for sock in (*fillers, listener):
        sock.close()


async def test_connect_timeout(deaf: int, autojump_clock: trio.testing.MockClock) -> None:
    pool = Http1Pool("127.0.0.1", deaf, connect_timeout_s=7)
    start = trio.current_time()
    with pytest.raises(ConnectFailed, match="timed out") as caught:
        await fetch(pool)
    assert trio.current_time() - start == pytest.approx(7)
    assert isinstance(caught.value.__context__, TimeoutError)
    assert (pool.in_use, pool.opened) == (0, 0)


async def test_close_while_connecting(deaf: int) -> None:
    pool = Http1Pool("127.0.0.1", deaf)
    with trio.fail_after(2):
        async with trio.open_nursery() as nursery:

            async def connect() -> None:
                with pytest.raises(ConnectFailed, match="closed while connecting"):
                    await fetch(pool)

            nursery.start_soon(connect)
            await trio.testing.wait_all_tasks_blocked()
            assert pool.in_use == 1
            pool.close()
            assert pool.in_use == 0


async def test_connecting_to_oneself_is_noticed() -> None:
    with socket.socket() as sock, socket.socket() as other, socket.create_server(("127.0.0.1", 0)) as server:
        sock.bind(("127.0.0.1", 0))
        sock.connect(sock.getsockname())
        assert is_self_connected(sock, sock.getsockname())
        other.connect(server.getsockname())
        assert not is_self_connected(other, server.getsockname())


@pytest.mark.skipif(
    str(http1_conn.__file__).endswith(".so"), reason="compiled functions call each other directly"
)
async def test_connection_to_oneself_counts_as_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    async def script(peer: Peer) -> None:
        await peer.see_close()

    async def client(pool: Http1Pool) -> None:
        monkeypatch.setattr(http1_conn, "is_self_connected", lambda sock, address: True)
        with pytest.raises(ConnectFailed, match="refused"):
            await fetch(pool)
        assert pool.opened == 0

    await against(client, script)


async def test_nagle_is_off() -> None:
    async def client(pool: Http1Pool) -> None:
        async with await post(pool):
            [conn] = pool._in_use
            assert conn._socket().getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)

    await against(client, says(OK[:-1]))


# --- cancellation -------------------------------------------------------------


async def blocked_then_cancelled(pool: Http1Pool, step: Callable[[], Awaitable[object]]) -> None:
    """Start a step, cancel it once everything is blocked, and see the pool empty."""
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:

            async def cancel() -> None:
                await trio.testing.wait_all_tasks_blocked()
                assert pool.in_use == 1
                scope.cancel()

            nursery.start_soon(cancel)
            await step()
    assert scope.cancelled_caught
    assert (pool.in_use, pool.idle) == (0, 0)


async def test_cancel_before_anything_sends_nothing() -> None:
    async def script(peer: Peer) -> None:
        await peer.answer(OK)
        assert await peer.stream.receive_some() == b""  # the pool's close, no second request

    async def client(pool: Http1Pool) -> None:
        await fetch(pool)
        with trio.CancelScope() as scope:
            scope.cancel()
            await post(pool)
        assert scope.cancelled_caught
        assert (pool.in_use, pool.idle) == (0, 1)

    await against(client, script)


async def test_cancel_while_connecting(deaf: int) -> None:
    pool = Http1Pool("127.0.0.1", deaf)
    with trio.fail_after(2):
        await blocked_then_cancelled(pool, partial(fetch, pool))
    assert pool.opened == 0


async def test_cancel_while_sending() -> None:
    closed = trio.Event()

    async def script(peer: Peer) -> None:
        await peer.read_head()
        await cancelled.wait()
        await peer.see_close()
        closed.set()

    cancelled = trio.Event()

    async def client(pool: Http1Pool) -> None:
        await blocked_then_cancelled(pool, partial(post, pool, bytes(BIG)))
        cancelled.set()
        await closed.wait()

    await against(client, script)


@pytest.mark.parametrize("reused", [False, True])
@pytest.mark.parametrize("sent", [b"", b"HTTP/1.1 100 Continue\r\n\r\n", OK[:30]])
async def test_cancel_while_waiting_for_the_head(sent: bytes, reused: bool) -> None:
    closed = trio.Event()

    async def script(peer: Peer) -> None:
        if reused:
            await peer.answer(OK)
        await peer.read_request()
        if sent:
            await peer.stream.send_all(sent)
        await peer.see_close()
        closed.set()

    async def client(pool: Http1Pool) -> None:
        if reused:
            await fetch(pool)
        await blocked_then_cancelled(pool, partial(post, pool))
        await closed.wait()
        assert pool.opened == 1  # a cancelled request is not retried

    await against(client, script)


@pytest.mark.parametrize("sent", [CHUNKED, CHUNKED + b"1\r\na\r\n"])
async def test_cancel_while_reading_the_body(sent: bytes) -> None:
    closed = trio.Event()

    async def script(peer: Peer) -> None:
        await peer.answer(sent)
        await peer.see_close()
        closed.set()

    async def client(pool: Http1Pool) -> None:
        await blocked_then_cancelled(pool, partial(fetch, pool))
        await closed.wait()

    await against(client, script)


async def test_cancelled_receive_loses_nothing() -> None:
    async def script(peer: Peer) -> None:
        await peer.answer(CHUNKED)
        await cancelled.wait()
        await peer.stream.send_all(b"2\r\nok\r\n0\r\n\r\n")
        await peer.see_close()

    cancelled = trio.Event()

    async def client(pool: Http1Pool) -> None:
        async with await post(pool) as response:
            with trio.CancelScope() as scope:
                scope.cancel()
                await response.receive_some()
            assert scope.cancelled_caught
            cancelled.set()
            assert await body_of(response) == b"ok"
        assert pool.idle == 1

    await against(client, script)


# --- ending on this side ------------------------------------------------------


@pytest.mark.parametrize("way", ["abort", "aclose", "with"])
async def test_ending_a_response_early_closes_the_socket_now(way: str) -> None:
    closed = trio.Event()

    async def script(peer: Peer) -> None:
        await peer.answer(CHUNKED + b"1\r\na\r\n")
        await peer.see_close()
        closed.set()

    async def client(pool: Http1Pool) -> None:
        response = await post(pool)
        if way == "with":
            async with response:
                pass
        elif way == "aclose":
            with trio.CancelScope() as scope:
                scope.cancel()
                await response.aclose()
            assert not scope.cancelled_caught, "what has been answered is not lost at its end"
        else:
            response.abort()
        response.abort()
        assert (pool.in_use, pool.idle) == (0, 0)
        await closed.wait()
        with pytest.raises(UpstreamBroken, match="this side"):
            await response.receive_some()
        assert not response.complete

    await against(client, script)


@pytest.mark.parametrize("phase", ["head", "reused head", "body", "sending"])
async def test_pool_close_breaks_requests_at_once(phase: str) -> None:
    closed = trio.Event()

    async def script(peer: Peer) -> None:
        if phase == "reused head":
            await peer.answer(OK)
        if phase == "sending":
            await peer.read_head()
        else:
            await peer.read_request()
        if phase == "body":
            await peer.stream.send_all(CHUNKED + b"1\r\na\r\n")
        await broken.wait()
        await peer.see_close()
        closed.set()

    broken = trio.Event()

    async def client(pool: Http1Pool) -> None:
        async def one() -> None:
            with pytest.raises(UpstreamBroken, match="closed on this side") as caught:
                async with await post(pool, bytes(BIG) if phase == "sending" else b"{}") as response:
                    await body_of(response)
            assert caught.value.bytes_received == (phase == "body")
            broken.set()

        if phase == "reused head":
            await fetch(pool)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one)
            await trio.testing.wait_all_tasks_blocked()
            assert pool.in_use == 1
            pool.close()
            assert (pool.in_use, pool.idle) == (0, 0)
        await closed.wait()
        with pytest.raises(ConnectFailed, match="closed"):
            await fetch(pool)
        pool.close()

    await against(client, script)


async def test_pool_close_between_two_reads() -> None:
    async def client(pool: Http1Pool) -> None:
        async with await post(pool) as response:
            pool.close()
            with pytest.raises(UpstreamBroken):
                await response.receive_some()

    await against(client, says(CHUNKED + b"1\r\na\r\n"))


async def test_answer_that_has_ended_outlives_the_pool() -> None:
    async def client(pool: Http1Pool) -> None:
        response = await post(pool)
        pool.close()
        assert await body_of(response) == b"ok"

    await against(client, says(OK))


async def test_pool_close_closes_idle_connections() -> None:
    closed = trio.Event()

    async def script(peer: Peer) -> None:
        await peer.answer(OK)
        assert await peer.stream.receive_some() == b""
        closed.set()

    async def client(pool: Http1Pool) -> None:
        await fetch(pool)
        pool.close()
        await closed.wait()
        assert pool.idle == 0

    await against(client, script)


def test_no_address_is_an_os_error() -> None:
    async def main() -> None:
        conn = Connection()
        with pytest.raises(OSError, match="no address") as caught:
            await conn.open([], 1.0)
        assert caught.value.errno == errno.EADDRNOTAVAIL
        conn.close()

    trio.run(main)
