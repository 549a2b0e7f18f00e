"""A model that fills gaps and calls tools: slotd's paths to it, and the tool loop, with nothing made up.

``SLOTD_TEST_FIM_MODEL=/path/to.gguf`` runs it: an instruct model with the tokens for
infill, of a billion parameters or more (seen with Qwen2.5-Coder-1.5B-Instruct). The demo's
model makes the vectors that the tool loop needs, and is the default that cannot infill.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from real_tools import THREADS, Caller, Site, running, wait_until, write_config

FIM_MODEL = os.environ.get("SLOTD_TEST_FIM_MODEL", "")
pytestmark = [
    pytest.mark.real_engine,
    pytest.mark.skipif(not FIM_MODEL, reason="SLOTD_TEST_FIM_MODEL names no model with tokens for infill"),
]

LEAVES_S = 5.0
"""From the client's leaving to an engine at rest: between two tokens, and the machine may be busy."""

GAP = {"input_prefix": "def add(a, b):\n    return ", "input_suffix": "\n\nprint(add(1, 2))"}
FILL = {"model": "coder", **GAP, "n_predict": 12, "temperature": 0, "stop": ["\n"], "cache_prompt": False}
BRING = {"input_prefix": "# The numbers from one to a thousand.\n", "input_suffix": "\n"}

WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}

TEMPLATE = """\
{%- set calls = tools and messages[-1].role != 'tool' -%}
<|im_start|>system
{%- if calls %}
You are a function caller. You can call these functions:
{%- for tool in tools %}
{{ tool | tojson }}
{%- endfor %}
Answer with one bare JSON object, without a code block: {"name": <function name>, "arguments": <arguments>}
{%- else %}
You are a helpful assistant.
{%- endif %}<|im_end|>
{% for message in messages %}
{%- if message.role == 'tool' %}<|im_start|>user
The function's result: {{ message.content }}<|im_end|>
{% elif message.tool_calls %}<|im_start|>assistant
{%- for call in message.tool_calls %}
{"name": {{ call.function.name | tojson }}, "arguments": {{ call.function.arguments | tojson }}}
{%- endfor %}<|im_end|>
{% else %}<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
"""Calls as bare JSON, which a small model keeps to: Qwen's own tags it puts into a code block."""


def _slot(model: str, type: str = "llm", **more: Any) -> dict[str, Any]:
    options = {"ctx_size": 4096, "threads": THREADS, **more.pop("options", {})}
    return {
        "type": type,
        "engine": "llama-cpp",
        "model": model,
        "max_parallel": 1,
        "check_output": False,
        "options": options,
        **more,
    }


@pytest.fixture(scope="module")
def fim(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    slots = {
        "chat": _slot("smollm2", default=True),
        "coder": _slot("fim", labels=["infill", "tool-calling"], options={"chat_template": TEMPLATE}),
        "embed": _slot("smollm2", "embedding", default=True, options={"pooling": "mean"}),
    }
    models = {"smollm2": f"file:{demo_model}", "fim": f"file:{Path(FIM_MODEL).resolve()}"}
    with running(write_config(tmp_path_factory.mktemp("fim"), slots, models)) as slotd:
        yield slotd


# --- infill ------------------------------------------------------------------------------------------


def events(text: str) -> list[dict[str, Any]]:
    return [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: ")]


def test_a_gap_is_filled(fim: Site) -> None:
    answer = fim.http.post("/infill", json=FILL)
    document = answer.json()
    assert (answer.status_code, document["stop"], document["model"]) == (200, True, "fim")
    assert document["content"].strip() == "a + b"
    assert document["stop_type"] == "word"


def test_a_gap_is_filled_token_by_token(fim: Site) -> None:
    answer = fim.http.post("/infill", json={**FILL, "stream": True})
    told = events(answer.text)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert "".join(event["content"] for event in told).strip() == "a + b"
    assert [event["stop"] for event in told] == [False] * (len(told) - 1) + [True]
    assert len(told) > 2


def test_other_files_are_read_too(fim: Site) -> None:
    extra = [{"filename": "units.py", "text": "def celsius_from_fahrenheit(f):\n    return (f - 32) / 1.8\n"}]
    gap = {"input_prefix": "from units import ", "input_suffix": "\n\nprint(celsius_from_fahrenheit(451))\n"}
    document = fim.http.post("/infill", json={**FILL, **gap, "input_extra": extra}).json()
    assert document["content"].strip() == "celsius_from_fahrenheit"


def test_editors_that_name_no_model_reach_the_one_that_can(fim: Site) -> None:
    """The default slot's model lacks the tokens."""
    unnamed = {key: value for key, value in FILL.items() if key != "model"}
    answer = fim.http.post("/infill", json=unnamed)
    assert (answer.status_code, answer.json().get("model")) == (200, "fim")
    refused = fim.http.post("/infill", json={**FILL, "model": "chat"})
    assert (refused.status_code, refused.json()["error"]["type"]) == (501, "not_supported_error")


def test_the_engine_says_what_is_missing(fim: Site) -> None:
    answer = fim.http.post("/infill", json={"model": "coder", "input_prefix": "a"})
    assert answer.status_code == 400
    assert "input_suffix" in answer.json()["error"]["message"]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_an_editor_that_leaves_stops_the_engine(fim: Site, stream: bool) -> None:
    """Every key stroke makes the last request pointless."""
    engine = fim.load("coder")
    body = {"model": "coder", **BRING, "n_predict": 1000, "ignore_eos": True, "stream": stream}
    caller = Caller(fim.url, "/infill", body)
    wait_until(lambda: engine.decoded() > 2, 60, "the engine generates")
    caller.leave()
    wait_until(lambda: not engine.working(), LEAVES_S, "the engine rests")
    assert fim.http.post("/infill", json=FILL).status_code == 200


# --- tools -------------------------------------------------------------------------------------------


def test_it_calls_a_clients_tool(fim: Site) -> None:
    question: Any = [{"role": "user", "content": "What is the weather in Paris?"}]
    asked: dict[str, Any] = {"model": "coder", "tools": [WEATHER], "max_tokens": 64, "temperature": 0}
    with fim.openai() as client:
        [choice] = client.chat.completions.create(messages=question, **asked).choices
        [call] = choice.message.tool_calls or []
        assert choice.finish_reason == "tool_calls"
        assert call.type == "function"
        assert (call.function.name, json.loads(call.function.arguments)) == ("get_weather", {"city": "Paris"})
        found = {"role": "tool", "tool_call_id": call.id, "content": '{"sky": "rain", "celsius": 11}'}
        turns: Any = [*question, choice.message.model_dump(exclude_none=True), found]
        [choice] = client.chat.completions.create(messages=turns, **asked).choices
    assert choice.finish_reason == "stop"
    assert "rain" in (choice.message.content or "")
    assert "11" in (choice.message.content or "")


def test_the_tool_loop_turns_on_a_models_own_call(fim: Site) -> None:
    """The model asks for vectors, the embedding slot makes them, and the model tells what came of it."""
    words = "Turn the words cat and kitten into vectors and tell me how alike they are."
    body = {
        "model": "coder",
        "omni": True,
        "temperature": 0,
        "max_tokens": 100,
        "messages": [{"role": "user", "content": words}],
    }
    answer = fim.http.post("/v1/chat/completions", json=body)
    document = answer.json()
    assert answer.status_code == 200, document
    told = document["slotd"]
    assert (told["rounds"], told["ended"]) == (2, "final")
    [tool] = told["tools"]
    assert (tool["name"], tool["slot"], tool["status"]) == ("embed_text", "embed", "ok")
    [artifact] = tool["artifacts"]
    vectors = fim.get(artifact["url"].removeprefix(fim.url))
    assert [len(vector) for vector in vectors] == [576, 576], "the width of the demo's model"
    [choice] = document["choices"]
    assert choice["finish_reason"] == "stop"
    assert "0." in choice["message"]["content"]
