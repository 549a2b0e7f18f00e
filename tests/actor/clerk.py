"""A small actor for the tests: it answers, refuses, holds, and crashes on demand."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import trio
from actor_timers import Timers

from slotd.actor import Actor, Mailbox, Reply


class Refused(Exception):
    """The clerk's typed refusal."""


class Bug(Exception):
    """What the clerk crashes with."""


@dataclass(frozen=True, slots=True)
class Echo:
    value: int
    reply: Reply[int]


@dataclass(frozen=True, slots=True)
class Refuse:
    reply: Reply[int]


@dataclass(frozen=True, slots=True)
class Hold:
    """Answered when ``for_s`` seconds have passed; never, if that is infinite."""

    reply: Reply[int]
    for_s: float = float("inf")


@dataclass(frozen=True, slots=True)
class Crash:
    reply: Reply[int] | None = None


@dataclass(frozen=True, slots=True)
class Note:
    text: str


@dataclass(frozen=True, slots=True)
class Spawn:
    child: Callable[[], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Finish:
    pass


Message = Echo | Refuse | Hold | Crash | Note | Spawn | Finish


@dataclass
class Journal:
    """What all incarnations of a clerk have seen, in order."""

    entries: list[str] = field(default_factory=list)


class Clerk(Actor[Message]):
    def __init__(self, mailbox: Mailbox[Message], journal: Journal | None = None) -> None:
        super().__init__(mailbox)
        self.journal = journal or Journal()
        self.timers = Timers()
        self.held: dict[str, Reply[int]] = {}

    def started(self) -> None:
        self.journal.entries.append("started")

    def handle(self, message: Message) -> None:
        match message:
            case Echo(value, reply):
                reply.answer(value)
            case Refuse(reply):
                reply.refuse(Refused("no"))
            case Hold(reply, for_s):
                name = f"held-{len(self.held)}"
                self.held[name] = reply
                self.timers.set(name, trio.current_time() + for_s)
            case Crash():
                raise Bug("told to")
            case Note(text):
                self.journal.entries.append(text)
            case Spawn(child):
                self.children.start_soon(child)
            case Finish():
                self.finish()

    def next_deadline(self) -> float:
        return self.timers.next()

    def on_deadline(self, now: float) -> None:
        for name in self.timers.pop_due(now):
            self.journal.entries.append(f"due at {now:g}")
            self.held[name].answer(-1)


async def opened(mailbox: Mailbox[Message]) -> None:
    """Wait until an incarnation has opened the mailbox, without letting time pass."""
    while not mailbox.is_open:
        await trio.lowlevel.checkpoint()
