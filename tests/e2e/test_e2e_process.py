"""The truth about processes: what is stopped is gone, what died is known, whose port it is."""

from __future__ import annotations

import os
import re
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import trio
from e2e_tools import CHAT, GUARD_S, Start, alive, ask, client, code, eventually, note, path_to

from slotd.engine import attach
from slotd.errors import ServerStopping
from slotd.events import Gap
from slotd.testing import FakeServer, Harness, Knobs, fake_slot


@contextmanager
def listener(port: int = 0) -> Iterator[int]:
    """A stranger's port: something that listens there and has nothing to do with slotd."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("127.0.0.1", port))
        sock.listen()
        yield sock.getsockname()[1]


def two_ports() -> int:
    """The first of two neighbouring ports that are free."""
    while True:
        with listener() as first:
            if first < 65000:
                try:
                    with listener(first + 1):
                        return first
                except OSError:
                    continue


async def first_stop(slotd: Harness) -> dict[str, Any]:
    """What slotd reports of the first engine's end."""
    with slotd.slotd.bus.subscribe(after=0, match=lambda e: e.kind == "slot.stopped") as seen:
        event = await anext(seen)
    assert not isinstance(event, Gap)
    return dict(event.data)


async def test_sigterm_is_ignored_so_it_is_killed(slotd_harness: Start) -> None:
    slot = fake_slot(Knobs(refuse_sigterm=True), default=True, stop_timeout_s=0.3)
    with trio.fail_after(GUARD_S):
        async with slotd_harness({"chat": slot}) as slotd:
            pid = (await slotd.load("chat")).pid
            began = trio.current_time()
            await slotd.stop("chat")
            took = trio.current_time() - began
            note("unload of an engine that ignores SIGTERM (stop_timeout_s = 300 ms)", took)
            assert 0.3 <= took < 1.5
            assert pid is not None
            assert not alive(pid)
            stopped = await first_stop(slotd)
            assert stopped["killed"] is True
            assert "SIGKILL" in str(stopped["exit"])
            assert slotd.snapshot("chat").fault is None


@pytest.mark.parametrize("end", ["unload", "kill -9"])
@pytest.mark.parametrize("setsid", [False, True], ids=["in its group", "by setsid"])
async def test_a_grandchild_dies_with_its_engine(slotd_harness: Start, end: str, setsid: bool) -> None:
    knobs = Knobs(fork_grandchild=True, grandchild_setsid=setsid)
    with trio.fail_after(GUARD_S):
        async with slotd_harness({"chat": fake_slot(knobs, default=True)}) as slotd:
            pid = (await slotd.load("chat")).pid
            text = "\n".join(slotd.slotd.slots.logs("chat").tail(50))
            found = re.search(r"grandchild pid (\d+)", text)
            assert found
            grandchild = int(found[1])
            assert alive(grandchild)
            began = trio.current_time()
            if end == "unload":
                await slotd.stop("chat")
            else:
                assert pid is not None
                os.kill(pid, signal.SIGKILL)  # the leader alone
                await slotd.wait_for("chat", "error")
                await slotd.load("chat")
            note(f"grandchild gone after {end}", trio.current_time() - began)
            assert not alive(grandchild)
            stopped = await first_stop(slotd)
            assert (stopped["swept"], stopped["survivors"]) == (1, ())


async def test_a_port_that_is_taken_is_passed_over(slotd_harness: Start) -> None:
    first = two_ports()
    ports = f"[process]\nport_first = {first}\nport_last = {first + 1}\n"
    with trio.fail_after(GUARD_S), listener(first):
        async with (
            slotd_harness({"chat": fake_slot(default=True)}, more=ports) as slotd,
            client(slotd) as http,
        ):
            assert (await http.post(CHAT, json=ask())).status_code == 200
            address = slotd.snapshot("chat").address
            assert address is not None
            assert address.port == first + 1
            assert slotd.snapshot("chat").starts == 1


async def test_a_stranger_that_comes_after_the_choice_means_another_port(slotd_harness: Start) -> None:
    """The engine is slow to bind; somebody else is there first and answers."""
    first = two_ports()
    ports = f"[process]\nport_first = {first}\nport_last = {first + 1}\n"
    slot = fake_slot(Knobs(startup_delay_s=0.6), default=True)
    with trio.fail_after(GUARD_S):
        async with (
            slotd_harness({"chat": slot}, more=ports) as slotd,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(slotd.load, "chat")
            await eventually(lambda: slotd.snapshot("chat").address is not None)
            address = slotd.snapshot("chat").address
            assert address is not None
            chosen, other = sorted((first, first + 1), key=lambda port: port != address.port)
            assert address.port == chosen
            with listener(chosen):
                snapshot = await slotd.wait_for("chat", "ready")
            assert snapshot.address is not None
            assert snapshot.address.port == other
            assert snapshot.starts == 2
            assert snapshot.fault is None


async def test_no_port_left_is_a_typed_error(slotd_harness: Start) -> None:
    with trio.fail_after(GUARD_S), listener() as only:
        ports = f"[process]\nport_first = {only}\nport_last = {only}\n"
        async with (
            slotd_harness({"chat": fake_slot(default=True)}, more=ports) as slotd,
            client(slotd) as http,
        ):
            answer = await http.post(CHAT, json=ask())
            assert (answer.status_code, code(answer)) == (500, "slot.spawn_failed")
            assert str(only) in answer.json()["error"]["message"]


async def test_an_engine_that_exits_when_ready(slotd_harness: Start) -> None:
    knobs = Knobs(crash_after_s=0.3, exit_code=7, last_words="gone fishing")
    with trio.fail_after(GUARD_S):
        async with slotd_harness({"chat": fake_slot(knobs, default=True)}) as slotd:
            await slotd.load("chat")
            fault = (await slotd.wait_for("chat", "error")).fault
            assert fault is not None
            assert fault.reason == "exited"
            assert "7" in str(fault.exit)
            await first_stop(slotd)
            await eventually(lambda: "gone fishing" in (slotd.snapshot("chat").fault or fault).log)


async def test_a_deliberate_stop_is_no_error(slotd_harness: Start) -> None:
    """Whatever status an engine ends with when it is told to."""
    knobs = Knobs(sigterm_exit_code=143)
    with trio.fail_after(GUARD_S):
        async with slotd_harness({"chat": fake_slot(knobs, default=True)}) as slotd:
            await slotd.load("chat")
            with slotd.observe("chat") as seen:
                await slotd.stop("chat")
                assert await path_to(seen, "offline") == ["unloading", "offline"]
            assert slotd.snapshot("chat").fault is None


async def test_the_end_of_slotd_is_the_end_of_every_engine(slotd_harness: Start) -> None:
    slots = {
        "plain": fake_slot(),
        "stubborn": fake_slot(Knobs(refuse_sigterm=True), stop_timeout_s=0.3),
        "loading": fake_slot(Knobs(load_delay_s=60)),
    }
    with trio.fail_after(GUARD_S):
        async with trio.open_nursery() as nursery:
            async with slotd_harness(slots) as slotd:
                await slotd.load("plain")
                await slotd.load("stubborn")

                async def load() -> None:
                    with pytest.raises(ServerStopping):
                        await slotd.load("loading")

                nursery.start_soon(load)
                await slotd.wait_for("loading", "warming")
                pids = [slotd.snapshot(name).pid for name in slots]
                began = time.monotonic()
            took = time.monotonic() - began
            note("stop of three engines, one of them ignoring SIGTERM for its 300 ms", took)
            assert 0.3 <= took < 1.5
        assert None not in pids
        assert not any(alive(pid) for pid in pids if pid is not None)


# --- servers that are not ours ----------------------------------------------------------


def external(server: FakeServer) -> dict[str, object]:
    return {"type": "llm", "engine": "external", "url": server.url, "default": True}


async def test_an_external_server_is_used_and_left_alone(slotd_harness: Start) -> None:
    with trio.fail_after(GUARD_S), FakeServer(Knobs(tokens=2)) as server:
        async with slotd_harness({"chat": external(server)}) as slotd, client(slotd) as http:
            assert (await http.post(CHAT, json=ask())).status_code == 200
            assert slotd.snapshot("chat").pid is None
            await slotd.stop("chat")
            assert await slotd.state("chat") == "offline"
            assert (await server.engine.stats())["finished"] == 1
            assert (await http.post(CHAT, json=ask())).status_code == 200
        assert (await server.engine.stats())["finished"] == 2


async def test_an_external_servers_death_is_seen(
    slotd_harness: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attach, "WATCH_EVERY_S", 0.05)
    with trio.fail_after(GUARD_S), FakeServer(Knobs(tokens=2)) as server:
        async with slotd_harness({"chat": external(server)}) as slotd, client(slotd) as http:
            assert (await http.post(CHAT, json=ask())).status_code == 200
            with slotd.observe("chat") as seen:
                server.kill()
                assert (await path_to(seen, "error"))[-1] == "error"
            fault = slotd.snapshot("chat").fault
            assert fault is not None
            assert fault.reason == "exited"
