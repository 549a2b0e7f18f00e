"""Who gets memory and who gives it back: one scenario a test, on a clock of its own."""

from __future__ import annotations

from dataclasses import replace

import pytest
from arbiter_world import LIMITS, World

from slotd.arbiter import messages as ev
from slotd.arbiter import tenant as tn
from slotd.arbiter.room import Reading, Room
from slotd.errors import OutOfMemory


def test_what_fits_is_admitted_at_once_and_reserved_before_it_is_up() -> None:
    w = World()
    w.add("a", 60)
    w.want("a")
    assert w.took() == ["admitted a"]
    assert w.state.holds["a"].room == Room(60)


def test_nobody_is_let_in_before_the_memory_has_been_measured() -> None:
    w = World()
    w.auto_measure = False
    w.add("a", 60)
    w.want("a")
    assert w.took() == []
    assert "measured" in w.why("a")
    w.measure()
    assert w.took() == ["admitted a"]


def test_a_measurement_from_before_a_slot_came_up_lets_nobody_in() -> None:
    w = World()
    w.add("a", 40)
    w.add("b", 40)
    w.want("a")
    w.auto_measure = False
    w.up("a")
    w.strangers = 50  # and meanwhile another program has come
    w.want("b")
    assert w.took() == ["admitted a"]
    w.wait(0.05)
    w.measure()
    assert w.took() == ["contended a on"], "not `admitted b`, on what was free before"


def test_measuring_is_spaced_out() -> None:
    w = World()
    w.add("a", 60)
    w.add("b", 60)
    w.loaded("a", leases=1)
    w.want("b")
    first = w.state.number
    w.wait(5)
    assert w.state.number - first <= 11, "every half second, while it waits for others to be done"
    w.auto_measure = False
    w.release("a")
    w.wait(1)
    w.gone("a", free=False)
    w.auto_measure = True
    number = w.state.number
    w.wait(1)
    assert w.state.number - number <= 21, "every 50 ms, while memory is being given back"


def test_loads_side_by_side_do_not_each_fit_into_the_same_memory() -> None:
    w = World()
    for name in ("a", "b", "c"):
        w.add(name, 40)
    for name in ("a", "b", "c"):
        w.want(name)
    assert w.took() == ["admitted a", "admitted b"]
    assert "waits until 'a', 'b' has loaded" in w.why("c")


def test_a_shortage_that_is_only_double_counting_evicts_nobody() -> None:
    """b is being loaded and has taken up nearly all of its memory; counted once more, c would not fit."""
    w = World()
    w.add("a", 10)
    w.add("b", 50)
    w.add("c", 35)
    w.loaded("a")
    w.want("b")
    w.slots["b"].taken = 45
    w.wait(2)
    w.took()
    w.want("c")
    w.wait(20)
    assert w.took() == []
    assert w.why("c") == "waits until 'b' has loaded"
    w.up("b")
    w.wait(0.1)
    assert w.took() == ["admitted c"]


def test_disjoint_loads_go_at_once_and_a_small_one_beside_a_big_one_that_waits() -> None:
    w = World()
    w.add("busy", 60)
    w.add("big", 70)
    w.add("small", 20)
    w.add("medium", 40)
    w.loaded("busy", leases=1)
    w.want("big", since=w.now)
    w.want("small", since=w.now)
    w.want("medium", since=w.now)
    assert w.took() == ["contended busy on", "admitted small"], "100 hold big and small, once busy has gone"
    assert "medium" in w.state.demands


def test_small_loads_do_not_starve_a_big_one() -> None:
    w = World()
    w.add("a", 30)
    w.add("b", 30)
    w.add("big", 90)
    w.add("c", 30)
    w.loaded("a", "b", leases=1)
    w.want("big")
    w.want("c")
    assert "admitted c" not in w.took(), "what is free is kept for the older demand"
    for name in ("a", "b"):
        w.release(name)
    w.wait(1)
    assert w.took() == ["leave a", "leave b", "contended a off", "contended b off"]
    w.gone("a")
    w.wait(0.1)
    assert w.took() == [], "nor may it take what the first victim gives back"
    w.gone("b")
    w.wait(0.1)
    assert w.took() == ["admitted big"]


def test_the_oldest_goes_first() -> None:
    w = World()
    w.add("a", 100)
    w.add("young", 100)
    w.add("old", 100)
    w.loaded("a", leases=1)
    w.want("young", since=w.now)
    w.want("old", since=w.now - 1)
    w.release("a")
    w.wait(1)
    w.gone("a")
    w.wait(0.1)
    assert w.took()[-1] == "admitted old"


# --- victims ------------------------------------------------------------------------


def test_the_least_valuable_goes_first_by_priority_then_last_use() -> None:
    w = World()
    w.add("dear", 25, priority=90)
    w.add("recent", 25)
    w.add("older", 25)
    w.add("cheap", 25, priority=10)
    w.add("new", 50)
    for name in ("dear", "older", "recent", "cheap"):
        w.loaded(name, leases=1)
        w.release(name)
        w.wait(2)
    w.want("new")
    assert w.took() == ["leave cheap", "leave older"]


def test_a_victim_that_a_larger_one_makes_needless_is_spared() -> None:
    w = World()
    w.add("small", 10)
    w.add("large", 60)
    w.add("new", 70)
    w.loaded("small", "large")
    w.want("new")
    assert w.took() == ["leave large"]


def test_one_that_was_used_a_moment_ago_is_not_quiet_yet() -> None:
    w = World()
    w.add("a", 60)
    w.add("b", 60)
    w.loaded("a", leases=1)
    w.release("a")
    w.want("b")
    assert w.took() == ["contended a on"]
    w.wait(0.9)
    assert w.took() == []
    w.wait(0.2)
    assert w.took() == ["leave a", "contended a off"]


def test_pinned_slots_and_strangers_servers_are_never_told_to_leave() -> None:
    w = World()
    w.add("pinned", 30, pinned=True, priority=1)
    w.add("outside", 0, owns_memory=False)
    w.add("a", 40)
    w.add("b", 60)
    w.loaded("pinned", "outside", "a")
    w.want("b")
    w.wait(20)
    assert w.took() == ["leave a"]


def test_a_server_that_slotd_does_not_run_needs_no_room() -> None:
    w = World()
    w.auto_measure = False
    w.add("outside", 5000, owns_memory=False)
    w.want("outside")
    assert w.took() == ["admitted outside"]
    assert not w.state.holds["outside"].room


def test_a_victim_that_stays_is_asked_again_after_a_pause_or_when_it_is_quiet() -> None:
    w = World()
    w.add("a", 60)
    w.add("b", 60)
    w.loaded("a")
    view = w.slots["a"].view()
    w.slots["a"].leases = 1  # leased between the look and the order

    class Stale(type(w.slots["a"])):  # type: ignore[misc] # what it shows is a moment old
        def view(self) -> tn.TenantView:
            return view

    w.slots["a"].__class__ = Stale
    w.want("b")
    assert w.took() == ["leave a", "contended a on"]
    assert not w.state.debts["b"].losers, "it has not been driven out"
    w.wait(0.9)
    assert w.took() == []
    w.quiet("a")
    assert w.took()[0] == "leave a"
    w.wait(1.1)
    assert w.took().count("leave a") == 1


def test_two_demands_do_not_count_on_the_same_victim() -> None:
    w = World()
    w.add("v1", 50)
    w.add("v2", 50)
    w.add("x", 50)
    w.add("y", 50)
    w.loaded("v1", "v2")
    w.want("x")
    w.want("y")
    assert w.took() == ["leave v1", "leave v2"]


def test_nor_on_the_same_busy_one() -> None:
    w = World()
    w.add("first", 60)
    w.add("second", 40)
    w.add("x", 60)
    w.add("y", 40)
    w.loaded("first", "second", leases=1)
    w.want("x")
    w.want("y")
    assert w.why("x") == "waits for memory: 'first' is in use"
    assert w.why("y") == "waits for memory: 'second' is in use"


# --- busy slots ------------------------------------------------------------------------


def test_busy_slots_are_told_and_leave_when_they_are_quiet() -> None:
    w = World()
    w.add("a", 60)
    w.add("b", 60)
    w.loaded("a", leases=2)
    w.want("b")
    assert w.took() == ["contended a on"]
    w.wait(10)
    w.release("a")
    w.wait(1)
    w.quiet("a")
    assert w.took() == ["leave a", "contended a off"]


def test_nobody_leaves_before_all_that_are_needed_can() -> None:
    w = World()
    w.add("idle", 50)
    w.add("busy", 50)
    w.add("new", 100)
    w.loaded("idle")
    w.loaded("busy", leases=1)
    w.want("new")
    w.wait(5)
    assert w.took() == ["contended busy on"]
    w.release("busy")
    w.wait(1.1)
    assert w.took() == ["leave idle", "leave busy", "contended busy off"]


def test_after_max_wait_a_busy_slot_has_to_drain() -> None:
    w = World()
    w.add("a", 60)
    w.add("b", 60)
    w.loaded("a", leases=1)
    w.want("b")
    w.wait(29.9)
    assert w.took() == ["contended a on"]
    w.wait(0.2)
    assert w.took() == ["leave~ a", "contended a off"]
    order = w.slots["a"].orders[-1]
    assert order.drain
    assert order.refusal is None
    assert order.cut_after_s is None
    w.wait(20)  # it takes its time
    w.release("a")
    w.gone("a")
    w.wait(0.1)
    assert w.took() == ["admitted b"]


def test_a_wait_counts_from_when_the_request_came() -> None:
    w = World()
    w.add("a", 60)
    w.add("b", 60)
    w.loaded("a", leases=1)
    w.wait(40)
    w.want("b", since=w.now - 25)
    w.wait(5.1)
    assert "leave~ a" in w.took()


def test_a_slot_that_has_just_come_up_has_its_turn_first() -> None:
    w = World()
    w.add("a", 60)
    w.add("b", 60)
    w.want("a", queued=1)
    w.want("b", since=w.now)
    w.wait(40)
    w.took()
    w.slots["a"].phase, w.slots["a"].taken, w.slots["a"].queued = "up", 60, 1
    w.send(tn.Up("a", 1))
    w.wait(5)
    assert "leave~ a" not in w.took(), "those for whom it was loaded still wait"
    w.lease("a")
    w.wait(0.6)
    assert w.took() == ["leave~ a", "contended a off"]


def test_one_that_was_driven_out_queues_behind_those_it_left_for() -> None:
    """Its own requests are older, but it has had its turn."""
    w = World()
    w.add("a", 60)
    w.add("b", 60)
    w.loaded("a", leases=1)
    old = w.now
    w.want("b", since=w.now)
    w.wait(31)
    w.release("a")
    w.took()
    w.slots["a"].phase = "off"
    w.slots["a"].holds, w.slots["a"].taken = False, 0
    w.auto_measure = False
    w.send(tn.Gone("a", 1))
    w.want("a", since=old - 5)
    w.auto_measure = True
    w.measure()
    w.wait(0.1)
    assert w.took() == ["admitted b"]
    w.up("b", leases=1)
    w.wait(29)
    assert "leave~ b" not in w.took(), "and waits from when it left"
    w.wait(2)
    assert "leave~ b" in w.took()


def test_abcabc_takes_three_loads_not_six() -> None:
    """Each slot serves all that has come for it before the next one has its turn."""
    w = World()
    for name in ("a", "b", "c"):
        w.add(name, 80)
    waiting = {name: [1, 2] for name in ("a", "b", "c")}
    for name in ("a", "b", "c"):
        w.want(name, queued=2)
        w.now += 0.001
    loads = []
    for _ in range(12):
        up = next((s for s in w.slots.values() if s.phase == "loading"), None)
        if up is not None:
            loads.append(up.name)
            w.up(up.name, leases=len(waiting.pop(up.name)))
            w.wait(3)
            w.release(up.name)
        w.wait(1.1)
        for slot in w.slots.values():
            if slot.phase == "unloading":
                w.gone(slot.name)
        w.wait(0.2)
    assert loads == ["a", "b", "c"]
    assert not waiting


def test_contention_ends_when_nobody_needs_the_room_any_more() -> None:
    w = World()
    w.add("a", 60)
    w.add("b", 60)
    w.loaded("a", leases=1)
    w.want("b")
    assert w.took() == ["contended a on"]
    w.withdraw("b")
    assert w.took() == ["contended a off"]


# --- what never fits, and what does not come in time -----------------------------------------


def test_what_never_fits_is_denied_at_once_with_numbers_and_nobody_leaves_for_it() -> None:
    w = World()
    w.add("idle", 50)
    w.add("huge", 101)
    w.loaded("idle")
    w.want("huge")
    assert w.took() == ["denied huge slot.out_of_memory"]
    (error,) = w.slots["huge"].errors
    assert isinstance(error, OutOfMemory)
    assert error.status == 507
    for words in ("huge", "101 MiB", "100 MiB", "1 MiB too much", "memory.budget_mb", "memory.reserve_mb"):
        assert words in error.message
    assert error.details["need"] == {"ram_mb": 101, "gpu_mb": 0, "source": "estimated"}
    assert error.details["budget"] == {"ram_mb": 100, "gpu_mb": None}
    assert error.details["held"] == {"idle": {"ram_mb": 50, "gpu_mb": 0}}
    (event,) = w.kinds("arbiter.denied")
    assert event["slot"] == "huge"
    assert event["code"] == "slot.out_of_memory"


def test_what_pinned_slots_leave_no_room_for_is_denied_at_once_and_names_them() -> None:
    w = World()
    w.add("keep", 50, pinned=True)
    w.add("b", 60)
    w.loaded("keep")
    w.want("b")
    assert w.took() == ["denied b slot.out_of_memory"]
    assert "'keep' (50 MiB)" in w.slots["b"].errors[0].message


def test_gpu_memory_has_a_budget_of_its_own() -> None:
    w = World(replace(LIMITS, gpu_reserve_mb=5), gpu=55)
    w.add("a", 10, 30)
    w.add("b", 10, 30)
    w.add("cpu", 20)
    w.add("huge", 10, 51)
    w.loaded("a")
    w.want("b")
    assert w.took() == ["leave a"]
    w.want("cpu")
    assert w.took() == ["admitted cpu"], "what needs no GPU does not wait for one"
    w.want("huge")
    assert w.took() == ["denied huge slot.out_of_memory"]
    assert "GPU" in w.slots["huge"].errors[0].message


def test_strangers_that_hold_the_memory_are_blamed_after_a_while() -> None:
    w = World()
    w.add("a", 20)
    w.add("b", 60)
    w.loaded("a")
    w.strangers = 70
    w.want("b")
    w.wait(4.9)
    assert w.took() == []
    assert "other programs" in w.why("b")
    w.wait(0.2)
    assert w.took() == ["denied b slot.out_of_memory"]
    assert "other programs" in w.slots["b"].errors[0].message
    assert w.slots["b"].errors[0].retry_after_s is not None


def test_strangers_that_go_in_time_are_no_trouble() -> None:
    w = World()
    w.add("b", 60)
    w.strangers = 70
    w.want("b")
    w.wait(3)
    w.strangers = 0
    w.wait(1)
    assert w.took() == ["admitted b"]


def test_what_strangers_hold_is_made_good_by_ours_if_they_can_go() -> None:
    w = World()
    w.add("a", 30)
    w.add("b", 50)
    w.loaded("a")
    w.strangers = 40  # the ledger has room for both, the machine has not
    w.want("b")
    assert w.took() == ["leave a"]
    w.gone("a")
    w.wait(0.1)
    assert w.took() == ["admitted b"]


def test_a_wait_is_bounded_and_says_who_held_the_memory() -> None:
    w = World(replace(LIMITS, max_wait_s=500))
    w.add("a", 60)
    w.add("b", 60)
    w.loaded("a", leases=1)
    w.want("b")
    w.wait(99)
    assert "denied b slot.out_of_memory" not in w.took()
    w.wait(2)
    assert "denied b slot.out_of_memory" in w.took()
    assert "'a' (60 MiB)" in w.slots["b"].errors[0].message
    assert w.slots["b"].errors[0].details["waits"] == "waits for memory: 'a' is in use"


# --- eviction ends when the memory is free -------------------------------------------------------


def test_the_next_load_waits_until_the_memory_is_measured_free() -> None:
    w = World()
    w.add("a", 60)
    w.add("b", 60)
    w.loaded("a")
    w.want("b")
    w.wait(1)
    w.gone("a", free=False)
    w.wait(2)
    assert w.took() == ["leave a"]
    assert "given back" in w.why("b")
    w.freed("a")
    w.wait(0.06)
    assert w.took() == ["admitted b"]
    (released,) = w.kinds("arbiter.released")
    assert released["slot"] == "a"
    assert released["for"] == "b"
    assert released["seen"] is True
    assert released["ram_mb"] == 60
    assert released["waited_s"] == pytest.approx(2, abs=0.06)
    (evicting,) = w.kinds("arbiter.evicting")
    assert evicting["slot"] == "a"
    assert evicting["for"] == "b"


def test_memory_that_never_counted_as_taken_need_not_show_as_free() -> None:
    """Of weights that are mapped from a file, much counts as available all along."""
    w = World()
    w.add("a", 60)
    w.add("b", 60)
    w.loaded("a")
    w.slots["a"].taken = 5
    w.wait(1)
    w.want("b")
    w.wait(1)
    w.gone("a")
    w.wait(0.06)
    assert w.took() == ["leave a", "admitted b"]
    (released,) = w.kinds("arbiter.released")
    assert released["seen"] is True
    assert not w.state.releases


def test_memory_that_does_not_come_back_is_taken_from_the_next_one() -> None:
    w = World()
    w.add("a", 40)
    w.add("c", 40)
    w.add("b", 60)
    w.loaded("a", "c")
    w.want("b")
    w.wait(1)
    w.gone("a", free=False)
    w.wait(4.9)
    assert w.took() == ["leave a"]
    w.wait(0.2)
    assert w.took() == ["leave c"], "not spawned blindly"
    assert [e["seen"] for e in w.kinds("arbiter.released")] == [False]
    w.gone("c")
    w.wait(0.1)
    assert w.took() == ["admitted b"] or "given back" in w.why("b")


def test_memory_that_never_comes_back_is_an_error_and_the_victim_may_return() -> None:
    w = World()
    w.add("a", 60)
    w.add("b", 60)
    w.loaded("a")
    w.want("b")
    w.wait(1)
    w.gone("a", free=False)
    w.wait(5)
    w.freed("a")
    w.strangers = 60
    w.wait(5.1)
    log = w.took()
    assert log[:3] == ["leave a", "denied b slot.out_of_memory", "back a"]


def test_one_that_drains_for_long_is_waited_for() -> None:
    w = World(replace(LIMITS, stop_bound_s=20, max_wait_s=5))
    w.add("a", 60)
    w.add("b", 60)
    w.loaded("a", leases=1)
    w.want("b")
    w.wait(6)
    assert w.took() == ["contended a on", "leave~ a", "contended a off"]
    w.wait(60)
    assert w.took() == [], "neither denied nor told again"
    w.release("a")
    w.gone("a")
    w.wait(0.1)
    assert w.took() == ["admitted b"]


def test_an_engine_that_does_not_end_is_not_counted_on_for_ever() -> None:
    w = World(replace(LIMITS, stop_bound_s=20))
    w.add("a", 60)
    w.add("c", 30)
    w.add("b", 50)
    w.loaded("a")
    w.loaded("c")
    w.want("b")
    assert w.took() == ["leave a"]
    w.wait(19)
    assert w.took() == []
    w.wait(2)
    assert w.took() == ["denied b slot.out_of_memory"], "40 are left beside it: never enough"
    assert "'a' (60 MiB) is pinned or cannot be ended" in w.slots["b"].errors[0].message


# --- rollback -------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["fails", "is withdrawn", "is withdrawn while loading"])
def test_a_load_that_comes_to_nothing_brings_its_victims_back_once(how: str) -> None:
    w = World()
    w.add("a", 60)
    w.add("b", 60)
    w.loaded("a")
    w.want("b")
    if how == "is withdrawn":
        w.withdraw("b")
        assert w.took() == ["leave a"], "not before it is out"
        w.gone("a")
    else:
        w.gone("a")
        w.wait(0.1)
        assert w.took() == ["leave a", "admitted b"]
        if how == "fails":
            w.fail("b")
        else:
            w.withdraw("b")
    w.wait(1)
    assert w.took() == ["back a", "admitted a"]
    w.up("a")
    w.wait(50)
    assert w.took() == []


def test_what_was_driven_out_stays_out_once_the_newcomer_is_up() -> None:
    w = World()
    w.add("a", 60)
    w.add("b", 60)
    w.loaded("a")
    w.want("b")
    w.gone("a")
    w.wait(0.1)
    w.up("b")
    w.wait(5)
    w.gone("b")
    w.wait(50)
    assert w.took() == ["leave a", "admitted b"]


def test_a_victim_that_comes_by_itself_is_not_called_back() -> None:
    w = World()
    w.add("a", 60)
    w.add("b", 60)
    w.loaded("a")
    w.want("b")
    w.gone("a")
    w.wait(0.1)
    w.want("a")
    w.fail("b")
    w.wait(1)
    assert w.took() == ["leave a", "admitted b", "admitted a"]


def test_a_victim_that_has_been_back_meanwhile_is_not_called_back() -> None:
    w = World()
    w.add("a", 60)
    w.add("b", 60)
    w.loaded("a")
    w.want("b")
    w.gone("a")
    w.wait(0.1)
    w.total = 200
    w.want("a")
    w.wait(1)
    w.up("a")
    w.gone("a")  # by its own wish
    w.fail("b")
    w.wait(1)
    assert "back a" not in w.took()


def test_the_first_failure_of_two_that_share_the_room_calls_back_only_its_own_victim() -> None:
    w = World()
    for name in ("v1", "v2"):
        w.add(name, 50)
    for name in ("x", "y"):
        w.add(name, 50)
    w.loaded("v1", "v2")
    w.want("x")
    w.want("y")
    w.gone("v1")
    w.gone("v2")
    w.wait(0.1)
    w.took()
    w.up("y")
    w.fail("x")
    w.wait(1)
    assert w.took() == ["back v1", "admitted v1"]


# --- footprints -------------------------------------------------------------------------------------


def test_what_is_measured_replaces_an_estimate_and_is_remembered() -> None:
    w = World()
    w.add("a", 80)
    w.add("b", 50)
    w.loaded("a")
    w.send(tn.Measured("a", 1, "plan", 30, 0))
    assert w.state.holds["a"].room == Room(30)
    w.slots["a"].taken = 30
    assert [(r.digest, r.ram_mb) for r in w.remembered] == [("plan", 30)]
    w.want("b")
    w.wait(0.1)
    assert w.took() == ["admitted b"]


def test_a_footprint_only_grows_within_one_load_and_never_below_what_is_configured() -> None:
    w = World()
    w.add("a", 80)
    w.add("c", 10, source="configured")
    w.loaded("a", "c")
    for mb in (30, 40, 35):
        w.send(tn.Measured("a", 1, "plan", mb, 0))
    assert w.state.holds["a"].room == Room(40)
    w.send(tn.Measured("c", 1, "plan", 5, 0))
    assert w.state.holds["c"].room == Room(10)
    w.send(tn.Measured("c", 1, "plan", 15, 0))
    assert w.state.holds["c"].room == Room(15)


def test_one_that_has_outgrown_the_budget_leaves_less_for_the_next() -> None:
    w = World()
    w.add("a", 60)
    w.add("b", 30)
    w.loaded("a")
    w.slots["a"].taken = 90
    w.send(tn.Measured("a", 1, "plan", 90, 0))
    assert w.took() == [], "nobody is thrown out for it"
    w.want("b")
    assert w.took() == ["leave a"]


# --- words that mean nothing ---------------------------------------------------------------------------


def test_words_about_older_tickets_and_unknown_slots_change_nothing() -> None:
    w = World()
    w.add("a", 60)
    w.loaded("a")
    w.gone("a")
    w.loaded("a")
    before = w.state.holds, w.state.demands
    old: list[ev.Event] = [
        tn.Up("a", 1),
        tn.Failed("a", 1),
        tn.Gone("a", 1),
        tn.Stays("a", 1, ""),
        tn.Quiet("a", 1),
    ]
    for word in (*old, tn.Withdraw("a", 1), tn.Measured("a", 1, "d", 1, 1), tn.Gone("nobody", 1)):
        w.send(word)
    w.send(tn.Admit("a", 1, tn.Need(1), "d", 0.0))
    w.send(tn.Admit("nobody", 1, tn.Need(1), "d", 0.0))
    assert (w.state.holds, w.state.demands) == before
    assert w.took() == []


def test_a_new_load_means_that_the_old_one_is_gone() -> None:
    w = World()
    w.add("a", 60)
    w.loaded("a")
    w.slots["a"].phase, w.slots["a"].taken = "off", 0  # its actor crashed, and with it the last word
    w.want("a")
    w.wait(0.1)
    assert w.took() == ["admitted a"]
    assert w.state.holds["a"].ticket == 2


def test_an_engine_that_comes_up_again_under_its_ticket_is_counted_as_loading_meanwhile() -> None:
    w = World()
    w.add("a", 50)
    w.add("b", 40)
    w.loaded("a")
    w.slots["a"].phase, w.slots["a"].taken = "loading", 0
    w.strangers = 30
    w.want("b")
    w.wait(1)
    assert w.took() == [], "what a has given up it needs again"
    w.strangers = 0
    w.wait(1)
    assert w.took() == ["admitted b"]


def test_a_slot_that_goes_by_itself_is_awaited_and_not_told() -> None:
    w = World()
    w.add("a", 60)
    w.add("c", 30)
    w.add("b", 60)
    w.loaded("c", "a")
    w.slots["a"].phase = "unloading"
    w.want("b")
    assert w.took() == []
    assert "'a'" in w.why("b")
    w.gone("a")
    w.wait(0.1)
    assert w.took() == ["admitted b"]


def test_a_slot_that_is_unregistered_leaves_nothing() -> None:
    w = World()
    w.add("a", 60)
    w.add("b", 60)
    w.loaded("a", leases=1)
    w.want("b")
    for name in ("a", "b"):
        w.send(ev.Unregistered(name))
        w.slots[name].taken = 0
    assert not w.state.holds
    assert not w.state.demands
    assert not w.state.facts
    assert not w.state.contended


def test_a_measurement_that_fails_is_tried_again() -> None:
    w = World()
    w.auto_measure = False
    w.add("a", 60)
    w.want("a")
    assert w.measuring is not None
    w.send(ev.Read(w.measuring, None))
    w.measuring = None
    w.wait(0.06)
    w.measure()
    assert w.took() == ["admitted a"]
    w.send(ev.Read(1, Reading(5, 5)))
    assert w.state.reading == Reading(110, 110), "a late answer means nothing"


def test_other_limits_apply_from_now_on() -> None:
    w = World()
    w.add("a", 60)
    w.add("b", 60)
    w.loaded("a", leases=1)
    w.want("b")
    w.total = 200
    w.send(ev.Reconfigured(replace(LIMITS, reserve_mb=0)))
    w.wait(0.6)
    assert w.took()[-2:] == ["admitted b", "contended a off"]
