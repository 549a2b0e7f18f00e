"""What ComfyUI says, and what is made of it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from slotd.comfy.progress import Progress
from slotd.comfy.words import failure, refusal


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


def test_previews_count_once_it_runs() -> None:
    progress = Progress("p", 1)
    assert progress.hear(said("execution_start"))
    assert progress.hear(b"a preview")


def test_a_refusal_in_comfys_words() -> None:
    body = {
        "error": {"type": "t", "message": "Prompt outputs failed validation", "details": ""},
        "node_errors": {
            "4": {
                "class_type": "CheckpointLoaderSimple",
                "errors": [{"message": "Value not in list", "details": "ckpt_name: 'x' not in []"}],
            }
        },
    }
    assert refusal("/prompt", 400, json.dumps(body).encode()) == (
        "ComfyUI refused the workflow (400): Prompt outputs failed validation; "
        "node 4 (CheckpointLoaderSimple): Value not in list: ckpt_name: 'x' not in []"
    )
    assert refusal("/prompt", 500, b"500 Internal") == "ComfyUI answered /prompt with 500: 500 Internal"
    assert len(refusal("/prompt", 400, json.dumps({"error": "x" * 9000}).encode())) == 2000


def test_a_failure_in_comfys_words() -> None:
    facts = {"node_id": "3", "node_type": "KSampler", "exception_type": "torch.OutOfMemoryError"}
    words, details = failure(
        [("execution_start", {}), ("execution_error", {**facts, "exception_message": "no room\n"})]
    )
    assert words == "ComfyUI: node 3 (KSampler) failed: torch.OutOfMemoryError: no room"
    assert details == {"node": "3", "node_type": "KSampler", "exception": "torch.OutOfMemoryError"}
    words, _ = failure([("execution_interrupted", {"node_id": "3", "node_type": "KSampler"})])
    assert words == "ComfyUI: somebody interrupted it at node 3 (KSampler)"
    assert "does not say why" in failure([])[0]
