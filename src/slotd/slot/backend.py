"""What a slot's actor needs from the world, in one place, so that tests can fake it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from slotd.adapt import Adapter
from slotd.arbiter.tenant import Need
from slotd.process.plan import EngineHandle, Launcher, LaunchPlan
from slotd.wire.http1 import Http1Pool

__all__ = ["Abilities", "Backend", "Finding", "Readiness"]


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
    it as the client wrote it. ``adapters``: by endpoint, for those that the
    engine does not speak as the client does.
    """

    nonstream_cancel: Literal["assemble", "close", "none"] = "none"
    model_name: str = ""
    adapters: Mapping[str, Adapter] = field(default_factory=dict)

    def note(self) -> str | None:
        """What a user should know, for the slot's snapshot."""
        if self.nonstream_cancel == "assemble":
            return (
                "a non-streaming request stops when its client leaves, except where the engine's stream "
                "lacks what its answer has: chat or infill with logprobs, a prefilled assistant turn, and an "
                "answer cut by its token limit inside a stop string, a tool call or a character; while a "
                "prompt is being read, llama.cpp looks for gone clients once a second and acts after the "
                "batch in hand (options.batch_size)"
            )
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


@dataclass(frozen=True, slots=True)
class Finding:
    """What a look at an engine's output found: words (``ok`` True), garbage (False), or nothing (None)."""

    ok: bool | None
    text: str = ""
    why: str | None = None
    took_s: float = 0.0


class Backend(Protocol):
    """An engine bound to one configured slot."""

    @property
    def launcher(self) -> Launcher: ...

    @property
    def readiness(self) -> Readiness: ...

    @property
    def abilities(self) -> Abilities: ...

    def present(self, model: str) -> bool:
        """Whether the model's file is here, or none is needed. Quick; no I/O but a stat."""

    def plan(self, model: str) -> LaunchPlan:
        """The launch plan. Raises :class:`slotd.errors.SlotdError` if there can be none."""

    def need(self, model: str) -> Need:
        """What the engine would take up with this model. Quick: stats, and a short read if a file is new.

        Raises nothing: of a model that nobody knows it says "unknown".
        """

    async def fetch(self, model: str, progress: Callable[[str, int, int | None], None]) -> Path:
        """Fetch the model's file; ``progress(phase, done_bytes, total_bytes)``."""
        ...

    async def await_ready(
        self,
        handle: EngineHandle,
        *,
        port_opened: Callable[[], None],
        stranger: Callable[[], None],
        saw: Callable[[str], None],
    ) -> tuple[str, ...]:
        """Probe until the engine is ready; returns the models it lists. ``saw``: what each look found."""
        ...

    async def check_output(self, http: Http1Pool, model: str) -> Finding | None:
        """One short completion, judged; None: this slot's output is not looked at."""
        ...
