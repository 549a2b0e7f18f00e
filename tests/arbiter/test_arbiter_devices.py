"""Exclusive devices: enter, commit, fail, restore, take over; and a new arbiter after a crash."""

from __future__ import annotations

from dataclasses import replace

import pytest
from arbiter_world import LIMITS, FakeSlot, World

from slotd.arbiter import messages as ev
from slotd.arbiter import tenant as tn
from slotd.arbiter.exclusive import Phase
from slotd.errors import GpuExclusive, SlotPinned


def lab(**changes: object) -> World:
    """chat and embed share the GPU, img and vid need it alone, cpu has nothing to do with it."""
    w = World(replace(LIMITS, **changes))  # type: ignore[arg-type] # a test's shorthand
    w.add("chat", 20, device="gpu0", drain_timeout_s=7.0)
    w.add("embed", 10, device="gpu0")
    w.add("img", 30, device="gpu0", exclusive="gpu0", restore_after_s=60.0)
    w.add("vid", 30, exclusive="gpu0", restore_after_s=60.0)
    w.add("cpu", 20)
    return w


def in_mode(w: World, *losers: str) -> None:
    """img has the GPU, and has driven out those named."""
    w.loaded(*losers)
    w.want("img")
    for name in losers:
        w.gone(name)
    w.wait(0.1)
    w.up("img")
    w.took()


def test_a_claim_drives_everyone_out_whether_busy_or_not_and_nobody_else() -> None:
    w = lab()
    w.loaded("chat", leases=1)
    w.loaded("embed", "cpu")
    w.want("img")
    assert w.took() == ["leave! chat", "leave! embed"]
    (order,) = w.slots["chat"].orders
    assert order.drain
    assert order.cut_after_s == 7.0
    assert isinstance(order.refusal, GpuExclusive)
    assert order.refusal.status == 503
    assert order.refusal.retry_after_s == pytest.approx(30 + 60)
    w.gone("embed")
    w.wait(3)
    assert w.took() == [], "not while one is still draining"
    assert "'chat'" in w.why("img")
    w.gone("chat")
    w.wait(0.1)
    assert w.took() == ["admitted img"]


def test_one_that_loads_is_driven_out_as_well() -> None:
    w = lab()
    w.want("chat")
    w.want("img")
    assert w.took() == ["admitted chat", "leave! chat"]


def test_one_that_drains_for_memory_is_told_again_with_a_bound() -> None:
    w = lab()
    w.add("fat", 90)
    w.loaded("chat", leases=1)
    w.want("fat")
    w.wait(31)
    assert w.took()[-2:] == ["leave~ chat", "contended chat off"]
    w.want("img")
    assert w.took() == ["leave! chat"]
    assert w.slots["chat"].orders[-1].cut_after_s == 7.0


def test_from_the_claim_on_those_who_share_the_device_are_refused() -> None:
    w = lab()
    w.loaded("chat", leases=1)
    w.want("img")
    w.took()
    w.want("embed")
    w.want("cpu")
    assert w.took() == ["denied embed gpu.exclusive", "admitted cpu"]
    w.release("chat")
    w.gone("chat")
    w.wait(0.1)
    w.want("embed")
    w.up("img", leases=1)
    w.want("embed")
    assert w.took() == ["admitted img", "denied embed gpu.exclusive", "denied embed gpu.exclusive"]
    assert w.state.modes["gpu0"].phase is Phase.COMMITTED


def test_one_that_waits_for_memory_on_the_device_is_refused_too() -> None:
    w = lab()
    w.add("fat", 85, device="gpu0")
    w.loaded("cpu", leases=1)
    w.want("fat")
    w.want("img")
    assert "denied fat gpu.exclusive" in w.took()


def test_retry_after_is_truthful() -> None:
    w = lab()
    in_mode(w)
    w.want("chat")
    assert w.slots["chat"].errors[-1].retry_after_s == pytest.approx(60, abs=0.2), "quiet from now"
    w.wait(20)
    w.want("chat")
    assert w.slots["chat"].errors[-1].retry_after_s == pytest.approx(40, abs=0.2)
    w.lease("img")
    w.want("chat")
    assert w.slots["chat"].errors[-1].retry_after_s == pytest.approx(60)
    w.facts("img", restore_after_s=0.0)
    w.want("chat")
    assert w.slots["chat"].errors[-1].retry_after_s == pytest.approx(60), "by hand: a guess"
    w.facts("img", restore_after_s=1e9)
    w.want("chat")
    assert w.slots["chat"].errors[-1].retry_after_s == 3600, "and never more than an hour"


def test_how_long_a_load_takes_is_learned() -> None:
    w = lab()
    w.want("img")
    w.wait(8)
    w.up("img")
    w.gone("img")
    w.want("img")
    w.wait(3)
    w.want("chat")
    assert w.slots["chat"].errors[-1].retry_after_s == pytest.approx(8 - 3 + 60, abs=0.2)


def test_a_pinned_loser_makes_the_claim_an_error_and_nobody_leaves() -> None:
    w = lab()
    w.facts("chat", pinned=True)
    w.loaded("embed", "chat")
    w.want("img")
    assert w.took() == ["denied img slot.pinned"]
    (error,) = w.slots["img"].errors
    assert isinstance(error, SlotPinned)
    assert "'chat'" in error.message
    assert not w.state.modes


def test_a_claim_that_never_fits_drives_nobody_out() -> None:
    w = lab()
    w.add("monster", 500, exclusive="gpu0")
    w.loaded("chat")
    w.want("monster")
    assert w.took() == ["denied monster slot.out_of_memory"]
    w.crash()
    w.took()
    w.auto_measure = False
    w.measuring = None
    w.want("monster")
    w.wait(2)
    assert w.took() == [], "nor before it is known what fits"


def test_a_claim_makes_room_elsewhere_too() -> None:
    w = lab()
    w.add("fat", 60)
    w.loaded("fat")
    w.loaded("chat", leases=1)
    w.add("art", 90, exclusive="gpu0")
    w.want("art")
    assert w.took() == ["leave! chat", "leave fat"]


# --- it comes to nothing -----------------------------------------------------------------------


@pytest.mark.parametrize("how", ["fails", "is withdrawn"])
def test_a_claim_that_comes_to_nothing_puts_the_losers_back(how: str) -> None:
    w = lab()
    w.loaded("chat", "embed")
    w.want("img")
    w.gone("chat")
    w.took()
    if how == "is withdrawn":
        w.withdraw("img")
        w.wait(0.1)
        assert w.took() == ["back chat", "admitted chat"]
        w.gone("embed")
        w.wait(0.1)
        assert w.took() == ["back embed", "admitted embed"]
    else:
        w.gone("embed")
        w.wait(0.1)
        w.fail("img")
        w.wait(0.1)
        assert sorted(w.took()) == [
            "admitted chat",
            "admitted embed",
            "admitted img",
            "back chat",
            "back embed",
        ]
    assert not w.state.modes
    assert w.kinds("arbiter.mode")[-1]["mode"] == "shared"


def test_a_claim_waits_for_its_device_only_so_long() -> None:
    w = lab()
    w.loaded("chat", leases=1)
    w.want("img")
    w.wait(101)
    assert w.took() == ["leave! chat", "denied img gpu.exclusive"]
    assert not w.state.modes
    w.gone("chat")
    w.wait(1)
    assert w.took() == ["back chat", "admitted chat"]


def test_a_loser_does_not_return_before_the_failed_engine_is_gone() -> None:
    w = lab()
    w.loaded("chat")
    w.want("img")
    w.gone("chat")
    w.wait(0.1)
    slot = w.slots["img"]
    w.took()
    w.send(tn.Failed("img", slot.ticket))
    assert w.took() == ["back chat"]
    assert "has left device 'gpu0'" in w.why("chat")
    slot.phase, slot.holds = "off", False
    w.send(tn.Gone("img", slot.ticket))
    w.wait(0.1)
    assert w.took() == ["admitted chat"]


# --- it ends ---------------------------------------------------------------------------------------


def test_after_restore_after_of_quiet_the_device_is_shared_again() -> None:
    w = lab()
    in_mode(w, "chat", "embed")
    w.wait(30)
    w.lease("img")
    w.wait(50)
    w.release("img")
    w.wait(59.9)
    assert w.took() == []
    w.wait(0.2)
    assert w.took() == ["leave img"]
    w.want("cpu")
    w.gone("img")
    w.wait(0.1)
    assert w.took() == ["admitted cpu", "back chat", "back embed", "admitted chat", "admitted embed"]
    assert [e["mode"] for e in w.kinds("arbiter.mode")] == ["entering", "exclusive", "shared"]


def test_an_owner_that_is_used_again_keeps_the_device() -> None:
    w = lab()
    in_mode(w, "chat")
    w.wait(59)
    w.slots["img"].leases = 1  # the look shows it quiet, its actor knows better
    quiet = replace(w.slots["img"].view(), leases=0)
    w.slots["img"].view = lambda: quiet  # type: ignore[method-assign] # what it shows is a moment old
    w.wait(1.5)
    assert w.took() == ["leave img"]
    assert w.state.modes["gpu0"].phase is Phase.COMMITTED
    del w.slots["img"].view
    w.want("chat")
    assert w.took() == ["denied chat gpu.exclusive"]


def test_demands_that_come_while_it_is_being_given_back_wait() -> None:
    w = lab()
    in_mode(w)
    w.wait(61)
    w.want("chat")
    assert w.took() == ["leave img"]
    w.gone("img")
    w.wait(0.1)
    assert w.took() == ["admitted chat"]


def test_restore_by_hand_only() -> None:
    w = lab()
    w.facts("img", restore_after_s=0.0)
    in_mode(w, "chat")
    w.wait(100_000)
    assert w.took() == []
    w.send(ev.ReleaseDevice("gpu0"))
    assert w.took() == ["leave img"]
    w.gone("img")
    w.wait(0.1)
    assert w.took() == ["back chat", "admitted chat"]
    w.send(ev.ReleaseDevice("gpu0"))
    w.send(ev.ReleaseDevice("other"))
    assert w.took() == []


def test_a_busy_owner_postpones_its_release_by_hand() -> None:
    w = lab()
    in_mode(w, "chat")
    w.lease("img")
    w.send(ev.ReleaseDevice("gpu0"))
    w.wait(20)
    assert w.took() == []
    w.release("img")
    w.wait(2.1)
    assert w.took() == ["leave img"]


def test_an_owner_that_is_gone_gives_the_device_back() -> None:
    w = lab()
    in_mode(w, "chat")
    w.gone("img")
    w.wait(0.1)
    assert w.took() == ["back chat", "admitted chat"]


def test_an_owner_evicted_for_memory_gives_the_device_back() -> None:
    w = lab()
    in_mode(w, "chat")
    w.wait(2)
    w.add("fat", 80)
    w.want("fat")
    assert w.took() == ["leave img"]
    w.gone("img")
    w.wait(0.1)
    assert w.took() == ["back chat", "admitted fat", "admitted chat"]
    assert not w.state.modes


def test_an_owner_that_comes_up_again_under_its_ticket_keeps_the_device() -> None:
    w = lab()
    in_mode(w, "chat")
    w.slots["img"].phase = "loading"
    w.wait(5)
    w.up("img")
    w.wait(5)
    assert w.took() == []
    assert w.state.modes["gpu0"].phase is Phase.COMMITTED


# --- another claims it as well -------------------------------------------------------------------------


def test_another_claimant_takes_over_from_a_quiet_owner_directly() -> None:
    w = lab()
    in_mode(w, "chat")
    w.wait(2)
    w.want("vid")
    assert w.took() == ["leave img"]
    w.gone("img")
    w.wait(0.1)
    assert w.took() == ["admitted vid"], "and chat is not called back in between"
    w.up("vid")
    w.wait(60)
    w.gone("vid")
    w.wait(0.1)
    assert w.took() == ["leave vid", "back chat", "admitted chat"]


def test_another_claimant_waits_for_a_busy_owner_but_not_for_ever() -> None:
    w = lab()
    in_mode(w, "chat")
    w.lease("img")
    w.want("vid")
    w.wait(29)
    assert w.took() == ["contended img on"]
    assert "which slot 'img' has for itself" in w.why("vid")
    w.wait(2)
    assert w.took() == ["leave~ img", "contended img off"]
    w.gone("img")
    w.wait(0.1)
    assert w.took() == ["admitted vid"]


def test_a_takeover_that_fails_gives_the_device_to_those_who_share_it_or_else_to_the_owner_before() -> None:
    for losers, back in ((("chat",), "chat"), ((), "img")):
        w = lab()
        in_mode(w, *losers)
        w.wait(2)
        w.want("vid")
        w.gone("img")
        w.wait(0.1)
        w.took()
        w.fail("vid")
        w.wait(0.1)
        assert w.took() == [f"back {back}", f"admitted {back}"]


def test_an_owner_that_left_by_itself_is_not_called_back_when_the_next_one_fails() -> None:
    w = lab()
    in_mode(w)
    w.lease("img")
    w.want("vid")
    w.gone("img")
    w.wait(0.1)
    w.fail("vid")
    w.wait(0.1)
    assert "back img" not in w.took()


def test_a_pinned_owner_is_not_contested() -> None:
    w = lab()
    w.facts("img", pinned=True)
    in_mode(w)
    w.want("vid")
    assert w.took() == ["denied vid slot.pinned"]
    w.wait(1000)
    assert w.took() == []


def test_a_victim_of_memory_that_shares_the_device_comes_back_with_the_others() -> None:
    """chat left for fat, which fails while img has the device: chat comes back when the mode ends."""
    w = lab()
    w.add("fat", 65)
    w.loaded("chat", "cpu")
    w.want("fat")
    w.gone("chat")
    w.wait(0.1)
    w.took()
    w.slots["cpu"].leases = 1
    w.slots["img"].need = tn.Need(5)
    w.want("img")
    assert w.took() == ["admitted img"]
    w.fail("fat")
    w.up("img")
    assert w.took() == []
    assert w.state.modes["gpu0"].losers == ("chat",)
    w.wait(2)
    w.gone("img")
    w.wait(0.1)
    assert w.took() == ["back chat", "admitted chat"]


# --- a new arbiter -----------------------------------------------------------------------------------------


def test_a_new_arbiter_asks_everyone_and_admits_nobody_before_all_have_answered() -> None:
    w = World()
    for name in ("a", "b", "c"):
        w.add(name, 60)
    w.loaded("a", leases=1)
    w.want("b")
    w.took()
    answers: list[FakeSlot] = []
    w.resynced = answers.append  # type: ignore[method-assign,assignment] # they answer below
    w.crash()
    w.want("c")
    w.send(tn.Holding("a", 1, w.slots["a"].need, True))
    w.send(tn.Holding("b", None, w.slots["b"].need, False))
    w.send(tn.Admit("b", 1, w.slots["b"].need, "d", 0.0))
    w.wait(0.5)
    assert w.took() == []
    w.send(tn.Holding("c", None, w.slots["c"].need, False))
    w.send(tn.Admit("c", 1, w.slots["c"].need, "d", w.now))
    assert len(answers) == 3
    assert w.took() == []
    w.wait(0.02)
    assert w.state.holds["a"].up
    assert w.took() == ["contended a on"], "nothing is over-admitted"
    w.release("a")
    w.wait(1)
    w.gone("a")
    w.wait(0.1)
    assert w.took() == ["leave a", "contended a off", "admitted b"]


def test_one_that_does_not_answer_holds_up_itself_only() -> None:
    w = World()
    w.add("a", 60)
    w.add("dead", 10)
    resynced = w.resynced
    w.resynced = lambda slot: None if slot.name == "dead" else resynced(slot)  # type: ignore[method-assign]
    w.crash()
    w.want("a")
    w.wait(0.9)
    assert w.took() == []
    w.wait(0.2)
    assert w.took() == ["admitted a"]
    w.resynced = resynced  # type: ignore[method-assign]
    w.want("dead")
    w.wait(0.1)
    assert w.took() == ["admitted dead"], "asked again, it answers"


def test_a_new_arbiter_brings_back_victims_of_loads_that_have_failed_meanwhile() -> None:
    w = World()
    w.add("a", 60)
    w.add("b", 60)
    w.loaded("a")
    w.want("b")
    w.gone("a")
    w.wait(0.1)
    w.slots["b"].phase, w.slots["b"].holds = "off", False  # its words are lost in the crash
    w.crash()
    w.wait(0.1)
    assert w.took() == ["leave a", "admitted b", "back a", "admitted a"]


def test_a_new_arbiter_knows_modes_and_who_lost_by_them() -> None:
    w = lab()
    in_mode(w, "chat")
    w.crash()
    w.want("embed")
    w.wait(0.02)
    assert w.took() == ["denied embed gpu.exclusive"]
    w.wait(62)
    w.gone("img")
    w.wait(0.1)
    assert w.took() == ["leave img", "back chat", "admitted chat"]


def test_a_new_arbiter_ends_modes_whose_owner_has_gone_meanwhile() -> None:
    w = lab()
    in_mode(w, "chat")
    w.slots["img"].phase, w.slots["img"].holds, w.slots["img"].taken = "off", False, 0
    w.crash()
    w.wait(0.1)
    assert w.took() == ["back chat", "admitted chat"]


def test_a_slot_that_says_unasked_that_it_holds_nothing_is_believed() -> None:
    w = World()
    w.add("a", 60)
    w.loaded("a")
    w.send(tn.Holding("a", None, tn.Need(60), False))
    assert not w.state.holds
