"""One omni chat: turns of the model and rounds of tools, until there is an answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import trio

from slotd.artifacts import Artifacts, Together
from slotd.capability.choice import LoadedSlot
from slotd.config import Config
from slotd.errors import SlotdError, StreamStalled
from slotd.exchange.race import first_of
from slotd.exchange.record import RecordBook, RequestRecord
from slotd.omni.child import Child
from slotd.omni.deltas import Deltas
from slotd.omni.devices import Devices, give_back, let_go
from slotd.omni.failure import TurnFailed, said
from slotd.omni.fetch import FetchRules
from slotd.omni.hands import Hands
from slotd.omni.report import Report, results_in_words, summary
from slotd.omni.request import Chat
from slotd.omni.round import Round
from slotd.omni.tools import Offer
from slotd.omni.turns import Final, HandOver, Planned, Retry, Rules, Run, State, Turn, step
from slotd.omni.voice import End, Voice

__all__ = ["Conversation"]


@dataclass(slots=True)
class Conversation:
    """One chat, from its first turn to its answer. Belongs to one task."""

    chat: Chat
    caller: LoadedSlot | None
    offer: Offer
    voice: Voice
    child: Child
    record: RequestRecord
    config: Config
    records: RecordBook
    artifacts: Artifacts
    together: Together
    devices: Devices

    async def run(self) -> None:
        """Turns and tools in turn, to the end. Raises :class:`slotd.exchange.inbound.ClientGone`."""
        omni = self.config.omni
        rules = Rules(omni.max_rounds, omni.max_calls, self.offer.names, self.chat.theirs)
        limit = self.chat.limit[1] if self.chat.limit else None
        state, reports, last = State(), list[Report](), Turn()
        while True:
            try:
                last = await self._turn(state)
            except TurnFailed as failed:
                await self._degrade(failed, state, last, reports)
                return
            state, following = step(state, last, rules, limit)
            match following:
                case Run(planned):
                    done, used = await self._run(state.rounds, planned)
                    reports += [report for report, _ in done]
                    state = state.answered(last, planned, [message for _, message in done])
                    await self._give_back(used)
                case Retry():
                    await self.voice.comment(f"the answer was cut off; again with {state.tokens} tokens")
                case Final(ended):
                    cut = ended == "rounds"
                    # To whoever does not know slotd this says that the answer is not a whole one.
                    reason = "length" if cut else last.finish_reason
                    text = _out_of_rounds(state.rounds, reports) if cut and not last.content else ""
                    slotd = summary(state.rounds, reports, ended)
                    await self.voice.finish(End(last, reason, state.usage, slotd, text=text))
                    return
                case HandOver(calls):
                    slotd = summary(state.rounds, reports, "handed_over")
                    await self.voice.finish(End(last, "tool_calls", state.usage, slotd, calls))
                    return

    async def _turn(self, state: State) -> Turn:
        """The model's next answer. Raises :class:`TurnFailed`."""
        self.record.phase = "turn"
        number = state.rounds + 1
        body = self.chat.turn(
            state.messages, self.offer.definitions(), first=not state.messages, tokens=state.tokens
        )
        deltas = Deltas(self.chat.theirs, taken=state.ids, prefix=f"call-{number}")
        reading = self.voice.reading(deltas)
        limit_s = self.config.omni.turn_timeout_s
        with trio.move_on_after(limit_s):
            try:
                await self.child.turn(number, body, reading)
                return await reading.turn()
            except SlotdError as error:
                raise TurnFailed.of(error) from error
        raise TurnFailed.of(
            StreamStalled(
                f"an answer of the model took longer than omni.turn_timeout_s = {limit_s:g} s",
                details={"limit": "turn_timeout_s"},
            )
        )

    async def _run(
        self, number: int, planned: Sequence[Planned]
    ) -> tuple[list[tuple[Report, bytes]], frozenset[str]]:
        """One round of tools; see :meth:`slotd.omni.round.Round.run`. With it, the slots that it has used."""
        tools, ended = self._round(number), False
        try:
            done = await tools.run(planned)
            ended = True
            return done, frozenset(tools.used)
        finally:
            # A client that leaves in the middle of a picture must not leave the
            # model driven out, for as long as a mode lasts by itself.
            if not ended and self.caller is not None:
                let_go(self.devices, self.caller, tools.used)

    def _round(self, number: int) -> Round:
        self.record.phase = "tools"
        omni = self.config.omni
        rules = FetchRules(
            omni.fetch_urls, tuple(omni.fetch_private), omni.fetch_max_mb << 20, omni.fetch_timeout_s
        )
        return Round(
            id=f"{self.record.id}.{number}",
            offer=self.offer,
            hands=Hands(self.child, self.artifacts, self.together, rules),
            voice=self.voice,
            records=self.records,
            tool_timeout_s=omni.tool_timeout_s,
            note_every_s=self.config.server.heartbeat_every_s,
        )

    async def _give_back(self, used: frozenset[str]) -> None:
        """Once all of a round's tools are done: they may have driven the model out."""
        if self.caller is not None:
            self.record.phase = "restoring"
            within_s = self.config.omni.turn_timeout_s
            waiting = partial(give_back, self.devices, self.caller, used, within_s)
            await first_of(waiting, *([self._comment_on_it] if self.voice.streams else []))

    async def _comment_on_it(self) -> None:
        while True:
            await trio.sleep(self.config.server.heartbeat_every_s)
            await self.voice.comment("the model waits for its device to be free again")

    async def _degrade(self, failed: TurnFailed, state: State, last: Turn, reports: list[Report]) -> None:
        """The model cannot go on: what its tools gave is the answer, or else its failure."""
        results = results_in_words(reports)
        message, code = said(failed.status, failed.body)
        if not results:
            self.record.error = code or "engine.error"
            await self.voice.fail(failed)
            return
        text = f"[slotd] The tools have run, but the model could not go on: {message}\n\n{results}"
        slotd = summary(state.rounds, reports, "degraded", {"message": message, "code": code})
        await self.voice.finish(End(last, "stop", state.usage, slotd, text=text))


def _out_of_rounds(rounds: int, reports: list[Report]) -> str:
    words = f"[slotd] The model went on calling tools and gave no answer in {rounds} rounds."
    results = results_in_words(reports)
    return f"{words}\n\n{results}" if results else words
