"""One answer of the model, put together from its pieces, and what of them the client gets. Pure.

A streamed tool call comes in pieces that an ``index`` holds together. Engines
differ: some leave the index or the id out, some repeat an id, some give every
call the index 0. The calls that come out have ids that occur once in a chat.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from slotd.errors import AnswerTooLarge

__all__ = ["Call", "Deltas"]

MAX_CHARS = 16 << 20
"""What one answer may come to; characters."""

MAX_CALLS = 256
"""Calls in one answer, whoever's they are."""


@dataclass(frozen=True, slots=True)
class Call:
    """A tool call as the model made it; ``arguments`` is the text that should be a JSON object."""

    id: str
    name: str
    arguments: str


class _Growing:
    """A call that is coming. ``place``: its index among the client's own, once it is known to be one."""

    __slots__ = ("arguments", "given", "id", "name", "place", "settled")

    def __init__(self) -> None:
        self.given = ""
        self.id = ""
        self.name = ""
        self.arguments: list[str] = []
        self.settled = False
        self.place: int | None = None


class Deltas:
    """Collects one answer. ``theirs``: the names of the client's own tools.

    A piece of text passes at once. The pieces of a call are held back until its
    name is known; then they pass if the tool is the client's, numbered anew,
    and never if it is not. ``taken``: ids that earlier answers of the chat have
    used up; ``prefix`` begins the ids that are made for calls without one.
    """

    def __init__(self, theirs: Collection[str], *, taken: Collection[str] = (), prefix: str = "call") -> None:
        self._theirs = theirs
        self._taken = set(taken)
        self._prefix = prefix
        self._calls: list[_Growing] = []
        self._by_index: dict[int, _Growing] = {}
        self._places = 0
        self._left = MAX_CHARS
        self._content: list[str] = []
        self._reasoning: list[str] = []

    @property
    def content(self) -> str:
        return "".join(self._content)

    @property
    def reasoning(self) -> str:
        return "".join(self._reasoning)

    def feed(self, delta: Mapping[str, Any]) -> dict[str, Any]:
        """Take a delta in; returns the delta that the client gets, perhaps an empty one.

        Its role is left out: that is said once a stream. Raises
        :class:`slotd.errors.AnswerTooLarge`.
        """
        passed = {k: v for k, v in delta.items() if k not in ("role", "tool_calls") and v not in (None, "")}
        if isinstance(text := delta.get("content"), str):
            self._keep(self._content, text)
        thought = delta.get("reasoning_content") or delta.get("reasoning")
        if isinstance(thought, str):
            self._keep(self._reasoning, thought)
        pieces: list[dict[str, Any]] = []
        calls = delta.get("tool_calls")
        for part in calls if isinstance(calls, list) else ():
            if isinstance(part, dict):
                pieces += self._part(part)
        return {**passed, "tool_calls": pieces} if pieces else passed

    def end(self) -> dict[str, Any]:
        """The answer is complete; returns the last delta that the client gets, perhaps an empty one."""
        pieces = [piece for call in self._calls for piece in self._settle(call)]
        return {"tool_calls": pieces} if pieces else {}

    def calls(self) -> tuple[Call, ...]:
        """All calls in the order in which they began; after :meth:`end`."""
        return tuple(Call(call.id, call.name, "".join(call.arguments)) for call in self._calls)

    def _part(self, part: dict[str, Any]) -> list[dict[str, Any]]:
        function = part.get("function")
        function = function if isinstance(function, dict) else {}
        name, given = _text(function.get("name")), _text(part.get("id"))
        call, pieces = self._call(part.get("index"), given, name)
        call.given = call.given or given
        if name and name != call.name and not call.settled:  # some say it again with every piece
            call.name += name
        arguments = function.get("arguments")
        if isinstance(arguments, dict | list):
            arguments = msgspec.json.encode(arguments).decode()
        if not isinstance(arguments, str) or not arguments:
            return pieces
        if call.settled and call.place is not None:
            pieces.append({"index": call.place, "function": {"arguments": arguments}})
        self._keep(call.arguments, arguments)
        return pieces + self._settle(call)

    def _call(self, index: Any, id: str, name: str) -> tuple[_Growing, list[dict[str, Any]]]:
        """Which call a piece belongs to, and what passes because another one begins."""
        known = self._by_index.get(index) if type(index) is int else None
        if known is None and type(index) is not int and self._calls and not (id or name):
            known = self._calls[-1]
        if known is None or (id and name and known.given and id != known.given):
            if len(self._calls) == MAX_CALLS:
                raise AnswerTooLarge(f"the model calls more than {MAX_CALLS} tools at once")
            pieces = self._settle(self._calls[-1]) if self._calls else []
            known = _Growing()
            self._calls.append(known)
            if type(index) is int:
                self._by_index[index] = known
            return known, pieces
        return known, []

    def _settle(self, call: _Growing) -> list[dict[str, Any]]:
        """The call's name is known: decide whose it is. Returns what of it passes now."""
        if call.settled:
            return []
        call.settled = True
        call.id = self._unique(call.given)
        if call.name not in self._theirs:
            return []
        call.place = self._places
        self._places += 1
        function = {"name": call.name, "arguments": "".join(call.arguments)}
        return [{"index": call.place, "id": call.id, "type": "function", "function": function}]

    def _unique(self, wanted: str) -> str:
        number = len(self._taken) + 1
        while not wanted or wanted in self._taken:
            wanted = f"{self._prefix}-{number}"
            number += 1
        self._taken.add(wanted)
        return wanted

    def _keep(self, pieces: list[str], text: str) -> None:
        self._left -= len(text)
        if self._left < 0:
            raise AnswerTooLarge(f"an answer of the model is longer than {MAX_CHARS} characters")
        pieces.append(text)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""
