"""What slotd must know of a kind of server: how to launch, probe and talk to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Abilities", "Readiness"]


@dataclass(frozen=True, slots=True)
class Readiness:
    """When an engine counts as ready.

    ``health_path`` must answer 200. ``models_path``, unless empty, must list at
    least one model (OpenAI's ``{"data": [{"id": ...}]}``); otherwise the
    configured model's name stands for the list. ``own_listener``: the listener
    must belong to the process that slotd started.
    """

    health_path: str = "/health"
    models_path: str = "/v1/models"
    own_listener: bool = True


@dataclass(frozen=True, slots=True)
class Abilities:
    """How to talk to an engine.

    ``nonstream_cancel``: what stops a non-streaming request whose client has
    left. ``assemble``: slotd streams from the engine and puts the answer
    together, since closing a stream stops it. ``close``: closing the connection,
    if anything. ``none``: nothing does; the engine works to the end.
    ``model_name``: what to write into a request's ``model`` field, "" to leave
    it as the client wrote it.
    """

    nonstream_cancel: Literal["assemble", "close", "none"] = "none"
    model_name: str = ""

    def note(self) -> str | None:
        """What a user should know, for the slot's snapshot."""
        if self.nonstream_cancel == "close":
            return (
                "when the client of a non-streaming request leaves, slotd closes the connection; "
                "whether the engine stops then is up to it"
            )
        if self.nonstream_cancel == "none":
            return (
                "this engine offers no way to stop a non-streaming request: "
                "it works to the end when the client leaves"
            )
        return None
