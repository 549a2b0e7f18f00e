"""Clients that send anything at all and leave anyhow: nothing but their own connection ends."""

from __future__ import annotations

import random
import socket
import struct
from contextlib import suppress

import pytest
import trio
from express_world import World, echo, post, with_lane
from trio.testing import MockClock, wait_all_tasks_blocked

from slotd.exchange.inbound import ClientGone, Inbound, Outbound

ELEMENTS = [
    post(b"{}"),
    post(b"x" * 300, chunks=7),
    post(b"x" * 3000),
    post(),
    post(b"large" * 4000),
    post(b"bug"),
    post(b"{}", b"Connection: close"),
    post(b"z", chunks=1).replace(b"0\r\n\r\n", b"none\r\n"),
    b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n",
    b"\r\n",
    b"\0" * 10,
    b"POST ",
]


def stream_of(rng: random.Random) -> bytes:
    """Requests, good and bad, one after another, perhaps with damage."""
    data = bytearray(b"".join(rng.choices(ELEMENTS, k=rng.randint(1, 5))))
    if rng.random() < 0.3:
        at = rng.randrange(len(data))
        data[at : at + rng.choice((0, 1))] = rng.randbytes(1)
    return bytes(data[: rng.randint(1, len(data))] if rng.random() < 0.5 else data)


async def answers(inbound: Inbound, out: Outbound) -> None:
    """Late, much, or with a bug, as the body says."""
    if inbound.body == b"bug":
        raise KeyError(inbound.id)
    await trio.sleep(0.05 if len(inbound.body) > 1000 else 0)
    if inbound.body.startswith(b"large"):
        out.start(200, [(b"content-type", b"text/plain")])
        for _ in range(20):
            await out.send(b"y" * 100_000)
    else:
        await echo(inbound, out)


async def visit(world: World, rng: random.Random) -> None:
    """One connection, from its beginning to some end."""
    peer = world.dial()
    data = stream_of(rng)
    with suppress(trio.BrokenResourceError):
        while data:
            size = rng.choice((1, 10, 100, 10_000))
            await peer.send(data[:size])
            data = data[size:]
            if rng.random() < 0.1:
                await trio.sleep(rng.choice((0.005, 0.03, 3)))
        how = rng.choice(("close", "reset", "half", "read", "stay"))
        if how == "reset":
            peer.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        elif how == "half":
            await peer.stream.send_eof()
        if how in ("half", "read"):
            with trio.move_on_after(5):
                while await peer.stream.receive_some():
                    pass
        elif how == "stay":
            await trio.sleep(200)
    await peer.stream.aclose()


@pytest.mark.parametrize("seed", range(4))
async def test_nothing_that_a_client_does_ends_more_than_its_connection(
    seed: int, autojump_clock: MockClock
) -> None:
    """An error that nobody expects would end slotd: each connection's task is a child of its server."""

    async def test(world: World) -> None:
        rng = random.Random(seed)
        for _ in range(10):
            async with trio.open_nursery() as nursery:
                for _ in range(8):
                    nursery.start_soon(visit, world, random.Random(rng.random()))
            await trio.sleep(2)  # for the last words that are lingered over
            await wait_all_tasks_blocked()
            assert (world.serving, world.uploads.count) == (0, 0)
        peer = world.dial()
        await peer.send(post(b"still here"))
        assert (await peer.answer()).body == b"still here"

    async def quiet(inbound: Inbound, out: Outbound) -> None:
        with suppress(KeyError):
            await answers(inbound, out)
            return
        raise ClientGone("as after a bug, without its words in the log")

    server = "head_timeout_s = 1\nidle_timeout_s = 1\nwrite_timeout_s = 1\nmax_head_kb = 1\nmax_body_mb = 1"
    await with_lane(test, quiet, server=server)
