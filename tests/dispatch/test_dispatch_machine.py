"""The state machine against simulated remotes, on simulated time; no trio."""

from __future__ import annotations

import heapq
import itertools
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from slotd.dispatch import (
    BindingEntry,
    DispatchLimits,
    Route,
    RouteTable,
    SlotEntry,
    UpstreamEntry,
    UpstreamTarget,
    compile_table,
)
from slotd.dispatch import messages as ev
from slotd.dispatch.catalog import SavedCatalog, UpstreamSnapshot
from slotd.dispatch.machine import step
from slotd.dispatch.policy import SlotView
from slotd.dispatch.state import begin, explain
from slotd.errors import NoRouteFound, SlotdError, SlotQueueFull, UpstreamUnavailable

CHAT = "/v1/chat/completions"


@dataclass
class Remote:
    """Answers after ``delay`` seconds: with its models, or (None) by failing. Infinite: never."""

    models: tuple[str, ...] | None = ()
    delay: float = 0.01


class Sim:
    """Drives the machine: carries out its effects and advances the clock from event to event."""

    def __init__(
        self,
        remotes: dict[str, Remote],
        *,
        slots: Iterable[SlotEntry] = (),
        bindings: Iterable[BindingEntry] = (),
        static: dict[str, tuple[str, ...]] | None = None,
        saved: dict[str, SavedCatalog] | None = None,
        **limits: float,
    ) -> None:
        self.remotes = remotes
        self.static = static or {}
        self.slots, self.bindings = tuple(slots), tuple(bindings)
        self.limits = replace(DispatchLimits(), **limits)  # type: ignore[arg-type] # some are ints
        self.now = 0.0
        self.state = begin(self.table(), saved or {}, 0.0)
        self.calls: Counter[str] = Counter()
        self.outcomes: dict[int, tuple[float, Route | SlotdError]] = {}
        self.persisted: list[dict[str, tuple[str, ...]]] = []
        self._ids = itertools.count(1)
        self._coming: list[tuple[float, int, ev.Event]] = []
        self._order = itertools.count()

    def table(self) -> RouteTable:
        entries = [UpstreamEntry(n, f"http://{n}/v1") for n in self.remotes]
        entries += [UpstreamEntry(n, f"http://{n}/v1", models=m) for n, m in self.static.items()]
        return compile_table(self.slots, entries, self.bindings, self.limits)

    def send(self, event: ev.Event) -> None:
        self.state, effects = step(self.state, event, self.now)
        for effect in effects:
            match effect:
                case ev.Fetch(name, flight):
                    self.calls[name] += 1
                    remote = self.remotes[name]
                    if math.isfinite(remote.delay):
                        done: ev.Event = (
                            ev.Fetched(name, flight, remote.models)
                            if remote.models is not None
                            else ev.FetchFailed(name, flight, "refused")
                        )
                        heapq.heappush(self._coming, (self.now + remote.delay, next(self._order), done))
                case ev.Answer(id, route):
                    assert id not in self.outcomes
                    self.outcomes[id] = (self.now, route)
                case ev.Refuse(id, error):
                    assert id not in self.outcomes
                    self.outcomes[id] = (self.now, error)
                case ev.Persist(upstreams):
                    self.persisted.append(
                        {n: u.catalog.models for n, u in upstreams.items() if u.catalog is not None}
                    )

    def run(self, until: float = math.inf) -> None:
        """Let time pass, to ``until`` or until nothing is due any more."""
        while True:
            coming = self._coming[0][0] if self._coming else math.inf
            at = min(coming, self.state.next_due)
            if at > until or math.isinf(at):
                break
            self.now = max(self.now, at)
            if self.state.next_due <= coming:
                before = self.state.next_due
                self.send(ev.Due())
                assert self.state.next_due > before, "a deadline came due and was not dealt with"
            else:
                self.send(heapq.heappop(self._coming)[2])
        if math.isfinite(until):
            self.now = until

    def ask(self, model: str | None, path: str = CHAT) -> int:
        id = next(self._ids)
        self.send(ev.Resolve(id, model, path))
        return id

    def resolve(self, model: str | None, path: str = CHAT) -> Route | SlotdError:
        """Ask, and let time pass until there is an answer."""
        id = self.ask(model, path)
        while id not in self.outcomes:
            coming = self._coming[0][0] if self._coming else math.inf
            self.run(min(coming, self.state.next_due))
        return self.outcomes[id][1]

    def route(self, model: str | None, path: str = CHAT) -> Route:
        found = self.resolve(model, path)
        assert isinstance(found, Route), found
        return found

    def miss(self, model: str) -> NoRouteFound:
        found = self.resolve(model)
        assert isinstance(found, NoRouteFound), found
        return found

    def status(self, name: str) -> UpstreamSnapshot:
        return UpstreamSnapshot.of(self.state.world.upstreams[name], self.now, self.limits.catalog_ttl_s)


NEVER = math.inf


# --- prefetch ------------------------------------------------------------------


def test_cold_remote_that_lists_it_is_prefetched_then_warm() -> None:
    sim = Sim({"a": Remote(("m",))})
    cold = sim.route("m")
    assert (cold.target, cold.tier, cold.cache) == (UpstreamTarget("a"), 3, "fetched")
    warm = sim.route("m")
    assert (warm.tier, warm.cache) == (2, "warm")
    assert sim.calls == {"a": 1}


def test_a_hundred_identical_cold_queries_are_one_call_per_remote() -> None:
    sim = Sim({n: Remote(("m",)) for n in "abc"})
    ids = [sim.ask("m") for _ in range(100)]
    sim.run()
    routes = [sim.outcomes[i][1] for i in ids]
    assert {str(r.target) for r in routes if isinstance(r, Route)} == {"upstream:a"}
    assert len(routes) == 100
    assert sim.calls == {"a": 1, "b": 1, "c": 1}


def test_a_query_joins_flights_under_way() -> None:
    sim = Sim({"a": Remote(("m", "n"), delay=1.0)})
    first = sim.ask("m")
    sim.run(0.5)
    second = sim.ask("n")
    sim.run()
    assert [sim.outcomes[i][0] for i in (first, second)] == [1.0, 1.0]
    assert sim.calls == {"a": 1}


@pytest.mark.parametrize("blackholed", range(8))
def test_one_blackholed_of_eight_costs_the_live_ones_round_trip(blackholed: int) -> None:
    names = [f"r{i}" for i in range(8)]
    sim = Sim({n: Remote(("m",), NEVER if i == blackholed else 0.02) for i, n in enumerate(names)})
    id = sim.ask("m")
    sim.run(0.2)
    at, route = sim.outcomes[id]
    assert isinstance(route, Route)
    # Only one declared before the winner can cost the grace.
    assert at == pytest.approx(0.02 + (0.05 if blackholed == 0 else 0.0))
    assert str(route.target) == ("upstream:r1" if blackholed == 0 else "upstream:r0")


def test_declared_order_wins_within_the_grace() -> None:
    sim = Sim({"slow": Remote(("m",), 0.06), "fast": Remote(("m",), 0.02)})
    assert sim.route("m").target == UpstreamTarget("slow")
    assert sim.now == 0.06


def test_a_failed_remote_does_not_hold_up_the_ones_after_it() -> None:
    sim = Sim({"dead": Remote(None, 0.03), "live": Remote(("m",), 0.01)})
    assert sim.route("m").target == UpstreamTarget("live")
    assert sim.now == 0.03


def test_sixteen_blackholed_first_do_not_keep_the_live_ones_from_being_asked() -> None:
    remotes = {f"dead{i}": Remote((), NEVER) for i in range(16)} | {"live": Remote(("m",), 0.01)}
    sim = Sim(remotes, prefetch_parallel=16)
    assert sim.route("m").target == UpstreamTarget("live")
    # They free their places after 0.1 s; then the round trip, and the grace for the silent ones.
    assert sim.now == pytest.approx(0.1 + 0.01 + 0.05)


def test_starts_are_bounded_and_a_queued_remote_counts_as_unanswered() -> None:
    sim = Sim({f"r{i}": Remote((), NEVER) for i in range(128)}, prefetch_parallel=16, fetch_timeout_s=20.0)
    id = sim.ask("m")
    assert len(sim.calls) == 16
    sim.run(0.15)
    assert len(sim.calls) == 32
    sim.run(0.75)
    assert len(sim.calls) == 128
    assert id not in sim.outcomes
    sim.run(8.0)
    assert sim.outcomes[id][0] == 8.0
    assert set(sim.calls.values()) == {1}


def test_places_free_at_once_when_remotes_answer() -> None:
    sim = Sim({f"r{i}": Remote((), 0.01) for i in range(128)}, prefetch_parallel=16)
    sim.miss("m")
    assert sim.now == pytest.approx(0.08)


def test_a_miss_ends_when_all_have_answered_or_at_the_time_limit() -> None:
    sim = Sim({"a": Remote(("other",), 0.02), "b": Remote(None, 0.03)})
    error = sim.miss("othr")
    assert sim.now == 0.03
    assert error.details["close"] == ["other"]
    assert error.details["tiers"] == [1, 2, 3]
    assert error.details["offline"] == ["b"]

    late = Sim({"a": Remote((), NEVER)})
    late.miss("m")
    assert late.now == 8.0


def test_flights_outlive_a_late_query_and_warm_the_catalog() -> None:
    sim = Sim({"a": Remote(("m",), 12.0)})
    sim.miss("m")
    assert sim.now == 8.0
    sim.run()
    assert sim.now == 12.0
    assert sim.route("m").tier == 2  # and the miss is forgotten, since a catalog has changed


def test_a_fetch_has_a_time_limit_of_its_own() -> None:
    sim = Sim({"a": Remote((), NEVER)}, fetch_timeout_s=20.0)
    sim.miss("m")
    sim.run()
    assert sim.now == 20.0
    assert (sim.status("a").status, sim.status("a").reason) == ("offline", "no answer within 20 s")


def test_a_withdrawn_query_leaves_nothing_behind() -> None:
    sim = Sim({f"r{i}": Remote((), NEVER) for i in range(20)}, prefetch_parallel=16, fetch_timeout_s=5.0)
    id = sim.ask("m")
    sim.send(ev.Withdraw(id))
    assert not sim.state.queries
    assert not any(u.asked is not None and u.flight is None for u in sim.state.world.upstreams.values())
    sim.run()
    assert len(sim.calls) == 16  # what had not begun never does
    assert id not in sim.outcomes
    assert sim.state.next_due == math.inf


def test_another_query_keeps_what_a_withdrawn_one_had_asked_for() -> None:
    sim = Sim({f"r{i}": Remote((), 0.01) for i in range(20)}, prefetch_parallel=16)
    first, second = sim.ask("m"), sim.ask("n")
    sim.send(ev.Withdraw(first))
    sim.run()
    assert set(sim.outcomes) == {second}
    assert len(sim.calls) == 20


def test_close_names_are_found_among_many_and_for_few_misses_of_a_step() -> None:
    many = tuple(f"org/model-{i}-instruct" for i in range(900))
    sim = Sim({"a": Remote((*many, "qwen-coder"), 0.01)}, slots=[SlotEntry("chat", "llm", "smollm2")])
    assert sim.miss("QWEN-codr").details["close"] == ["qwen-coder"]
    assert sim.miss("smollm").details["close"] == ["smollm2"]
    crowd = Sim({"a": Remote(many, 0.01)}, slots=[SlotEntry("chat", "llm", "smollm2")])
    ids = [crowd.ask(f"smollm{i}") for i in range(100, 200)]
    crowd.run()
    told = [getattr(crowd.outcomes[i][1], "details", {})["close"] for i in ids]
    assert told == [["smollm2"]] * 8 + [[]] * 92


def test_what_a_request_waits_for_is_asked_before_what_is_only_refreshed() -> None:
    sim = Sim({n: Remote((), NEVER) for n in "xab"}, prefetch_parallel=1, backoff_s=0.05)
    sim.send(ev.ReportFailure("x"))
    sim.ask("m")  # wants a, which is asked, and b, which waits for a place
    sim.run(0.06)
    sim.send(ev.Refresh())  # x may be asked again
    sim.run(0.1)
    assert list(sim.calls) == ["a", "b"]
    sim.run(0.2)
    assert list(sim.calls) == ["a", "b", "x"]


def test_a_refresh_goes_on_when_the_query_that_wanted_the_same_leaves() -> None:
    sim = Sim({"a": Remote(), "b": Remote()}, prefetch_parallel=1)
    id = sim.ask("m")
    sim.send(ev.Refresh())
    sim.send(ev.Withdraw(id))
    sim.run()
    assert sim.calls == {"a": 1, "b": 1}


def test_a_miss_is_forgotten_when_a_catalog_changes_that_was_not_waited_for() -> None:
    sim = Sim({"a": Remote((), 12.0)}, negative_ttl_s=60.0)
    sim.miss("m")
    sim.run()
    assert "m" not in sim.state.misses


def test_too_many_waiting_is_a_typed_refusal() -> None:
    sim = Sim({"a": Remote((), NEVER)}, max_waiting=2)
    ids = [sim.ask(f"m{i}") for i in range(3)]
    assert isinstance(sim.outcomes[ids[2]][1], SlotQueueFull)
    sim.send(ev.Withdraw(ids[0]))
    assert sim.ask("m3") not in sim.outcomes


# --- memory ----------------------------------------------------------------------


def test_a_miss_is_remembered_and_asks_nobody_again() -> None:
    sim = Sim({"a": Remote((), NEVER)}, negative_ttl_s=60.0, fetch_timeout_s=9.0)
    sim.miss("m")
    sim.run(9.0)
    again = sim.miss("m")
    assert sim.now == 9.0
    assert again.details["cache"] == "negative"
    assert sim.calls == {"a": 1}


def test_a_miss_is_forgotten_in_time_and_when_a_catalog_changes() -> None:
    sim = Sim({"a": Remote(None, 0.01)}, negative_ttl_s=60.0, backoff_s=1.0)
    sim.miss("m")
    sim.remotes["a"] = Remote(("m",), 0.01)
    sim.run(2.0)
    # Refused at once, but the remote may be asked again by now, and is.
    assert sim.miss("m").details["cache"] == "negative"
    sim.run(2.5)
    assert sim.calls == {"a": 2}
    assert sim.route("m").tier == 2

    timed = Sim({"a": Remote((), 0.01)}, negative_ttl_s=5.0)
    timed.miss("m")
    assert timed.miss("m").details["cache"] == "negative"
    timed.run(6.0)
    assert timed.miss("m").details["cache"] == "none"


def test_misses_are_bounded_and_the_oldest_goes_first() -> None:
    sim = Sim({}, max_misses=3)
    for name in ("a", "b", "c", "a", "d"):
        sim.miss(name)
    assert set(sim.state.misses) == {"b", "c", "d"}


def test_an_overlong_name_is_neither_asked_for_nor_remembered() -> None:
    sim = Sim({"a": Remote((), NEVER)})
    error = sim.miss("x" * 100_000)
    assert sim.now == 0.0
    assert len(error.message) < 1200
    assert not sim.state.misses
    assert not sim.calls


def test_a_stale_catalog_serves_while_one_fetch_renews_it() -> None:
    sim = Sim({"a": Remote(("m",), 0.01)}, catalog_ttl_s=100.0)
    sim.route("m")
    sim.remotes["a"] = Remote(("n",), 0.5)
    sim.run(200.0)
    assert sim.status("a").status == "stale"
    assert [sim.route("m").cache for _ in range(10)] == ["stale"] * 10
    assert sim.now == 200.0
    assert sim.calls == {"a": 2}
    sim.run()
    assert sim.status("a").models == ("n",)  # replaced, not merged
    assert isinstance(sim.resolve("m"), NoRouteFound)


def test_a_name_that_a_stale_catalog_lacks_is_asked_for() -> None:
    sim = Sim({"a": Remote(("m",), 0.01)}, catalog_ttl_s=100.0)
    sim.route("m")
    sim.remotes["a"] = Remote(("m", "new"), 0.01)
    sim.run(200.0)
    assert (sim.route("new").tier, sim.now) == (3, 200.01)


def test_kept_catalogs_are_warm_but_stale() -> None:
    kept = {
        "a": SavedCatalog("http://a/v1", ("m",), 10.0),
        "b": SavedCatalog("http://elsewhere/v1", ("n",), 10.0),
        "gone": SavedCatalog("http://gone/v1", ("o",), 10.0),
    }
    sim = Sim({"a": Remote(("m",), 0.01), "b": Remote((), 0.01)}, saved=kept)
    assert sim.status("a").age_s == 10.0
    assert [sim.status(n).status for n in "ab"] == ["stale", "cold"]
    assert (sim.route("m").cache, sim.now) == ("stale", 0.0)
    sim.run()
    assert sim.route("m").cache == "warm"


def test_changes_are_persisted_and_renewals_without_change_are_not() -> None:
    sim = Sim({"a": Remote(("m",), 0.01)}, catalog_ttl_s=10.0)
    sim.route("m")
    sim.run(100.0)
    sim.route("m")
    sim.run()
    assert sim.persisted == [{"a": ("m",)}]


def test_a_catalog_is_bounded_and_names_are_unique() -> None:
    sim = Sim({"a": Remote(("x", "x", "", "y" * 600, "z", "w"))}, max_catalog_models=2)
    sim.route("z")
    assert sim.status("a").models == ("x", "z")


def test_refresh_asks_the_cold_and_stale_in_the_background() -> None:
    sim = Sim({"a": Remote(("m",)), "b": Remote(None)}, static={"s": ("x",)})
    sim.send(ev.Refresh())
    sim.send(ev.Refresh())
    sim.run()
    sim.send(ev.Refresh())
    assert sim.calls == {"a": 1, "b": 1}
    assert sim.route("m").tier == 2


# --- remotes that fail -------------------------------------------------------------


def test_a_failed_remote_backs_off_longer_each_time_and_success_resets() -> None:
    sim = Sim({"a": Remote(None, 0.0)}, backoff_s=5.0, backoff_max_s=18.0, negative_ttl_s=0.0)
    pauses = []
    for _ in range(4):
        calls = sim.calls["a"]
        sim.miss("m")
        assert sim.calls["a"] == calls + 1
        pauses.append(sim.status("a").retry_in_s)
        sim.run(sim.now + (pauses[-1] or 0) - 0.01)
        sim.miss("m")
        assert sim.calls["a"] == calls + 1, "asked again within its back-off"
        sim.run(sim.now + 0.01)
    assert pauses == pytest.approx([5.0, 10.0, 18.0, 18.0])
    sim.remotes["a"] = Remote(("m",), 0.0)
    assert sim.route("m").tier == 3
    assert (sim.status("a").failures, sim.status("a").reason) == (0, "")


def test_a_reported_failure_takes_the_remote_out_until_its_back_off_is_over() -> None:
    sim = Sim({"a": Remote(("m",)), "b": Remote(("m",))}, backoff_s=5.0)
    assert sim.route("m").target == UpstreamTarget("a")
    sim.run(1.0)
    for _ in range(50):
        sim.send(ev.ReportFailure("a"))  # requests that fail together
    assert (sim.status("a").status, sim.status("a").failures) == ("offline", 1)
    assert sim.route("m").target == UpstreamTarget("b")
    sim.run(6.1)
    assert sim.status("a").status == "cold"


def test_a_report_during_the_race_takes_a_hit_back() -> None:
    sim = Sim({"slow": Remote(("m",), 0.5), "fast": Remote(("m",), 0.01)}, prefetch_grace_s=0.2)
    id = sim.ask("m")
    sim.run(0.1)
    sim.send(ev.ReportFailure("fast"))
    sim.run()
    at, route = sim.outcomes[id]
    assert isinstance(route, Route)
    assert (at, route.target) == (0.5, UpstreamTarget("slow"))


def test_a_hit_taken_back_does_not_use_up_the_grace_of_the_next() -> None:
    sim = Sim(
        {"first": Remote(("m",), 0.6), "second": Remote(("m",), 0.5), "third": Remote(("m",), 0.01)},
        prefetch_grace_s=0.2,
    )
    id = sim.ask("m")
    sim.run(0.1)
    sim.send(ev.ReportFailure("third"))
    sim.run()
    at, route = sim.outcomes[id]
    assert isinstance(route, Route)
    assert (at, route.target) == (0.6, UpstreamTarget("first"))


def test_a_bound_remote_that_is_offline_falls_through() -> None:
    bindings = [BindingEntry("m*", upstream="a"), BindingEntry("*1", upstream="b", model="spare")]
    sim = Sim({"a": Remote(("m1",)), "b": Remote(("m2",))}, bindings=bindings, backoff_s=5.0)
    assert (sim.route("m1").target, sim.route("m1").tier) == (UpstreamTarget("a"), 1)
    assert not sim.calls  # a bound remote needs no catalog
    sim.send(ev.ReportFailure("a"))
    assert (sim.route("m1").target, sim.route("m1").model) == (UpstreamTarget("b"), "spare")
    assert sim.route("m2").target == UpstreamTarget("b")  # by its catalog
    error = sim.resolve("m3")
    assert isinstance(error, UpstreamUnavailable)  # the name is known: no 404
    assert error.details["upstream"] == "a"
    sim.run(6.0)
    assert sim.route("m3").target == UpstreamTarget("a")
    sim.run()
    # Used again after a failure: one fetch found out that it is well.
    assert (sim.calls["a"], sim.status("a").failures) == (1, 0)


def test_static_lists_are_warm_never_asked_and_back_off_too() -> None:
    sim = Sim({}, static={"s": ("m",)}, backoff_s=5.0, backoff_max_s=20.0)
    assert (sim.route("m").tier, sim.status("s").status) == (2, "static")
    sim.send(ev.ReportFailure("s"))
    assert isinstance(sim.resolve("m"), NoRouteFound)
    sim.run(5.0)
    assert sim.route("m").target == UpstreamTarget("s")
    sim.send(ev.ReportFailure("s"))
    assert sim.status("s").retry_in_s == 10.0
    sim.run(100.0)
    sim.send(ev.ReportFailure("s"))  # long after: a new row
    assert (sim.status("s").failures, sim.status("s").retry_in_s) == (1, 5.0)


# --- slots, configuration, explain ------------------------------------------------


def test_a_slot_that_comes_to_list_the_name_ends_the_wait() -> None:
    sim = Sim({"a": Remote((), NEVER)}, slots=[SlotEntry("chat", "llm", "m")])
    id = sim.ask("extra")
    sim.send(ev.SlotsChanged({"chat": SlotView("chat", 0, "ready", "m", ("extra",), 3)}))
    route = sim.outcomes[id][1]
    assert isinstance(route, Route)
    assert (str(route.target), route.tier, route.generation) == ("slot:chat", 2, 3)


def test_a_replaced_table_keeps_known_servers_and_drops_the_others() -> None:
    sim = Sim({"a": Remote(("m",)), "b": Remote(("n",)), "c": Remote((), NEVER)})
    sim.send(ev.Refresh())
    sim.run(1.0)
    del sim.remotes["b"], sim.remotes["c"]
    sim.remotes["d"] = Remote(("o",))
    state, effects = step(sim.state, ev.TableReplaced(sim.table()), sim.now)
    sim.state = state
    assert [e for e in effects if isinstance(e, ev.CancelFetch)] == [ev.CancelFetch("c", 3)]
    assert sim.route("m").tier == 2
    assert isinstance(sim.resolve("n"), NoRouteFound)
    assert sim.route("o").target == UpstreamTarget("d")


def test_who_waits_while_the_table_is_replaced_is_served_by_the_new_one() -> None:
    sim = Sim({"a": Remote((), 0.5)})
    bound, asked = sim.ask("bound"), sim.ask("o")
    sim.remotes["d"] = Remote(("o",), 1.0)
    sim.slots = (SlotEntry("bound", "llm"),)
    sim.send(ev.TableReplaced(sim.table()))
    assert str(getattr(sim.outcomes[bound][1], "target", "")) == "slot:bound"
    sim.run()
    at, route = sim.outcomes[asked]
    assert isinstance(route, Route)
    assert (at, str(route.target)) == (1.0, "upstream:d")


def test_explain_says_what_would_happen_and_changes_nothing() -> None:
    sim = Sim({"a": Remote(("m",)), "b": Remote(None)}, slots=[SlotEntry("chat", "llm", "q", default=True)])
    assert explain(sim.state, "m", CHAT, 0.0).would_ask == ("a", "b")
    named = explain(sim.state, "chat", CHAT, 0.0)
    assert named.route is not None
    assert named.as_dict()["route"]["rule"] == 'slot "chat"'
    wrong = explain(sim.state, "chat", "/v1/embeddings", 0.0)
    assert wrong.error is not None
    assert wrong.error[0] == "dispatch.capability_mismatch"
    sim.miss("nothing")
    miss = explain(sim.state, "nothing", CHAT, sim.now)
    assert miss.error is not None
    assert (miss.error[0], sim.calls) == ("dispatch.no_route", {"a": 1, "b": 1})


def test_registry_and_warm_hits_leave_the_state_untouched() -> None:
    sim = Sim({"a": Remote(("m",))}, slots=[SlotEntry("chat", "llm", "q")])
    sim.route("m")
    for name in ("chat", "q", "m"):
        before = sim.state
        sim.route(name)
        assert sim.state is before


# --- any sequence of events ----------------------------------------------------------

NAMES = ("m", "n", "chat", "bound", "lost", "nothing")


class Anything(RuleBasedStateMachine):
    """Whatever happens: every query settles once, one flight per remote, back-off holds."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.limits = DispatchLimits(
            prefetch_parallel=2,
            backoff_s=3.0,
            backoff_max_s=10.0,
            negative_ttl_s=4.0,
            catalog_ttl_s=20.0,
            fetch_timeout_s=12.0,
            max_waiting=5,
        )
        self.state = begin(self.table(("a", "b", "c", "d")), {}, 0.0)
        self.ids = itertools.count(1)
        self.open: set[int] = set()
        self.flying: dict[str, int] = {}
        self.starts: list[float] = []

    def table(self, upstreams: Iterable[str]) -> RouteTable:
        entries = [UpstreamEntry(n, f"http://{n}", models=("m",) if n == "d" else ()) for n in upstreams]
        return compile_table(
            [SlotEntry("chat", "llm", "q", default=True), SlotEntry("e", "embedding", "v", default=True)],
            entries,
            [BindingEntry("bound", upstream="a"), BindingEntry("lost", upstream="nowhere")],
            self.limits,
        )

    def send(self, event: ev.Event) -> None:
        old = self.state
        self.state, effects = step(old, event, self.now)
        for effect in effects:
            match effect:
                case ev.Fetch(name, flight):
                    assert name not in self.flying, "two flights to one remote"
                    u = self.state.world.upstreams[name]
                    assert not u.static
                    assert self.now >= u.retry_at, "asked within its back-off"
                    self.flying[name] = flight
                    self.starts.append(self.now)
                case ev.CancelFetch(name, flight):
                    assert self.flying.pop(name) == flight
                case ev.Answer(id, route):
                    self.open.remove(id)
                    assert self.state.world.table.exists(route.target)
                    if isinstance(route.target, UpstreamTarget):
                        assert not self.state.world.upstreams[route.target.name].offline(self.now)
                case ev.Refuse(id, _):
                    self.open.remove(id)

    @rule(name=st.sampled_from((None, *NAMES)), path=st.sampled_from((CHAT, "/v1/embeddings", "/v1/rerank")))
    def resolve(self, name: str | None, path: str) -> None:
        id = next(self.ids)
        self.open.add(id)
        self.send(ev.Resolve(id, name, path))

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        id = data.draw(st.sampled_from(sorted(self.open)))
        self.open.remove(id)
        self.send(ev.Withdraw(id))

    @precondition(lambda self: self.flying)
    @rule(data=st.data(), models=st.sets(st.sampled_from(NAMES)))
    def answer(self, data: st.DataObject, models: set[str]) -> None:
        name = data.draw(st.sampled_from(sorted(self.flying)))
        self.send(ev.Fetched(name, self.flying.pop(name), tuple(models)))

    @precondition(lambda self: self.flying)
    @rule(data=st.data())
    def fail(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.flying)))
        self.send(ev.FetchFailed(name, self.flying.pop(name), "refused"))

    @rule(name=st.sampled_from("abcdx"), flight=st.integers(0, 3))
    def late_news(self, name: str, flight: int) -> None:
        """An outcome of a flight that is not under way is ignored."""
        if self.flying.get(name) == flight:
            return
        before = self.state
        self.send(ev.Fetched(name, flight, NAMES))
        assert self.state is before

    @rule(name=st.sampled_from("abcdx"))
    def report(self, name: str) -> None:
        self.send(ev.ReportFailure(name))

    @rule()
    def refresh(self) -> None:
        self.send(ev.Refresh())

    @rule(up=st.booleans(), models=st.sets(st.sampled_from(NAMES)), generation=st.integers(1, 3))
    def slots(self, up: bool, models: set[str], generation: int) -> None:
        view = SlotView("chat", 0 if up else 2, "test", "q", tuple(models) if up else (), generation)
        self.send(ev.SlotsChanged({"chat": view, "unheard-of": view}))

    @rule(upstreams=st.lists(st.sampled_from("abcd"), unique=True))
    def reload(self, upstreams: list[str]) -> None:
        self.send(ev.TableReplaced(self.table(upstreams)))

    @rule(seconds=st.floats(0.01, 15.0))
    def wait(self, seconds: float) -> None:
        until = self.now + seconds
        while self.state.next_due <= until:
            due = self.now = self.state.next_due
            self.send(ev.Due())
            assert self.state.next_due > due
        self.now = until

    @invariant()
    def agrees(self) -> None:
        assert set(self.state.queries) == self.open
        world = self.state.world
        flights = {n: u.flight.id for n, u in world.upstreams.items() if u.flight is not None}
        assert flights == self.flying
        assert self.state.next_due > self.now
        slow = self.limits.slow_flight_s
        young = [
            u.flight for u in world.upstreams.values() if u.flight and self.now < u.flight.started + slow
        ]
        # Flights of remotes that a reload took away are gone with them.
        assert len(young) <= self.limits.prefetch_parallel
        for q in self.state.queries.values():
            # Somebody is still silent for each that waits, so each wait has an end.
            assert any(u.asked is not None and u.asked <= q.seq for u in world.upstreams.values())

    def teardown(self) -> None:
        """Left alone, every query settles within its time limit."""
        self.wait(self.limits.prefetch_timeout_s)
        assert not self.open


TestAnything = Anything.TestCase
TestAnything.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@given(
    st.lists(
        st.tuples(st.floats(0.001, 20.0), st.sampled_from(["hit", "lack", "fail"])), min_size=1, max_size=40
    ),
    st.integers(1, 8),
)
@settings(max_examples=80, deadline=None)
def test_an_answer_comes_within_the_fastest_hit_plus_grace_and_starts(
    spec: list[tuple[float, str]], parallel: int
) -> None:
    """However the remotes behave, the fastest that has the name bounds the wait."""
    answers = {"hit": ("m",), "lack": (), "fail": None}
    sim = Sim(
        {f"r{i}": Remote(answers[kind], delay) for i, (delay, kind) in enumerate(spec)},
        prefetch_parallel=parallel,
    )
    id = sim.ask("m")
    sim.run()
    at, outcome = sim.outcomes[id]
    started = [(i // parallel) * sim.limits.slow_flight_s for i in range(len(spec))]
    hits = [s + d for s, (d, kind) in zip(started, spec, strict=True) if kind == "hit"]
    if hits and min(hits) < sim.limits.prefetch_timeout_s:
        assert isinstance(outcome, Route)
        assert at <= min(hits) + sim.limits.prefetch_grace_s + 1e-6
    assert at <= sim.limits.prefetch_timeout_s
    assert set(sim.calls.values()) <= {1}
