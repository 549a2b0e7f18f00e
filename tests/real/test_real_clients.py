"""The official clients against slotd with the real engine."""

from __future__ import annotations

import itertools
import math
import os
import signal
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import anthropic
import openai
import pytest
from real_tools import Site, wait_until

pytestmark = pytest.mark.real_engine
pytest_plugins = ["real_fixtures"]

COLD = {"temperature": 0}
ASK: list[Any] = [{"role": "user", "content": "Name three colours."}]


def test_models_are_listed(site: Site) -> None:
    with site.openai() as client:
        listed = client.models.list().data
        assert [m.id for m in listed] == ["smollm2"]
        assert client.models.retrieve("gpt-4o-mini").id == "smollm2"


def test_a_chat_is_the_same_streamed_and_whole(site: Site) -> None:
    with site.openai() as client:
        whole = client.chat.completions.create(
            model="gpt-4o-mini", messages=ASK, max_tokens=12, temperature=0, seed=7
        )
        with client.chat.completions.create(
            model="gpt-4o-mini",
            messages=ASK,
            max_tokens=12,
            temperature=0,
            seed=7,
            stream=True,
            stream_options={"include_usage": True},
        ) as stream:
            chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert whole.choices[0].message.content == text != ""
    assert whole.choices[0].finish_reason == "length"
    assert whole.model == chunks[0].model == "smollm2"
    usage = chunks[-1].usage
    assert usage is not None
    assert whole.usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens) == (whole.usage.prompt_tokens, 12)


def test_a_completion_is_the_same_streamed_and_whole(site: Site) -> None:
    with site.openai() as client:
        whole = client.completions.create(
            model="smollm2", prompt="One two three", max_tokens=6, temperature=0
        )
        with client.completions.create(
            model="smollm2", prompt="One two three", max_tokens=6, temperature=0, stream=True
        ) as stream:
            text = "".join(chunk.choices[0].text for chunk in stream if chunk.choices)
    assert whole.choices[0].text == text != ""


def test_a_response_is_the_same_streamed_and_whole(site: Site) -> None:
    with site.openai() as client:
        whole = client.responses.create(
            model="smollm2", input="Name a colour.", max_output_tokens=8, temperature=0
        )
        with client.responses.create(
            model="smollm2", input="Name a colour.", max_output_tokens=8, temperature=0, stream=True
        ) as stream:
            events = list(stream)
    text = "".join(e.delta for e in events if e.type == "response.output_text.delta")
    assert whole.output_text == text != ""
    assert events[-1].type == "response.completed"


def _cosine(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)


def test_embeddings_with_and_without_a_name_beside_the_chat_slot(site: Site) -> None:
    # Of different lengths: computed together, each must still be the vector of its own text.
    texts = ["The cat sleeps on the sofa.", "A kitten naps on the couch.", "Interest rates rose by 2%."]
    site.load("chat")
    with site.openai() as client:
        vectors = [item.embedding for item in client.embeddings.create(model="embed", input=texts).data]
        alone = [client.embeddings.create(model="embed", input=t).data[0].embedding for t in texts]
        unnamed = site.http.post("/v1/embeddings", json={"input": texts[0]}).json()["data"][0]["embedding"]
        # A name that nobody knows is no reason to fail where vectors are wanted.
        foreign = client.embeddings.create(model="text-embedding-3-small", input=texts[0]).data[0].embedding
    assert len(vectors[0]) == 576
    assert _cosine(vectors[0], vectors[1]) > _cosine(vectors[0], vectors[2])
    assert all(_cosine(a, b) > 0.999 for a, b in zip(vectors, alone, strict=True))
    assert _cosine(vectors[0], unnamed) > 0.999
    assert _cosine(vectors[0], foreign) > 0.999
    assert {"ready", "idle"} >= {site.slot("chat")["state"], site.slot("embed")["state"]}
    assert site.slot("chat")["pid"] != site.slot("embed")["pid"]


def _document(error: openai.APIStatusError) -> dict[str, Any]:
    document: dict[str, Any] = error.response.json()["error"]
    return document


def test_an_unknown_name_is_not_found_and_tells_close_ones(site: Site) -> None:
    with site.openai() as client, pytest.raises(openai.NotFoundError, match="smollm2") as caught:
        client.chat.completions.create(model="smolm2", messages=ASK)
    assert caught.value.code == "dispatch.no_route"
    assert "smollm2" in _document(caught.value)["details"]["close"]


def test_a_chat_with_the_embedding_slot_is_a_conflict_and_loads_nothing(site: Site) -> None:
    site.unload("embed")
    before = site.slot("embed")["starts"]
    with site.openai() as client, pytest.raises(openai.ConflictError) as caught:
        client.chat.completions.create(model="embed", messages=ASK)
    assert caught.value.code == "dispatch.capability_mismatch"
    assert (site.slot("embed")["state"], site.slot("embed")["starts"]) == ("offline", before)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_the_engines_own_refusal_passes_through(site: Site, stream: bool) -> None:
    messages: list[Any] = [{"role": "user", "content": "too long " * 2000}]
    with site.openai() as client, pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="smollm2", messages=messages, stream=stream)
    assert _document(caught.value)["type"] == "exceed_context_size_error"
    assert _document(caught.value)["n_ctx"] == 2048


def test_an_engine_that_dies_in_mid_stream_raises(site: Site) -> None:
    engine = site.load("chat")
    with site.openai() as client:
        stream = client.chat.completions.create(
            model="smollm2", messages=ASK, max_tokens=1500, stream=True, extra_body={"ignore_eos": True}
        )
        with stream:
            next(stream)
            os.kill(engine.pid, signal.SIGKILL)
            with pytest.raises(openai.APIError, match="lost its engine") as caught:
                list(stream)
    assert caught.value.code == "slot.engine_lost"


def test_sixteen_chats_are_answered_in_the_order_they_came_four_at_a_time(site: Site) -> None:
    site.load("chat")
    leases = []

    def waiting() -> int:
        row = site.slot("chat")
        leases.append(row["leases"])
        return int(row["leases"] + row["queued"])

    with site.openai() as client, ThreadPoolExecutor(16) as pool:

        def ask(tokens: int) -> str:
            answer = client.chat.completions.create(
                model="smollm2", messages=ASK, max_tokens=tokens, extra_body={"ignore_eos": True}
            )
            return answer.choices[0].message.content or ""

        answers: list[Future[str]] = []
        for number in range(16):
            # The first four are long, so that the others have to wait for them.
            answers.append(pool.submit(ask, 40 if number < 4 else 4))
            wait_until(lambda: waiting() == len(answers), 20, "in the queue")
        wait_until(lambda: waiting() == 0, 60, "all answered")
        assert all(answer.result() for answer in answers)
    wait_until(lambda: site.quiet("chat"), 5, "quiet")
    records = site.finished()[:16]
    assert {r["outcome"] for r in records} == {"ok"}
    in_order = sorted(records, key=lambda r: r["began_unix"])
    granted = [r["began_unix"] + r["resolve_s"] + r["wait_s"] for r in in_order]
    # The records' times come from two clocks: a few milliseconds mean nothing.
    assert all(later > earlier - 0.02 for earlier, later in itertools.pairwise(granted))
    assert max(leases) == 4


def test_a_message_is_the_same_streamed_and_whole(site: Site) -> None:
    messages: list[Any] = ASK
    with site.anthropic() as client:
        whole = client.messages.create(model="smollm2", max_tokens=10, messages=messages, extra_body=COLD)
        with client.messages.stream(
            model="smollm2", max_tokens=10, messages=messages, extra_body=COLD
        ) as stream:
            text = "".join(stream.text_stream)
            final = stream.get_final_message()
    (block,) = whole.content
    assert block.type == "text"
    assert block.text == text != ""
    assert whole.stop_reason == final.stop_reason == "max_tokens"
    assert (whole.usage.output_tokens, final.usage.output_tokens) == (10, 10)


def test_an_unknown_name_is_anthropics_not_found(site: Site) -> None:
    with site.anthropic() as client, pytest.raises(anthropic.NotFoundError) as caught:
        client.messages.create(model="smolm2", max_tokens=4, messages=ASK)
    body = caught.value.response.json()
    assert body["type"] == "error"
    assert body["error"]["type"] == "not_found_error"
