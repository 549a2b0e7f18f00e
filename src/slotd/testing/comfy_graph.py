"""What the fake ComfyUI makes of a prompt's graph: checks, order of work, pictures. Pure.

It knows the few nodes that the tests' workflows have. Its refusals have
ComfyUI's shapes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from hashlib import sha256
from typing import Any

from slotd.testing.fake_png import write_png

__all__ = ["NODES", "OUTPUTS", "Invalid", "check", "draw", "in_order", "steps_of"]

Graph = dict[str, Any]

OUTPUTS = frozenset({"SaveImage", "PreviewImage"})

NODES: dict[str, tuple[str, ...]] = {
    "CheckpointLoaderSimple": ("ckpt_name",),
    "CLIPTextEncode": ("text", "clip"),
    "EmptyLatentImage": ("width", "height", "batch_size"),
    "EmptyImage": ("width", "height", "batch_size", "color"),
    "KSampler": ("model", "seed", "steps", "cfg", "positive", "negative", "latent_image"),
    "VAEDecode": ("samples", "vae"),
    "VAEEncode": ("pixels", "vae"),
    "VAEEncodeForInpaint": ("pixels", "vae", "mask", "grow_mask_by"),
    "LoadImage": ("image",),
    "ImageInvert": ("image",),
    "LoadImageMask": ("image", "channel"),
    "SaveImage": ("images", "filename_prefix"),
    "PreviewImage": ("images",),
}
"""The nodes that there are, with the inputs that each must have."""

_WHOLE = frozenset({"width", "height", "batch_size", "seed", "steps", "color", "grow_mask_by"})


class Invalid(Exception):
    """The prompt is refused: ComfyUI's ``error`` and ``node_errors``."""

    def __init__(self, error: dict[str, Any], node_errors: dict[str, Any] | None = None) -> None:
        super().__init__(error["message"])
        self.error = error
        self.node_errors = node_errors or {}


def _error(kind: str, message: str, details: str = "", **extra: Any) -> dict[str, Any]:
    return {"type": kind, "message": message, "details": details, "extra_info": extra}


def check(
    graph: Any, exists: Callable[[str], bool], checkpoints: Sequence[str]
) -> tuple[list[str], dict[str, Any]]:
    """The output nodes that can be made, and what is wrong with the others (``node_errors``).

    ``exists``: whether a node that loads finds its file. Raises :class:`Invalid`
    if none can be made.
    """
    if not isinstance(graph, dict):
        raise Invalid(_error("invalid_prompt", "Cannot execute because prompt is no object."))
    for id, node in graph.items():
        kind = node.get("class_type") if isinstance(node, dict) else None
        if kind is None:
            text = "Cannot execute because a node is missing the class_type property."
            raise Invalid(_error("invalid_prompt", text, f"Node ID '#{id}'"))
        if kind not in NODES:
            text = f"Cannot execute because node {kind} does not exist."
            raise Invalid(_error("invalid_prompt", text, f"Node ID '#{id}'"))
    outputs = [id for id, node in graph.items() if node["class_type"] in OUTPUTS]
    if not outputs:
        raise Invalid(_error("prompt_no_outputs", "Prompt has no outputs"))
    good: list[str] = []
    wrong: dict[str, dict[str, Any]] = {}
    own: list[str] = []  # what is wrong with the outputs themselves
    for output in outputs:
        found = {
            id: faults
            for id in in_order(graph, [output])
            if (faults := list(_faults(graph, graph[id], exists, checkpoints)))
        }
        if not found:
            good.append(output)
        for id, faults in found.items():
            known = {"errors": faults, "dependent_outputs": [], "class_type": graph[id]["class_type"]}
            wrong.setdefault(id, known)["dependent_outputs"].append(output)
        own += [f"{fault['message']}: {fault['details']}" for fault in found.get(output, ())]
    if not good:
        text = "Prompt outputs failed validation"
        raise Invalid(_error("prompt_outputs_failed_validation", text, "\n".join(own)), wrong)
    return good, wrong


def _faults(
    graph: Graph, node: dict[str, Any], exists: Callable[[str], bool], checkpoints: Sequence[str]
) -> Iterator[dict[str, Any]]:
    inputs = node.get("inputs", {})
    for name in NODES[node["class_type"]]:
        value = inputs.get(name)
        if value is None:
            yield _error("required_input_missing", "Required input is missing", name, input_name=name)
        elif isinstance(value, list) and value[0] not in graph:
            yield _error("exception_during_validation", "Exception when validating node", repr(value[0]))
            return  # it looks no further
        elif name in _WHOLE and not isinstance(value, int | list):
            text = f"{name}, {value}, invalid literal for int() with base 10: {value!r}"
            message = "Failed to convert an input value to a INT value"
            yield _error("invalid_input_type", message, text, input_name=name, received_value=value)
        elif name == "ckpt_name" and value not in checkpoints:
            text = f"{name}: '{value}' not in {list(checkpoints)}"
            extra = {"input_name": name, "input_config": None, "received_value": value}
            yield _error("value_not_in_list", "Value not in list", text, **extra)
    if node["class_type"].startswith("LoadImage") and not exists(str(inputs.get("image"))):
        text = f"image - Invalid image file: {inputs.get('image')}"
        message = "Custom validation failed for node"
        yield _error("custom_validation_failed", message, text, input_name="image")


def in_order(graph: Graph, outputs: list[str]) -> list[str]:
    """The nodes that the outputs need, each after what it needs."""
    order: list[str] = []

    def visit(id: str) -> None:
        if id in order or id not in graph:
            return
        for value in graph[id].get("inputs", {}).values():
            if isinstance(value, list):
                visit(value[0])
        order.append(id)

    for id in outputs:
        visit(id)
    return order


def steps_of(node: dict[str, Any]) -> int:
    """How many steps a node takes; 0 for one that tells of none."""
    return int(node["inputs"]["steps"]) if node["class_type"] == "KSampler" else 0


def draw(graph: Graph, output: str, read: Callable[[str], bytes]) -> list[bytes]:
    """The pictures of an output node: of the size that the graph says, in a colour that depends on all of it.

    As ComfyUI does, they carry the graph that made them, in a text called
    "prompt". ``read``: the bytes of a loaded file; their digest is in a text
    called "source".
    """
    needed = [graph[id]["inputs"] for id in in_order(graph, [output])]
    found: dict[str, Any] = {"width": 64, "height": 64, "batch_size": 1}
    for inputs in needed:
        found |= {k: v for k, v in inputs.items() if k in found and isinstance(v, int)}
    texts = {"prompt": json.dumps(graph)}
    if sources := [inputs["image"] for inputs in needed if isinstance(inputs.get("image"), str)]:
        texts["source"] = sha256(b"".join(map(read, sources))).hexdigest()
    pictures = []
    for index in range(found["batch_size"]):
        digest = sha256(f"{texts}{index}".encode()).digest()
        colour = (digest[0], digest[1], digest[2])
        pictures.append(write_png(found["width"], found["height"], colour, texts))
    return pictures
