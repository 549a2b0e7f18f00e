"""The ``comfyui`` engine: pictures from workflows, by a ComfyUI that slotd starts or that runs already."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from slotd.comfy.adapter import ComfyAdapter
from slotd.comfy.asked import Shelf
from slotd.comfy.job import Limits
from slotd.comfy.workflow import Workflow, WorkflowInvalid, read_workflow
from slotd.config import ComfyOptions, SlotConfig
from slotd.engine import command
from slotd.errors import ConfigInvalid
from slotd.process.plan import LaunchPlan
from slotd.slot.backend import Abilities, Readiness

__all__ = ["Workflows", "abilities", "launch_plan", "read_workflows", "readiness"]

GENERATIONS, EDITS = "/v1/images/generations", "/v1/images/edits"


@dataclass(frozen=True, slots=True)
class Workflows:
    """A slot's, as read: for each of the two endpoints."""

    generations: Mapping[str, Workflow]
    edits: Mapping[str, Workflow]

    @property
    def names(self) -> tuple[str, ...]:
        """Of both kinds, each once."""
        return tuple(dict.fromkeys((*self.generations, *self.edits)))


def read_workflows(slot: SlotConfig, resolve: Callable[[str], Path]) -> Workflows:
    """Read the slot's workflow files, from where ``resolve`` says that they are.

    Blocks on the disk for a few small files. Raises :class:`ConfigInvalid`
    with every fault, each naming its file.
    """
    options = slot.options if isinstance(slot.options, ComfyOptions) else ComfyOptions()
    problems: list[str] = []

    def read(files: Mapping[str, str], *, edits: bool) -> dict[str, Workflow]:
        found = {}
        for name, text in files.items():
            path = resolve(text)
            try:
                found[name] = read_workflow(path, edits=edits)
            except WorkflowInvalid as error:
                problems.append(f"workflow {name!r}: {path}: {error}")
        return found

    workflows = Workflows(
        read(options.workflows, edits=False),
        read(options.edit_workflows, edits=True),
    )
    if problems:
        raise ConfigInvalid(f"slot {slot.name!r}", problems)
    return workflows


def readiness(slot: SlotConfig) -> Readiness:
    """ComfyUI has no health path of its own; this one answers once it serves, also while it works."""
    return Readiness(slot.health_path or "/system_stats", models_path="", own_listener=not slot.attached)


def abilities(slot: SlotConfig, workflows: Workflows) -> Abilities:
    """Both endpoints go through adapters; what the client's leaving stops is their business."""
    options = slot.options if isinstance(slot.options, ComfyOptions) else ComfyOptions()
    own = frozenset(filter(None, (slot.name, slot.model, *slot.aliases)))
    own |= {f"{name}:{variant}" for name in own for variant in slot.variants}
    limits = Limits(options.queue_timeout_s, options.run_timeout_s)
    return Abilities(
        nonstream_cancel="close",
        adapters={
            path: ComfyAdapter(Shelf(shelved, own), limits, options.max_megapixels)
            for path, shelved in ((GENERATIONS, workflows.generations), (EDITS, workflows.edits))
        },
    )


def launch_plan(slot: SlotConfig, model: str, model_path: Path | None) -> LaunchPlan:
    """The configured command; of a server that runs already, what tells it from another."""
    if slot.attached:
        return LaunchPlan(slot=slot.name, argv=("comfyui", slot.url))
    return command.launch_plan(slot, model, model_path)
