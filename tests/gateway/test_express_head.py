"""Heads: what the express lane takes, h11 takes too and reads in the same way; the rest is handed over."""

from __future__ import annotations

import re

import h11
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from slotd.capability.endpoints import ENDPOINTS
from slotd.gateway.express.head import (
    CHUNKED,
    HeadReader,
    NotPlain,
    RequestHead,
    could_be_plain,
    read_head,
)

FIRST = b"POST /v1/completions HTTP/1.1\r\n"
HOST = b"Host: x\r\n"


def read(data: bytes) -> RequestHead | None:
    """The head, or None if it is not for this lane."""
    try:
        return read_head(data, hand_over_origins=False) if could_be_plain(data) else None
    except NotPlain:
        return None


def with_headers(*lines: bytes) -> RequestHead | None:
    return read(FIRST + HOST + b"".join(line + b"\r\n" for line in lines) + b"\r\n")


# --- what it says ----------------------------------------------------------------------


def test_a_head_says_what_it_says() -> None:
    head = read(
        b"POST /v1/chat/completions?a=b?c&d=%20 HTTP/1.1\r\nHOST: x:1\r\nX-Some: \t A  b \t \r\n"
        b"Content-Length: 12\r\nX-Empty:\r\nx-some: again\r\n\r\n"
    )
    assert head is not None
    assert head.endpoint is ENDPOINTS["/v1/chat/completions"]
    assert head.query == b"a=b?c&d=%20"
    assert list(head.headers) == [
        (b"host", b"x:1"),
        (b"x-some", b"A  b"),
        (b"x-empty", b""),
        (b"x-some", b"again"),
    ]
    assert (head.length, head.keep_alive, head.expects_continue) == (12, True, False)


@pytest.mark.parametrize("path", ENDPOINTS)
def test_every_relayed_path_is_for_this_lane(path: str) -> None:
    head = read(b"POST %s HTTP/1.1\r\nHost: x\r\n\r\n" % path.encode())
    assert head is not None
    assert head.endpoint is ENDPOINTS[path]
    assert head.length == 0


@pytest.mark.parametrize(
    "body", [b"Content-Length: 2", b"Content-Length: 0", b"Transfer-Encoding: chunked", b"X: y"]
)
@pytest.mark.parametrize(
    ("lines", "kept"),
    [
        ([b"Connection: keep-alive"], True),
        ([b"Connection: closed, x-close"], True),
        ([b"Connection: Close"], False),
        ([b"Connection: x ,\tCLOSE , y"], False),
        ([b"Connection: close", b"Connection: keep-alive"], False),
        ([b"Connection: keep-alive", b"Connection: close"], False),
    ],
)
def test_a_client_that_wants_to_close_is_heard_with_a_body_or_without(
    body: bytes, lines: list[bytes], kept: bool
) -> None:
    head = with_headers(body, *lines)
    assert head is not None
    assert head.keep_alive is kept


def test_a_client_that_waits_for_leave_is_seen() -> None:
    head = with_headers(b"Expect: 100-Continue", b"Content-Length: 2")
    assert head is not None
    assert head.expects_continue
    assert with_headers(b"Expect: 100-continue, miracle") is None


def test_many_headers_are_read() -> None:
    head = with_headers(*(b"X-%d: %d" % (n, n) for n in range(3000)))
    assert head is not None
    assert head.headers[-1] == (b"x-2999", b"2999")


def test_pages_of_another_origin_are_handed_over_only_if_some_are_configured() -> None:
    data = FIRST + HOST + b"Origin: http://page\r\n\r\n"
    assert read(data) is not None
    with pytest.raises(NotPlain):
        read_head(data, hand_over_origins=True)


# --- what is handed over ------------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    [
        b"GET /v1/completions HTTP/1.1",
        b"post /v1/completions HTTP/1.1",
        b"POSTS /v1/completions HTTP/1.1",
        b"POST\t/v1/completions HTTP/1.1",
        b"POST  /v1/completions HTTP/1.1",
        b"POST /v1/completions  HTTP/1.1",
        b"POST /v1/completions HTTP/1.1 ",
        b"POST /v1/completions HTTP/1.0",
        b"POST /v1/completions HTTP/1.2",
        b"POST /v1/completions HTTP/2.0",
        b"POST /v1/completions HTTP/1.11",
        b"POST /v1/completions http/1.1",
        b"POST /v1/completions RTSP/1.1",
        b"POST /v1/completions ICE/1.1",
        b"POST /v1/completions",
        b"POST http://x/v1/completions HTTP/1.1",
        b"POST x:80 HTTP/1.1",
        b"POST * HTTP/1.1",
        b"POST /v1/%63ompletions HTTP/1.1",
        b"POST /v1/../v1/completions HTTP/1.1",
        b"POST //v1/completions HTTP/1.1",
        b"POST /v1/completions/ HTTP/1.1",
        b"POST /v1/completions#part HTTP/1.1",
        b"POST /v1/completions?\xff HTTP/1.1",
        b"POST /v1/completions?\0 HTTP/1.1",
        b"POST /v1/models HTTP/1.1",
        b"\r\nPOST /v1/completions HTTP/1.1",
    ],
)
def test_other_request_lines_are_not_for_this_lane(line: bytes) -> None:
    assert read(line + b"\r\n" + HOST + b"\r\n") is None


@pytest.mark.parametrize(
    "line",
    [
        b"Upgrade: h2c",
        b"Host: y",  # a second one
        b"Host: x",
        b"Expect: something",
    ],
)
def test_unusual_headers_are_not_for_this_lane(line: bytes) -> None:
    assert with_headers(line) is None


def test_a_head_without_a_host_is_not_for_this_lane() -> None:
    assert read(FIRST + b"\r\n") is None


def test_what_has_come_so_far_tells_whether_to_wait_for_more() -> None:
    whole = FIRST + HOST
    assert all(could_be_plain(whole[:n]) for n in range(len(whole) + 1))
    assert all(could_be_plain(bytearray(whole[:n])) for n in range(len(whole) + 1))
    for odd in (
        b"G",
        b"PU",
        b"post ",
        b"\r\n",
        b"\x16\x03",
        b"PRI * HTTP/2.0",
        b"POST / HTTP/1.1\n",
        b"POST \n",
    ):
        assert not could_be_plain(odd)


# --- against h11 ------------------------------------------------------------------------

PIECES = [
    b"POST ",
    b"GET ",
    b"/v1/completions",
    b"/v1/embeddings",
    b"http://x",
    b"?a=b",
    b"#f",
    b" ",
    b"\t",
    b" HTTP/1.1",
    b" HTTP/1.0",
    b" RTSP/1.1",
    b"\r\n",
    b"\n",
    b"\r",
    b"\0",
    b"\x0b",
    b"\x7f",
    b"\xa0",
    b":",
    b",",
    b";",
    b"Host: x",
    b"Content-Length",
    b"Content-Length: 3",
    b"Transfer-Encoding: ",
    b"Transfer-Encoding: chunked",
    b"chunked",
    b"Connection: ",
    b"close",
    b"keep-alive",
    b"Expect: 100-continue",
    b"X-Some: thing",
    b"+3",
    b"-3",
    b"0x3",
    b"3",
    b"99999999999999999999",
]
LINES = [
    b"Host: x",
    b"Content-Length: 3",
    b"Transfer-Encoding: chunked",
    b"Connection: close",
    b"X-Some: thing",
    b"X-Other:",
    b"Expect: 100-continue",
]


@st.composite
def almost_heads(draw: st.DrawFn) -> bytes:
    """A good head with a few things done to it."""
    lines = [
        b"POST /v1/completions HTTP/1.1",
        b"Host: x",
        *draw(st.lists(st.sampled_from(LINES), max_size=3)),
    ]
    data = bytearray(b"\r\n".join(lines) + b"\r\n\r\n")
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(data)))
        gone = draw(st.sampled_from([0, 0, 1, 2]))
        piece = draw(st.one_of(st.just(b""), st.sampled_from(PIECES), st.binary(min_size=1, max_size=1)))
        data[at : at + gone] = piece
    end = data.find(b"\r\n\r\n")
    return bytes(data[: end + 4]) if end >= 0 else bytes(data) + b"\r\n\r\n"


def as_h11_reads(data: bytes) -> h11.Request:
    """Raises :class:`h11.RemoteProtocolError`."""
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 16)
    connection.receive_data(data)
    request = connection.next_event()
    assert isinstance(request, h11.Request), request
    return request


@settings(max_examples=600)
@given(almost_heads())
@example(b"POST  /v1/completions HTTP/1.1\r\nHost: x\r\n\r\n")
@example(b"POST /v1/completions RTSP/1.1\r\nHost: x\r\n\r\n")
@example(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nX: y \t \r\n\r\n")
def test_what_is_taken_here_is_taken_by_h11_and_read_in_the_same_way(data: bytes) -> None:
    head = read(data)
    if head is None:
        return
    request = as_h11_reads(data)
    target, _, query = request.target.partition(b"?")
    assert (request.method, request.http_version) == (b"POST", b"1.1")
    assert (head.endpoint.path.encode(), head.query) == (target, query)
    lowered = [(n, v.lower() if n == b"transfer-encoding" else v) for n, v in head.headers]
    assert lowered == [field for field in request.headers if field[0] != b"content-length"]
    found = dict(request.headers)
    assert not {b"content-length", b"transfer-encoding"} <= set(found), "two lengths are for nobody"
    if b"transfer-encoding" in found:
        assert head.length == CHUNKED
    else:
        assert head.length == int(found.get(b"content-length", b"0"))
    tokens = {t.strip() for n, v in request.headers if n == b"connection" for t in v.lower().split(b",")}
    assert head.keep_alive is (b"close" not in tokens)
    assert head.expects_continue is (b"expect" in found)


# --- heads that came before --------------------------------------------------------------


def as_read(reader: HeadReader, data: bytes) -> RequestHead | None:
    try:
        return reader.read(data, hand_over_origins=False)
    except NotPlain:
        return None


@settings(max_examples=600)
@given(st.lists(almost_heads(), min_size=1, max_size=3), almost_heads(), st.integers(0, 10**6))
@example([b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n"], b"", 5)
@example(
    [b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n"],
    b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: \r\n\r\n",
    0,
)
def test_what_came_before_changes_no_answer(before: list[bytes], data: bytes, length: int) -> None:
    reader = HeadReader()
    alike = [re.sub(rb"(?i)(content-length: ?)\d+", rb"\g<1>%d" % length, one) for one in before]
    for one in (*before, *alike, data):
        if could_be_plain(one):
            assert as_read(reader, one) == read(one), one


def test_a_head_that_comes_again_is_not_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    reader = HeadReader()
    head = FIRST + HOST + b"X: y\r\nContent-Length: %d\r\n\r\n"
    first = reader.read(head % 5, hand_over_origins=False)
    monkeypatch.delattr("slotd.gateway.express.head.httptools.HttpRequestParser")
    again = reader.read(head % 17, hand_over_origins=False)
    assert (again.length, again.headers) == (17, first.headers)
    assert again.headers is first.headers, "so that what follows from them is worked out once"


def test_what_a_web_page_sends_is_judged_by_the_configuration_each_time() -> None:
    reader = HeadReader()
    head = FIRST + HOST + b"Origin: http://there\r\n\r\n"
    reader.read(head, hand_over_origins=False)
    with pytest.raises(NotPlain):
        reader.read(head, hand_over_origins=True)
