"""Serving a non-streaming request from an engine's stream.

Why: llama.cpp runs a non-streaming request to its end after the client has
left, while closing a stream stops it at once. So slotd asks such an engine for
a stream, always, and assembles the JSON answer itself. What comes out is what
the engine would have answered, in every field, presence of keys included.

The shapes (chat, completions, messages, responses, infill) say in their docstrings how
stream and answer differ in llama.cpp; ``plan`` says what is not assembled.
"""

from __future__ import annotations

from slotd.exchange.assemble.assembly import Assembly
from slotd.exchange.assemble.errors import (
    AssemblyError,
    AssemblyTooLarge,
    IncompleteStream,
    MalformedStream,
    NotAssemblable,
)
from slotd.exchange.assemble.plan import plan_assembly
from slotd.exchange.assemble.shape import Assembled
from slotd.exchange.assemble.splice import Head, remove_field, set_field, top_level

__all__ = [
    "Assembled",
    "Assembly",
    "AssemblyError",
    "AssemblyTooLarge",
    "Head",
    "IncompleteStream",
    "MalformedStream",
    "NotAssemblable",
    "plan_assembly",
    "remove_field",
    "set_field",
    "top_level",
]
