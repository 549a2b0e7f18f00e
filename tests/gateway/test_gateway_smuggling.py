"""Requests that two readers could read in two ways: refused in either lane, and nothing behind them served.

A proxy before slotd may measure a body in another way than slotd does. Then a
part of one client's body becomes the next client's request. So what is not
told in one way only ends its connection.
"""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

import pytest
import trio
from express_world import echo, post
from gateway_server import Gateway, with_gateway

LINE = b"POST /v1/completions HTTP/1.1"
SMUGGLED = post(b"smuggled")


def framed(*lines: bytes, first: bytes = LINE, body: bytes = b"") -> bytes:
    """A request with a host and these headers."""
    return b"\r\n".join([first, b"Host: x", *lines, b"", b""]) + body


TE, CL = b"Transfer-Encoding: chunked", b"Content-Length: 2"
NOTHING = b"0\r\n\r\n"

REFUSED = {
    # two lengths
    "CL.TE": framed(b"Content-Length: 5", TE, body=NOTHING),
    "TE.CL": framed(TE, b"Content-Length: 5", body=NOTHING),
    "two lengths": framed(CL, b"Content-Length: 3", body=b"{}"),
    "two lengths in one": framed(b"Content-Length: 2, 3", body=b"{}"),
    "two codings": framed(TE, TE, body=NOTHING),
    "a coding and none": framed(TE, b"Transfer-Encoding: identity", body=NOTHING),
    # lengths that are no number
    "plus": framed(b"Content-Length: +2", body=b"{}"),
    "minus": framed(b"Content-Length: -2", body=b"{}"),
    "hexadecimal": framed(b"Content-Length: 0x2", body=b"{}"),
    "underscore": framed(b"Content-Length: 0_2", body=b"{}"),
    "fraction": framed(b"Content-Length: 2.0", body=b"{}"),
    "space inside": framed(b"Content-Length: 0 2", body=b"{}"),
    "no number": framed(b"Content-Length:", body=b"{}"),
    "vertical tab": framed(b"Content-Length: \x0b2", body=b"{}"),
    "superscript": framed(b"Content-Length: \xb2", body=b"{}"),
    "too many digits": framed(b"Content-Length: " + b"0" * 30 + b"2", body=b"{}"),
    # codings that are not "chunked"
    "gzip": framed(b"Transfer-Encoding: gzip", body=NOTHING),
    "gzip, chunked": framed(b"Transfer-Encoding: gzip, chunked", body=NOTHING),
    "chunked, identity": framed(b"Transfer-Encoding: chunked, identity", body=NOTHING),
    "identity": framed(b"Transfer-Encoding: identity", CL, body=b"{}"),
    "xchunked": framed(b"Transfer-Encoding: xchunked", body=NOTHING),
    "quoted": framed(b'Transfer-Encoding: "chunked"', body=NOTHING),
    "coding and vertical tab": framed(b"Transfer-Encoding: \x0bchunked", body=NOTHING),
    "no coding": framed(b"Transfer-Encoding:", CL, body=b"{}"),
    "HTTP/1.0 in chunks": framed(TE, first=LINE[:-1] + b"0", body=NOTHING),
    "HTTP/1.0 kept and in chunks": framed(
        TE, b"Connection: keep-alive", first=LINE[:-1] + b"0", body=NOTHING
    ),
    # names
    "space before the colon": framed(b"Content-Length : 2", body=b"{}"),
    "tab before the colon": framed(b"Transfer-Encoding\t: chunked", body=NOTHING),
    "space before the first name": framed(first=LINE + b"\r\n Content-Length: 2", body=b"{}"),
    "no colon": framed(b"Content-Length", body=b""),
    "no name": framed(b": 2"),
    "NUL in a name": framed(b"Content\0-Length: 2", body=b"{}"),
    "a letter beyond ASCII": framed("Tränsfer-Encoding: chunked".encode(), body=NOTHING),
    # values
    "NUL in a value": framed(b"X: a\0b"),
    "CR in a value": framed(b"X: a\rContent-Length: 2", body=b"{}"),
    "CR CR LF": framed(b"X: a\r", CL, body=b"{}"),
    "a length folded": framed(b"Content-Length: 2\r\n 3", body=b"{}"),
    "a coding folded": framed(b"Transfer-Encoding: chunked\r\n , identity", body=NOTHING),
    # request lines
    "two spaces": framed(CL, first=LINE.replace(b" ", b"  "), body=b"{}"),
    "two spaces before HTTP": framed(CL, first=LINE.replace(b" HTTP", b"  HTTP"), body=b"{}"),
    "space at the end": framed(CL, first=LINE + b" ", body=b"{}"),
    "tab": framed(CL, first=LINE.replace(b" ", b"\t"), body=b"{}"),
    "RTSP": framed(CL, first=LINE.replace(b"HTTP", b"RTSP"), body=b"{}"),
    "ICE": framed(CL, first=LINE.replace(b"HTTP", b"ICE"), body=b"{}"),
    "HTTP/1.11": framed(CL, first=LINE + b"1", body=b"{}"),
    "http/1.1": framed(CL, first=LINE.replace(b"HTTP", b"http"), body=b"{}"),
    "HTTP/0.9": framed(CL, first=b"POST /v1/completions", body=b"{}"),
    "no method": framed(CL, first=LINE.removeprefix(b"POST "), body=b"{}"),
    "a method with a slash": framed(CL, first=LINE.replace(b"POST", b"PO/ST"), body=b"{}"),
    "NUL in the target": framed(CL, first=LINE.replace(b" HTTP", b"?\0 HTTP"), body=b"{}"),
    "CR in the target": framed(CL, first=LINE.replace(b" HTTP", b"?\rx HTTP"), body=b"{}"),
    "beyond ASCII in the target": framed(CL, first=LINE.replace(b" HTTP", b"?\xc3\xa4 HTTP"), body=b"{}"),
    # hosts
    "no host": LINE + b"\r\nContent-Length: 2\r\n\r\n{}",
    "two hosts": framed(b"Host: y", CL, body=b"{}"),
    # chunks
    "a chunk with a sign": framed(TE, body=b"+2\r\n{}\r\n0\r\n\r\n"),
    "a chunk below nothing": framed(TE, body=b"-2\r\n{}\r\n0\r\n\r\n"),
    "a chunk with 0x": framed(TE, body=b"0x2\r\n{}\r\n0\r\n\r\n"),
    "a chunk after a space": framed(TE, body=b" 2\r\n{}\r\n0\r\n\r\n"),
    "a chunk with an underscore": framed(TE, body=b"0_2\r\n{}\r\n0\r\n\r\n"),
    "a chunk of no size": framed(TE, body=b"\r\n{}\r\n0\r\n\r\n"),
    "a chunk that is longer": framed(TE, body=b"1\r\n{}\r\n0\r\n\r\n"),
    "a chunk that is shorter": framed(TE, body=b"3\r\n{}\r\n0\r\n\r\n"),
    "a chunk with too many digits": framed(TE, body=b"0" * 30 + b"2\r\n{}\r\n0\r\n\r\n"),
    "a chunk that ends in LF": framed(TE, body=b"2\r\n{}\n0\r\n\r\n"),
    "a chunk's line ends in LF": framed(TE, body=b"2\n{}\r\n0\r\n\r\n"),
    "an extension with a LF": framed(TE, body=b"2;\n{}\r\n0\r\n\r\n"),
    "an extension without end": framed(TE, body=b"2;" + b"x" * 70_000),
    "trailers that are none": framed(TE, body=b"2\r\n{}\r\n0\r\nnone\r\n\r\n"),
}
"""All of it is answered with an error, and ends its connection."""

SERVED = {
    "a length": (framed(CL, body=b"{}"), b"{}"),
    "no length": (framed(), b""),
    "chunks": (framed(TE, body=b"1;x=y\r\n{\r\n1\r\n}\r\n0\r\nX: y\r\n\r\n"), b"{}"),
    "the coding in capitals": (framed(b"TRANSFER-ENCODING: CHUNKED", body=b"2\r\n{}\r\n0\r\n\r\n"), b"{}"),
    "the same length twice": (framed(CL, CL, body=b"{}"), b"{}"),
    "spaces around a length": (framed(b"Content-Length: \t 2 \t ", body=b"{}"), b"{}"),
    "zeros before a length": (framed(b"Content-Length: 0002", body=b"{}"), b"{}"),
    "another header, folded": (framed(b"X: a\r\n b", CL, body=b"{}"), b"{}"),
    "lines that end in LF": (framed(CL).replace(b"\r\n", b"\n") + b"{}", b"{}"),
    "one line that ends in LF": (framed(b"X: y\n" + CL, body=b"{}"), b"{}"),
    "a name with an underscore": (framed(b"Content_Length: 5", CL, body=b"{}"), b"{}"),
    "a length in the trailers": (framed(TE, body=b"0\r\nContent-Length: 5\r\n\r\n"), b""),
}
"""Tells one length only, however oddly; what follows is a request of its own."""


async def to_the_end(stream: trio.SocketStream) -> bytes:
    """What comes until the connection ends, by a reset too: we sent more than was wanted."""
    got = bytearray()
    with trio.fail_after(5), suppress(trio.BrokenResourceError):
        async for data in stream:
            got += data
    return bytes(got)


@pytest.mark.parametrize("name", REFUSED)
async def test_what_could_be_read_in_two_ways_is_refused_and_nothing_behind_it_served(
    name: str, express: bool, tmp_path: Path
) -> None:
    async def test(gateway: Gateway) -> None:
        stream = await gateway.connect()
        async with stream:
            await stream.send_all(REFUSED[name] + SMUGGLED)
            answer = await to_the_end(stream)
        head, _, body = answer.partition(b"\r\n\r\n")
        status = int(head.split()[1])
        assert status in (400, 501) or (status == 431 and "without end" in name)
        assert b"connection: close" in head.lower()
        assert json.loads(body)["error"]["code"].startswith("request."), "one answer, and it is ours"
        assert gateway.behind.seen == []

    await with_gateway(test, echo, server="max_head_kb = 16", express=express, tmp_path=tmp_path)


@pytest.mark.parametrize("name", SERVED)
async def test_what_can_be_read_in_one_way_only_is_served(name: str, express: bool, tmp_path: Path) -> None:
    sent, wanted = SERVED[name]

    async def test(gateway: Gateway) -> None:
        stream = await gateway.connect()
        async with stream:
            await stream.send_all(sent + post(b"next", b"Connection: close"))
            answer = await to_the_end(stream)
        assert answer.count(b"HTTP/1.1 200") == 2
        assert [inbound.body for inbound in gateway.behind.seen] == [wanted, b"next"]

    await with_gateway(test, echo, express=express, tmp_path=tmp_path)


@pytest.mark.parametrize(
    ("target", "status"),
    [
        (b"http://x/v1/completions", 200),
        (b"x:80", 404),
        (b"*", 404),
        (b"//v1/completions", 200),
        (b"/v1/%63ompletions", 200),
        (b"/v1/completions?a=b", 200),
    ],
)
async def test_other_forms_of_a_target_mean_the_same_in_both_lanes(
    target: bytes, status: int, express: bool, tmp_path: Path
) -> None:
    async def test(gateway: Gateway) -> None:
        stream = await gateway.connect()
        async with stream:
            first = b"POST %s HTTP/1.1" % target
            await stream.send_all(framed(CL, b"Connection: close", first=first, body=b"{}"))
            answer = await to_the_end(stream)
        assert int(answer.split()[1]) == status
        assert [inbound.path for inbound in gateway.behind.seen] == ["/v1/completions"] * (status == 200)

    await with_gateway(test, echo, express=express, tmp_path=tmp_path)
