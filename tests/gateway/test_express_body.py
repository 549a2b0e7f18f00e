"""Chunked bodies: however they are cut, one result; and h11's, or none."""

from __future__ import annotations

import h11
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from slotd.gateway.express.body import LINE_MAX, TRAILERS_MAX, BadChunk, ChunkedBody

Result = tuple[bytes, bytes] | None
"""Body and what follows it; None: refused."""


def result(*pieces: bytes) -> Result:
    """What comes of a body that arrives in these pieces, which must hold its end."""
    body = ChunkedBody()
    rest = b""
    try:
        for number, piece in enumerate(pieces):
            body.feed(piece)
            assert body.size == len(body.body)
            if body.done:
                rest = b"".join(pieces[number + 1 :])
                break
    except BadChunk:
        return None
    assert body.done, "the end has come"
    return body.body, body.rest + rest


def chunks(*contents: bytes) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(c), c) for c in contents)


def test_chunks_make_a_body_and_what_follows_belongs_to_the_next_request() -> None:
    assert result(chunks(b"ab", b"c" * 300) + b"0\r\n\r\nPOST /") == (b"ab" + b"c" * 300, b"POST /")
    assert result(b"0\r\n\r\n") == (b"", b"")
    assert result(b"A;name=value\r\n0123456789\r\n0;last\r\nX-Sum: 1\r\nX-Empty:\r\n\r\n") == (
        b"0123456789",
        b"",
    )


def test_it_says_when_it_is_not_complete() -> None:
    whole = chunks(b"abc") + b"0\r\nX: y\r\n\r\n"
    for end in range(len(whole)):
        body = ChunkedBody()
        body.feed(whole[:end])
        assert not body.done


@pytest.mark.parametrize(
    "data",
    [
        b"-1\r\n",
        b"+2\r\nab\r\n0\r\n\r\n",
        b"0x2\r\nab\r\n0\r\n\r\n",
        b" 2\r\nab\r\n0\r\n\r\n",
        b"2 \r\nab\r\n0\r\n\r\n",
        b"2 ;x\r\nab\r\n0\r\n\r\n",
        b"2_0\r\n",
        b"\r\n2\r\nab\r\n0\r\n\r\n",
        b"g\r\n",
        b"\r\n",
        b";x\r\n",
        b"100000000\r\n",  # 4 GiB
        b"2\nab\r\n0\r\n\r\n",
        b"2\r\nab\n0\r\n\r\n",
        b"2\r\nab0\r\n\r\n",
        b"2\r\nabc\r\n0\r\n\r\n",
        b"2\r\rab\r\n",
        b"2;a\rb\r\nab\r\n0\r\n\r\n",
        b"2;a\0b\r\nab\r\n0\r\n\r\n",
        b"0\r\n\n",
        b"0\r\nno header\r\n\r\n",
        b"0\r\nX : y\r\n\r\n",
        b"0\r\n: y\r\n\r\n",
        b"0\r\nX: y\r\n folded\r\n\r\n",
        b"0\r\nX: \0\r\n\r\n",
        b"0\r\nX: y\n\r\n",
    ],
)
def test_what_could_be_read_in_two_ways_is_refused(data: bytes) -> None:
    assert result(data) is None
    assert result(*(data[n : n + 1] for n in range(len(data)))) is None


@pytest.mark.parametrize("over", [False, True])
def test_lines_are_bounded_however_they_come(over: bool) -> None:
    extension = b"1;" + b"x" * (LINE_MAX - 2 + over)
    data = extension + b"\r\nz\r\n0\r\n\r\n"
    wanted = None if over else (b"z", b"")
    assert result(data) == wanted
    for cut in range(len(extension) - 2, len(extension) + 3):
        assert result(data[:cut], data[cut:]) == wanted


def test_an_extension_without_end_is_refused_before_it_ends() -> None:
    body = ChunkedBody()
    with pytest.raises(BadChunk):
        body.feed(b"1;" + b"x" * LINE_MAX)


def test_trailers_are_bounded_in_all() -> None:
    line = b"X: " + b"y" * 95 + b"\r\n"
    fits = TRAILERS_MAX // len(line)
    assert result(b"0\r\n" + line * fits + b"\r\n") == (b"", b"")
    assert result(b"0\r\n" + line * (fits + 1) + b"\r\n") is None


PIECES = [
    b"\r\n",
    b"\n",
    b"\r",
    b"0",
    b"1",
    b"a",
    b";",
    b" ",
    b"\t",
    b"\0",
    b"+",
    b"-",
    b"0x",
    b":",
    b"0\r\n\r\n",
    b"X: y\r\n",
]


@st.composite
def almost_bodies(draw: st.DrawFn) -> bytes:
    """A good chunked body with a few things done to it, and a good end behind."""
    contents = draw(st.lists(st.binary(min_size=1, max_size=20), max_size=3))
    extension = draw(st.sampled_from([b"", b"", b";a", b';a="b"']))
    trailers = draw(st.sampled_from([b"", b"", b"X: y\r\n", b"X: y\r\nZ:\r\n"]))
    data = bytearray()
    for content in contents:
        data += b"%x%b\r\n%b\r\n" % (len(content), extension, content)
    data += b"0\r\n" + trailers + b"\r\n"
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(0, len(data)))
        gone = draw(st.sampled_from([0, 0, 1, 2]))
        data[at : at + gone] = draw(st.one_of(st.just(b""), st.sampled_from(PIECES)))
    return bytes(data)


def as_h11_reads(data: bytes) -> Result:
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
    connection.next_event()
    connection.receive_data(data)
    body = b""
    try:
        while not isinstance(event := connection.next_event(), h11.EndOfMessage):
            assert isinstance(event, h11.Data), event
            body += event.data
    except h11.RemoteProtocolError:
        return None
    return body, connection.trailing_data[0]


@settings(max_examples=400)
@given(almost_bodies())
@example(b"2 ;x\r\nab\r\n0\r\n\r\n")
@example(b"0\r\nno header\r\n\r\n")
def test_what_is_taken_here_is_taken_by_h11_and_read_in_the_same_way(data: bytes) -> None:
    body = ChunkedBody()
    try:
        body.feed(data)
    except BadChunk:
        return
    if body.done:
        assert as_h11_reads(data) == (body.body, body.rest)


@settings(max_examples=300)
@given(almost_bodies(), st.data())
def test_any_cut_gives_the_same_result(data: bytes, draw: st.DataObject) -> None:
    data += b"0\r\n\r\n" * 20 + b"\n" * (TRAILERS_MAX + 2)  # whatever it is, it comes to an end
    at_once = result(data)
    cuts = sorted(draw.draw(st.lists(st.integers(0, 200), max_size=8)))
    pieces = [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]
    assert result(*pieces) == at_once
