"""The log ring and its followers."""

from __future__ import annotations

import os
from random import Random

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from slotd.process.logs import LINE_MAX, LogGap, LogRing, pump

KB = 1024


def ring(max_bytes: int = 8 * KB) -> LogRing:
    return LogRing(max_bytes, clock=lambda: 7.0)


pieces = st.lists(
    st.one_of(
        st.binary(max_size=20),
        st.sampled_from(
            [b"\n", b"\r", b"\r\n", b"ab", "\u00e9".encode(), b"x" * (LINE_MAX - 1), b"z" * 5000]
        ),
    ),
    max_size=30,
)


@given(pieces, st.randoms(use_true_random=False))
def test_where_the_stream_is_cut_does_not_matter(parts: list[bytes], random: Random) -> None:
    stream = b"".join(parts)
    whole, cut = ring(), ring()
    whole.append(stream)
    start = 0
    while start < len(stream):
        end = start + random.choice([1, 2, 3, 100, 4096, 9000])
        cut.append(stream[start:end])
        start = end
    assert whole.tail(1000) == cut.tail(1000)
    assert whole.size == cut.size <= 8 * KB


@given(
    st.lists(
        st.text(alphabet=st.characters(exclude_characters="\r\n", codec="utf-8"), max_size=50), max_size=60
    )
)
def test_keeps_the_newest_lines_in_order(lines: list[str]) -> None:
    log = ring()
    log.append("".join(f"{line}\n" for line in lines).encode())
    kept = log.tail(1000)
    assert list(kept) == lines[len(lines) - len(kept) :]
    assert log.tail(0) == ()
    assert log.tail(3) == tuple(lines[-3:])


def test_progress_bars_are_one_line() -> None:
    log = ring()
    log.append(b"load 10%\rload 20%\r")
    log.append(b"load 30%\r")
    assert log.tail(5) == ("load 30%",)
    log.append(b"\nplain\r\nnext \xff\n")
    assert log.tail(5) == ("load 30%", "plain", "next \ufffd")
    for byte in (b"ab", b"\r", b"c", b"\r", b"\n"):
        log.append(byte)
    assert log.tail(1) == ("c",)


def test_a_long_line_is_cut_and_counted() -> None:
    log = ring()
    for _ in range(10):
        log.append(b"x" * LINE_MAX)
    log.append(b"\nafter\n")
    assert log.tail(2) == ("x" * LINE_MAX + f" ... [{9 * LINE_MAX} bytes cut]", "after")


def test_short_lines_stay_within_the_bound() -> None:
    log = ring(64 * KB)
    log.append(b"\n" * 100_000)
    assert log.size <= 64 * KB
    assert len(log.tail(100_000)) < 2000


def test_activity_is_the_time_of_the_last_bytes() -> None:
    times = iter([3.0, 5.0])
    log = LogRing(8 * KB, clock=lambda: next(times))
    assert log.last_activity is None
    log.append(b"a")
    log.append(b"")
    assert log.last_activity == 3.0
    log.append(b"b\n")
    assert log.last_activity == 5.0


async def test_history_then_new_lines_then_the_end() -> None:
    log = ring()
    log.append(b"a\nb\nc\nunfinished")
    lines = log.subscribe(2)
    seen = [await anext(lines), await anext(lines)]
    async with trio.open_nursery() as nursery:

        async def follow() -> None:
            seen.extend([line async for line in lines])

        nursery.start_soon(follow)
        await trio.testing.wait_all_tasks_blocked()
        log.append(b" now\nd\n")
        await trio.testing.wait_all_tasks_blocked()
        log.append(b"e")
        log.close()
    assert seen == ["b", "c", "unfinished now", "d", "e"]


async def test_a_slow_follower_loses_the_oldest_and_is_told() -> None:
    log = ring()
    lines = log.subscribe(3)
    log.append(b"".join(b"%d\n" % n for n in range(10)))
    log.close()
    assert [line async for line in lines] == [LogGap(7), "7", "8", "9"]


async def test_the_ring_itself_may_overtake_a_follower() -> None:
    log = ring()
    lines = log.subscribe(100_000)
    log.append(b"old\n" + (b"x" * 4000 + b"\n") * 3)
    log.close()
    seen = [line async for line in lines]
    assert isinstance(seen[0], LogGap)
    assert seen[0].missed + len(seen) - 1 == 4


async def test_close_ends_a_waiting_follower() -> None:
    log = ring()
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            with log.subscribe(5) as lines:

                async def follow() -> None:
                    assert [line async for line in lines] == []

                nursery.start_soon(follow)
                await trio.testing.wait_all_tasks_blocked()


async def test_cancelling_the_wait_loses_nothing() -> None:
    log = ring()
    lines = log.subscribe(5)
    with trio.move_on_after(0):
        await anext(lines)
    log.append(b"a\n")
    with trio.move_on_after(0):
        await anext(lines)
    assert await anext(lines) == "a"


async def test_pump_reads_to_the_end() -> None:
    reader, writer = os.pipe()
    os.write(writer, b"one\ntwo")
    os.close(writer)
    log = LogRing(8 * KB)
    with trio.fail_after(5):
        await pump(reader, log)
    assert log.tail(5) == ("one", "two")
    assert not log.closed
    assert log.last_activity is not None


def test_a_ring_too_small_for_a_line_is_refused() -> None:
    with pytest.raises(ValueError, match="at least"):
        LogRing(100)
