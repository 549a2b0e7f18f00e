"""Engines that are killed, and slotd itself killed and stopped: what is left, and how soon."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from real_tools import (
    CHAT,
    Caller,
    Site,
    alive,
    demo_slots,
    hello,
    long_request,
    running,
    tell,
    wait_until,
    write_config,
)

pytestmark = pytest.mark.real_engine
pytest_plugins = ["real_fixtures"]


@pytest.fixture
def own_site(demo_model: Path, tmp_path: Path) -> Iterator[Site]:
    """A slotd to be killed."""
    with running(write_config(tmp_path, demo_slots(), {"smollm2": f"file:{demo_model}"})) as slotd:
        yield slotd


def test_a_killed_engine_is_replaced_at_the_next_request(site: Site) -> None:
    engine = site.load("chat")
    caller = Caller(site.url, CHAT, long_request(CHAT, stream=True))
    caller.read_until(b"data:")
    with site.watching() as events:
        began = time.perf_counter()
        os.kill(engine.pid, signal.SIGKILL)
        end = caller.read_until(b"slot.engine_lost")
        told = time.perf_counter() - began
        caller.leave()
        assert b'\ndata: {"error"' in end, "the error must be an event of its own"
        assert events.states("chat", "error") == ["error"]
        answer = site.http.post(CHAT, json=hello())
        assert answer.status_code == 200, answer.text
        again = time.perf_counter() - began
        assert events.states("chat", "serving") == ["starting", "warming", "ready", "serving"]
    row = site.slot("chat")
    tell(
        f"engine killed in mid-stream: client told after {told * 1000:.0f} ms; "
        f"next request answered {again:.2f} s after the kill, its load {row['load_s']:.2f} s"
    )
    assert row["pid"] != engine.pid
    assert told < 1


def test_a_kill_under_many_requests_costs_none_of_them(site: Site) -> None:
    """Those that it served and those that waited: each has its answer, from the next engine."""
    engine = site.load("chat")
    body = long_request(CHAT, stream=False, tokens=48)
    with ThreadPoolExecutor(16) as pool:
        asked = [
            pool.submit(httpx.post, f"{site.url}{CHAT}", json=body, trust_env=False, timeout=120)
            for _ in range(16)
        ]
        wait_until(lambda: site.slot("chat")["queued"] > 0 and len(site.live()) == 16, 20, "16 requests")
        began = time.perf_counter()
        os.kill(engine.pid, signal.SIGKILL)
        answers = [later.result() for later in asked]
    tell(f"16 chats, their engine killed: all answered after {time.perf_counter() - began:.2f} s")
    assert [a.status_code for a in answers] == [200] * 16
    assert {a.json()["usage"]["completion_tokens"] for a in answers} == {48}
    records = [site.get(f"/api/requests/{a.headers['x-request-id']}") for a in answers]
    assert max(r["replays"] for r in records) == 1
    assert {r["outcome"] for r in records} == {"ok"}


def _both_engines(site: Site) -> list[int]:
    return [site.load("chat").pid, site.load("embed").pid]


def test_a_killed_slotd_leaves_no_engine(own_site: Site) -> None:
    pids = _both_engines(own_site)
    caller = Caller(own_site.url, CHAT, long_request(CHAT, stream=True))
    caller.read_until(b"data:")
    own_site.process.send(signal.SIGKILL)
    took = wait_until(lambda: not any(alive(pid) for pid in pids), 2, "the engines gone")
    caller.leave()
    tell(f"slotd killed: both engines gone after {took * 1000:.0f} ms")


def test_a_stop_with_idle_clients_is_quick_and_clean(own_site: Site) -> None:
    pids = _both_engines(own_site)
    # Clients keep their connections: this one just has.
    own_site.get("/health")
    began = time.perf_counter()
    own_site.process.send(signal.SIGTERM)
    code = own_site.process.wait(20)
    took = time.perf_counter() - began
    tell(f"SIGTERM, two engines, an idle client: exit {code} after {took * 1000:.0f} ms")
    assert code == 0
    assert not any(alive(pid) for pid in pids)
    assert took < 3


def test_a_stop_lets_a_running_stream_end(own_site: Site) -> None:
    pids = _both_engines(own_site)
    caller = Caller(own_site.url, CHAT, long_request(CHAT, stream=True, tokens=16))
    caller.read_until(b"data:")
    began = time.perf_counter()
    own_site.process.send(signal.SIGTERM)
    caller.read_until(b"data: [DONE]")
    streamed = time.perf_counter() - began
    code = own_site.process.wait(20)
    took = time.perf_counter() - began
    caller.leave()
    tell(f"SIGTERM with a stream: it ended after {streamed:.2f} s, exit {code} {took - streamed:.2f} s later")
    assert code == 0
    assert not any(alive(pid) for pid in pids)
    assert took - streamed < 3


def _turns_away(url: str) -> bool:
    try:
        return httpx.get(url + "/health", timeout=5).status_code == 503
    except httpx.TransportError:
        return False  # the moment between the two doors


def test_a_second_signal_cuts_streams_short(own_site: Site) -> None:
    pids = _both_engines(own_site)
    caller = Caller(own_site.url, CHAT, long_request(CHAT, stream=True))
    caller.read_until(b"data:")
    own_site.process.send(signal.SIGTERM)
    wait_until(lambda: _turns_away(own_site.url), 5, "newcomers turned away")
    began = time.perf_counter()
    own_site.process.send(signal.SIGTERM)
    code = own_site.process.wait(20)
    took = time.perf_counter() - began
    assert b"server.stopping" in caller.read_until(b"server.stopping"), "no silent cut"
    caller.leave()
    tell(f"second SIGTERM with a stream: exit {code} after {took * 1000:.0f} ms")
    assert not any(alive(pid) for pid in pids)
    assert code in (0, 1)  # 1: it had to kill what would have ended by itself
    assert took < 3
