"""The arithmetic of memory."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from slotd.arbiter.room import (
    UNLIMITED,
    Balance,
    Limits,
    Reading,
    Room,
    capacity,
    choose,
    settled_need,
    total,
)
from slotd.arbiter.tenant import Need

rooms = st.builds(Room, st.integers(0, 50), st.integers(0, 50))


def test_the_capacity_is_the_budget_and_never_the_reserve() -> None:
    reading = Reading(1000, 900, 500, 400)
    assert capacity(Limits(reserve_mb=100, gpu_reserve_mb=50), reading) == Room(900, 450)
    assert capacity(Limits(budget_mb=300, reserve_mb=100, gpu_budget_mb=100), reading) == Room(300, 100)
    assert capacity(Limits(budget_mb=5000, reserve_mb=100), reading).ram_mb == 900
    assert capacity(Limits(reserve_mb=2000), reading).ram_mb == 0


def test_what_cannot_be_measured_sets_no_limit_but_a_budget_does() -> None:
    assert capacity(Limits(), Reading()) == Room(UNLIMITED, UNLIMITED)
    assert capacity(Limits(gpu_budget_mb=70), Reading()).gpu_mb == 70
    assert Reading().free == Room(UNLIMITED, UNLIMITED)
    assert Room(5, UNLIMITED).as_dict() == {"ram_mb": 5, "gpu_mb": None}


def test_what_is_not_needed_cannot_be_lacking() -> None:
    balance = Balance(capacity=Room(100, 0), free=Room(100, -20))
    assert balance.fits(Room(50, 0))
    assert not balance.fits(Room(50, 1))
    assert balance.short(Room(50, 1)) == Room(0, 21)


def test_a_load_fits_the_ledger_and_what_is_measured() -> None:
    assert not Balance(capacity=Room(100), free=Room(500), held=Room(60)).fits(Room(50))
    assert not Balance(capacity=Room(500), free=Room(40), held=Room(60)).fits(Room(50))
    assert Balance(capacity=Room(110), free=Room(50), held=Room(60)).fits(Room(50))


def test_loads_under_way_count_as_not_taken_up_but_call_for_no_eviction() -> None:
    balance = Balance(capacity=Room(200), free=Room(80), held=Room(60), loading=Room(60))
    assert not balance.fits(Room(50))
    assert not balance.short(Room(50))
    assert balance.short(Room(90)) == Room(10)


def test_a_later_load_goes_beside_what_an_older_one_waits_for() -> None:
    # An older demand of 80 gets the 90 of one that is leaving; 20 more are free now.
    balance = Balance(capacity=Room(110), free=Room(20), held=Room(90), coming=Room(90), claims=Room(80))
    assert balance.fits(Room(20))
    assert not balance.fits(Room(31))
    assert balance.short(Room(35)) == Room(5)
    waiting_for_nothing_yet = Balance(capacity=Room(110), free=Room(20), held=Room(90), claims=Room(80))
    assert not waiting_for_nothing_yet.fits(Room(20))


def test_victims_are_the_smallest_set_in_order() -> None:
    ranked = [("a", Room(1)), ("b", Room(1)), ("c", Room(5)), ("d", Room(9))]
    assert choose(ranked, Room(2)) == ("a", "b")
    assert choose(ranked, Room(5)) == ("c",)
    assert choose(ranked, Room(6)) == ("a", "c")
    assert choose(ranked, Room(17)) == ()
    assert choose([("cpu", Room(9)), ("gpu", Room(1, 5))], Room(0, 4)) == ("gpu",)


@given(st.lists(rooms, max_size=8), rooms.filter(bool))
def test_the_victims_suffice_and_none_is_needless(given_rooms: list[Room], short: Room) -> None:
    ranked = [(str(i), room) for i, room in enumerate(given_rooms)]
    chosen = choose(ranked, short)
    rooms_of = dict(ranked)
    if not chosen:
        assert short.beyond(total(given_rooms))
        return
    assert not short.beyond(total(rooms_of[c] for c in chosen))
    for needless in chosen:
        assert short.beyond(total(rooms_of[c] for c in chosen if c != needless))


def test_a_footprint_wins_over_an_estimate_and_a_configured_need_is_a_floor() -> None:
    learned = Need(70, 5, "measured")
    assert settled_need(Need(90, 0, "estimated"), learned) == learned
    assert settled_need(Need(90, 0, "configured"), learned) == Need(90, 5, "configured")
    assert settled_need(Need(50, 9, "configured"), learned) == Need(70, 9, "configured")
    assert settled_need(Need(90, 0, "estimated"), None) == Need(90, 0, "estimated")
