"""Whose listener is on the port."""

from __future__ import annotations

import socket

import trio
from process_tools import plan, run_engine

from slotd.process.listener import listening_inodes
from slotd.process.local import LocalLauncher

LISTEN = "server = listening(int(sys.argv[1])); say('listening'); wait()"


async def test_nobody_then_the_engine_itself(launcher: LocalLauncher) -> None:
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            idle = await nursery.start(run_engine, launcher, plan("say('up'); wait()"))
            await idle.line()
            assert not idle.handle.owns_listener()
            assert not idle.handle.stranger_listens()
            server = await nursery.start(run_engine, launcher, plan(LISTEN, "{port}"))
            await server.line()
            assert server.handle.owns_listener()
            assert not server.handle.stranger_listens()
            await idle.stop(30)
            await server.stop(30)


async def test_a_grandchild_in_its_own_session_counts_as_the_engine(launcher: LocalLauncher) -> None:
    script = "say(grandchild(setsid=True, listen=int(sys.argv[1]))); wait()"
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            running = await nursery.start(run_engine, launcher, plan(script, "{port}"))
            await running.line()
            assert running.handle.owns_listener()
            assert not running.handle.stranger_listens()
            await running.stop(30)


async def test_a_stranger_is_told_from_the_engine(launcher: LocalLauncher) -> None:
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            running = await nursery.start(run_engine, launcher, plan("say('up'); wait()"))
            await running.line()
            for family, host in (
                (socket.AF_INET, "127.0.0.1"),
                (socket.AF_INET, "0.0.0.0"),
                (socket.AF_INET6, "::"),
                (socket.AF_INET6, "::ffff:127.0.0.1"),
            ):
                with socket.socket(family) as stranger:
                    stranger.bind((host, running.handle.address.port))
                    assert not running.handle.stranger_listens(), "bound is not listening"
                    stranger.listen()
                    assert running.handle.stranger_listens()
                    assert not running.handle.owns_listener()
            await running.stop(30)


def test_other_ports_and_connections_do_not_count() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as client:
            assert len(listening_inodes(port)) == 1
            assert listening_inodes(client.getsockname()[1]) == frozenset()
    assert listening_inodes(port) == frozenset()
