"""ComfyUI's refusals and failures become slotd's errors, in ComfyUI's words."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slotd.comfy.words import NODES_MAX, WORDS_MAX, failed, refused, said_of_nodes
from slotd.errors import EngineError, OutOfMemory, RequestUnprocessable, SlotdError

MISSING = {
    "type": "value_not_in_list",
    "message": "Value not in list",
    "details": "ckpt_name: 'x' not in []",
    "extra_info": {"input_name": "ckpt_name"},
}
TOO_SMALL = {
    "type": "value_smaller_than_min",
    "message": "Value 0 smaller than min of 16",
    "details": "width",
    "extra_info": {"input_name": "width"},
}


def refusal(*faults: tuple[str, str, dict[str, Any]], details: str = "") -> EngineError:
    nodes: dict[str, Any] = {}
    for id, kind, fault in faults:
        nodes.setdefault(id, {"class_type": kind, "errors": []})["errors"].append(fault)
    error = {"type": "t", "message": "Prompt outputs failed validation", "details": details}
    return refused("/prompt", 400, json.dumps({"error": error, "node_errors": nodes}).encode())


def failure(kind: str, **facts: Any) -> SlotdError:
    return failed([("execution_start", {}), (kind, {"node_id": "3", "node_type": "KSampler", **facts})])


def test_the_faults_of_nodes_are_told_once() -> None:
    error = refusal(("5", "EmptyLatentImage", TOO_SMALL), details="Value 0 smaller than min of 16: width")
    assert error.message == (
        "ComfyUI refused the workflow (400): Prompt outputs failed validation; "
        "node 5 (EmptyLatentImage): Value 0 smaller than min of 16: width"
    )
    assert error.details == {
        "status": 400,
        "reason": "workflow_refused",
        "nodes": {"5": ["Value 0 smaller than min of 16: width"]},
    }


def test_a_file_that_comfyui_lacks() -> None:
    error = refusal(("4", "CheckpointLoaderSimple", MISSING))
    assert error.message.endswith(
        "node 4 (CheckpointLoaderSimple): Value not in list: ckpt_name: 'x' not in []; it has no such file: "
        "put it into ComfyUI's folder of models, or name another in the workflow"
    )
    assert error.details["reason"] == "model_missing"
    both = refusal(("4", "CheckpointLoaderSimple", MISSING), ("5", "EmptyLatentImage", TOO_SMALL))
    assert both.details["reason"] == "workflow_refused"
    sampler = {**MISSING, "extra_info": {"input_name": "sampler_name"}}
    assert refusal(("3", "KSampler", sampler)).details["reason"] == "workflow_refused"


def test_a_refusal_without_nodes() -> None:
    error = {"type": "invalid_prompt", "message": "node A does not exist.", "details": "Node ID '#1'"}
    said = refused("/prompt", 400, json.dumps({"error": error, "node_errors": {}}).encode())
    assert said.message == "ComfyUI refused the workflow (400): node A does not exist.: Node ID '#1'"


def test_an_answer_in_plain_text() -> None:
    error = refused("/prompt", 500, b"500 Internal")
    assert error.message == "ComfyUI answered /prompt with 500: 500 Internal"
    assert error.details == {"status": 500}


def test_what_is_told_is_bounded() -> None:
    assert len(refused("/prompt", 400, json.dumps({"error": "x" * 9000}).encode()).message) == WORDS_MAX
    faults = [(str(i), "A", {**TOO_SMALL, "details": "x" * 9000}) for i in range(50)]
    error = refusal(*faults)
    assert len(error.message) == WORDS_MAX
    assert len(error.details["nodes"]) == NODES_MAX
    assert len(failure("execution_error", exception_message="x" * 9000).message) == WORDS_MAX


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda deeper: (
        st.lists(deeper, max_size=3)
        | st.dictionaries(
            st.sampled_from(["error", "node_errors", "errors", "class_type", "message", "extra_info", "1"]),
            deeper,
        )
    ),
)


@given(json_values)
def test_no_answer_is_a_surprise(document: Any) -> None:
    assert refused("/prompt", 400, json.dumps(document).encode()).message
    assert isinstance(said_of_nodes(document), str)


def test_a_node_that_fails() -> None:
    error = failure("execution_error", exception_type="ValueError", exception_message="bad\nshape\n")
    assert isinstance(error, EngineError)
    assert error.message == "ComfyUI: node 3 (KSampler) failed: ValueError: bad shape"
    assert error.details == {
        "reason": "node_failed",
        "node": "3",
        "node_type": "KSampler",
        "exception": "ValueError",
    }


@pytest.mark.parametrize(
    ("exception", "message"),
    [
        (
            "torch.OutOfMemoryError",
            "Allocation on device \nThis error means you ran out of memory on your GPU.",
        ),
        ("torch.cuda.OutOfMemoryError", "CUDA out of memory."),
        (
            "RuntimeError",
            "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: 9 bytes",
        ),
        ("MemoryError", ""),
    ],
)
def test_no_memory_is_an_error_of_its_own(exception: str, message: str) -> None:
    error = failure("execution_error", exception_type=exception, exception_message=message)
    assert isinstance(error, OutOfMemory)
    assert error.message.startswith("ComfyUI: node 3 (KSampler) ran out of memory; ask for a smaller")
    assert error.details["reason"] == "out_of_memory"


@pytest.mark.parametrize(("node", "param"), [("LoadImage", "image"), ("LoadImageMask", "mask")])
def test_a_file_that_is_no_picture_is_the_clients_fault(node: str, param: str) -> None:
    facts = {"exception_type": "PIL.UnidentifiedImageError", "exception_message": "cannot identify file"}
    error = failure("execution_error", node_type=node, **facts)
    assert isinstance(error, RequestUnprocessable)
    assert error.param == param
    assert isinstance(failure("execution_error", node_type="ImageLoader", **facts), EngineError)


def test_somebody_interrupted_it() -> None:
    error = failure("execution_interrupted")
    assert error.message == "ComfyUI: somebody interrupted it at node 3 (KSampler)"
    assert error.details == {"reason": "interrupted"}


def test_a_failure_without_a_word() -> None:
    assert "does not say why" in failed([]).message
