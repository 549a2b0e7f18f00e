"""Templates: what is a sound one, and that nothing but the placeholders changes."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slotd.comfy.workflow import (
    PLACEHOLDERS,
    WorkflowInvalid,
    parse_workflow,
    read_workflow,
    render,
)

SHIPPED = Path(__file__).resolve().parents[2] / "config" / "workflows"
SAVE = {"class_type": "SaveImage", "inputs": {"images": ["1", 0]}}

names = st.sampled_from(sorted(PLACEHOLDERS))
plain = st.text(alphabet=st.characters(blacklist_characters="{}", codec="utf-8"), max_size=12)
spelt = names.map(lambda name: (f"{{{{{name}}}}}", name)) | names.map(lambda n: (f"{{{{ {n} }}}}", n))
leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | plain
values = st.fixed_dictionaries(
    {
        name: st.text(max_size=20) | st.just("{{seed}} {{prompt}}")
        if kind is str
        else st.integers(0, 2**64 - 1)
        for name, kind in PLACEHOLDERS.items()
    }
)


def document(inputs: Any, **own: Any) -> bytes:
    graph: dict[str, Any] = {"1": {"class_type": "Any", "inputs": inputs}, "2": SAVE}
    return json.dumps(graph | ({"slotd": own} if own else {})).encode()


def inputs_of(text: bytes, given: dict[str, Any]) -> Any:
    return render(parse_workflow(text), given)["1"]["inputs"]


@given(spelt, values)
def test_a_whole_placeholder_becomes_the_value(spelling: tuple[str, str], given: dict[str, Any]) -> None:
    text, name = spelling
    rendered = inputs_of(document({"a": text, "b": [{"c": text}]}), given)
    assert rendered == {"a": given[name], "b": [{"c": given[name]}]}
    assert type(rendered["a"]) is type(given[name])


@given(plain, spelt, plain, values)
def test_inside_a_text_it_is_text(
    before: str, spelling: tuple[str, str], after: str, given: dict[str, Any]
) -> None:
    text, name = spelling
    rendered = inputs_of(document({"a": f"x{before}{text}{after}"}), given)
    assert rendered == {"a": f"x{before}{given[name]}{after}"}


@given(
    st.recursive(
        leaves, lambda deeper: st.lists(deeper, max_size=3) | st.dictionaries(plain, deeper, max_size=3)
    )
)
def test_what_is_no_placeholder_stays_as_it_is(content: Any) -> None:
    text = document({"a": content})
    workflow = parse_workflow(text)
    before = copy.deepcopy(workflow.graph)
    assert render(workflow, {}) == json.loads(text) == before
    assert workflow.uses == frozenset()


tree = st.recursive(
    leaves | spelt.map(lambda found: found[0]),
    lambda deeper: st.lists(deeper, max_size=3) | st.dictionaries(plain, deeper, max_size=3),
)


@given(
    tree,
    st.fixed_dictionaries({n: plain if k is str else st.integers(0, 99) for n, k in PLACEHOLDERS.items()}),
)
def test_no_placeholder_survives_and_the_template_is_unchanged(content: Any, given: dict[str, Any]) -> None:
    text = document({"a": content})
    workflow = parse_workflow(text)
    rendered = render(workflow, {name: given[name] for name in workflow.uses})
    assert "{{" not in json.dumps(rendered, ensure_ascii=False)
    assert workflow.graph == json.loads(text)


def test_what_a_client_writes_is_not_looked_at_again() -> None:
    assert inputs_of(document({"a": "{{prompt}}, fine"}), {"prompt": "{{seed}}"}) == {"a": "{{seed}}, fine"}


def test_defaults_are_the_files_over_ours() -> None:
    text = document(
        {k: f"{{{{{k}}}}}" for k in ("width", "height", "steps", "prompt")}, defaults={"steps": 4}
    )
    workflow = parse_workflow(text)
    assert workflow.defaults == {"width": 1024, "height": 1024, "steps": 4}
    assert "slotd" not in workflow.graph


def test_outputs_are_those_that_save_else_those_that_show_else_named() -> None:
    show = {"class_type": "PreviewImage", "inputs": {}}
    assert parse_workflow(json.dumps({"1": show, "2": SAVE, "3": SAVE}).encode()).outputs == ("2", "3")
    assert parse_workflow(json.dumps({"1": show}).encode()).outputs == ("1",)
    assert parse_workflow(document({}, outputs=["1"])).outputs == ("1",)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"{", "not valid JSON"),
        (b"[]", "no JSON object"),
        (b"{}", "no nodes"),
        (b'{"nodes": [], "links": []}', "API format"),
        (b'{"1": {"inputs": {}}}', "no class_type"),
        (b'{"1": {"class_type": "A", "inputs": []}}', "must be an object"),
        (b'{"1": {"class_type": "KSampler", "inputs": {}}}', "no output node"),
        (document({"a": "{{promt}}"}), "did you mean prompt?"),
        (document({"a": "{{xyzzy}}"}), "known are prompt,"),
        (document({}, defaults={"steps": 4}), "no node uses {{steps}}"),
        (document({"a": "{{steps}}"}, defaults={"steps": "4"}), "must be a whole number"),
        (document({"a": "{{steps}}"}, defaults={"steps": True}), "must be a whole number"),
        (document({"a": "{{negative_prompt}}"}, defaults={"negative_prompt": 4}), "must be a string"),
        (document({"a": "{{prompt}}"}, defaults={"prompt": "x"}), "slotd.defaults.prompt: unknown"),
        (document({}, outputs=["7"]), "there is no node '7'"),
        (document({}, outputs=[]), "must be a list"),
        (document({}, default={}), "slotd.default: unknown"),
    ],
)
def test_what_is_wrong_is_said(text: bytes, words: str) -> None:
    with pytest.raises(WorkflowInvalid, match=re.escape(words)):
        parse_workflow(text)


def test_a_file_is_for_one_kind_of_request(tmp_path: Path) -> None:
    path = tmp_path / "w.json"
    with pytest.raises(WorkflowInvalid, match="no such file"):
        read_workflow(path, edits=False)
    path.write_bytes(document({"a": "{{image}}"}))
    assert read_workflow(path, edits=True).images == 1
    with pytest.raises(WorkflowInvalid, match="belongs in edit_workflows"):
        read_workflow(path, edits=False)
    path.write_bytes(document({"a": "{{prompt}}"}))
    with pytest.raises(WorkflowInvalid, match="belongs in workflows"):
        read_workflow(path, edits=True)
    path.write_bytes(b" " * ((4 << 20) + 1))
    with pytest.raises(WorkflowInvalid, match="longer than"):
        read_workflow(path, edits=False)


def test_what_is_shipped_is_sound() -> None:
    files = sorted(SHIPPED.glob("*.json"))
    assert files
    for path in files:
        assert "prompt" in read_workflow(path, edits="-" in path.stem).uses


def test_nothing_that_the_shipped_ones_draw_stays_in_comfyui() -> None:
    """It throws away what its previews put out, and nothing else."""
    names = [path.name for path in SHIPPED.glob("*.json")]
    assert len(names) >= 5
    for name in names:
        workflow = parse_workflow((SHIPPED / name).read_bytes())
        kinds = {node["class_type"] for node in workflow.graph.values()}
        assert "PreviewImage" in kinds, name
        assert not any(kind.startswith("Save") for kind in kinds), name
