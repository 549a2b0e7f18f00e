"""What ComfyUI says, and what is made of it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from slotd.comfy.progress import Progress


def said(kind: str, **data: Any) -> str:
    return json.dumps({"type": kind, "data": {"prompt_id": "p", **data}})


def test_the_words_follow_the_messages() -> None:
    progress = Progress("p", nodes=4)
    assert progress.words() == "queued in ComfyUI"
    told = []
    for message in (
        said("execution_start"),
        said("execution_cached", nodes=["4"]),
        said("executing", node="6"),
        said("executing", node="3"),
        said("progress", node="3", value=12, max=20),
        said("executing", node="9"),
        said("executed", node="9", output={}),
    ):
        assert progress.hear(message)
        assert not progress.over
        told.append(progress.words())
    assert told == [
        "node 1 of 4",
        "node 1 of 4",
        "node 2 of 4",
        "node 3 of 4",
        "node 3 of 4, step 12 of 20",
        "node 4 of 4",
        "node 4 of 4",
    ]


@pytest.mark.parametrize(
    "message",
    [
        said("execution_success"),
        said("execution_error"),
        said("execution_interrupted"),
        said("executing", node=None),
    ],
)
def test_it_hears_the_end(message: str) -> None:
    progress = Progress("p", 1)
    assert progress.hear(message)
    assert progress.over


@pytest.mark.parametrize(
    "message",
    [
        said("executing", node=None).replace('"p"', '"another"'),
        '{"type": "status", "data": {"status": {}}}',
        "not JSON",
        "[]",
        '{"type": "executing"}',
        '{"data": {"prompt_id": ["p"]}}',
        b"a preview",
    ],
)
def test_what_is_not_about_it_is_not_heard(message: str | bytes) -> None:
    progress = Progress("p", 1)
    assert not progress.hear(message)
    assert (progress.started, progress.over) == (False, False)


def test_numbers_that_nobody_means_are_not_told() -> None:
    progress = Progress("p", 1)
    assert progress.hear(said("progress", value=1, max=10**400))
    assert progress.hear(said("progress", value=10**400, max=20))
    assert progress.words() == "node 1 of 1"


def test_previews_count_once_it_runs() -> None:
    progress = Progress("p", 1)
    assert progress.hear(said("execution_start"))
    assert progress.hear(b"a preview")
