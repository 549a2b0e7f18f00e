"""ComfyUI's websocket, for one call: what it says while it works.

It is a convenience and never the truth: what became of a prompt is in
ComfyUI's history. So a websocket that breaks, or never comes to be, costs
words on the way and some of the pace, and no request.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import NoReturn, TypeVar

import trio

from slotd.comfy.beside import beside
from slotd.comfy.websocket import listen

__all__ = ["Line", "with_line"]

CONNECT_TIMEOUT_S = 2.0
"""A request waits for its websocket for so long before it does without."""

AGAIN_S, AGAIN_MAX_S = 0.5, 10.0
"""The first pause before a broken one is opened again; it doubles."""

T = TypeVar("T")


class Line:
    """A websocket to ComfyUI, opened again when it breaks, while :meth:`run` runs.

    ``client_id``: to whom prompts are to be reported. ``up``: whether it is
    open. ``heard`` is called with each message; it returns whether to wake
    whoever is in :meth:`news`. It must not raise.
    """

    def __init__(self, address: tuple[str, int]) -> None:
        self.client_id = uuid.uuid4().hex
        self.up = False
        self.heard: Callable[[str | bytes], bool] = lambda message: False
        self._address = address
        self._pause = AGAIN_S
        self._tried = trio.Event()
        self._news = trio.Event()

    async def run(self) -> NoReturn:
        """Listen until cancelled, which hangs up at once."""
        while True:
            # One that breaks, or cannot be opened, is as good as one that was closed.
            with suppress(OSError, trio.BrokenResourceError, trio.TooSlowError):
                await self._listen()
            self.up = False
            self._tried.set()
            self._news.set()  # whoever waits for its messages must look by itself now
            await trio.sleep(self._pause)
            self._pause = min(2 * self._pause, AGAIN_MAX_S)

    async def _listen(self) -> None:
        host, port = self._address
        name = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        with trio.fail_after(CONNECT_TIMEOUT_S) as limit:
            stream = await trio.open_tcp_stream(host, port)
            async with stream:

                def opened() -> None:
                    limit.deadline = math.inf
                    self.up = True
                    self._tried.set()

                await listen(stream, name, f"/ws?clientId={self.client_id}", opened, self._hear)

    def _hear(self, message: str | bytes) -> None:
        self._pause = AGAIN_S
        if self.heard(message):
            self._news.set()

    async def tried(self) -> None:
        """Wait until it is open, or has failed for the first time."""
        await self._tried.wait()

    async def news(self, within_s: float = math.inf) -> None:
        """Wait for a message that matters, or until the line breaks, or so long."""
        with trio.move_on_after(within_s):
            await self._news.wait()
        self._news = trio.Event()


async def with_line(address: tuple[str, int], work: Callable[[Line], Awaitable[T]]) -> T:
    """Do ``work`` with a line that has been tried; the line ends with it.

    What ``work`` raises comes out as it is, not in a group.
    """
    line = Line(address)

    async def tried() -> T:
        await line.tried()
        return await work(line)

    return await beside(line.run, tried)
