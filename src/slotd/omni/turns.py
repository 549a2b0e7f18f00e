"""The conversation between the model and its tools: what follows from an answer. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

import msgspec

from slotd.omni.deltas import Call

__all__ = [
    "MORE_TOKENS",
    "Ended",
    "Final",
    "HandOver",
    "Next",
    "Planned",
    "Retry",
    "Rules",
    "Run",
    "State",
    "Turn",
    "added",
    "step",
]

MORE_TOKENS = 8192
"""The least that an answer may take which is asked for again because it was cut off."""

SHOWN_CHARS = 200

Ended: TypeAlias = Literal["final", "rounds", "handed_over", "degraded"]
"""How a chat ended: with the model's last word, with no rounds left, with a call of the client's
own tool, or with what the tools gave because the model could not go on."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One complete answer of the model.

    ``document``: the engine's own, where the answer was not streamed.
    """

    content: str = ""
    reasoning: str = ""
    calls: tuple[Call, ...] = ()
    finish_reason: str = "stop"
    usage: Mapping[str, Any] = field(default_factory=dict)
    document: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Rules:
    """``ours``: the tools on offer; ``theirs``: the client's own."""

    max_rounds: int
    max_calls: int
    ours: frozenset[str]
    theirs: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class State:
    """How far the conversation is.

    ``rounds``: answers so far. ``messages``: what follows the client's own.
    ``tokens``: the limit by which the answers are asked for, if it is not the
    client's. ``usage``: of all answers together. ``ids``: of all calls.
    """

    rounds: int = 0
    retried: bool = False
    tokens: int | None = None
    messages: tuple[msgspec.Raw, ...] = ()
    usage: Mapping[str, Any] = field(default_factory=dict)
    ids: frozenset[str] = frozenset()

    def answered(self, turn: Turn, planned: Sequence[Planned], results: Sequence[bytes]) -> State:
        """The calls of ``turn`` have run: its message, then the tools' messages, each result (JSON) one."""
        said: dict[str, Any] = {"role": "assistant", "content": turn.content or None}
        if turn.reasoning:
            said["reasoning_content"] = turn.reasoning
        said["tool_calls"] = [
            {"id": p.call.id, "type": "function", "function": {"name": p.call.name, "arguments": p.text}}
            for p in planned
        ]
        told = [
            {"role": "tool", "tool_call_id": p.call.id, "name": p.call.name, "content": result.decode()}
            for p, result in zip(planned, results, strict=True)
        ]
        new = tuple(msgspec.Raw(msgspec.json.encode(message)) for message in (said, *told))
        return replace(self, messages=self.messages + new)


@dataclass(frozen=True, slots=True)
class Planned:
    """A call that is to run with these arguments, or is refused for the reason given."""

    call: Call
    arguments: Mapping[str, Any] = field(default_factory=dict)
    refusal: str = ""

    @property
    def text(self) -> str:
        """The arguments as the model is shown them again: engines take nothing there but a JSON object."""
        return msgspec.json.encode(self.arguments).decode()


@dataclass(frozen=True, slots=True)
class Final:
    """The answer is the last word."""

    ended: Ended


@dataclass(frozen=True, slots=True)
class HandOver:
    """The client has to run these tools of its own; ours of the same answer are not run."""

    calls: tuple[Call, ...]


@dataclass(frozen=True, slots=True)
class Run:
    """Run these side by side, then ask the model again."""

    planned: tuple[Planned, ...]


@dataclass(frozen=True, slots=True)
class Retry:
    """The answer was cut off with nothing to show for it: ask again by the state's ``tokens``."""


Next: TypeAlias = Final | HandOver | Run | Retry


def step(state: State, turn: Turn, rules: Rules, limit: int | None = None) -> tuple[State, Next]:
    """What follows from the model's answer. ``limit``: the client's token limit, if it has one."""
    state = replace(
        state,
        rounds=state.rounds + 1,
        usage=added(state.usage, turn.usage),
        ids=state.ids | {call.id for call in turn.calls},
    )
    handed = tuple(call for call in turn.calls if call.name in rules.theirs)
    if handed:
        return state, HandOver(handed)
    over = state.rounds >= rules.max_rounds
    if not turn.calls:
        # What has words is what was asked for, as long as was asked for; without tools there was
        # no call to be cut off.
        vain = not turn.content and bool(rules.ours or rules.theirs)
        if turn.finish_reason != "length" or state.retried or over or not vain:
            return state, Final("final")
        tokens = max(2 * (limit or 0), MORE_TOKENS)
        return replace(state, retried=True, tokens=tokens), Retry()
    if over:
        return state, Final("rounds")
    return state, Run(tuple(_plan(call, n, rules) for n, call in enumerate(turn.calls)))


def _plan(call: Call, number: int, rules: Rules) -> Planned:
    try:
        arguments = msgspec.json.decode(call.arguments or "{}")
    except (msgspec.DecodeError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        shown = call.arguments[:SHOWN_CHARS]
        return Planned(call, refusal=f"the arguments are no JSON object: {shown!r}")
    refusal = ""
    if number >= rules.max_calls:
        refusal = f"not run: no more than {rules.max_calls} tools are run at once"
    elif call.name not in rules.ours:
        refusal = f"there is no tool {call.name!r}; tools: {', '.join(sorted(rules.ours)) or 'none'}"
    return Planned(call, arguments, refusal)


def added(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Counts of two answers together, details too; what is no number is the later one's."""
    total = dict(one)
    for key, value in other.items():
        before = total.get(key)
        if isinstance(before, dict) and isinstance(value, dict):
            total[key] = added(before, value)
        elif _number(before) and _number(value):
            total[key] = before + value
        elif value is not None or key not in total:
            total[key] = value
    return total


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
