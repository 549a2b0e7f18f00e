"""The load: clients that ask, stay and tell the oracle what they saw; and clients that misbehave."""

from __future__ import annotations

import json
import random
import socket
import struct
from collections.abc import Sequence

import trio

from slotd.testing.chaos.asks import Ask, Service, ask_for, draw_ask
from slotd.testing.chaos.judge import Answer
from slotd.testing.chaos.oracle import Oracle
from slotd.testing.chaos.plan import Babble, HalfClose, Leave, Stall
from slotd.testing.chaos.site import Site, SiteDown
from slotd.wire.http1 import Broken, Http1Pool

__all__ = ["Crowd", "babble", "half_close", "leave", "stall"]

LEAVERS = 0.08
"""So many of the load's requests are left at some moment."""

NOISE = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 this is no HTTP \r\n\r\n\x00\xff"


class Crowd:
    """``count`` concurrent clients, each with a thought of ``think_s`` seconds, on average, between requests.

    They ask for as long as the gate is open.
    """

    def __init__(
        self,
        site: Site,
        oracle: Oracle,
        services: Sequence[Service],
        *,
        count: int,
        think_s: float,
        seed: int,
    ) -> None:
        self._site = site
        self._oracle = oracle
        self._services = services
        self._count = count
        self._think_s = think_s
        self._seed = seed
        self._number = 0
        self._asking = 0
        self._open = trio.Event()
        self._open.set()
        self._quiet = trio.Event()

    async def run(self) -> None:
        """Until cancelled."""
        async with trio.open_nursery() as nursery:
            for n in range(self._count):
                nursery.start_soon(self._client, random.Random(self._seed * 1000 + n))

    async def pause(self) -> None:
        """Close the gate; returns when the last answer has come."""
        self._open = trio.Event()
        self._quiet = trio.Event()
        if self._asking:
            await self._quiet.wait()

    def resume(self) -> None:
        """Open the gate."""
        self._open.set()

    async def _client(self, rng: random.Random) -> None:
        while True:
            await trio.sleep(rng.expovariate(1 / self._think_s))
            if not self._open.is_set():
                await self._open.wait()
                continue  # it may have been closed again
            if not self._site.is_up:
                await self._site.wait_up()
                continue
            self._number += 1
            ask = draw_ask(rng, self._services, self._number)
            patience_s = rng.choice((0.0, 0.01, 0.1, 1.0)) if rng.random() < LEAVERS else None
            self._asking += 1
            try:
                await self._ask(ask, patience_s)
            finally:
                self._asking -= 1
                if not self._asking:
                    self._quiet.set()

    async def _ask(self, ask: Ask, patience_s: float | None) -> None:
        oracle = self._oracle
        key = oracle.asked(ask)
        limit_s = self._site.limits.hang_s
        answer: Answer | None = None
        with trio.move_on_after(limit_s if patience_s is None else patience_s):
            answer = await send(self._site, ask)
        if answer is not None:
            oracle.answered(key, answer)
        elif patience_s is not None:
            oracle.left(key)
        else:
            oracle.hung(key)


async def send(site: Site, ask: Ask) -> Answer:
    """One request on a connection of its own, read to its end. Cancelled: hangs up."""
    host, port = site.address
    headers = [(b"content-type", b"application/json")]
    if not ask.wait:
        headers.append((b"x-slotd-wait", b"0"))
    body = b"{ no json" if ask.wrong == "no_json" else json.dumps(ask.document()).encode()
    pool = Http1Pool(host, port, max_idle=0)
    data: list[bytes] = []
    shown: dict[str, str] = {}
    status: int | None = None
    try:
        response = await pool.request(b"POST", ask.path.encode(), headers, body)
        status = response.status
        shown = {name.decode().lower(): value.decode() for name, value in response.headers}
        while chunk := await response.receive_some():
            data.append(chunk)
    except Broken as exc:
        return Answer(status, shown, b"".join(data), False, str(exc))
    finally:
        pool.close()
    return Answer(status, shown, b"".join(data), True)


# --- clients that misbehave -------------------------------------------------------------


async def _dial(site: Site, *, receive_buffer: int = 0) -> trio.SocketStream:
    """Raises :class:`SiteDown`."""
    sock = trio.socket.socket()
    try:
        if receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        await sock.connect(site.address)
    except OSError as exc:
        sock.close()
        raise SiteDown(str(exc)) from exc
    return trio.SocketStream(sock)


def _bytes(ask: Ask) -> bytes:
    body = json.dumps(ask.document()).encode()
    head = f"POST {ask.path} HTTP/1.1\r\nhost: slotd\r\ncontent-type: application/json\r\n"
    return head.encode() + b"content-length: %d\r\n\r\n" % len(body) + body


async def _until(stream: trio.SocketStream, mark: bytes) -> None:
    """Read until ``mark`` has come, or the connection has ended."""
    seen = b""
    while mark not in seen and (data := await stream.receive_some()):
        seen = seen[-64:] + data


async def leave(site: Site, service: Service, fault: Leave, rng: random.Random) -> None:
    """Hang up at a phase of a request. Raises :class:`SiteDown`."""
    ask = ask_for(rng, service, rng.randrange(10**6, 10**7), stream=fault.stream, words=40)
    if fault.phase == "loading":
        await site.call("POST", f"/api/slots/{fault.slot}/unload")
    stream = await _dial(site)
    async with stream:
        try:
            await stream.send_all(_bytes(ask))
            with trio.move_on_after(site.limits.hang_s):
                match fault.phase:
                    case "sent":
                        pass
                    case "loading":
                        await _loading(site, fault.slot)
                    case "head":
                        await _until(stream, b"\r\n\r\n")
                    case "middle":
                        await _until(stream, b"-3" if fault.stream else b"\r\n\r\n")
                    case "end":
                        await _until(stream, b"[DONE]" if fault.stream else b"-39")
        except trio.BrokenResourceError as exc:
            raise SiteDown(str(exc)) from exc
        if fault.reset:
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


async def _loading(site: Site, slot: str) -> None:
    """Wait, for a moment at most, until the slot loads."""
    with trio.move_on_after(2):
        while (await site.slot(slot))["state"] in ("offline", "unloading"):  # noqa: ASYNC110 # another process
            await trio.sleep(0.01)


async def stall(site: Site, service: Service, fault: Stall, rng: random.Random) -> None:
    """Ask for a long answer, read its beginning, and then nothing for a while. Raises :class:`SiteDown`."""
    ask = ask_for(rng, service, rng.randrange(10**6, 10**7), stream=True, words=60_000)
    stream = await _dial(site, receive_buffer=4096)
    async with stream:
        try:
            await stream.send_all(_bytes(ask))
            with trio.move_on_after(site.limits.hang_s):
                await _until(stream, b"\r\n\r\n")
        except trio.BrokenResourceError as exc:
            raise SiteDown(str(exc)) from exc
        await trio.sleep(fault.for_s)


async def half_close(site: Site, service: Service, fault: HalfClose, rng: random.Random) -> None:
    """Send a request and an end of file, and wait for slotd to close. Raises :class:`SiteDown`."""
    ask = ask_for(rng, service, rng.randrange(10**6, 10**7), stream=fault.stream, words=40)
    stream = await _dial(site)
    async with stream:
        try:
            await stream.send_all(_bytes(ask))
            await stream.send_eof()
            with trio.move_on_after(site.limits.hang_s):
                while await stream.receive_some():
                    pass
        except trio.BrokenResourceError:
            return  # slotd has hung up, which is its right


async def babble(site: Site, fault: Babble) -> None:
    """Send no request, or part of one, and leave. Raises :class:`SiteDown`."""
    stream = await _dial(site)
    async with stream:
        try:
            match fault.what:
                case "noise":
                    await stream.send_all(NOISE)
                case "half_head":
                    await stream.send_all(b"POST /v1/chat/completions HTTP/1.1\r\nhost: sl")
                case "half_body":
                    await stream.send_all(
                        b"POST /v1/chat/completions HTTP/1.1\r\nhost: slotd\r\ncontent-length: 1000\r\n\r\n{"
                    )
            with trio.move_on_after(fault.for_s):
                while await stream.receive_some():
                    pass
        except trio.BrokenResourceError:
            return
