"""The first of several ends counts, and comes as it is."""

from __future__ import annotations

from functools import partial

import pytest
import trio
from trio.testing import MockClock

from slotd.exchange.race import first_of


async def after(seconds: float, what: str | Exception, ended: list[str] | None = None) -> str:
    try:
        await trio.sleep(seconds)
    finally:
        if ended is not None:
            ended.append(str(what))
    if isinstance(what, Exception):
        raise what
    return what


async def test_the_first_to_end_counts_and_the_others_have_ended(autojump_clock: MockClock) -> None:
    ended: list[str] = []
    assert await first_of(partial(after, 2, "b", ended), partial(after, 1, "a", ended)) == "a"
    assert ended == ["a", "b"]
    assert trio.current_time() == 1


async def test_an_error_comes_bare(autojump_clock: MockClock) -> None:
    with pytest.raises(KeyError):
        await first_of(partial(after, 2, "b"), partial(after, 1, KeyError("x")))


async def test_one_alone(autojump_clock: MockClock) -> None:
    assert await first_of(partial(after, 1, "a")) == "a"


async def test_a_cancellation_from_outside_ends_all(autojump_clock: MockClock) -> None:
    ended: list[str] = []
    with trio.move_on_after(1) as scope:
        await first_of(partial(after, 2, "b", ended), partial(after, 3, "a", ended))
    assert scope.cancelled_caught
    assert sorted(ended) == ["a", "b"]
