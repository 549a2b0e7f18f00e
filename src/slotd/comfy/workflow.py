"""Workflow templates: a graph in ComfyUI's API format with placeholders. Pure, but for reading the file.

A template is the JSON that ComfyUI exports as "API", with placeholders in the
values of its nodes' inputs, and optionally a key ``slotd`` beside the nodes::

    {"5": {"class_type": "EmptyLatentImage",
           "inputs": {"width": "{{width}}", "height": "{{height}}", "batch_size": 1}},
     "9": {"class_type": "PreviewImage", "inputs": {"images": ["8", 0]}},
     "slotd": {"defaults": {"steps": 8, "width": 768}, "outputs": ["9"]}}

A value that is wholly one placeholder becomes the value itself, a number where
it is one; inside a longer text it becomes text.

Of what a PreviewImage puts out ComfyUI throws its own copy away when it starts;
what a SaveImage puts out it keeps for good.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import msgspec

from slotd.names import nearest

__all__ = [
    "IMAGES",
    "PLACEHOLDERS",
    "Graph",
    "Workflow",
    "WorkflowInvalid",
    "parse_workflow",
    "read_workflow",
    "render",
]

Graph: TypeAlias = dict[str, Any]
"""Nodes by id, as ``POST /prompt`` wants them."""

MAX_BYTES = 4 << 20
"""The longest workflow file."""

NODES_MAX = 5000

IMAGES = ("image", "image2", "image3", "image4")
"""The placeholders of a client's pictures, in the order in which it gives them."""

_BUILT_IN: dict[str, Any] = {"negative_prompt": "", "width": 1024, "height": 1024, "steps": 20, "n": 1}

PLACEHOLDERS: Mapping[str, type] = {
    "prompt": str,
    "negative_prompt": str,
    "width": int,
    "height": int,
    "seed": int,
    "steps": int,
    "n": int,
    **dict.fromkeys(IMAGES, str),
    "mask": str,
}
"""What may stand in a template, and what each becomes. Pictures become the name of an uploaded file."""

_NO_DEFAULT = frozenset({"prompt", "n", "mask", *IMAGES})
"""What a request is about."""

_PLACEHOLDER = re.compile(r"\{\{\s*([A-Za-z_][A-Za-z0-9_]*)\s*\}\}")
_SAVES, _SHOWS = "SaveImage", "PreviewImage"


class WorkflowInvalid(Exception):
    """A template that cannot be used; the message says why, without the file's name."""


@dataclass(frozen=True, slots=True)
class Workflow:
    """A checked template.

    ``uses``: its placeholders. ``defaults``: a value for each of those that a
    client may leave out, except the seed. ``outputs``: the ids of the nodes
    whose pictures are the answer.
    """

    graph: Mapping[str, Any] = field(repr=False)
    uses: frozenset[str]
    defaults: Mapping[str, Any]
    outputs: tuple[str, ...]

    @property
    def batches(self) -> bool:
        """Whether one prompt makes as many pictures as are asked for."""
        return "n" in self.uses

    @property
    def images(self) -> int:
        """How many pictures it works on."""
        return sum(name in self.uses for name in IMAGES)

    @property
    def masks(self) -> bool:
        """Whether it wants a mask beside them."""
        return "mask" in self.uses


def read_workflow(path: str | os.PathLike[str], *, edits: bool) -> Workflow:
    """Read and check a file, for ``edits`` of a client's pictures or for pictures from words.

    Raises :class:`WorkflowInvalid`. Blocks on the disk, for 4 MiB at most.
    """
    try:
        with Path(path).open("rb") as file:
            text = file.read(MAX_BYTES + 1)
    except FileNotFoundError as error:
        raise WorkflowInvalid("there is no such file") from error
    except OSError as error:
        raise WorkflowInvalid(f"cannot be read: {error.strerror or error}") from error
    if len(text) > MAX_BYTES:
        raise WorkflowInvalid(f"is longer than {MAX_BYTES >> 20} MiB")
    workflow = parse_workflow(text)
    given = sorted(workflow.uses.intersection((*IMAGES, "mask")))
    if edits and "image" not in given:
        raise WorkflowInvalid("uses no {{image}}, so it cannot edit one; it belongs in workflows")
    if given and not edits:
        raise WorkflowInvalid(f"uses {{{{{given[0]}}}}}, which only edits have; it belongs in edit_workflows")
    return workflow


def parse_workflow(text: bytes) -> Workflow:
    """Check a template. Raises :class:`WorkflowInvalid`."""
    try:
        document = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise WorkflowInvalid(f"is not valid JSON: {error}") from error
    if not isinstance(document, dict):
        raise WorkflowInvalid("is no JSON object of nodes")
    if isinstance(document.get("nodes"), list):
        raise WorkflowInvalid("is saved for ComfyUI's editor; export it there in the API format")
    own = document.pop("slotd", {})
    if not isinstance(own, dict):
        raise WorkflowInvalid("its key slotd must be an object")
    if unknown := sorted(own.keys() - {"defaults", "outputs"}):
        raise WorkflowInvalid(f"slotd.{unknown[0]}: unknown; there are defaults and outputs")
    _check_nodes(document)
    uses = _uses(document)
    return Workflow(document, uses, _defaults(own.get("defaults", {}), uses), _outputs(document, own))


def render(workflow: Workflow, values: Mapping[str, Any]) -> Graph:
    """The graph with every placeholder replaced; ``values`` has one for each of ``workflow.uses``.

    A placeholder in a *value* stays text: what a client writes is not looked at
    again. The workflow is not changed.
    """
    graph: Graph = _filled(workflow.graph, values)
    return graph


def _filled(part: Any, values: Mapping[str, Any]) -> Any:
    match part:
        case str():
            if whole := _PLACEHOLDER.fullmatch(part):
                return values[whole[1]]
            return _PLACEHOLDER.sub(lambda found: str(values[found[1]]), part)
        case dict():
            return {key: _filled(value, values) for key, value in part.items()}
        case list():
            return [_filled(value, values) for value in part]
        case _:
            return part


def _check_nodes(graph: Graph) -> None:
    if not graph:
        raise WorkflowInvalid("has no nodes")
    if len(graph) > NODES_MAX:
        raise WorkflowInvalid(f"has {len(graph)} nodes; {NODES_MAX} are the most")
    for id, node in graph.items():
        if not isinstance(node, dict) or not isinstance(node.get("class_type"), str):
            raise WorkflowInvalid(f"node {id!r} has no class_type: this is not ComfyUI's API format")
        if not isinstance(node.get("inputs", {}), dict):
            raise WorkflowInvalid(f"node {id!r}: inputs must be an object")


def _uses(graph: Graph) -> frozenset[str]:
    found: set[str] = set()
    waiting: list[Any] = [graph]
    while waiting:
        part = waiting.pop()
        match part:
            case str():
                found.update(match[1] for match in _PLACEHOLDER.finditer(part))
            case dict():
                waiting.extend(part.values())
            case list():
                waiting.extend(part)
            case _:
                pass
    for name in sorted(found - PLACEHOLDERS.keys()):
        raise WorkflowInvalid(f"unknown placeholder {{{{{name}}}}}; {_instead(name, tuple(PLACEHOLDERS))}")
    return frozenset(found)


def _defaults(given: Any, uses: frozenset[str]) -> dict[str, Any]:
    if not isinstance(given, dict):
        raise WorkflowInvalid("slotd.defaults must be an object")
    allowed = tuple(name for name in PLACEHOLDERS if name not in _NO_DEFAULT)
    for name, value in given.items():
        if name not in allowed:
            raise WorkflowInvalid(f"slotd.defaults.{name}: unknown; {_instead(name, allowed)}")
        if name not in uses:
            raise WorkflowInvalid(f"slotd.defaults.{name}: no node uses {{{{{name}}}}}")
        number = PLACEHOLDERS[name] is int
        if not (type(value) is int and value >= 0 if number else isinstance(value, str)):
            wanted = "a whole number from 0 on" if number else "a string"
            raise WorkflowInvalid(f"slotd.defaults.{name}: must be {wanted}")
    return {name: value for name, value in {**_BUILT_IN, **given}.items() if name in uses}


def _outputs(graph: Graph, own: Mapping[str, Any]) -> tuple[str, ...]:
    if "outputs" in own:
        named = own["outputs"]
        if not isinstance(named, list) or not named or not all(isinstance(id, str) for id in named):
            raise WorkflowInvalid("slotd.outputs must be a list of node ids, each a string")
        for id in named:
            if id not in graph:
                raise WorkflowInvalid(f"slotd.outputs: there is no node {id!r}")
        return tuple(named)
    for kind in (_SAVES, _SHOWS):
        if found := tuple(id for id, node in graph.items() if node["class_type"] == kind):
            return found
    raise WorkflowInvalid(
        f"no output node: none is a {_SAVES} or {_SHOWS}; if others put the pictures out, "
        "name their ids in slotd.outputs"
    )


def _instead(name: str, known: tuple[str, ...]) -> str:
    near = nearest(name, known)
    return f"did you mean {near}?" if near else f"known are {', '.join(known)}"
