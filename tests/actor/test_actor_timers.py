from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from slotd.actor import Timers

names = st.sampled_from("abcdef")
times = st.floats(0, 100)


def test_an_empty_table_waits_for_ever() -> None:
    timers = Timers()
    assert timers.next() == math.inf
    assert timers.pop_due(1e9) == []


def test_setting_again_moves_and_clearing_removes() -> None:
    timers = Timers()
    timers.set("probe", 5)
    timers.set("probe", 9)
    timers.set("idle", 7)
    assert timers.view() == {"probe": 9, "idle": 7}
    assert timers.pop_due(8) == ["idle"]
    timers.clear("probe")
    timers.clear("never set")
    assert timers.next() == math.inf


def test_a_deadline_is_due_at_its_time_and_handed_out_once() -> None:
    timers = Timers()
    timers.set("t", 5)
    assert timers.pop_due(4.999) == []
    assert timers.pop_due(5) == ["t"]
    assert timers.pop_due(5) == []


def test_the_view_is_a_copy() -> None:
    timers = Timers()
    view = timers.view()
    timers.set("t", 1)
    assert view == {}


@given(st.dictionaries(names, times), times)
def test_what_is_due_comes_earliest_first_and_the_rest_stays(table: dict[str, float], now: float) -> None:
    timers = Timers()
    for name, at in table.items():
        timers.set(name, at)
    due = timers.pop_due(now)
    assert [table[name] for name in due] == sorted(at for at in table.values() if at <= now)
    assert timers.view() == {name: at for name, at in table.items() if at > now}
    assert timers.next() > now
