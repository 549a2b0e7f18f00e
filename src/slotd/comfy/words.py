"""ComfyUI's refusals and failures, in its own words. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

__all__ = ["failure", "refusal"]

WORDS_MAX = 2000
"""Characters; exceptions can quote whole tensors."""


def refusal(call: str, status: int, body: bytes) -> str:
    """What an answer that is an error says."""
    try:
        document = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        document = None
    if not isinstance(document, dict):
        return _cut(
            f"ComfyUI answered {call} with {status}: {body[:WORDS_MAX].decode('utf-8', 'replace').strip()}"
        )
    said: list[str] = []
    error = document.get("error")
    if isinstance(error, dict):
        said.append(_sentence(error))
    elif isinstance(error, str):
        said.append(error)
    nodes = document.get("node_errors")
    for id, node in nodes.items() if isinstance(nodes, dict) else ():
        if isinstance(node, dict):
            faults = node.get("errors")
            words = (
                "; ".join(_sentence(e) for e in faults if isinstance(e, dict))
                if isinstance(faults, list)
                else ""
            )
            said.append(f"node {id} ({node.get('class_type', 'unknown')}): {words}")
    return _cut(f"ComfyUI refused the workflow ({status}): " + "; ".join(filter(None, said)))


def failure(messages: Iterable[tuple[str, Mapping[str, Any]]]) -> tuple[str, dict[str, Any]]:
    """What a prompt that did not succeed failed of, and the same for programs."""
    for kind, data in messages:
        if kind == "execution_error":
            facts = {
                "node": str(data.get("node_id", "")),
                "node_type": str(data.get("node_type", "")),
                "exception": str(data.get("exception_type", "")),
            }
            message = str(data.get("exception_message", "")).strip()
            said = f"node {facts['node']} ({facts['node_type']}) failed: {facts['exception']}: {message}"
            return _cut(f"ComfyUI: {said}"), facts
    for kind, data in messages:
        if kind == "execution_interrupted":
            where = f" at node {data.get('node_id')} ({data.get('node_type')})"
            return _cut(f"ComfyUI: somebody interrupted it{where}"), {"interrupted": True}
    return "ComfyUI: the workflow failed, and it does not say why", {}


def _sentence(error: Mapping[str, Any]) -> str:
    message, details = str(error.get("message", "")).strip(), str(error.get("details", "")).strip()
    return f"{message}: {details}" if details and details != message else message


def _cut(text: str) -> str:
    return text if len(text) <= WORDS_MAX else text[: WORDS_MAX - 1] + "…"
