"""The door by itself, on virtual time: who is let in, who waits, what is warned of."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass, field

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from slotd.gateway import door as module
from slotd.gateway.door import RETRY_S, WARN_EVERY_S, Door


@dataclass
class Client(trio.abc.AsyncResource):
    """A stream of which only its end matters."""

    name: str
    leaves: trio.Event = field(default_factory=trio.Event)
    closed: bool = False

    async def aclose(self) -> None:
        self.closed = True


class Listener(trio.abc.Listener[Client]):
    """Accepts whom the test sends, and fails as the kernel would."""

    def __init__(self) -> None:
        self._send, self._receive = trio.open_memory_channel[Client](100)
        self.fails = 0
        self.tried: list[float] = []

    def comes(self, *names: str) -> list[Client]:
        clients = [Client(name) for name in names]
        for client in clients:
            self._send.send_nowait(client)
        return clients

    async def accept(self) -> Client:
        if self.fails:
            self.tried.append(trio.current_time())
            raise OSError(self.fails, os.strerror(self.fails))
        return await self._receive.receive()

    async def aclose(self) -> None: ...


@dataclass
class World:
    door: Door
    listener: Listener
    nursery: trio.Nursery
    served: list[str] = field(default_factory=list)

    async def handle(self, client: Client) -> None:
        self.served.append(client.name)
        await client.leaves.wait()

    def open(self) -> None:
        self.nursery.start_soon(self.door.serve, self.listener, self.handle, self.nursery)


@pytest.fixture
def warned(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    said: list[str] = []

    class Log:
        def warning(self, words: str, **facts: object) -> None:
            said.append(words)

    monkeypatch.setattr(module, "log", Log())
    return said


async def test_no_more_than_allowed_are_inside_and_nobody_is_turned_away(
    nursery: trio.Nursery, warned: list[str], autojump_clock: trio.testing.MockClock
) -> None:
    world = World(Door(2), Listener(), nursery)
    a, b, c, d = world.listener.comes("a", "b", "c", "d")
    world.open()
    await trio.sleep(1)
    assert (world.served, world.door.inside) == (["a", "b"], 2)
    a.leaves.set()
    await trio.sleep(1)
    assert (world.served, world.door.inside) == (["a", "b", "c"], 2)
    assert a.closed
    assert len(warned) == 1, "once a minute, however often it is full"
    assert "max_sockets" in warned[0]
    world.door.allow(3)  # a reload of the configuration
    await trio.sleep(1)
    assert world.served == ["a", "b", "c", "d"]
    assert not any(client.closed for client in (b, c, d))
    nursery.cancel_scope.cancel()


async def test_fewer_allowed_sends_nobody_away(
    nursery: trio.Nursery, warned: list[str], autojump_clock: trio.testing.MockClock
) -> None:
    world = World(Door(3), Listener(), nursery)
    a, b, _ = world.listener.comes("a", "b", "c")
    world.open()
    await wait_all_tasks_blocked()
    world.door.allow(1)
    world.listener.comes("d")
    for client in (a, b):
        client.leaves.set()
        await trio.sleep(1)
        # "d" was being waited for when the door became narrower: one is let in at most.
        assert world.served in (["a", "b", "c"], ["a", "b", "c", "d"])
    assert not warned or len(warned) == 1
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
async def test_without_descriptors_it_waits_and_says_so_once_a_minute(
    number: int, nursery: trio.Nursery, warned: list[str], autojump_clock: trio.testing.MockClock
) -> None:
    world = World(Door(100), Listener(), nursery)
    world.listener.fails = number
    world.listener.comes("a")
    world.open()
    await trio.sleep(WARN_EVERY_S - RETRY_S / 2)
    assert len(warned) == 1
    assert len(world.listener.tried) <= WARN_EVERY_S / RETRY_S, "it does not spin"
    await trio.sleep(WARN_EVERY_S)
    assert len(warned) == 2
    world.listener.fails = 0
    await trio.sleep(RETRY_S)
    assert world.served == ["a"]
    nursery.cancel_scope.cancel()


async def test_a_descriptor_of_ours_that_is_given_back_is_used_at_once(
    nursery: trio.Nursery, warned: list[str], autojump_clock: trio.testing.MockClock
) -> None:
    world = World(Door(100), Listener(), nursery)
    (a,) = world.listener.comes("a")
    world.open()
    await wait_all_tasks_blocked()
    world.listener.comes("b")  # accepted by the call that waits already; the next one fails
    world.listener.fails = errno.EMFILE
    await wait_all_tasks_blocked()
    world.listener.comes("c")
    world.listener.fails = 0
    before = trio.current_time()
    a.leaves.set()
    await wait_all_tasks_blocked()
    assert world.served == ["a", "b", "c"]
    assert trio.current_time() - before < RETRY_S
    nursery.cancel_scope.cancel()


async def test_what_is_no_lack_is_raised() -> None:
    listener = Listener()
    listener.fails = errno.EINVAL
    with pytest.RaisesGroup(OSError, flatten_subgroups=True, allow_unwrapped=True):
        async with trio.open_nursery() as nursery:
            await Door(1).serve(listener, Client.aclose, nursery)
