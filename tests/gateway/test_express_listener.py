"""Accepting: one by one, and many that have come together."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import suppress

import pytest
import trio
import trio.testing

from slotd.gateway.express.client import ClientSocket
from slotd.gateway.express.listener import BURST, RawListener
from slotd.gateway.server import listen


@pytest.fixture
def server() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        sock.setblocking(False)
        yield sock


def connected(server: socket.socket, says: bytes = b"") -> socket.socket:
    sock = socket.create_connection(server.getsockname())
    if says:
        sock.sendall(says)
    return sock


def end(theirs: list[socket.socket], ours: list[ClientSocket]) -> None:
    for sock in theirs:
        sock.close()
    for client in ours:
        client.close()


async def test_who_comes_is_known(server: socket.socket) -> None:
    listener = RawListener(server)
    with connected(server), trio.fail_after(5):
        client = await listener.accept()
    assert client.peer == "127.0.0.1"
    client.close()


async def test_who_comes_before_anybody_accepts_is_sent_to_without_delay() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        listen(server)
        server.setblocking(False)
        with connected(server), trio.fail_after(5):
            client = await RawListener(server).accept()
        assert client.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        client.close()


async def test_a_burst_is_accepted_whole_with_what_it_has_sent(server: socket.socket) -> None:
    listener = RawListener(server)
    theirs = [connected(server, b"hello %d" % n) for n in range(2 * BURST + 3)]
    clients: list[ClientSocket] = []
    with trio.fail_after(5):
        while len(clients) < len(theirs):
            clients.append(await listener.accept())
        assert sum(bool(client.received) for client in clients) > BURST, "nobody has waited for it"
        for n, client in enumerate(clients):
            while not client.received:
                assert await client.receive()
            assert client.received == b"hello %d" % n
    end(theirs, clients)


async def test_a_burst_lets_others_have_their_turn(server: socket.socket) -> None:
    listener = RawListener(server)
    theirs = [connected(server) for _ in range(3 * BURST)]
    clients: list[ClientSocket] = []
    turns, seen = 0, []
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:

            async def other() -> None:
                nonlocal turns
                while True:
                    turns += 1
                    await trio.lowlevel.checkpoint()

            nursery.start_soon(other)
            for _ in theirs:
                clients.append(await listener.accept())
                seen.append(turns)
            nursery.cancel_scope.cancel()
    assert seen[-1] > seen[0]
    assert max(seen.count(turn) for turn in seen) <= 2 * BURST, "one before its turn, and one after it"
    end(theirs, clients)


async def test_one_that_has_left_is_still_given_to_its_reader(server: socket.socket) -> None:
    listener = RawListener(server)
    theirs = [connected(server), connected(server, b"hello")]
    theirs[1].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    theirs[1].close()
    clients: list[ClientSocket] = []
    with trio.fail_after(5):
        for _ in theirs:
            clients.append(await listener.accept())
        with suppress(ConnectionResetError):  # unless it has been told of that before
            while await clients[1].receive():
                pass
    end(theirs, clients)


async def test_accepting_can_be_cancelled_within_a_burst(server: socket.socket) -> None:
    listener = RawListener(server)
    with connected(server), connected(server), trio.fail_after(5):
        (await listener.accept()).close()
        with trio.CancelScope() as scope:
            scope.cancel()
            await listener.accept()
        assert scope.cancelled_caught
        (await listener.accept()).close()
