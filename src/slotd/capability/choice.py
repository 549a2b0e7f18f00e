"""The second axis: what is asked for → slot. Pure.

It knows nothing of names that clients use, and nothing of what happens to run:
it chooses among the *configured* slots, by what they can do. The first axis,
name → target, is :mod:`slotd.dispatch`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from slotd.errors import NoCapableSlot

__all__ = ["TOOL_CALLING", "VISION", "Candidate", "LoadedSlot", "choose", "refusal"]

TOOL_CALLING = "tool-calling"
"""The label of models that call tools."""

VISION = "vision"
"""The label of models that see pictures."""


class Candidate(Protocol):
    """What the choice looks at."""

    @property
    def type(self) -> str: ...

    @property
    def labels(self) -> tuple[str, ...]: ...

    @property
    def default(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class LoadedSlot:
    """A slot that was chosen by what it can do; it is woken when it is used.

    ``model_id`` is what it serves, or its own name where its engine needs no
    configured model.
    """

    name: str
    model_id: str
    type: str
    device: str = ""
    labels: tuple[str, ...] = ()
    system_prompt: str = ""
    default: bool = False

    @property
    def tool_calling(self) -> bool:
        return TOOL_CALLING in self.labels


C = TypeVar("C", bound=Candidate)


def choose(slots: Iterable[C], type: str, required_labels: Collection[str] = ()) -> C | None:
    """The type's default slot if it has the labels, else the first in declared order that has, else None."""
    needed = set(required_labels)
    able = [slot for slot in slots if slot.type == type and needed <= set(slot.labels)]
    return next((slot for slot in able if slot.default), able[0] if able else None)


def refusal(slots: Iterable[LoadedSlot], type: str, required_labels: Collection[str] = ()) -> NoCapableSlot:
    """Why :func:`choose` found none, and what would help."""
    labels = sorted(required_labels)
    of_type = [slot for slot in slots if slot.type == type]
    if not of_type:
        message = f"no {type} slot is configured"
    else:
        have = "; ".join(f"{slot.name} has {', '.join(slot.labels) or 'none'}" for slot in of_type)
        message = f"no {type} slot has the labels {', '.join(labels)} ({have})"
    return NoCapableSlot(
        message, details={"type": type, "labels": labels, "slots": [slot.name for slot in of_type]}
    )
