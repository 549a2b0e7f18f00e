"""The stall guard and the two relays, on virtual time."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

import pytest
import trio
from trio.testing import MockClock

from slotd.errors import StreamStalled
from slotd.exchange.answer import Answer
from slotd.exchange.inbound import Headers
from slotd.exchange.race import first_of
from slotd.exchange.record import RequestRecord
from slotd.exchange.relay import relay_bytes, relay_events
from slotd.exchange.stall import LATE_S, StallLimits, Stalls, Watch
from slotd.wire.fields import Fields

LIMITS = StallLimits(first_byte_s=10, idle_s=5, total_s=60)


class Upstream:
    """A response whose chunks come after so many seconds each."""

    status = 200
    events = complete = False

    def __init__(self, chunks: Sequence[tuple[float, bytes]]) -> None:
        self.headers = Fields()
        self.length: int | None = None
        self._chunks = list(chunks)

    def take(self) -> bytes:
        return b""

    async def receive_some(self) -> bytes:
        if not self._chunks:
            return b""
        seconds, data = self._chunks.pop(0)
        await trio.sleep(seconds)
        return data

    async def aclose(self) -> None: ...


class Client:
    def __init__(self, takes_s: float = 0.0) -> None:
        self.got: list[bytes] = []
        self._takes_s = takes_s

    def start(self, status: int, headers: Headers, length: int | None = None, own: bytes = b"") -> None: ...

    async def send(self, data: bytes) -> None:
        await trio.sleep(self._takes_s)
        self.got.append(data)


def answer_to(client: Client) -> Answer:
    record = RequestRecord("r", "/v1/completions", "", trio.current_time(), 0.0)
    return Answer(client, record, "openai")


async def watched(limits: StallLimits, work: Callable[[Watch], Awaitable[None]]) -> None:
    """``work`` with a watch, as the exchange does it; raises what the watch ends it with."""
    stalls, ended = Stalls(), list[StreamStalled]()

    def end(stalled: StreamStalled) -> None:
        ended.append(stalled)
        scope.cancel()

    async def run() -> None:
        with scope, stalls.watch(limits, end) as watch:
            await work(watch)

    scope = trio.CancelScope()
    await first_of(run, stalls.run)
    if scope.cancelled_caught:
        assert len(ended) == 1
        raise ended[0]


@pytest.mark.parametrize(
    ("limits", "progress_at", "ends_at", "key"),
    [
        (LIMITS, [], 10, "first_byte_timeout_s"),
        (LIMITS, [9], 14, "idle_timeout_s"),
        (LIMITS, [9, 13, 17], 22, "idle_timeout_s"),
        (LIMITS, list(range(3, 60, 3)), 60, "total_timeout_s"),
        (StallLimits(0, 5, 0), [500], 505, "idle_timeout_s"),
        (StallLimits(0, 0, 30), [1, 2], 30, "total_timeout_s"),
        (StallLimits(10, 0, 0), [1], None, ""),
    ],
)
async def test_each_limit_ends_the_wait_with_its_own_name(
    autojump_clock: MockClock, limits: StallLimits, progress_at: list[float], ends_at: float | None, key: str
) -> None:
    async def wait(watch: Watch) -> None:
        for at in progress_at:
            await trio.sleep_until(at)
            watch.progressed()
        await trio.sleep(8_000)

    if ends_at is None:
        await watched(limits, wait)
        return
    with pytest.raises(StreamStalled, match=key):
        await watched(limits, wait)
    assert -1e-6 <= trio.current_time() - ends_at <= LATE_S + 1e-6


async def test_waiting_for_the_client_is_not_the_upstreams_stall(autojump_clock: MockClock) -> None:
    async def wait(watch: Watch) -> None:
        watch.progressed()
        watch.pause()
        await trio.sleep(61)

    with pytest.raises(StreamStalled, match="total_timeout_s"):
        await watched(LIMITS, wait)
    assert 60 <= trio.current_time() <= 60 + LATE_S


async def test_it_counts_again_once_the_upstream_has_said_something(autojump_clock: MockClock) -> None:
    async def wait(watch: Watch) -> None:
        watch.pause()
        await trio.sleep(20)
        watch.progressed()
        await trio.sleep(30)

    with pytest.raises(StreamStalled, match="idle_timeout_s"):
        await watched(LIMITS, wait)
    assert 25 <= trio.current_time() <= 25 + LATE_S


async def test_who_has_left_is_watched_no_more(autojump_clock: MockClock) -> None:
    async def wait(watch: Watch) -> None:
        with trio.move_on_after(1):
            await trio.sleep_forever()
        raise KeyError

    with pytest.raises(KeyError):
        await watched(LIMITS, wait)
    stalls, ended = Stalls(), list[StreamStalled]()
    with stalls.watch(LIMITS, ended.append):
        pass
    with trio.move_on_after(100):
        await stalls.run()
    assert not ended


async def test_with_nothing_to_watch_nothing_is_done(autojump_clock: MockClock) -> None:
    stalls = Stalls()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stalls.run)
        with stalls.watch(LIMITS, lambda _: None):
            await trio.sleep(1)
        await trio.sleep(1)
        await trio.testing.wait_all_tasks_blocked()
        assert trio.lowlevel.current_statistics().seconds_to_next_deadline == math.inf
        nursery.cancel_scope.cancel()


async def test_a_slow_client_stalls_neither_relay(autojump_clock: MockClock) -> None:
    for relay in ("bytes", "events"):
        client = Client(takes_s=12)
        answer = answer_to(client)
        upstream = Upstream([(4.0, b"data: 1\n\n"), (4.0, b"data: 2\n\nrest")])
        way = relay_bytes if relay == "bytes" else relay_events
        await watched(LIMITS, partial(way, upstream, answer))
        assert b"".join(client.got) == b"data: 1\n\ndata: 2\n\nrest"
        assert answer.record.bytes_out == 22


async def test_a_chatty_stream_that_never_ends_is_cut_by_the_total(autojump_clock: MockClock) -> None:
    client = Client()
    endless = [(1.0, b": keep-alive\n\n")] * 1000
    with pytest.raises(StreamStalled, match="total_timeout_s"):
        await watched(LIMITS, partial(relay_events, Upstream(endless), answer_to(client)))
    assert len(client.got) in (59, 60)


async def test_half_frames_that_trickle_are_progress_but_are_not_sent(autojump_clock: MockClock) -> None:
    client = Client()
    answer = answer_to(client)
    halves = [(4.0, b"data: "), (4.0, b"x"), (4.0, b"\n"), (4.0, b"\n"), (4.0, b"data: cut")]
    with pytest.raises(StreamStalled, match="idle_timeout_s"):
        await watched(LIMITS, partial(relay_events, Upstream([*halves, (99, b"")]), answer))
    assert client.got == [b"data: x\n\n"]
    assert answer.gate is not None
    assert answer.gate.clean


async def test_the_last_words_of_a_stream_count_though_no_blank_line_ends_them(
    autojump_clock: MockClock,
) -> None:
    answer = answer_to(Client())
    tail = b'data: {"usage":{"prompt_tokens":1,"completion_tokens":2}}\n\ndata: [DONE]'
    await watched(LIMITS, partial(relay_events, Upstream([(0, tail)]), answer))
    assert answer.usage.ended()
    assert answer.usage.read() == (1, 2)
    assert answer.record.bytes_out == len(tail)
