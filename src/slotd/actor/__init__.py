"""The actor kit: mailbox, reply, snapshots, supervisor.

It knows nothing of slots, models or HTTP.
"""

from slotd.actor.actor import Actor
from slotd.actor.mailbox import Mailbox
from slotd.actor.reply import Reply
from slotd.actor.snapshot import Snapshot
from slotd.actor.supervisor import (
    ChildCrashed,
    ChildSpec,
    Intensity,
    RestartIntensityExceeded,
    Supervisor,
)

__all__ = [
    "Actor",
    "ChildCrashed",
    "ChildSpec",
    "Intensity",
    "Mailbox",
    "Reply",
    "RestartIntensityExceeded",
    "Snapshot",
    "Supervisor",
]
