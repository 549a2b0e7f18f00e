"""Plans of faults: a function of the seed, and rich enough."""

from __future__ import annotations

import itertools
from typing import get_args

from hypothesis import given
from hypothesis import strategies as st

from slotd.testing.chaos import plan as p

TARGETS = (p.Target("chat"), p.Target("pair", models=("m1", "m2")), p.Target("real", fake=False))


@given(st.integers(0, 2**32), st.integers(1, 60))
def test_a_plan_is_a_function_of_its_seed(seed: int, count: int) -> None:
    steps = p.make_plan(seed, count, 1.0, TARGETS)
    assert steps == p.make_plan(seed, count, 1.0, TARGETS)
    assert [step.number for step in steps] == list(range(1, count + 1))
    assert all(a.at_s < b.at_s for a, b in itertools.pairwise(steps))
    assert len({p.told(step.fault) for step in steps}) > count / 4, "not the same thing again and again"


def test_a_long_plan_has_every_kind_of_fault_and_keeps_its_pace() -> None:
    steps = p.make_plan(1, 1000, 1.2, TARGETS)
    assert {type(step.fault) for step in steps} == set(get_args(p.Fault))
    assert 1100 < steps[-1].at_s < 1300
    knobs = {step.fault.knob for step in steps if isinstance(step.fault, p.Misbehave)}
    assert knobs == {knob for knob, _ in p.MISBEHAVIOURS}


def test_what_needs_the_fake_engine_is_not_done_to_another() -> None:
    fakes_only = (p.Misbehave, p.StartFails, p.StealPort, p.Hog, p.Stubborn)
    for step in p.make_plan(2, 1000, 1.0, TARGETS):
        if isinstance(step.fault, fakes_only):
            assert step.fault.slot != "real"


def test_kinds_can_be_left_out_and_slotd_dies_early_only() -> None:
    steps = p.make_plan(3, 500, 1.0, TARGETS, without=frozenset({p.KillEngine}))
    assert not any(isinstance(step.fault, p.KillEngine) for step in steps)
    deaths = [step.number for step in steps if isinstance(step.fault, p.BreakSlotd)]
    assert deaths
    assert max(deaths) <= 100


def test_rows_of_the_table() -> None:
    assert p.kind(p.KillEngine("chat")) == "kill engine"
    assert p.kind(p.Command("chat", "swap", "m")) == "command swap"
    assert p.told(p.Freeze("chat", 1.5)) == "Freeze slot=chat for_s=1.5"
