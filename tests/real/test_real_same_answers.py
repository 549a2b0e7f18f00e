"""A whole answer that slotd puts together from a stream is the engine's own."""

from __future__ import annotations

from typing import Any

import pytest
from real_tools import CHAT, MESSAGES, RESPONSES, TEXT, Site

pytestmark = pytest.mark.real_engine
pytest_plugins = ["real_fixtures"]

_TOOL = {
    "name": "get_weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
_CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'
_ECHO = "Repeat this text exactly and nothing else:\n"


def _user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": (CHAT, {"messages": _user("Name three colours."), "max_tokens": 10}),
    "chat-to-its-end": (CHAT, {"messages": _user(_ECHO + "hello"), "max_tokens": 60}),
    "chat-two-choices": (CHAT, {"messages": _user("Name three colours."), "max_tokens": 4, "n": 2}),
    "chat-logprobs": (
        CHAT,
        {"messages": _user("Hello"), "max_tokens": 4, "logprobs": True, "top_logprobs": 2},
    ),
    "chat-tool-call": (
        CHAT,
        {
            "messages": _user(_ECHO + _CALL),
            "max_tokens": 70,
            "tools": [{"type": "function", "function": _TOOL}],
        },
    ),
    "text-logprobs": (TEXT, {"prompt": "One two three", "max_tokens": 4, "logprobs": 2}),
    "message": (MESSAGES, {"messages": _user("Name three colours."), "max_tokens": 8}),
    "response": (RESPONSES, {"input": "Name three colours.", "max_output_tokens": 8}),
}


@pytest.mark.parametrize("case", CASES)
def test_as_the_engine_itself_would_answer(site: Site, case: str) -> None:
    path, fields = CASES[case]
    slot = "chat" if "n" in fields else "narrow"  # the engine computes choices in parallel
    engine = site.load(slot)
    # Nothing, or (where the path does not know the field) all of the prompt is
    # remembered, so that the second to ask sees the same work done.
    body = {"model": slot, "temperature": 0, "seed": 7, "cache_prompt": False, **fields}
    if path in (MESSAGES, RESPONSES):
        engine.http.post(path, json=body)
    ours = site.http.post(path, json=body)
    theirs = engine.http.post(path, json=body)
    assert (ours.status_code, ours.headers["content-type"].split(";")[0]) == (200, "application/json")
    assert _comparable(ours.json()) == _comparable(theirs.json())
    if case == "chat-tool-call":
        call = ours.json()["choices"][0]["message"]["tool_calls"][0]["function"]
        assert call == {"name": "get_weather", "arguments": '{"city": "Paris"}'}


_VOLATILE = frozenset({"id", "created", "created_at", "completed_at", "call_id"})


def _comparable(value: Any, key: str = "") -> Any:
    """What differs between two runs, as its kind."""
    if key in _VOLATILE or key.endswith(("_ms", "_per_second")):
        return type(value).__name__ if not isinstance(value, int) else "float"
    if key in ("logprob", "prob"):
        return round(value, 2)
    if isinstance(value, dict):
        return {k: _comparable(v, k) for k, v in value.items()}
    if isinstance(value, list):
        return [_comparable(v, "logprob" if key == "token_logprobs" else "") for v in value]
    return value
