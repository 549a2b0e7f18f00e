"""What is kept for clients: within its bound, and all of an answer for as long as that is on its way."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from slotd.artifacts import ArtifactLimits, Artifacts, Together
from slotd.errors import AnswerTooLarge

PNG = "image/png"


def shelf(max_bytes: int = 10, ttl_s: float = 100.0) -> Artifacts:
    return Artifacts(lambda: ArtifactLimits(max_bytes, ttl_s))


async def test_the_oldest_go_first(autojump_clock: MockClock) -> None:
    kept = shelf()
    first, second = kept.put(b"x" * 5, PNG), kept.put(b"y" * 5, PNG)
    third = kept.put(b"z" * 4, "audio/wav")
    assert kept.get(first) is None
    assert kept.get(second) is not None
    found = kept.get(third)
    assert found is not None
    assert (found.data, found.content_type) == (b"zzzz", "audio/wav")
    assert kept.total_bytes == 9


async def test_one_answers_results_do_not_drive_each_other_out(autojump_clock: MockClock) -> None:
    kept = shelf()
    other = kept.put(b"another's", PNG)
    with kept.together() as together:
        ids = [together.put(b"1234", PNG), together.put(b"5678", PNG)]
        assert kept.get(other) is None, "older ones make room"
        with pytest.raises(AnswerTooLarge, match=r"one answer of 12 bytes .*\(10 bytes; omni.artifacts_mb"):
            together.put(b"9abc", PNG)
        ids.append(together.put(b"9a", PNG))
    assert all(kept.get(id) is not None for id in ids)


async def test_who_is_refused_has_driven_nobody_out(autojump_clock: MockClock) -> None:
    kept = shelf()
    other = kept.put(b"abcd", PNG)
    with kept.together() as together:
        mine = together.put(b"abcd", PNG)
        with pytest.raises(AnswerTooLarge):
            together.put_all((b"12", PNG), (b"34567", PNG))
        with pytest.raises(AnswerTooLarge, match="a result of 11 bytes is larger than what may be kept"):
            kept.put(b"x" * 11, PNG)
        assert kept.total_bytes == 8
        assert kept.get(other) is not None
        assert kept.get(mine) is not None


async def test_answers_that_are_on_their_way_do_not_drive_each_other_out(autojump_clock: MockClock) -> None:
    kept = shelf()
    with kept.together() as one:
        mine = one.put(b"123456", PNG)
        with kept.together() as other, pytest.raises(AnswerTooLarge, match="on their way") as refused:
            other.put(b"12345", PNG)
        assert "omni.artifacts_mb" in refused.value.message
        assert kept.get(mine) is not None
    with kept.together() as other:
        other.put(b"12345", PNG)
    assert kept.get(mine) is None, "once it is delivered it is as any"


async def test_younger_ones_go_before_those_of_an_answer_on_its_way(autojump_clock: MockClock) -> None:
    kept = shelf()
    with kept.together() as together:
        mine = together.put(b"1234", PNG)
        younger = kept.put(b"5678", PNG)
        assert kept.put(b"9abcd", PNG)
        assert kept.get(younger) is None
        assert kept.get(mine) is not None


async def test_their_time_begins_when_the_answer_is_there(autojump_clock: MockClock) -> None:
    kept = shelf()
    with kept.together() as together:
        mine = together.put(b"12", PNG)
        await trio.sleep(150)
        younger = kept.put(b"34", PNG)
        assert kept.get(mine) is not None
    await trio.sleep(99)
    assert kept.get(mine) is not None
    kept.put(b"123456789", PNG)
    assert (kept.get(mine), kept.get(younger)) == (None, None)
    with kept.together() as together:
        mine = together.put(b"12", PNG)
    await trio.sleep(100)
    assert kept.get(mine) is None


async def test_a_failure_lets_go_too(autojump_clock: MockClock) -> None:
    kept = shelf()
    with suppress(KeyError), kept.together() as together:
        mine = together.put(b"1234567890", PNG)
        raise KeyError
    assert kept.get(mine) is not None, "its client may have heard of it before"
    kept.put(b"1", PNG)
    assert kept.get(mine) is None


async def test_they_are_bounded_by_number_too(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("slotd.artifacts.COUNT_MAX", 2)
    kept = shelf()
    with kept.together() as together:
        ids = together.put_all((b"", PNG), (b"", PNG))
        with pytest.raises(AnswerTooLarge):
            kept.put(b"", PNG)
        assert all(kept.get(id) is not None for id in ids)


@dataclass
class Open:
    together: Together
    ids: list[str] = field(default_factory=list)


STEPS = st.tuples(
    st.sampled_from(["put", "alone", "put", "alone", "open", "close", "bound"]),
    st.integers(0, 3),
    st.integers(1, 6),
)


@given(st.lists(STEPS, min_size=5, max_size=40))
def test_whatever_comes_open_answers_keep_all_they_have(steps: list[tuple[str, int, int]]) -> None:
    async def play() -> None:
        bound = 10
        kept = Artifacts(lambda: ArtifactLimits(bound, 100.0))
        answers = [Open(kept.together().__enter__())]
        for what, which, size in steps:
            mine: Any = answers[which % len(answers)] if answers else None
            held = sum(size_of(kept, id) for answer in answers for id in answer.ids)
            if what == "open":
                answers.append(Open(kept.together().__enter__()))
            elif what == "bound":
                bound = 5 + size
            elif what == "close" and mine:
                mine.together.__exit__(None, None, None)
                answers.remove(mine)
            elif what in ("put", "alone"):
                target = mine.together if what == "put" and mine else kept
                try:
                    id = target.put(b"x" * size, PNG)
                except AnswerTooLarge:
                    assert held + size > bound
                else:
                    assert held + size <= bound
                    assert kept.total_bytes <= bound
                    if target is not kept:
                        mine.ids.append(id)
            assert all(kept.get(id) is not None for answer in answers for id in answer.ids)

    trio.run(play)


def size_of(kept: Artifacts, id: str) -> int:
    found = kept.get(id)
    assert found is not None
    return len(found.data)
