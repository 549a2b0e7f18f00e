"""How far a prompt is, from what ComfyUI says of it. Pure."""

from __future__ import annotations

from typing import Any

import msgspec

__all__ = ["Progress"]

_OVER = frozenset({"execution_success", "execution_error", "execution_interrupted"})


HUGE = 1e12
"""A number of steps that nobody means; a much larger one could not even be written down."""


class Progress:
    """Follows one prompt; :meth:`hear` takes the messages of its websocket.

    ``started``: ComfyUI has begun with it. ``over``: it has said that it is
    done with it, one way or another, and its history has the result by now or
    within moments.
    """

    def __init__(self, prompt_id: str, nodes: int) -> None:
        self._prompt_id = prompt_id
        self._nodes = nodes
        self._seen: set[str] = set()
        self._steps = ""
        self.started = False
        self.over = False

    def hear(self, message: str | bytes) -> bool:
        """Whether the message is about this prompt. What makes no sense is not."""
        if isinstance(message, bytes):
            return self.started  # a preview: it goes to the one whose prompt runs
        try:
            document = msgspec.json.decode(message)
        except (msgspec.DecodeError, RecursionError):
            return False
        if not isinstance(document, dict) or not isinstance(data := document.get("data"), dict):
            return False
        if data.get("prompt_id") != self._prompt_id:
            return False
        self._note(document.get("type"), data)
        return True

    def words(self) -> str:
        """Such as "node 3 of 7, step 12 of 20"."""
        if not self.started:
            return "queued in ComfyUI"
        node = f"node {min(max(len(self._seen), 1), self._nodes)} of {self._nodes}"
        return f"{node}, {self._steps}" if self._steps else node

    def _note(self, kind: Any, data: dict[str, Any]) -> None:
        self.started = True
        if kind in _OVER or (kind == "executing" and data.get("node") is None):
            self.over = True
        elif kind == "execution_cached" and isinstance(nodes := data.get("nodes"), list):
            self._seen.update(node for node in nodes if isinstance(node, str))
        elif kind in ("executing", "executed") and isinstance(node := data.get("node"), str):
            if node not in self._seen:
                self._steps = ""
            self._seen.add(node)
        elif kind == "progress":
            step, of = data.get("value"), data.get("max")
            if isinstance(step, int | float) and isinstance(of, int | float) and 1 < of < HUGE > step:
                self._steps = f"step {step:g} of {of:g}"
