"""HTTP/1.1 messages as bytes: what goes out, and what is made of what comes in."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from slotd.wire.broken import BadResponse
from slotd.wire.fields import Fields
from slotd.wire.http1_wire import ResponseHead, ResponseReader, encode_request
from slotd.wire.memo import HeadMemo

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


# --- writing a request --------------------------------------------------------


def test_request_bytes() -> None:
    headers = [(b"accept", b"*/*"), (b"HOST", b"evil"), (b"Content-Length", b"9"), (b"X-A", b"\xe4 b")]
    [data] = encode_request(b"POST", b"/v1/x?q=1", b"127.0.0.1:80", Fields(headers), b"abc")
    assert data == (
        b"POST /v1/x?q=1 HTTP/1.1\r\nHost: 127.0.0.1:80\r\naccept: */*\r\nX-A: \xe4 b\r\n"
        b"Content-Length: 3\r\n\r\nabc"
    )


def test_empty_bodies_are_announced_only_where_one_is_expected() -> None:
    assert encode_request(b"GET", b"/", b"h", Fields(), b"") == [b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"]
    [data] = encode_request(b"POST", b"/", b"h", Fields([(b"transfer-encoding", b"chunked")]), b"")
    assert data == b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n"


def test_big_body_is_not_copied() -> None:
    body = bytes(1_000_000)
    head, sent = encode_request(b"POST", b"/", b"h", Fields(), body)
    assert sent is body
    assert head.endswith(b"Content-Length: 1000000\r\n\r\n")


@pytest.mark.parametrize("bad", [b"a\r\nX: y", b"a\rb", b"a\nb", b"a\0b", b"\r\n"])
def test_no_smuggling_through_any_part(bad: bytes) -> None:
    for method, target, headers in [
        (bad, b"/", []),
        (b"GET", bad, []),
        (b"GET", b"/", [(bad, b"v")]),
        (b"GET", b"/", [(b"n", bad)]),
    ]:
        with pytest.raises(ValueError, match=r"CR, LF or NUL|not a method"):
            encode_request(method, target, b"h", Fields(headers), b"")


@pytest.mark.parametrize(
    ("method", "target"), [(b"", b"/"), (b"GET", b""), (b"GET", b"/ HTTP/1.0"), (b"G T", b"/")]
)
def test_request_line_has_three_words(method: bytes, target: bytes) -> None:
    with pytest.raises(ValueError, match="not a method"):
        encode_request(method, target, b"h", Fields(), b"")


# --- reading a response, cut anywhere -----------------------------------------


@dataclass(frozen=True, slots=True)
class Case:
    """A whole response and what is to be read from it."""

    raw: bytes
    body: bytes
    status: int = 200
    method: bytes = b"POST"
    until_eof: bool = False
    reusable: bool = False


CASES = {
    "length": Case(OK, b"ok", reusable=True),
    "empty": Case(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", b"", reusable=True),
    "chunked": Case(
        CHUNKED + b"3;ext=1\r\nabc\r\n1\r\nd\r\n0\r\nX-Trailer: t\r\n\r\n", b"abcd", reusable=True
    ),
    "until EOF": Case(
        b"HTTP/1.1 200 OK\r\nX-Empty:\r\nX: y\r\n\r\nall there is", b"all there is", until_eof=True
    ),
    "old": Case(b"HTTP/1.0 200 Fine by me\r\nContent-Length: 1\r\n\r\nx", b"x"),
    "close": Case(b"HTTP/1.1 500 E\r\nConnection: close\r\nContent-Length: 1\r\n\r\nx", b"x", status=500),
    "interim": Case(
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\nLink: <a>\r\n\r\n" + OK, b"ok", reusable=True
    ),
    "head": Case(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n", b"", method=b"HEAD"),
    "204": Case(b"HTTP/1.1 204 No Content\r\n\r\n", b"", status=204, reusable=True),
    "304": Case(b"HTTP/1.1 304 Fresh\r\nContent-Length: 99\r\n\r\n", b"", status=304, reusable=True),
    "events": Case(
        b"HTTP/1.1 200 OK\r\nContent-Type: Text/Event-Stream; charset=utf-8\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n9\r\ndata: x\n\n\r\n0\r\n\r\n",
        b"data: x\n\n",
    ),
}


def test_a_memo_knows_what_is_the_same_but_for_the_length() -> None:
    memo: HeadMemo[ResponseHead] = HeadMemo()
    first = read_whole(b"HTTP/1.1 200 OK\r\nX: y\r\nContent-Length: 2\r\nZ: z\r\n\r\nok", memo)
    again = read_whole(b"HTTP/1.1 200 OK\r\nX: y\r\nContent-Length: 12\r\nZ: z\r\n\r\nquite longer", memo)
    other = read_whole(b"HTTP/1.1 200 OK\r\nX: x\r\nContent-Length: 2\r\nZ: z\r\n\r\nok", memo)
    assert (again.headers, again.length, again.take()) == (first.headers, 12, b"quite longer")
    assert again.headers is first.headers, "so that what follows from them is worked out once"
    assert other.headers != first.headers


@pytest.mark.parametrize(
    "taught",
    [
        b"HTTP/1.1 204 No Content\r\nContent-Length: 2\r\n\r\n",
        b"HTTP/1.1 304 Fresh\r\nContent-Length: 2\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" + OK,
        b"HTTP/1.1 103 Early\r\nContent-Length: 0\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    ],
)
def test_a_memo_does_not_learn_a_length_that_is_not_that_of_the_body(taught: bytes) -> None:
    memo: HeadMemo[ResponseHead] = HeadMemo()
    for _ in range(2):
        reader = ResponseReader(b"POST", max_head_bytes=4096, memo=memo)
        reader.feed(taught)
        assert reader.ended
        assert reader.reusable
    reader = ResponseReader(b"HEAD", max_head_bytes=4096, memo=memo)
    reader.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n")
    assert (reader.ended, reader.length) == (True, 2)
    reader = ResponseReader(b"POST", max_head_bytes=4096, memo=memo)
    reader.feed(OK[:-2])
    assert not reader.ended, "a HEAD's head says nothing of what a POST gets"


def chunked(*headers: bytes, before: bytes = b"") -> bytes:
    lines = b"".join(line + b"\r\n" for line in (b"Transfer-Encoding: chunked", *headers))
    return before + b"HTTP/1.1 200 OK\r\n" + lines + b"\r\n1\r\nx\r\n0\r\n\r\n"


def test_the_fields_of_a_stream_are_kept_though_it_has_to_be_parsed() -> None:
    memo: HeadMemo[ResponseHead] = HeadMemo()
    first, again = read_whole(chunked(b"A: b"), memo), read_whole(chunked(b"A: b"), memo)
    assert (again.take(), again.reusable) == (b"x", True)
    assert again.headers is first.headers


@pytest.mark.parametrize("before", [b"\r\n\r\n", b"HTTP/1.1 103 Early\r\nA: b\r\nC: d\r\n\r\n"])
def test_what_stands_before_a_head_is_not_taken_for_it(before: bytes) -> None:
    memo: HeadMemo[ResponseHead] = HeadMemo()
    for value in (b"one", b"two"):
        reader = read_whole(chunked(b"A: " + value, before=before), memo)
        assert reader.headers[-1] == (b"a", value)


def read_whole(raw: bytes, memo: HeadMemo[ResponseHead]) -> ResponseReader:
    reader = ResponseReader(b"POST", max_head_bytes=4096, memo=memo)
    reader.feed(raw)
    assert reader.ended
    return reader


@pytest.mark.parametrize("known", [False, True], ids=["new", "known"])
@pytest.mark.parametrize("name", CASES)
@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_response_read_in_pieces(name: str, known: bool, data: st.DataObject) -> None:
    case = CASES[name]
    raw = case.raw
    cuts = sorted(data.draw(st.sets(st.integers(1, len(raw) - 1))))
    memo: HeadMemo[ResponseHead] = HeadMemo()
    if known:
        taught = ResponseReader(case.method, max_head_bytes=4096, memo=memo)
        taught.feed(raw)
    reader = ResponseReader(case.method, max_head_bytes=4096, memo=memo)
    got = b""
    for start, end in zip([0, *cuts], [*cuts, len(raw)], strict=True):
        assert not reader.ended
        reader.feed(raw[start:end])
        got += reader.take()
    if case.until_eof:
        assert not reader.ended
        assert reader.feed_eof()
    assert reader.ended
    assert reader.drained
    assert (reader.status, got, reader.reusable) == (case.status, case.body, case.reusable)
    if name == "chunked":
        assert list(reader.headers) == [(b"transfer-encoding", b"chunked")]  # no trailers among them
    if name == "until EOF":
        assert list(reader.headers) == [(b"x-empty", b""), (b"x", b"y")]
    if name == "interim":
        assert (list(reader.headers), reader.length) == ([], 2)


@pytest.mark.parametrize("name", [name for name in CASES if not CASES[name].until_eof])
@given(data=st.data())
@settings(max_examples=15, deadline=None)
def test_response_cut_short_is_not_an_end(name: str, data: st.DataObject) -> None:
    case = CASES[name]
    raw = case.raw
    reader = ResponseReader(case.method, max_head_bytes=4096)
    reader.feed(raw[: data.draw(st.integers(1, len(raw) - 1))])
    assert not reader.feed_eof()


@pytest.mark.parametrize("surplus", [b"x", b"HTTP/1.1 408 Request Timeout\r\n\r\n", b"\0" * 100])
@pytest.mark.parametrize("name", ["length", "chunked", "204", "304", "close", "head"])
@pytest.mark.parametrize("known", [False, True], ids=["new", "known"])
def test_surplus_bytes_spoil_reuse_but_not_the_answer(known: bool, name: str, surplus: bytes) -> None:
    case = CASES[name]
    memo: HeadMemo[ResponseHead] = HeadMemo()
    if known:
        ResponseReader(case.method, max_head_bytes=4096, memo=memo).feed(case.raw)
    reader = ResponseReader(case.method, max_head_bytes=4096, memo=memo)
    reader.feed(case.raw + surplus)
    assert reader.ended
    assert (reader.status, reader.take()) == (case.status, case.body)
    assert not reader.reusable


@pytest.mark.parametrize(
    "raw",
    [
        b"SSH-2.0-OpenSSH_9.9\r\n",
        b"HTTP/2.0 200 OK\r\n\r\n",
        b"HTTP/1.1 abc\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        b"HTTP/1.1 199 Odd\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA b\r\n\r\n",
        CHUNKED + b"zz\r\n",
        CHUNKED + b"1\r\nabc\r\n",
    ],
)
def test_malformed(raw: bytes) -> None:
    reader = ResponseReader(b"GET", max_head_bytes=4096)
    with pytest.raises(BadResponse):
        reader.feed(raw)


def test_switching_protocols_is_named() -> None:
    reader = ResponseReader(b"GET", max_head_bytes=4096)
    with pytest.raises(BadResponse, match="switched protocols"):
        reader.feed(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n")


@given(st.binary(min_size=1))
@example(b"HTTP/1.1 200 OK\r\n\r\n")
@settings(max_examples=100, deadline=None)
def test_any_bytes_give_a_response_or_bad_response(raw: bytes) -> None:
    for prefix in (b"", b"HTTP/1.1 2", CHUNKED):
        reader = ResponseReader(b"GET", max_head_bytes=4096)
        try:
            reader.feed(prefix + raw)
        except BadResponse:
            continue
        assert reader.take() in prefix + raw or prefix == CHUNKED


@pytest.mark.parametrize(
    ("start", "more"),
    [
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),  # interim responses for ever
        (b"HTTP/1.1 200 OK\r\n", b"X-Header: value\r\n"),
        (b"HTTP/1.1 200 OK\r\nX-Header: ", b"value"),
        (CHUNKED + b"0\r\n", b"X-Trailer: value\r\n"),
        (CHUNKED + b"0\r\nX-Trailer: ", b"value"),
        (CHUNKED + b"1;ext=", b"value"),
    ],
)
def test_what_is_not_body_is_bounded(start: bytes, more: bytes) -> None:
    reader = ResponseReader(b"GET", max_head_bytes=1000)
    raw = start + more * 300
    fed = 0

    def feed_all() -> None:
        nonlocal fed
        while fed < len(raw):
            size = min(reader.wanted(), 50)
            assert size > 0
            reader.feed(raw[fed : fed + size])
            fed += size

    with pytest.raises(BadResponse, match="1000 bytes"):
        feed_all()
    assert fed <= 1000 + len(CHUNKED) + 50


def test_head_of_just_the_allowed_size() -> None:
    raw = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nX: %s\r\n\r\n"
    raw %= b"y" * (200 - len(raw) + 2)
    for limit, fits in ((200, True), (199, False)):
        reader = ResponseReader(b"GET", max_head_bytes=limit)
        first = raw[: reader.wanted()]
        if fits:
            reader.feed(first)
            assert reader.ended
        else:
            with pytest.raises(BadResponse, match="199"):
                reader.feed(first)


def test_many_small_chunks_never_exhaust_the_bound() -> None:
    reader = ResponseReader(b"GET", max_head_bytes=100)
    reader.feed(CHUNKED)
    for _ in range(500):
        for piece in (b"1", b"\r\n", b"x", b"\r\n"):
            reader.feed(piece)
        assert reader.take() == b"x"
