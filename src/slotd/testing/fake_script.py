"""Chats answered from a script: assistant messages, tool calls among them. Pure.

Which message answers a request depends on nothing but the request: the first
answers a conversation in which the assistant has not spoken, the second one in
which it has spoken once, and so on; the last one answers from there on.
"""

from __future__ import annotations

from typing import Any

import msgspec

from slotd.testing.fake_asks import Body
from slotd.testing.fake_shapes import Chat, Finish, sse

__all__ = ["ScriptedChat", "scripted"]

CHAT = "/v1/chat/completions"

_script = msgspec.json.Decoder(list[dict[str, Any]])


def scripted(script: str, path: str, body: Body) -> dict[str, Any] | None:
    """The message that answers this request; None: the script is empty or not for this path."""
    if not script or path != CHAT:
        return None
    messages = _script.decode(script)
    turns = body.get("messages")
    spoken = [t for t in turns if isinstance(t, dict)] if isinstance(turns, list) else []
    number = sum(turn.get("role") == "assistant" for turn in spoken)
    message: dict[str, Any] = messages[min(number, len(messages) - 1)]
    return message


class ScriptedChat(Chat):
    """Says a scripted message: its words as tokens, then its tool calls, each in several pieces."""

    message: dict[str, Any]

    @property
    def _calls(self) -> list[dict[str, Any]]:
        calls = []
        for n, call in enumerate(self.message.get("tool_calls", ())):
            arguments = call.get("arguments", {})
            text = arguments if isinstance(arguments, str) else msgspec.json.encode(arguments).decode()
            function = {"name": call["name"], "arguments": text}
            calls.append({"id": call.get("id", f"fake-{n}"), "type": "function", "function": function})
        return calls

    def _finish(self, finish: Finish) -> Any:
        return self.message.get("finish_reason") or ("tool_calls" if self._calls else finish)

    def closing(self, text: str, finish: Finish) -> bytes:
        frames = b""
        for n, call in enumerate(self._calls):
            name, arguments = call["function"]["name"], call["function"]["arguments"]
            first = {**call, "index": n, "function": {"name": name, "arguments": ""}}
            frames += sse(self._chunk({"tool_calls": [first]}))
            middle = len(arguments) // 2
            for piece in (arguments[:middle], arguments[middle:]):
                frames += sse(self._chunk({"tool_calls": [{"index": n, "function": {"arguments": piece}}]}))
        return frames + super().closing(text, self._finish(finish))

    def whole(self, text: str, finish: Finish) -> dict[str, Any]:
        document = super().whole(text, self._finish(finish))
        if self._calls:
            message = document["choices"][0]["message"]
            message["content"] = text or None
            message["tool_calls"] = self._calls
        return document
