"""One round of tools: they run side by side, and whatever becomes of each is a message for the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec
import structlog
import trio

from slotd.capability.choice import LoadedSlot
from slotd.exchange.inbound import ClientGone
from slotd.exchange.record import RecordBook
from slotd.omni.child import letters
from slotd.omni.failure import ToolFailed
from slotd.omni.hands import Hands, Result
from slotd.omni.report import Note, Report
from slotd.omni.tools import TOOLS, Arguments, BadArguments, Offer, RouteToChat
from slotd.omni.turns import Planned
from slotd.omni.voice import Voice

__all__ = ["Round"]

log = structlog.get_logger("slotd")


@dataclass(frozen=True, slots=True)
class _Ready:
    """A call that can run. ``id``: of the request that it will be."""

    place: int
    id: str
    name: str
    args: Arguments
    slot: LoadedSlot


@dataclass(frozen=True, slots=True)
class Round:
    """The calls of one answer of the model; ``id`` is that answer's request.

    A stream's client hears of each tool when it starts and when it ends, and
    every ``note_every_s`` seconds in between. ``used``: the slots that its
    tools have had to do with so far, those that stood in for others too.
    """

    id: str
    offer: Offer
    hands: Hands
    voice: Voice
    records: RecordBook
    tool_timeout_s: float
    note_every_s: float
    used: set[str] = field(default_factory=set)

    async def run(self, planned: Sequence[Planned]) -> list[tuple[Report, bytes]]:
        """What became of each call, and the message (JSON) that the model gets; in the order of the calls.

        No tool's failure is raised. Raises :class:`ClientGone`, with every tool
        ended. Cancelled: so are all tools.
        """
        done: dict[int, tuple[Report, bytes]] = {}
        ready: list[_Ready] = []
        for place, plan in enumerate(planned):
            found = self._prepare(place, plan)
            if isinstance(found, _Ready):
                ready.append(found)
            else:
                done[place] = found
                await self.voice.note(found[0].note())
        if ready:
            await self._side_by_side(ready, done)
        return [done[place] for place in range(len(planned))]

    def _prepare(self, place: int, plan: Planned) -> _Ready | tuple[Report, bytes]:
        id, name = f"{self.id}.{letters(place)}", plan.call.name
        if plan.refusal:
            return _failed(Report(id, name, "", 0.0, plan.refusal))
        try:
            args = TOOLS[name].read(plan.arguments)
            slot = self.offer.target(args.target) if isinstance(args, RouteToChat) else self.offer.slots[name]
        except BadArguments as error:
            return _failed(Report(id, name, "", 0.0, str(error)))
        return _Ready(place, id, name, args, slot)

    async def _side_by_side(self, ready: Sequence[_Ready], done: dict[int, tuple[Report, bytes]]) -> None:
        # One task speaks to the client, so that a client that has gone is one
        # error and no group of them. Each tool says two things.
        say, heard = trio.open_memory_channel[Note](2 * len(ready))
        gone: ClientGone | None = None
        with heard:
            async with trio.open_nursery() as nursery:
                with say:
                    for tool in ready:
                        nursery.start_soon(self._tool, tool, done, say.clone())
                try:
                    await self._tell(ready, done, heard)
                except ClientGone as error:
                    gone = error
                    nursery.cancel_scope.cancel()
        if gone is not None:
            try:
                raise gone
            finally:
                gone = None  # whose traceback leads back here

    async def _tool(
        self, tool: _Ready, done: dict[int, tuple[Report, bytes]], say: trio.MemorySendChannel[Note]
    ) -> None:
        began = trio.current_time()
        with say:
            say.send_nowait(Note(tool.id, tool.name, tool.slot.name, "started"))
            result: Result | None = None
            try:
                with trio.fail_after(self.tool_timeout_s):
                    result = await self._run(tool)
            except ToolFailed as error:
                failure = error.with_traceback(None)  # which would lead back here, and to the chat
            except trio.TooSlowError:
                failure = ToolFailed(f"not done in {self.tool_timeout_s:g} s (omni.tool_timeout_s)")
            except Exception:
                log.exception("a tool met a bug", request=tool.id, tool=tool.name)
                failure = ToolFailed("slotd itself failed at this tool; its log says why", "internal.error")
            took_s = trio.current_time() - began
            if result is None:
                failed = Report(tool.id, tool.name, tool.slot.name, took_s, failure.message, failure.code)
                done[tool.place] = _failed(failed)
            else:
                text = result.message.get("text", "")
                report = Report(
                    tool.id, tool.name, tool.slot.name, took_s, text=text, artifacts=result.artifacts
                )
                done[tool.place] = (report, msgspec.json.encode(result.message))
            say.send_nowait(done[tool.place][0].note())

    async def _run(self, tool: _Ready) -> Result:
        # The one that was asked may have begun to load before another stood in for it.
        self.used.add(tool.slot.name)
        try:
            return await self.hands.run(tool.id, tool.args, tool.slot)
        finally:
            # Now: of many requests only the last are on record.
            record = self.records.find(tool.id)
            if record is not None and record.slot:
                self.used.add(record.slot)

    async def _tell(
        self,
        ready: Sequence[_Ready],
        done: dict[int, tuple[Report, bytes]],
        heard: trio.MemoryReceiveChannel[Note],
    ) -> None:
        """Tell the client, until every tool has said all it has to."""
        began = trio.current_time()
        while True:
            note: Note | None = None
            with trio.move_on_after(self.note_every_s if self.voice.streams else float("inf")):
                try:
                    note = await heard.receive()
                except trio.EndOfChannel:
                    return
            if note is not None:
                await self.voice.note(note)
                continue
            for tool in ready:
                if tool.place not in done:
                    record = self.records.find(tool.id)
                    words = "" if record is None else record.progress or record.phase
                    took_s = trio.current_time() - began
                    await self.voice.note(Note(tool.id, tool.name, tool.slot.name, "running", took_s, words))


def _failed(report: Report) -> tuple[Report, bytes]:
    message = {"error": report.error, **({"code": report.code} if report.code else {})}
    return report, msgspec.json.encode(message)
