"""Fetching a catalog over real sockets on loopback."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable

import pytest
import trio

from slotd.dispatch import CatalogUnavailable, UpstreamEntry
from slotd.dispatch.remote import MAX_ANSWER_BYTES, CatalogFetcher, new_client

Serve = Callable[[bytes], Awaitable["Server"]]


class Server:
    """Answers each connection's first request with fixed bytes, or holds it open if there are none."""

    def __init__(self, answer: bytes) -> None:
        self.answer = answer
        self.requests: list[bytes] = []
        self.asked = trio.Event()
        self.closed = trio.Event()
        self.port = 0

    async def run(self, *, task_status: trio.TaskStatus[Server]) -> None:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.port = listeners[0].socket.getsockname()[1]
        task_status.started(self)
        await trio.serve_listeners(self._handle, listeners)

    async def _handle(self, stream: trio.SocketStream) -> None:
        async with stream:
            self.requests.append(await stream.receive_some(65536))
            self.asked.set()
            if self.answer:
                try:
                    await stream.send_all(self.answer)
                except trio.BrokenResourceError:
                    self.closed.set()
            else:
                assert await stream.receive_some(1) == b""
                self.closed.set()

    def entry(self, **more: object) -> UpstreamEntry:
        return UpstreamEntry("lab", f"http://127.0.0.1:{self.port}/v1/", **more)  # type: ignore[arg-type] # as given


@pytest.fixture
def serve(nursery: trio.Nursery) -> Serve:
    async def start(answer: bytes) -> Server:
        server = Server(answer)
        await nursery.start(server.run)
        return server

    return start


def response(body: bytes, status: str = "200 OK", *headers: str) -> bytes:
    head = [f"HTTP/1.1 {status}", f"content-length: {len(body)}", "connection: close", *headers]
    return "\r\n".join([*head, "", ""]).encode() + body


async def fetch(entry: UpstreamEntry, environ: dict[str, str] | None = None) -> tuple[str, ...]:
    with trio.fail_after(10):
        async with new_client() as client:
            return await CatalogFetcher(client, environ or {})(entry)


async def refusal(entry: UpstreamEntry, environ: dict[str, str] | None = None) -> str:
    with pytest.raises(CatalogUnavailable) as caught:
        await fetch(entry, environ)
    return str(caught.value)


async def test_the_ids_in_order(serve: Serve) -> None:
    doc = {"object": "list", "data": [{"id": "b", "x": 1}, {"id": "a"}]}
    server = await serve(response(json.dumps(doc).encode()))
    assert await fetch(server.entry()) == ("b", "a")
    assert server.requests[0].startswith(b"GET /v1/models HTTP/1.1\r\n")
    assert b"authorization" not in server.requests[0].lower()


@pytest.mark.parametrize(
    ("auth", "header"),
    [
        ("bearer", b"authorization: bearer s3cret"),
        ("x-api-key", b"x-api-key: s3cret"),
        ("header:X-Lab", b"x-lab: s3cret"),
    ],
)
async def test_the_key_is_read_when_it_is_needed(serve: Serve, auth: str, header: bytes) -> None:
    server = await serve(response(b'{"data": []}'))
    entry = server.entry(auth=auth, key_env="LAB_KEY")
    environ: dict[str, str] = {}
    assert "LAB_KEY is not set" in await refusal(entry, environ)
    assert not server.requests
    environ["LAB_KEY"] = "s3cret\n"
    assert await fetch(entry, environ) == ()
    assert header in server.requests[0].lower()


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (response(b"no", "401 Unauthorized"), "it answered 401"),
        (response(b"", "302 Found", "location: http://127.0.0.1:9/"), "it answered 302"),
        (response(b"<html>"), "no list of models"),
        (response(b'{"data": [{"name": "x"}]}'), "no list of models"),
        (response(b"\x1f\x8b", "200 OK", "content-encoding: gzip"), "compressed"),
        (response(b"x" * (MAX_ANSWER_BYTES + 1)), "longer than 8 MiB"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * (3 * MAX_ANSWER_BYTES), "longer than 8 MiB"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "RemoteProtocolError"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{", "RemoteProtocolError"),
    ],
    ids=["401", "redirect", "html", "shape", "gzip", "long", "endless", "no-http", "cut"],
)
async def test_every_failure_has_a_reason(serve: Serve, answer: bytes, reason: str) -> None:
    server = await serve(answer)
    assert reason in await refusal(server.entry())


async def test_an_answer_that_is_too_long_is_not_read_to_its_end(serve: Serve) -> None:
    server = await serve(b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * (8 * MAX_ANSWER_BYTES))
    assert "longer than" in await refusal(server.entry())
    with trio.fail_after(10):
        await server.closed.wait()  # in the middle of what it sent


async def test_nobody_listens() -> None:
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    await listeners[0].aclose()
    assert "cannot connect" in await refusal(UpstreamEntry("lab", f"http://127.0.0.1:{port}"))


async def test_a_key_that_cannot_be_sent_is_a_reason_and_no_crash() -> None:
    entry = UpstreamEntry("lab", "http://127.0.0.1:9", auth="bearer", key_env="K")
    assert await refusal(entry, {"K": "schlüssel\u20ac"})


async def test_a_cancelled_fetch_closes_its_connection(serve: Serve) -> None:
    server = await serve(b"")
    async with new_client() as client, trio.open_nursery() as nursery:

        async def run() -> None:
            await CatalogFetcher(client, {})(server.entry())

        nursery.start_soon(run)
        with trio.fail_after(10):
            await server.asked.wait()
            nursery.cancel_scope.cancel()
    with trio.fail_after(10):
        await server.closed.wait()
