"""Reranking: a request read once, and three ways to a ranking: vectors, TEI's scores, and their errors."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from adapt_tools import call
from hypothesis import given
from hypothesis import strategies as st

from slotd.adapt import Ask, likeness, tei
from slotd.adapt.ranking import Wanted, ranked, read_wanted
from slotd.errors import EngineError, RequestUnprocessable

PATH = "/v1/rerank"
DOCS = ["a cat", "a dog", "a house"]


def wanted(body: Any, model: str = "") -> Wanted:
    return read_wanted(
        call(PATH, body if isinstance(body, bytes) else json.dumps(body).encode(), model=model)
    )


def rows(body: bytes) -> list[dict[str, Any]]:
    results: list[dict[str, Any]] = json.loads(body)["results"]
    return results


# --- the request --------------------------------------------------------------------------


def test_texts_and_objects_with_a_text_are_documents() -> None:
    found = wanted({"query": "q", "documents": ["a", {"text": "b", "id": 3}], "top_n": 1})
    assert (found.query, found.documents, found.top_n, found.shown) == ("q", ("a", "b"), 1, False)


def test_the_spelling_of_tei_is_read_too() -> None:
    found = wanted({"query": "q", "texts": ["a"], "return_text": True})
    assert (found.documents, found.shown) == (("a",), True)
    assert wanted({"query": "q", "documents": ["a"], "texts": ["b"]}).documents == ("a",)


def test_the_slots_model_comes_before_the_clients_name_for_it() -> None:
    body = {"query": "q", "documents": ["a"], "model": "rerank-1"}
    assert wanted(body, "bge").model == "bge"
    assert wanted(body).model == "rerank-1"
    assert wanted({**body, "model": 7}).model == ""


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"documents": ["a"]}, "query"),
        ({"query": " ", "documents": ["a"]}, "query"),
        ({"query": "q"}, "documents"),
        ({"query": "q", "documents": []}, "documents"),
        ({"query": "q", "documents": "a"}, "documents"),
        ({"query": "q", "texts": [3]}, "texts"),
        ({"query": "q", "documents": ["a", None]}, "documents"),
        ({"query": "q", "documents": [{"title": "a"}]}, "documents"),
        ({"query": "q", "documents": ["a"], "top_n": 0}, "top_n"),
        ({"query": "q", "documents": ["a"], "top_n": True}, "top_n"),
        ({"query": "q", "documents": ["a"], "top_n": 1.5}, "top_n"),
        ([], None),
        (b"\xff", None),
        (b'{"query": ', None),
        (b"[" * 100_000, None),
    ],
)
def test_what_is_missing_or_wrong_is_named(body: Any, param: str | None) -> None:
    with pytest.raises(RequestUnprocessable) as caught:
        wanted(body)
    assert caught.value.param == param


def test_the_document_that_is_wrong_is_named() -> None:
    with pytest.raises(RequestUnprocessable, match=r"documents\[1\]"):
        wanted({"query": "q", "documents": ["a", 3]})


# --- the answer ---------------------------------------------------------------------------

scores = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=12)


@given(scores, st.none() | st.integers(1, 20), st.booleans(), st.randoms())
def test_a_ranking_is_the_best_first_and_all_or_so_many(
    values: list[float], top_n: int | None, shown: bool, random: Any
) -> None:
    documents = tuple(f"document {n}" for n in range(len(values)))
    pairs = list(enumerate(values))
    random.shuffle(pairs)
    document = ranked(Wanted("q", documents, "m", top_n, shown), pairs, {"total_tokens": 3})
    found = rows(document.body)
    assert len(found) == min(len(values), top_n or len(values))
    best = sorted(range(len(values)), key=lambda n: (-values[n], n))  # the even ones as they came
    assert [row["index"] for row in found] == best[: len(found)]
    assert [row["relevance_score"] for row in found] == [values[row["index"]] for row in found]
    for row in found:
        assert row.get("document") == ({"text": documents[row["index"]]} if shown else None)
    whole = json.loads(document.body)
    assert (whole["model"], whole["object"], whole["usage"]) == ("m", "list", {"total_tokens": 3})


@pytest.mark.parametrize(
    "pairs",
    [
        [],
        [(0, 1.0)],
        [(0, 1.0), (0, 0.5)],
        [(0, 1.0), (2, 0.5)],
        [(-1, 1.0), (0, 0.5)],
        [(0, 1.0), (1, math.nan)],
        [(0, 1.0), (1, math.inf)],
    ],
)
def test_scores_of_other_documents_are_the_engines_fault(pairs: list[tuple[int, float]]) -> None:
    with pytest.raises(EngineError):
        ranked(Wanted("q", ("a", "b"), "m"), pairs)


# --- by vectors ------------------------------------------------------------------------------


def converted(ask: Ask, answer: Any) -> bytes:
    assert ask.convert is not None
    return ask.convert(answer if isinstance(answer, bytes) else json.dumps(answer).encode()).body


def vectors(*rows_: tuple[int, list[float]]) -> dict[str, Any]:
    return {
        "object": "list",
        "data": [{"object": "embedding", "index": i, "embedding": v} for i, v in rows_],
        "usage": {"prompt_tokens": 9, "total_tokens": 9},
    }


def test_vectors_of_query_and_documents_are_asked_for_at_once() -> None:
    ask = likeness.rerank(call(PATH, {"query": "q", "documents": DOCS, "top_n": 1}, model="minilm"))
    assert (ask.method, ask.target) == ("POST", "/v1/embeddings")
    assert json.loads(ask.body) == {"model": "minilm", "input": ["q", *DOCS], "encoding_format": "float"}


def test_the_nearest_is_the_best_in_whatever_order_the_vectors_come() -> None:
    ask = likeness.rerank(call(PATH, {"query": "q", "documents": DOCS}))
    answer = vectors((3, [3.0, 0.0]), (0, [2.0, 0.0]), (2, [-1.0, 0.0]), (1, [1.0, 1.0]))
    found = rows(converted(ask, answer))
    assert [(row["index"], round(row["relevance_score"], 4)) for row in found] == [
        (2, 1.0),
        (0, 0.7071),
        (1, -1.0),
    ]


@given(st.lists(st.lists(st.floats(-10, 10), min_size=3, max_size=3), min_size=2, max_size=6))
def test_a_score_is_a_cosine(given_: list[list[float]]) -> None:
    documents = [f"d{n}" for n in range(len(given_) - 1)]
    ask = likeness.rerank(call(PATH, {"query": "q", "documents": documents}))
    found = rows(converted(ask, vectors(*enumerate(given_))))
    assert len(found) == len(documents)
    assert all(-1.0001 <= row["relevance_score"] <= 1.0001 for row in found)


@pytest.mark.parametrize(
    "answer",
    [
        b"no json",
        b"[]",
        vectors(),
        vectors((1, [1.0]), (2, [1.0]), (3, [1.0])),
        vectors((0, [1.0, 2.0]), (1, [1.0]), (2, [1.0]), (3, [1.0])),
        vectors((0, [1.0]), (1, [1.0]), (2, [1.0])),
        vectors((0, [1.0]), (1, [1.0]), (2, [1.0]), (4, [1.0])),
    ],
)
def test_vectors_that_are_not_of_these_texts_are_the_engines_fault(answer: Any) -> None:
    ask = likeness.rerank(call(PATH, {"query": "q", "documents": DOCS}))
    with pytest.raises(EngineError):
        converted(ask, answer)


# --- by text-embeddings-inference ------------------------------------------------------------


def test_tei_is_asked_in_its_own_words() -> None:
    ask = tei.rerank(call(PATH, {"query": "q", "documents": DOCS, "top_n": 2, "model": "m"}))
    assert (ask.method, ask.target) == ("POST", "/rerank")
    assert json.loads(ask.body) == {"query": "q", "texts": DOCS, "raw_scores": False, "truncate": True}


def test_what_tei_alone_has_goes_through() -> None:
    body = {"query": "q", "texts": DOCS, "raw_scores": True, "truncate": False}
    assert json.loads(tei.rerank(call(PATH, body)).body) == body


def test_its_list_becomes_a_ranking() -> None:
    ask = tei.rerank(call(PATH, {"query": "q", "documents": DOCS, "top_n": 2, "return_documents": True}))
    answer = [{"index": 2, "score": 0.1}, {"index": 0, "score": 0.9}, {"index": 1, "score": 0.5}]
    assert rows(converted(ask, answer)) == [
        {"index": 0, "relevance_score": 0.9, "document": {"text": "a cat"}},
        {"index": 1, "relevance_score": 0.5, "document": {"text": "a dog"}},
    ]


@pytest.mark.parametrize("answer", [b"no json", b"{}", b'[{"index": 0}]', b'[{"index": 0, "score": 1}]'])
def test_an_answer_that_is_no_ranking_is_the_engines_fault(answer: bytes) -> None:
    with pytest.raises(EngineError):
        converted(tei.rerank(call(PATH, {"query": "q", "documents": DOCS})), answer)


def test_usage_that_is_more_than_counts_costs_nothing_but_what_is_none() -> None:
    """vLLM: ``"prompt_tokens_details": null``."""
    ask = likeness.rerank(call(PATH, {"query": "q", "documents": ["a"]}))
    assert ask.convert is not None
    data = [{"index": n, "embedding": [1.0]} for n in range(2)]
    usage = {"prompt_tokens": 3, "prompt_tokens_details": None, "more": {"x": 1}}
    answer = ask.convert(json.dumps({"data": data, "usage": usage}).encode())
    assert json.loads(answer.body)["usage"] == {"prompt_tokens": 3}
