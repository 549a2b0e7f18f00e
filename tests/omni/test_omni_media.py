"""Pictures and sounds by name, and what is fetched for a model and what never is."""

from __future__ import annotations

import base64
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial

import httpx
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from slotd.artifacts import Artifacts
from slotd.omni.failure import ToolFailed
from slotd.omni.fetch import FetchRules, fetch, may_reach
from slotd.omni.media import Media, find, sniff

PNG = b"\x89PNG\r\n\x1a\n" + bytes(100)
LOCAL = FetchRules(allowed=True, private=("127.0.0.0/8",), max_bytes=1000, timeout_s=5)

Answer = Callable[[bytes], Awaitable[bytes]]


async def nothing(url: str) -> Media:
    raise ToolFailed(f"not fetched: {url}")


@asynccontextmanager
async def site(answer: Callable[[bytes], bytes]) -> AsyncIterator[tuple[str, list[bytes]]]:
    """A web server: its address, and the requests that have come."""
    seen: list[bytes] = []

    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            data = b""
            while b"\r\n\r\n" not in data:
                more = await stream.receive_some()
                if not more:
                    return
                data += more
            seen.append(data)
            try:
                await stream.send_all(answer(data))
            except trio.BrokenResourceError:
                return

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
        port = listeners[0].socket.getsockname()[1]
        yield f"http://127.0.0.1:{port}", seen
        nursery.cancel_scope.cancel()


def http(body: bytes, status: str = "200 OK", **headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", "connection: close", f"content-length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


# --- by name -------------------------------------------------------------------------------


@given(data=st.binary(min_size=1, max_size=100), url=st.booleans())
def test_base64_in_its_spellings(data: bytes, url: bool) -> None:
    encode = base64.urlsafe_b64encode if url else base64.b64encode
    text = encode(data).decode()

    async def main() -> None:
        for name in (text, text.rstrip("="), f" {text[:3]}\n{text[3:]} ", f"data:x/y;base64,{text}"):
            assert (await find(name, Artifacts(), nothing)).data == data

    trio.run(main)


async def test_data_urls_and_what_they_say_of_themselves() -> None:
    artifacts = Artifacts()
    assert await find("data:image/webp;charset=x,a%20b", artifacts, nothing) == Media(b"a b", "image/webp")
    # What it is counts for more than what it is said to be.
    png = await find("data:image/jpeg;base64," + base64.b64encode(PNG).decode(), artifacts, nothing)
    assert png == Media(PNG, "image/png")


async def test_what_a_data_url_calls_itself_is_a_name_or_nothing() -> None:
    """It becomes the head of a form's part, which must not grow by a line."""
    said = 'data:a/b\r\ncontent-disposition: form-data; name="model"\r\n\r\nx;base64,QUJD'
    for url in (said, "data:a/b\nc;base64,QUJD", "data:what;base64,QUJD"):
        assert await find(url, Artifacts(), nothing) == Media(b"ABC", "application/octet-stream")


async def test_many_small_results_are_bounded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slotd.artifacts.COUNT_MAX", 2)
    artifacts = Artifacts()
    first, *others = [artifacts.put(b"", "image/png") for _ in range(3)]
    assert artifacts.get(first) is None
    assert all(artifacts.get(id) is not None for id in others)


async def test_results_that_are_kept_here_by_any_name() -> None:
    artifacts = Artifacts()
    id = artifacts.put(PNG, "image/png")
    for name in (
        f"/api/artifacts/{id}",
        f"http://any.where/api/artifacts/{id}",
        f"HTTPS://x/api/artifacts/{id}",
    ):
        assert (await find(name, artifacts, nothing)).data == PNG
    with pytest.raises(ToolFailed, match="kept for a while"):
        await find("/api/artifacts/other", artifacts, nothing)
    with pytest.raises(ToolFailed, match="not fetched"):
        await find("http://any.where/api/artifacts/other", artifacts, nothing)


@pytest.mark.parametrize(
    "given",
    ["", "data:", "data:;base64,", "?!", "file:///etc/passwd", "http://[", "ab=c", "né", "data:;base64,é"],
)
async def test_what_is_nothing(given: str) -> None:
    with pytest.raises(ToolFailed):
        await find(given, Artifacts(), nothing)


def test_what_first_bytes_tell() -> None:
    assert sniff(b"RIFF....WEBP") == "image/webp"
    assert sniff(b"RIFF....WAVE") == "audio/wav"
    assert sniff(b"\xff\xd8\xff\xe0") == "image/jpeg"
    assert sniff(b"....ftypM4A ") == "audio/mp4"
    assert sniff(b"?", "audio/basic") == "audio/basic"


# --- who may be reached ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.8.8.8",
        "10.0.0.1",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",
        "255.255.255.255",
        "224.0.0.1",
        "192.0.2.1",
        "198.18.0.1",
        "::1",
        "::",
        "fe80::1",
        "fe80::1%eth0",
        "fc00::1",
        "fec0::1",
        "ff02::1",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "64:ff9b::7f00:1",
        "2002:7f00:1::",
        "2002:a00:1::",
        "no address",
    ],
)
def test_not_from_inside(address: str) -> None:
    assert not may_reach("host", address, ())


@pytest.mark.parametrize("address", ["1.1.1.1", "2606:4700::1111", "::ffff:1.1.1.1", "64:ff9b::101:101"])
def test_from_outside(address: str) -> None:
    assert may_reach("host", address, ())


def test_what_is_listed() -> None:
    assert may_reach("host", "10.1.2.3", ("10.0.0.0/8",))
    assert may_reach("host", "::ffff:10.1.2.3", ("10.0.0.0/8",))
    assert may_reach("Host.", "10.1.2.3", ("host",))
    assert may_reach("host", "10.1.2.3", ("10.1.2.3",))
    assert not may_reach("other", "10.1.2.3", ("host", "192.168.0.0/16", "fd00::/8"))


# --- fetching ----------------------------------------------------------------------------------


async def test_nothing_is_fetched_unless_that_is_allowed() -> None:
    async with site(lambda _: http(PNG)) as (url, seen):
        with pytest.raises(ToolFailed, match="fetch_urls"):
            await fetch(url, FetchRules())
        with pytest.raises(ToolFailed, match="not a public one"):
            await fetch(url, FetchRules(allowed=True))
        assert seen == []


async def test_what_is_fetched() -> None:
    with trio.fail_after(5):
        async with site(lambda _: http(PNG, content_type="text/plain")) as (url, [*_]):
            assert await fetch(f"{url}/a?b=c", LOCAL) == Media(PNG, "image/png")
        async with site(lambda _: http(b"hm", content_type="audio/x; rate=1")) as (url, seen):
            assert await fetch(f"{url}/a?b=c", LOCAL) == Media(b"hm", "audio/x")
    [request] = seen
    assert request.startswith(b"GET /a?b=c HTTP/1.1\r\n")
    assert url.removeprefix("http://").encode() in request
    assert b"authorization" not in request.lower()


@pytest.mark.parametrize("spelling", ["127.1", "2130706433", "0x7f000001", "localhost", "[::ffff:127.0.0.1]"])
async def test_other_spellings_of_this_machine(spelling: str) -> None:
    with trio.fail_after(5), pytest.raises(ToolFailed, match=r"not a public one|cannot be found"):
        await fetch(f"http://{spelling}:1/x", FetchRules(allowed=True))


async def test_a_name_is_asked_for_once_and_its_address_is_kept_to() -> None:
    """A name server that says something else the second time does not get a second time."""
    asked: list[str] = []

    async def resolve(host: str, port: int) -> list[str]:
        asked.append(host)
        return ["127.0.0.1"] if len(asked) == 1 else ["10.0.0.1"]

    with trio.fail_after(5):
        async with site(lambda _: http(PNG)) as (url, seen):
            port = url.rpartition(":")[2]
            media = await fetch(f"http://some.name:{port}/x", LOCAL, resolve)
    assert media.data == PNG
    assert asked == ["some.name"]
    assert f"host: some.name:{port}\r\n".encode() in seen[0].lower()


async def test_of_several_addresses_an_allowed_one_is_taken() -> None:
    async def resolve(host: str, port: int) -> list[str]:
        return ["10.0.0.1", "127.0.0.1"]

    with trio.fail_after(5):
        async with site(lambda _: http(PNG)) as (url, _):
            assert (await fetch(f"http://n:{url.rpartition(':')[2]}", LOCAL, resolve)).data == PNG


async def test_redirects_are_judged_anew() -> None:
    async def resolve(host: str, port: int) -> list[str]:
        return ["127.0.0.1"] if host == "good" else ["10.0.0.1"]

    def answer(request: bytes) -> bytes:
        to = {b"/1": "/2", b"/2": "http://bad/3", b"/round": "/round"}.get(request.split()[1])
        return http(b"", "302 Found", location=to) if to else http(PNG)

    with trio.fail_after(5):
        async with site(answer) as (url, seen):
            good = f"http://good:{url.rpartition(':')[2]}"
            with pytest.raises(ToolFailed, match="'bad' is not a public one"):
                await fetch(f"{good}/1", LOCAL, resolve)
            assert len(seen) == 2
            with pytest.raises(ToolFailed, match="redirects"):
                await fetch(f"{good}/round", LOCAL, resolve)
            assert len(seen) == 6


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (http(b"x" * 1001), "larger"),
        (b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n" + b"x" * 300_000, "larger"),
        (http(b"x", "404 Not Found"), "404"),
        (http(b""), "empty"),
        (http(b"x", content_encoding="gzip"), "compressed"),
        (b"banana\r\n\r\n", "failed"),
        (http(b"", "302 Found", location="file:///etc/passwd"), "only http"),
        (http(b"", "302 Found", location="mailto:x"), "no URL"),
        (http(b"", "302 Found", location="http://xn--a/"), "no URL"),
    ],
)
async def test_what_is_no_good(answer: bytes, words: str) -> None:
    with trio.fail_after(5):
        async with site(lambda _: answer) as (url, _):
            with pytest.raises(ToolFailed, match=words):
                await fetch(url, LOCAL)


async def test_who_is_slow_is_left() -> None:
    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.send_all(http(bytes(100))[:-50])
            with trio.move_on_after(5):
                while await stream.receive_some():
                    pass
            ended.set()

    ended = trio.Event()
    rules = FetchRules(True, ("127.0.0.1",), 1000, 0.1)
    with trio.fail_after(3):
        async with trio.open_nursery() as nursery:
            listeners = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
            port = listeners[0].socket.getsockname()[1]
            with pytest.raises(ToolFailed, match="fetch_timeout_s"):
                await fetch(f"http://127.0.0.1:{port}", rules)
            await ended.wait()
            nursery.cancel_scope.cancel()


async def test_names_that_nobody_answers_for_hold_nobody_else_up(monkeypatch: pytest.MonkeyPatch) -> None:
    answered = threading.Event()

    def hang(*given: object, **more: object) -> list[object]:
        answered.wait(10)
        return []

    rules = FetchRules(True, (), 1000, 0.05)
    monkeypatch.setattr(socket, "getaddrinfo", hang)
    try:
        async with trio.open_nursery() as nursery:
            for _ in range(50):  # more than there are threads for everybody

                async def ask() -> None:
                    with pytest.raises(ToolFailed, match="fetch_timeout_s"):
                        await fetch("http://some.name/", rules)

                nursery.start_soon(ask)
        with trio.fail_after(5):
            await trio.to_thread.run_sync(lambda: None, abandon_on_cancel=True)
    finally:
        answered.set()


@pytest.mark.parametrize(
    "url", ["http://u:p@h/", "http://", "ftp://h/", "http://h:99999/", "http://a b/", "http://xn--a/"]
)
async def test_addresses_that_are_none(url: str) -> None:
    with trio.fail_after(5), pytest.raises(ToolFailed):
        await fetch(url, LOCAL)


async def test_the_certificate_is_that_of_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection goes to an address, but it is the name that has to be proven."""
    seen: list[httpx.Request] = []

    class Recorded(httpx.AsyncClient):
        async def send(self, request: httpx.Request, **how: object) -> httpx.Response:
            seen.append(request)
            assert how == {"stream": True}
            return httpx.Response(200, stream=httpx.ByteStream(PNG))

    async def resolve(host: str, port: int) -> list[str]:
        assert (host, port) == ("some.name", 443)
        return ["93.184.215.14"]

    contexts: list[object] = []

    def recorded(*, verify: object, **how: object) -> httpx.AsyncClient:
        contexts.append(verify)
        return Recorded(verify=False)

    monkeypatch.setattr(httpx, "AsyncClient", recorded)
    await fetch("https://some.name/x", FetchRules(allowed=True), resolve)
    [request] = seen
    assert request.url.host == "93.184.215.14"
    assert request.extensions["sni_hostname"] == "some.name"
    assert request.headers["host"] == "some.name"
    [context] = contexts
    assert isinstance(context, ssl.SSLContext)
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
