"""The event-stream parser against the grammar, cut at any byte."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slotd.wire.sse import Event, EventParser, EventTooLarge


def parse(stream: bytes, *cuts: int, limit: int = 1 << 20) -> list[Event]:
    parser = EventParser(max_event_bytes=limit)
    events: list[Event] = []
    places = sorted({0, len(stream), *(cut % (len(stream) + 1) for cut in cuts)})
    for start, end in pairwise(places):
        events += parser.feed(stream[start:end])
    return events


@pytest.mark.parametrize(
    ("stream", "events"),
    [
        (b"data: one\n\n", [Event("", b"one")]),
        (b"data:one\n\n", [Event("", b"one")]),
        (b"data:  one \n\n", [Event("", b" one ")]),
        (b"data: a\ndata: b\n\n", [Event("", b"a\nb")]),
        (b"data\n\n", [Event("", b"")]),
        (b"data: a\ndata\n\n", [Event("", b"a\n")]),
        (b"event: ping\ndata: {}\n\n", [Event("ping", b"{}")]),
        (b"data: {}\nevent: late\n\n", [Event("late", b"{}")]),
        (b"event: nothing\n\ndata: x\n\n", [Event("", b"x")]),
        (b": comment\n\n:\n\ndata: x\n: inside\n\n", [Event("", b"x")]),
        (b"id: 1\nretry: 5\nunknown: y\ndata: x\n\n", [Event("", b"x")]),
        (b"\xef\xbb\xbfdata: x\n\n", [Event("", b"x")]),
        (b"data: a: b\n\n", [Event("", b"a: b")]),
        (b"data: \xe2\x80\xa8\x0b\x0c\x1c\x85\n\n", [Event("", b"\xe2\x80\xa8\x0b\x0c\x1c\x85")]),
        (b"data: unfinished\n", []),
        (b"data: unfinished", []),
        (b"", []),
    ],
)
@pytest.mark.parametrize("newline", [b"\n", b"\r\n", b"\r"])
def test_grammar(stream: bytes, events: list[Event], newline: bytes) -> None:
    stream = stream.replace(b"\n", newline)
    assert parse(stream) == events
    assert parse(stream, *range(len(stream))) == events


def test_newline_kinds_may_be_mixed() -> None:
    assert parse(b"data: a\rdata: b\r\ndata: c\n\r\n") == [Event("", b"a\nb\nc")]


def test_a_blank_line_ends_an_event_even_before_the_next_byte_is_known() -> None:
    parser = EventParser(max_event_bytes=100)
    assert parser.feed(b"data: a\r\r") == [Event("", b"a")]
    assert parser.feed(b"\ndata: b\r\n\r") == [Event("", b"b")]
    assert parser.idle


_line = st.tuples(
    st.sampled_from([b"data: ", b"data:", b"event: ", b": ", b"id: ", b"", b"x"]),
    st.binary(max_size=12).map(lambda b: b.replace(b"\r", b"").replace(b"\n", b"")),
    st.sampled_from([b"\n", b"\r\n", b"\r"]),
).map(b"".join)


@given(
    st.lists(st.one_of(_line, st.sampled_from([b"\n", b"\r\n"])), max_size=20), st.lists(st.integers(0, 500))
)
def test_cuts_change_nothing(lines: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(lines)
    assert parse(stream, *cuts) == parse(stream)


@pytest.mark.parametrize("piece", [b"data: xxxxxxxx\n", b"xxxxxxxxxx"])
def test_an_endless_event_is_refused(piece: bytes) -> None:
    parser = EventParser(max_event_bytes=1000)
    for _ in range(90):
        assert parser.feed(piece) == []
    with pytest.raises(EventTooLarge, match="1000"):
        parser.feed(piece * 40)


def test_the_bound_is_per_event_and_counts_each_byte_once() -> None:
    parser = EventParser(max_event_bytes=50)
    for _ in range(100):
        for byte in b"data: " + b"x" * 40 + b"\n\n":
            parser.feed(bytes([byte]))
    assert parser.idle


def test_idle_tells_whether_the_end_would_lose_something() -> None:
    parser = EventParser(max_event_bytes=100)
    assert parser.idle
    parser.feed(b"data: a\n")
    assert not parser.idle
    parser.feed(b"\n")
    assert parser.idle
    parser.feed(b"d")
    assert not parser.idle
