"""What travels on the bus: events, gaps, and the kinds of events there are.

The kinds are part of the public surface (``GET /api/events``, ``slotd
events``): a kind keeps its name and its fields; readers ignore kinds and
fields that they do not know.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

__all__ = [
    "ACTOR_CRASHED",
    "ARBITER_DENIED",
    "ARBITER_EVICTING",
    "ARBITER_MODE",
    "ARBITER_RELEASED",
    "ARBITER_WAITING",
    "CONFIG_REFUSED",
    "CONFIG_RELOADED",
    "KINDS",
    "REQUEST_FINISHED",
    "REQUEST_REPLAYED",
    "REQUEST_STARTED",
    "SERVER_STARTED",
    "SERVER_STOPPING",
    "SLOT_FAULT",
    "SLOT_LOADED",
    "SLOT_PULL_PROGRESS",
    "SLOT_STOPPED",
    "SLOT_TRANSITION",
    "Event",
    "Gap",
]


class Event(msgspec.Struct, frozen=True, gc=False):
    """Something that happened. ``data`` is read-only, and plain: nothing in it leads back to the event.

    ``seq`` numbers the events of one run of slotd from 1, without holes.
    ``time`` is seconds since the epoch on the wall clock, for people: it may
    step back, ``seq`` does not. ``slot`` is the slot concerned, if it is one.
    """

    seq: int
    time: float
    kind: str
    slot: str | None
    data: Mapping[str, Any]

    def __hash__(self) -> int:
        return hash((self.seq, self.time, self.kind, self.slot))


@dataclass(frozen=True, slots=True)
class Gap:
    """A hole in what a reader gets: ``missed`` events before ``next_seq`` are lost to it.

    The reader resumes at ``next_seq``: nothing older will come any more.
    """

    missed: int
    next_seq: int


# --- slots -------------------------------------------------------------------

SLOT_TRANSITION = "slot.transition"
"""A slot changed its state: ``from``, ``to``, ``why``, ``generation``, ``t`` (trio's clock, s)."""

SLOT_FAULT = "slot.fault"
"""A slot is in error, or something about it needs a person: ``reason``,
``message``, ``exit``, ``log`` (last lines), ``generation``."""

SLOT_LOADED = "slot.loaded"
"""A load ended well: ``generation``, ``model``, ``load_s``."""

SLOT_PULL_PROGRESS = "slot.pull_progress"
"""Files are coming: ``phase``, ``done_bytes`` and ``total_bytes`` (None if unknown). Thinned out."""

SLOT_STOPPED = "slot.stopped"
"""Nothing of an engine is left: ``generation``, ``exit``, ``killed`` (SIGKILL was needed),
``swept`` (other processes killed), ``survivors`` (pids that would not die)."""

# --- actors ------------------------------------------------------------------

ACTOR_CRASHED = "actor.crashed"
"""One of slotd's own actors failed, which is a bug: ``error``, ``restart_in_s``
(None: it is not restarted), and ``actor`` if it is not a slot's."""

# --- memory and devices ------------------------------------------------------

ARBITER_WAITING = "arbiter.waiting"
"""A slot's load waits for room: ``why``, ``ram_mb``, ``gpu_mb``. Again when it waits for something else."""

ARBITER_EVICTING = "arbiter.evicting"
"""A slot is told to leave: ``for`` (the slot that needs its room; None: nobody), ``why``, ``drain``
(its leases may end first; else it goes only if it has none), ``ram_mb``, ``gpu_mb``."""

ARBITER_RELEASED = "arbiter.released"
"""A slot that was told to leave is gone, and the wait for its memory over: ``for``, ``waited_s``
(since nothing of it was left), ``seen`` (False: it did not show as free in time), ``ram_mb``, ``gpu_mb``."""

ARBITER_DENIED = "arbiter.denied"
"""There is no room for a slot's load: ``code``, ``message``, ``need``."""

ARBITER_MODE = "arbiter.mode"
"""A device changes its mode: ``device``, ``mode`` (``entering``: the slot drives the others out;
``exclusive``: it is up and has the device for itself; ``shared``: that is over), ``why``, ``losers``
(the slots that were driven out, and come back when it is over)."""

# --- requests and routes -----------------------------------------------------

REQUEST_STARTED = "request.started"
"""A request has come: ``id``, ``path``, ``client``, ``began_unix``, ``bytes_in``. Of where it goes, and
how it ends, its record tells."""

REQUEST_FINISHED = "request.finished"
"""A request is over: its decision record."""

REQUEST_REPLAYED = "request.replayed"
"""A request lost its engine before anything of its answer went to the client, and is sent again:
``id``, ``generation`` (of the engine that was lost), ``reason``, ``message``, ``replays`` (so far)."""

# --- the configuration -------------------------------------------------------

CONFIG_RELOADED = "config.reloaded"
"""The configuration was read again and is in force: ``lines`` (the changes, in words; none: nothing
changed), ``slots`` (``added``, ``removed``, ``changed``, ``relaunched``), ``needs_restart`` (keys
that wait for slotd's next start)."""

CONFIG_REFUSED = "config.refused"
"""The configuration was read again and is faulty, so nothing has changed: ``message``, ``problems``."""

# --- the server --------------------------------------------------------------

SERVER_STARTED = "server.started"
"""``/v1`` answers: ``version``, ``url``."""

SERVER_STOPPING = "server.stopping"
"""A graceful stop has begun."""

KINDS = frozenset(value for name, value in tuple(globals().items()) if name.isupper() and "." in str(value))
"""All of them."""
