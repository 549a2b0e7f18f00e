"""What else the real engine answers: tokens, templates, tool calls; what it cannot, told so that it helps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import openai
import pytest
from real_tools import TEMPLATE, THREADS, Site, hello, running, write_config

pytestmark = pytest.mark.real_engine
pytest_plugins = ["real_fixtures"]

TEXT = "The quick brown fox jumps over 13 lazy dogs."
PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
SOUND = {"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": "wav"}}

WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'
REPEAT: Any = [{"role": "user", "content": f"Repeat this text exactly and nothing else:\n{CALL}"}]


def test_tokens_are_counted_made_and_made_text_again(site: Site) -> None:
    tokens = site.http.post("/tokenize", json={"model": "chat", "content": TEXT}).json()["tokens"]
    assert len(tokens) > 8
    assert site.http.post("/detokenize", json={"model": "chat", "tokens": tokens}).json()["content"] == TEXT
    with site.anthropic() as client:
        short = client.messages.count_tokens(model="smollm2", messages=[{"role": "user", "content": "x"}])
        long = client.messages.count_tokens(model="smollm2", messages=[{"role": "user", "content": TEXT}])
        spent = client.messages.create(
            model="smollm2", max_tokens=1, messages=[{"role": "user", "content": TEXT}]
        ).usage
    assert long.input_tokens - short.input_tokens == len(tokens) - 1
    assert spent.input_tokens + (spent.cache_read_input_tokens or 0) == long.input_tokens


def test_the_template_is_the_models_own(site: Site) -> None:
    prompt = site.http.post("/apply-template", json=hello()).json()["prompt"]
    assert prompt.endswith("<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n")


def test_a_model_without_the_tokens_for_infill_says_so_in_the_engines_words(site: Site) -> None:
    answer = site.http.post("/infill", json={"model": "chat", "input_prefix": "a = ", "input_suffix": "\n"})
    error = answer.json()["error"]
    assert (answer.status_code, error["type"]) == (501, "not_supported_error")
    assert "prefix token is missing" in error["message"]


# --- pictures and sound for a model that reads only text -----------------------------------------


@pytest.mark.parametrize("part", [PICTURE, SOUND], ids=["picture", "sound"])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_a_text_model_refuses_what_it_cannot_read_and_says_what_to_do(
    site: Site, part: Any, stream: bool
) -> None:
    messages: list[Any] = [{"role": "user", "content": [{"type": "text", "text": "What is this?"}, part]}]
    before = site.slot("chat")["starts"]
    site.unload("chat")
    with site.openai() as client, pytest.raises(openai.UnprocessableEntityError) as caught:
        client.chat.completions.create(model="smollm2", messages=messages, stream=stream)
    assert caught.value.code == "request.unprocessable"
    assert "reads only text" in caught.value.message
    assert "mmproj" in caught.value.message
    assert site.slot("chat")["starts"] == before, "nothing is loaded for it"


def test_that_refusal_is_right_about_the_engine(site: Site) -> None:
    """Asked behind slotd's back it cannot read them either; it says so as a failure of its own."""
    engine = site.load("chat")
    for part in (PICTURE, SOUND):
        body = {"messages": [{"role": "user", "content": [part]}]}
        answer = engine.http.post("/v1/chat/completions", json=body)
        assert answer.status_code == 500
        assert "mmproj" in answer.json()["error"]["message"]


# --- tool calls ------------------------------------------------------------------------------------


def test_a_tool_call_comes_whole(site: Site) -> None:
    with site.openai() as client:
        answer = client.chat.completions.create(
            model="narrow", messages=REPEAT, tools=[WEATHER], max_tokens=64, temperature=0
        )
    [choice] = answer.choices
    assert choice.finish_reason == "tool_calls"
    [call] = choice.message.tool_calls or []
    assert call.type == "function"
    assert call.function.name == "get_weather"
    assert json.loads(call.function.arguments) == {"city": "Paris"}


def test_a_tool_call_comes_in_pieces(site: Site) -> None:
    name, arguments, finish = "", "", None
    with (
        site.openai() as client,
        client.chat.completions.create(
            model="narrow", messages=REPEAT, tools=[WEATHER], max_tokens=64, temperature=0, stream=True
        ) as stream,
    ):
        for chunk in stream:
            for choice in chunk.choices:
                finish = choice.finish_reason or finish
                for delta in choice.delta.tool_calls or []:
                    assert delta.function is not None
                    name += delta.function.name or ""
                    arguments += delta.function.arguments or ""
    assert (name, json.loads(arguments), finish) == ("get_weather", {"city": "Paris"}, "tool_calls")


def test_the_models_own_template_knows_no_tools(site: Site) -> None:
    """Which is why the tests above bring one. When this fails, the model has learnt something."""
    with_tools = site.http.post("/apply-template", json=hello(tools=[WEATHER])).json()["prompt"]
    assert "get_weather" not in with_tools
    theirs = site.http.post("/apply-template", json=hello("narrow", tools=[WEATHER])).json()["prompt"]
    assert "get_weather" in theirs
    assert "<tool_call>" in TEMPLATE


# --- ranking by the vectors of a model that makes them ---------------------------------------------


DOCUMENTS = [
    "Interest rates rose by two percent.",
    "A kitten naps on the couch.",
    "The parser has a bug in line seven.",
]


def test_documents_are_ranked_by_a_model_that_makes_vectors(demo_model: Path, tmp_path: Path) -> None:
    """Under every spelling; the engine is only asked for vectors."""
    options = {"ctx_size": 1024, "batch_size": 512, "threads": THREADS, "pooling": "mean"}
    slot = {
        "type": "reranking",
        "engine": "llama-cpp",
        "model": "smollm2",
        "default": True,
        "options": options,
    }
    config = write_config(tmp_path, {"rank": slot}, {"smollm2": f"file:{demo_model}"})
    body = {"query": "The cat sleeps on the sofa.", "documents": DOCUMENTS, "return_documents": True}
    with running(config) as site, site.openai() as client:
        spellings = ("/v1/rerank", "/rerank", "/v1/reranking", "/reranking")
        answers: list[Any] = [
            client.post(f"{site.url}{path}", body={"model": "rerank-1", **body}, cast_to=object)
            for path in spellings
        ]
        with pytest.raises(openai.UnprocessableEntityError) as caught:
            client.post(f"{site.url}/rerank", body={"query": "x"}, cast_to=object)
    best, *others = answers[0]["results"]
    assert best["document"] == {"text": DOCUMENTS[1]}
    assert best["relevance_score"] > max(row["relevance_score"] for row in others) + 0.05
    assert [row["index"] for row in answers[0]["results"]] == [row["index"] for row in answers[3]["results"]]
    assert {answer["model"] for answer in answers} == {"smollm2"}
    assert answers[0]["usage"]["total_tokens"] > 20
    assert caught.value.param == "documents"
