"""ComfyUI's refusals and failures as slotd's errors, in ComfyUI's own words. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from slotd.errors import EngineError, OutOfMemory, RequestUnprocessable, SlotdError

__all__ = ["Message", "failed", "refused", "said_of_nodes"]

WORDS_MAX = 2000
"""Characters; exceptions can quote whole tensors."""

NODES_MAX = 20
"""So many nodes' faults are told to programs."""

Message = tuple[str, Mapping[str, Any]]
"""What was said while it worked: the kind, and what about it."""

_FILE = re.compile(r"(?:ckpt|unet|vae|clip|lora|control_net|style_model|gligen|hypernetwork|model)_name\d?")
"""Inputs that name a file in one of ComfyUI's folders of models."""

_MISSING = "it has no such file: put it into ComfyUI's folder of models, or name another in the workflow"
_NO_MEMORY = re.compile(r"out of memory|can't allocate memory|not enough memory", re.IGNORECASE)


def refused(call: str, status: int, body: bytes) -> EngineError:
    """An answer that is an error. ``details``: ``status``, and of a workflow ``reason`` and ``nodes``.

    ``reason`` is "workflow_refused", or "model_missing" if all that is wrong is
    that ComfyUI lacks a file; ``nodes`` has the faults by the node's id.
    """
    try:
        document = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        document = None
    if not isinstance(document, dict):
        text = body[:WORDS_MAX].decode("utf-8", "replace").strip()
        return EngineError(_cut(f"ComfyUI answered {call} with {status}: {text}"), details={"status": status})
    nodes = document.get("node_errors")
    faults = _faults(nodes)
    said = [_sentence(document.get("error"), bare=bool(faults)), said_of_nodes(nodes)]
    missing = bool(faults) and all(_is_missing_file(fault) for _, _, fault in faults)
    if missing:
        said.append(_MISSING)
    return EngineError(
        _cut(f"ComfyUI refused the workflow ({status}): " + "; ".join(filter(None, said))),
        details={
            "status": status,
            "reason": "model_missing" if missing else "workflow_refused",
            "nodes": _told(faults),
        },
    )


def said_of_nodes(node_errors: Any) -> str:
    """ComfyUI's ``node_errors`` in a sentence for each node; "" if there are none."""
    found: dict[str, list[str]] = {}
    for id, kind, fault in _faults(node_errors):
        found.setdefault(f"node {id} ({kind})", []).append(_sentence(fault))
    return _cut("; ".join(f"{node}: {'; '.join(words)}" for node, words in found.items()))


def failed(messages: Iterable[Message]) -> SlotdError:
    """Why a prompt did not succeed. ``details["reason"]`` is the same for programs."""
    said = dict(reversed(list(messages)))  # of each kind the first
    if (error := said.get("execution_error")) is not None:
        return _node_failed(error)
    if (stopped := said.get("execution_interrupted")) is not None:
        where = f"node {stopped.get('node_id')} ({stopped.get('node_type')})"
        return EngineError(
            _cut(f"ComfyUI: somebody interrupted it at {where}"), details={"reason": "interrupted"}
        )
    return EngineError(
        "ComfyUI: the workflow failed, and it does not say why", details={"reason": "node_failed"}
    )


def _node_failed(error: Mapping[str, Any]) -> SlotdError:
    node, kind = str(error.get("node_id", "")), str(error.get("node_type", ""))
    exception = str(error.get("exception_type", ""))
    message = " ".join(str(error.get("exception_message", "")).split())
    facts = {"node": node, "node_type": kind, "exception": exception}
    where, name = f"ComfyUI: node {node} ({kind})", exception.rpartition(".")[2]
    if name in ("OutOfMemoryError", "MemoryError") or _NO_MEMORY.search(message):
        words = f"{where} ran out of memory; ask for a smaller or for fewer pictures ({message})"
        return OutOfMemory(_cut(words), details={"reason": "out_of_memory", **facts})
    if name == "UnidentifiedImageError" and kind.startswith("LoadImage"):
        param = "mask" if kind == "LoadImageMask" else "image"
        return RequestUnprocessable(f"`{param}` is no picture that ComfyUI can read", param=param)
    words = f"{where} failed: {exception}: {message}"
    return EngineError(_cut(words), details={"reason": "node_failed", **facts})


def _faults(node_errors: Any) -> list[tuple[str, str, Mapping[str, Any]]]:
    """(id, class, fault) of each; what has another shape is left out."""
    found: list[tuple[str, str, Mapping[str, Any]]] = []
    for id, node in node_errors.items() if isinstance(node_errors, dict) else ():
        faults = node.get("errors") if isinstance(node, dict) else None
        for fault in faults if isinstance(faults, list) else ():
            if isinstance(fault, dict):
                found.append((str(id), str(node.get("class_type", "unknown")), fault))
    return found


def _told(faults: Iterable[tuple[str, str, Mapping[str, Any]]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for id, _, fault in faults:
        if id in found or len(found) < NODES_MAX:
            found.setdefault(id, []).append(_cut(_sentence(fault)))
    return found


def _is_missing_file(fault: Mapping[str, Any]) -> bool:
    extra = fault.get("extra_info")
    name = extra.get("input_name") if isinstance(extra, dict) else None
    return fault.get("type") == "value_not_in_list" and bool(_FILE.fullmatch(str(name)))


def _sentence(error: Any, *, bare: bool = False) -> str:
    """``bare``: without the details, which the nodes' faults repeat."""
    if not isinstance(error, dict):
        return error if isinstance(error, str) else ""
    message, details = str(error.get("message", "")).strip(), str(error.get("details", "")).strip()
    return f"{message}: {details}" if details and details != message and not bare else message


def _cut(text: str) -> str:
    return text if len(text) <= WORDS_MAX else text[: WORDS_MAX - 1] + "…"
