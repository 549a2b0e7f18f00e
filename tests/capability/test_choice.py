"""The capability axis: which of the configured slots serves a type and labels."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slotd.capability.choice import LoadedSlot, choose, refusal
from slotd.errors import NoCapableSlot

TYPES = ("llm", "image", "tts")
LABELS = ("vision", "tool-calling", "edit")


def slot(name: str, type: str = "llm", *labels: str, default: bool = False) -> LoadedSlot:
    return LoadedSlot(name, name, type, labels=labels, default=default)


def named(found: LoadedSlot | None) -> str | None:
    return None if found is None else found.name


@pytest.mark.parametrize(
    ("type", "labels", "expected"),
    [
        ("llm", (), "main"),  # the default, though it is not the first
        ("llm", ("vision",), "eyes"),  # the first that has it, since the default has not
        ("llm", ("tool-calling",), "main"),  # the default has it, and goes before the first that has
        ("llm", ("vision", "tool-calling"), "both"),
        ("image", (), "draw"),  # no default: the first
        ("image", ("edit",), "paint"),
        ("tts", (), None),
        ("llm", ("edit",), None),
    ],
)
def test_choose(type: str, labels: tuple[str, ...], expected: str | None) -> None:
    slots = [
        slot("eyes", "llm", "vision"),
        slot("both", "llm", "vision", "tool-calling"),
        slot("main", "llm", "tool-calling", default=True),
        slot("draw", "image", "image"),
        slot("paint", "image", "image", "edit"),
    ]
    assert named(choose(slots, type, labels)) == expected


@given(
    st.lists(
        st.builds(
            LoadedSlot,
            name=st.uuids().map(str),
            model_id=st.just("m"),
            type=st.sampled_from(TYPES),
            labels=st.lists(st.sampled_from(LABELS), unique=True).map(tuple),
            default=st.booleans(),
        ),
        max_size=6,
    ),
    st.sampled_from(TYPES),
    st.sets(st.sampled_from(LABELS)),
)
def test_the_chosen_one_can_and_no_better_one_was_passed_over(
    slots: list[LoadedSlot], type: str, labels: set[str]
) -> None:
    able = [s for s in slots if s.type == type and labels <= set(s.labels)]
    found = choose(slots, type, labels)
    assert (found is None) == (not able)
    if found is not None:
        assert found in able
        before = able[: able.index(found)]
        assert not any(s.default for s in before)
        assert found.default or not before
        assert found.default or not any(s.default for s in able)


def test_tool_calling_is_a_label() -> None:
    assert slot("a", "llm", "tool-calling").tool_calling
    assert not slot("a", "llm", "vision").tool_calling


def test_a_refusal_names_type_and_labels_and_what_there_is() -> None:
    slots = [slot("a", "llm", "vision"), slot("b", "llm")]
    error = refusal(slots, "llm", {"tool-calling", "vision"})
    assert isinstance(error, NoCapableSlot)
    assert (error.code, error.status) == ("dispatch.no_capable_slot", 404)
    assert error.message == "no llm slot has the labels tool-calling, vision (a has vision; b has none)"
    assert error.details == {"type": "llm", "labels": ["tool-calling", "vision"], "slots": ["a", "b"]}
    assert refusal(slots, "tts").message == "no tts slot is configured"
