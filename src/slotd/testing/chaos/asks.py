"""Requests drawn at random, each with the one right answer to it. Pure.

The words of each request are its own, and the fake engine answers with the
words it is asked (its knob ``echo``): an answer that was cut, repeated, mixed
with another's or taken from the wrong slot cannot pass for the right one.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["Ask", "Dialect", "Service", "draw_ask"]

Dialect = Literal["chat", "completions", "messages", "embeddings"]

PATHS: dict[Dialect, str] = {
    "chat": "/v1/chat/completions",
    "completions": "/v1/completions",
    "messages": "/v1/messages",
    "embeddings": "/v1/embeddings",
}


@dataclass(frozen=True, slots=True)
class Service:
    """What clients know of a slot: the name they ask for, and the models that may answer in it.

    ``echoes``: its engine says the words it is asked, so answers can be
    compared. ``weight``: how often it is asked, against the others.
    """

    slot: str
    type: Literal["llm", "embedding"] = "llm"
    models: tuple[str, ...] = ()
    echoes: bool = True
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Ask:
    """One request. ``text`` is what an engine that echoes must answer.

    ``wait`` False: it says ``X-Slotd-Wait: 0``. ``wrong``: it cannot be
    answered: an unknown model, or no JSON.
    """

    slot: str
    dialect: Dialect
    stream: bool
    text: str
    tokens: int
    models: tuple[str, ...]
    echoes: bool = True
    wait: bool = True
    wrong: Literal["", "no_route", "no_json"] = ""

    @property
    def path(self) -> str:
        return PATHS[self.dialect]

    def document(self) -> dict[str, Any]:
        """The request's JSON."""
        model = self.slot if self.wrong != "no_route" else f"no-such-model-{self.slot}"
        match self.dialect:
            case "embeddings":
                return {"model": model, "input": [self.text]}
            case "completions":
                shape: dict[str, Any] = {"prompt": self.text}
            case _:
                shape = {"messages": [{"role": "user", "content": self.text}]}
        return {"model": model, **shape, "max_tokens": self.tokens, "stream": self.stream}


def draw_ask(rng: random.Random, services: Sequence[Service], number: int) -> Ask:
    """The ``number``-th request; the number makes its words its own."""
    (service,) = rng.choices(tuple(services), [s.weight for s in services])
    return ask_for(rng, service, number)


def ask_for(
    rng: random.Random, service: Service, number: int, *, stream: bool | None = None, words: int | None = None
) -> Ask:
    """A request to one slot; mostly a sound one, if its shape is left to chance."""
    dialect: Dialect = "embeddings"
    if service.type == "llm":
        dialect = rng.choice(("chat", "chat", "chat", "completions", "messages"))
    tokens = words or rng.randrange(2, 14)
    odd = rng.random() if stream is None and words is None else 1.0
    # An unknown model is no error where the endpoint has a default.
    wrong: Literal["no_route", "no_json"] = "no_json" if dialect == "embeddings" or odd > 0.01 else "no_route"
    return Ask(
        slot=service.slot,
        dialect=dialect,
        stream=dialect != "embeddings" and (rng.random() < 0.5 if stream is None else stream),
        text=" ".join(f"w{number}-{n}" for n in range(tokens)),
        tokens=tokens,
        models=service.models,
        echoes=service.echoes,
        wait=not 0.02 < odd < 0.06,
        wrong=wrong if odd < 0.02 else "",
    )
