"""What the tests of assembly share: real requests, and comparing answers."""

from __future__ import annotations

import json
import re
from typing import Any

CHAT, TEXT, MESSAGES, RESPONSES, INFILL = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/messages",
    "/v1/responses",
    "/infill",
)

Case = tuple[str, dict[str, Any]]

_SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
_FUNCTION = {"name": "get_weather", "description": "The weather.", "parameters": _SCHEMA}
_TOOLS = [{"type": "function", "function": _FUNCTION}]
_TOOLS_ANTHROPIC = [{"name": "get_weather", "description": "The weather.", "input_schema": _SCHEMA}]
_TOOLS_RESPONSES = [{"type": "function", **_FUNCTION}]
_CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'
_ECHO = "Repeat this text exactly and nothing else:\n"
_THINK = r'root ::= "<think>\nhmm, so\n</think>\n\nhello there"'
_BASE = {"model": "demo", "temperature": 0, "max_tokens": 8}
_LONG = {"model": "demo", "temperature": 0, "max_tokens": 70}


def user(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


_ONE_CALL, _TWO_CALLS = user(_ECHO + _CALL), user(_ECHO + _CALL + "\n" + _CALL.replace("Paris", "Rome"))
_STORY = "One two three four"

ASSEMBLED: dict[str, Case] = {
    "chat-limit": (CHAT, {**_BASE, "messages": user("Name three colours.")}),
    "chat-end": (CHAT, {**_LONG, "messages": user(_ECHO + "hello")}),
    "chat-one-token": (CHAT, {**_BASE, "max_tokens": 1, "messages": user("Name three colours.")}),
    "chat-stop": (CHAT, {**_LONG, "messages": user(_ECHO + "one two three"), "stop": ["two"]}),
    "chat-stop-string": (CHAT, {**_LONG, "messages": user(_ECHO + "one two three"), "stop": "two"}),
    "chat-n": (CHAT, {**_BASE, "max_tokens": 3, "messages": user("Name three colours."), "n": 3}),
    "chat-schema": (
        CHAT,
        {
            **_LONG,
            "messages": user("Give me a number."),
            "response_format": {
                "type": "json_schema",
                "json_schema": {
                    "name": "number",
                    "schema": {
                        "type": "object",
                        "properties": {"n": {"type": "integer"}},
                        "required": ["n"],
                    },
                },
            },
        },
    ),
    "chat-json": (CHAT, {**_BASE, "messages": user("Hello"), "response_format": {"type": "json_object"}}),
    "chat-tool": (CHAT, {**_LONG, "messages": _ONE_CALL, "tools": _TOOLS}),
    "chat-tools-parallel": (
        CHAT,
        {**_LONG, "messages": _TWO_CALLS, "tools": _TOOLS, "parallel_tool_calls": True},
    ),
    "chat-tool-cut": (CHAT, {**_LONG, "max_tokens": 20, "messages": _ONE_CALL, "tools": _TOOLS}),
    "chat-tools-unused": (CHAT, {**_BASE, "messages": user("Hello"), "tools": _TOOLS}),
    "chat-reasoning": (CHAT, {**_LONG, "messages": user("hi"), "grammar": _THINK}),
    "chat-reasoning-cut": (CHAT, {**_LONG, "max_tokens": 10, "messages": user("hi"), "grammar": _THINK}),
    "chat-emoji": (CHAT, {**_LONG, "messages": user("hi"), "grammar": 'root ::= "🌟é 🌟"'}),
    "chat-options": (
        CHAT,
        {
            **_BASE,
            "messages": user("Hello"),
            "stream": False,
            "stream_options": {"include_usage": False},
            "return_progress": True,
            "timings_per_token": True,
        },
    ),
    "text-limit": (TEXT, {**_BASE, "prompt": _STORY}),
    "text-logprobs": (TEXT, {**_BASE, "max_tokens": 4, "prompt": _STORY, "logprobs": 2}),
    "text-logprobs-end": (
        TEXT,
        {**_LONG, "prompt": "<|im_start|>user\nhi<|im_end|>\n", "grammar": 'root ::= "🌟ok"', "logprobs": 1},
    ),
    "text-stop": (TEXT, {**_BASE, "prompt": _STORY, "stop": ["numbers"]}),
    "text-ignored": (TEXT, {**_BASE, "max_tokens": 2, "prompt": _STORY, "echo": True, "best_of": 1}),
    "text-list-n": (TEXT, {**_BASE, "max_tokens": 2, "prompt": [_STORY, "a b"], "n": 2, "logprobs": 1}),
    "text-tokens": (TEXT, {**_BASE, "max_tokens": 2, "prompt": [[1, 2, 3], [4, 5]]}),
    "messages-limit": (MESSAGES, {**_BASE, "messages": user("Name three colours.")}),
    "messages-end": (MESSAGES, {**_LONG, "messages": user(_ECHO + "hello")}),
    "messages-stop": (
        MESSAGES,
        {**_LONG, "messages": user(_ECHO + "one two three"), "stop_sequences": ["two"]},
    ),
    "messages-tool": (MESSAGES, {**_LONG, "messages": _ONE_CALL, "tools": _TOOLS_ANTHROPIC}),
    "messages-tools-parallel": (MESSAGES, {**_LONG, "messages": _TWO_CALLS, "tools": _TOOLS_ANTHROPIC}),
    "messages-tool-cut": (
        MESSAGES,
        {**_LONG, "max_tokens": 20, "messages": _ONE_CALL, "tools": _TOOLS_ANTHROPIC},
    ),
    "messages-thinking": (
        MESSAGES,
        {**_BASE, "messages": user("hi"), "thinking": {"type": "enabled", "budget_tokens": 8}},
    ),
    "responses-limit": (RESPONSES, {**_BASE, "max_output_tokens": 8, "input": "Name three colours."}),
    "responses-end": (RESPONSES, {**_BASE, "max_output_tokens": 70, "input": user(_ECHO + "hello")}),
    "responses-tool": (
        RESPONSES,
        {"temperature": 0, "max_output_tokens": 70, "input": _ECHO + _CALL, "tools": _TOOLS_RESPONSES},
    ),
    "responses-reasoning": (
        RESPONSES,
        {"temperature": 0, "max_output_tokens": 70, "input": "hi", "grammar": _THINK},
    ),
}
"""Requests whose assembled answer must equal the engine's own."""

HELD_BACK: dict[str, Case] = {
    "chat-stop-held": (
        CHAT,
        {
            **_BASE,
            "max_tokens": 4,
            "messages": user("hi"),
            "stop": ["one two 4"],
            "grammar": 'root ::= "one two three"',
        },
    ),
    "chat-call-held": (CHAT, {**_LONG, "max_tokens": 12, "messages": _ONE_CALL, "tools": _TOOLS}),
    "chat-blank": (CHAT, {**_LONG, "messages": user("hi"), "grammar": r'root ::= " \n\n"'}),
    "text-stop-held": (
        TEXT,
        {**_BASE, "max_tokens": 3, "prompt": _STORY, "stop": ["-digit numbers are 124"]},
    ),
    "text-emoji-cut": (TEXT, {**_BASE, "max_tokens": 2, "prompt": _STORY, "grammar": 'root ::= "a🌟"'}),
    "messages-call-held": (
        MESSAGES,
        {**_LONG, "max_tokens": 12, "messages": _ONE_CALL, "tools": _TOOLS_ANTHROPIC},
    ),
    "responses-call-held": (
        RESPONSES,
        {"temperature": 0, "max_output_tokens": 12, "input": _ECHO + _CALL, "tools": _TOOLS_RESPONSES},
    ),
}
"""Requests whose stream leaves out text that the engine's own answer shows."""

_GAP = {
    "model": "demo",
    "temperature": 0,
    "input_prefix": "def add(a, b):\n    return ",
    "input_suffix": "\n\nprint(add(1, 2))",
}

FILLED: dict[str, Case] = {
    "infill-limit": (INFILL, {**_GAP, "n_predict": 6}),
    "infill-end": (INFILL, {**_GAP, "n_predict": 20, "grammar": 'root ::= "a + b"'}),
    "infill-stop": (INFILL, {**_GAP, "n_predict": 12, "stop": ["\n"], "stream": False}),
    "infill-one-token": (INFILL, {**_GAP, "n_predict": 0}),
    "infill-emoji": (INFILL, {**_GAP, "n_predict": 20, "grammar": 'root ::= "🌟é"'}),
    "infill-options": (
        INFILL,
        {
            **_GAP,
            "n_predict": 3,
            "prompt": "    ",
            "input_extra": [{"filename": "a.py", "text": "x = 1\n"}],
            "return_progress": True,
            "timings_per_token": True,
            "t_max_predict_ms": 60_000,
        },
    ),
}
"""The same of a model with the tokens for infill."""

FILLED_HELD_BACK: dict[str, Case] = {
    "infill-stop-held": (
        INFILL,
        {**_GAP, "n_predict": 3, "stop": ["one two 4"], "grammar": 'root ::= "one two three"'},
    ),
    "infill-emoji-cut": (INFILL, {**_GAP, "n_predict": 2, "grammar": 'root ::= "🪿🪿"'}),
}

FAILING: dict[str, Case] = {
    "chat-overflow": (
        CHAT,
        {"temperature": 0, "messages": user("word " * 200), "max_tokens": 99, "ignore_eos": True, "n": 2},
    ),
    "text-overflow": (
        TEXT,
        {"temperature": 0, "prompt": ["word " * 115] * 2, "max_tokens": 99, "ignore_eos": True},
    ),
    "text-overflow-list": (TEXT, {"temperature": 0, "prompt": ["a", "word " * 400], "max_tokens": 2}),
}
"""Requests that the ``tight`` engine answers with an error after its stream began."""


def comparable(answer: bytes) -> Any:
    """The answer with what differs from run to run replaced by its form."""
    return _comparable(json.loads(answer), "")


_VOLATILE = {"id", "created", "created_at", "completed_at", "call_id"}


def _comparable(value: Any, key: str) -> Any:
    if key in _VOLATILE:
        return re.sub(r"[A-Za-z0-9]{32}", "*", value) if isinstance(value, str) else type(value).__name__
    if key.endswith(("_ms", "_per_second")):
        return "number"
    if key in ("logprob", "prob"):
        return round(value, 2)  # batches of different sizes add up in a different order
    if isinstance(value, dict):
        return {k: _comparable(v, k) for k, v in value.items()}
    if isinstance(value, list):
        return [_comparable(v, "") for v in value]
    return value
