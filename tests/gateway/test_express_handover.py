"""A connection that is handed over: nothing of what was read is lost, and it ends as any stream does."""

from __future__ import annotations

import socket

import pytest
import trio
from express_world import tcp_pair

from slotd.gateway.express.client import ClientSocket
from slotd.gateway.express.handover import HandedOver


@pytest.fixture
def pair() -> tuple[trio.SocketStream, ClientSocket]:
    ours, theirs = tcp_pair()
    ours.setblocking(False)
    return trio.SocketStream(trio.socket.from_stdlib_socket(ours)), ClientSocket(theirs)


Pair = tuple[trio.SocketStream, ClientSocket]


@pytest.mark.parametrize("most", [1, 3, 64, None])
async def test_what_was_read_comes_first_and_once(pair: Pair, most: int | None) -> None:
    peer, client = pair
    async with peer:
        await peer.send_all(b"abcde")
        await client.receive()
        await peer.send_all(b"fgh")
        await peer.send_eof()
        stream = HandedOver(client)
        async with stream:
            got = b""
            while data := await stream.receive_some(most):
                assert most is None or len(data) <= most
                got += data
            assert got == b"abcdefgh"
            await stream.send_all(b"answer")
            await stream.wait_send_all_might_not_block()
            await stream.send_eof()
        assert await peer.receive_some() == b"answer"
        assert await peer.receive_some() == b""


async def test_it_owns_the_socket_alone(pair: Pair) -> None:
    peer, client = pair
    async with peer:
        stream = HandedOver(client)
        client.close()
        await stream.send_all(b"still open")
        assert await peer.receive_some() == b"still open"
        await stream.aclose()
        assert await peer.receive_some() == b""


async def test_when_it_is_closed_what_was_read_is_gone_too(pair: Pair) -> None:
    peer, client = pair
    async with peer:
        await peer.send_all(b"abc")
        await client.receive()
        stream = HandedOver(client)
        await stream.aclose()
        with pytest.raises(trio.ClosedResourceError):
            await stream.receive_some()
        with pytest.raises(trio.ClosedResourceError):
            await stream.send_all(b"x")


async def test_a_reader_can_be_cancelled_between_two_pieces(pair: Pair) -> None:
    peer, client = pair
    async with peer:
        await peer.send_all(b"abc")
        await client.receive()
        async with HandedOver(client) as stream:
            with trio.CancelScope() as scope:
                scope.cancel()
                await stream.receive_some(2)
            assert scope.cancelled_caught
            assert await stream.receive_some(2) == b"ab", "nothing was lost"
            assert stream.socket.family == socket.AF_INET
