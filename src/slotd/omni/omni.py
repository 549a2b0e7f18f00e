"""The tool loop: slotd itself runs the tools that a chat's model calls, by the slots that can.

It stands before the exchange and carries what asks for it with ``"omni": true``;
everything else passes. Each turn of the model and each tool is a request of
its own through the exchange, so leases, the arbiter, replays and records are
what they are for a client's request. They all run inside the task of the
client's request: when it ends, for whatever reason, so do they.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from functools import partial

import msgspec
import trio

from slotd.artifacts import Artifacts
from slotd.capability.choice import LoadedSlot
from slotd.config import Config
from slotd.dispatch import Dispatcher, SlotTarget
from slotd.errors import SlotdError
from slotd.exchange.accounted import accounted
from slotd.exchange.answer import Answer
from slotd.exchange.assemble import remove_field
from slotd.exchange.inbound import Carrier, Inbound, Outbound
from slotd.exchange.record import RecordBook, RequestRecord
from slotd.omni.devices import Devices
from slotd.omni.request import Chat, asks, read_chat
from slotd.slot.manager import SlotManager

__all__ = ["PATH", "TARGET", "Omni"]

PATH = "/v1/chat/completions"

TARGET = "omni"
"""What the record of such a chat names as its target."""


class Omni:
    """A :class:`slotd.exchange.inbound.Carrier` before another one. One object serves all; it owns nothing.

    ``config`` is asked once for each chat.
    """

    def __init__(
        self,
        exchange: Carrier,
        slots: SlotManager,
        dispatcher: Dispatcher,
        devices: Devices,
        records: RecordBook,
        artifacts: Artifacts,
        config: Callable[[], Config],
    ) -> None:
        self._exchange = exchange
        self._slots = slots
        self._dispatcher = dispatcher
        self._devices = devices
        self._records = records
        self._artifacts = artifacts
        self._config = config

    def run(self, inbound: Inbound, out: Outbound) -> Awaitable[None]:
        """Answer the request, as :meth:`slotd.exchange.exchange.Exchange.run` does."""
        asked = asks(inbound) if inbound.path == PATH else "no"
        if asked == "on":
            return self._run(inbound, out)
        if asked == "off":
            inbound = msgspec.structs.replace(inbound, body=remove_field(inbound.body, "omni"))
        return self._exchange.run(inbound, out)

    def _run(self, inbound: Inbound, out: Outbound) -> Awaitable[None]:
        record = RequestRecord(
            inbound.id,
            inbound.path,
            inbound.client,
            trio.current_time(),
            time.time(),
            target=TARGET,
            bytes_in=len(inbound.body),
            parent=inbound.parent,
            scope=inbound.scope,
        )
        answer = Answer(out, record, inbound.endpoint.dialect)
        work = partial(self._converse, inbound, answer)
        return accounted(self._records, answer, work, scope_entered=inbound.scope_entered)

    async def _converse(self, inbound: Inbound, answer: Answer) -> None:
        # Here, not above: a start would wait 25 ms for what only chats with tools need.
        from slotd.omni.child import Child
        from slotd.omni.conversation import Conversation
        from slotd.omni.stream import Stream
        from slotd.omni.tools import offered
        from slotd.omni.voice import Document, Voice

        chat = read_chat(inbound.body)
        answer.record.model, answer.record.stream = chat.model, chat.stream
        config = self._config()
        caller = await self._caller(chat, answer.record)
        offer = offered(self._slots.loaded_slots(), caller, chat.theirs)
        voice: Voice = Document(answer)
        if chat.stream:
            voice = Stream(answer, events=chat.events, usage=chat.include_usage)
        with self._artifacts.together() as together:
            conversation = Conversation(
                chat=chat,
                caller=caller,
                offer=offer,
                voice=voice,
                child=Child(self._exchange, inbound),
                record=answer.record,
                config=config,
                records=self._records,
                artifacts=self._artifacts,
                together=together,
                devices=self._devices,
            )
            await conversation.run()

    async def _caller(self, chat: Chat, record: RequestRecord) -> LoadedSlot | None:
        """The slot whose model leads the conversation; None: it is none of ours, or there is none.

        What is wrong with the name the first turn will be told, in the exchange's words.
        """
        try:
            route = await self._dispatcher.resolve(chat.model, PATH)
        except SlotdError:
            return None
        record.tier, record.rule, record.cache = route.tier, route.rule, route.cache
        record.target_model = route.model
        if not isinstance(route.target, SlotTarget):
            return None
        name = route.target.name
        return next((slot for slot in self._slots.loaded_slots() if slot.name == name), None)
