"""Why a stream could not become an answer. Internal to the exchange.

None of these is shown to a user as it stands: the caller knows whether to ask
the engine again, or which of slotd's typed errors the client should see.
"""

from __future__ import annotations

__all__ = ["AssemblyError", "AssemblyTooLarge", "IncompleteStream", "MalformedStream", "NotAssemblable"]


class AssemblyError(Exception):
    """Base: the stream cannot be turned into the answer. The assembly is spent."""


class IncompleteStream(AssemblyError):
    """The stream ended without its natural end: the engine died or was cut off."""


class MalformedStream(AssemblyError):
    """An event is not what an engine sends on this path."""


class AssemblyTooLarge(AssemblyError):
    """The answer outgrew the bound given to the assembly."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"the engine's answer is larger than {limit} bytes")
        self.limit = limit


class NotAssemblable(AssemblyError):
    """This stream lacks something that the engine's own answer would have.

    Close the stream and send the client's original, non-streaming body.
    """
