"""Supervision: what a crash costs, whom, and when."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from slotd.actor import ChildCrashed, ChildSpec, Intensity, RestartIntensityExceeded, Supervisor
from slotd.actor.supervisor import Exhausted, next_restart


class Bug(Exception):
    pass


class Supervised:
    """A supervisor in a nursery of its own, with what it reported and how it ended."""

    def __init__(self) -> None:
        self.crashes: list[ChildCrashed] = []
        self.supervisor = Supervisor(self.crashes.append)
        self.sibling_incarnations = 0
        self.sibling_ended = False

    async def sibling(self) -> None:
        self.sibling_incarnations += 1
        try:
            await trio.sleep_forever()
        finally:
            self.sibling_ended = True

    @property
    def sibling_untouched(self) -> bool:
        return self.sibling_incarnations == 1 and not self.sibling_ended


Body = Callable[[Supervised], Awaitable[None]]


async def supervised(body: Body) -> Supervised:
    """Run ``body`` beside a supervisor that has a sibling in it; then cancel both."""
    state = Supervised()
    async with trio.open_nursery() as nursery:
        await nursery.start(state.supervisor.run)
        state.supervisor.start(ChildSpec("sibling", state.sibling))
        await wait_all_tasks_blocked()
        await body(state)
        nursery.cancel_scope.cancel()
    return state


def leaves(error: BaseException) -> list[BaseException]:
    """The errors in a group of groups."""
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in leaves(inner)]
    return [error]


# --- one for one ---------------------------------------------------------------------


async def test_a_crash_restarts_the_child_and_leaves_its_sibling_alone(autojump_clock: MockClock) -> None:
    starts: list[float] = []

    async def child() -> None:
        starts.append(trio.current_time())
        await trio.sleep(1)
        if len(starts) < 4:
            raise Bug(len(starts))
        await trio.sleep_forever()

    async def body(s: Supervised) -> None:
        s.supervisor.start(ChildSpec("child", child, Intensity(backoff_s=0.5)))
        await trio.sleep(20)
        assert s.sibling_untouched
        assert s.supervisor.running() == ("sibling", "child")

    state = await supervised(body)
    assert starts == [0, 1, 2 + 0.5, 3.5 + 1]
    assert [c.name for c in state.crashes] == ["child"] * 3
    assert [c.restart_in_s for c in state.crashes] == [0, 0.5, 1]
    assert [str(c.error) for c in state.crashes] == ["1", "2", "3"]
    assert state.sibling_ended  # by the final cancellation


async def test_nested_groups_of_exceptions_are_a_crash_like_any_other(autojump_clock: MockClock) -> None:
    crashed = False

    async def deep() -> None:
        raise Bug("deep")

    async def child() -> None:
        nonlocal crashed
        if crashed:
            await trio.sleep_forever()
        crashed = True
        async with trio.open_nursery() as outer, trio.open_nursery() as inner:
            outer.start_soon(trio.sleep_forever)
            inner.start_soon(deep)
            inner.start_soon(deep)

    async def body(s: Supervised) -> None:
        s.supervisor.start(ChildSpec("child", child))
        await trio.sleep(1)
        assert s.sibling_untouched
        assert "child" in s.supervisor.running()

    state = await supervised(body)
    (crash,) = state.crashes
    assert isinstance(crash.error, ExceptionGroup)
    assert [str(e) for e in leaves(crash.error)] == ["deep", "deep"]


async def test_a_child_that_returns_is_done(autojump_clock: MockClock) -> None:
    starts = 0

    async def child() -> None:
        nonlocal starts
        starts += 1
        await trio.sleep(1)

    async def body(s: Supervised) -> None:
        s.supervisor.start(ChildSpec("child", child))
        assert s.supervisor.running() == ("sibling", "child")
        await trio.sleep(100)
        assert s.supervisor.running() == ("sibling",)
        s.supervisor.start(ChildSpec("child", child))  # its name is free again
        await trio.sleep(100)

    state = await supervised(body)
    assert starts == 2
    assert state.crashes == []


async def test_misuse_is_refused(autojump_clock: MockClock) -> None:
    async def child() -> None:
        await trio.sleep_forever()

    async def body(s: Supervised) -> None:
        with pytest.raises(RuntimeError, match="'sibling' is running already"):
            s.supervisor.start(ChildSpec("sibling", child))
        assert s.sibling_untouched

    state = await supervised(body)
    with pytest.raises(RuntimeError, match="not running"):
        state.supervisor.start(ChildSpec("late", child))


# --- past the intensity --------------------------------------------------------------


async def always_crashing() -> None:
    raise Bug("always")


async def test_past_its_intensity_a_child_escalates_to_the_root(autojump_clock: MockClock) -> None:
    state = Supervised()
    spec = ChildSpec("dispatcher", always_crashing, Intensity(max_restarts=2, backoff_s=1))
    touched_before: list[bool] = []

    async def watch() -> None:
        await trio.sleep(0.9)  # two crashes so far; the third, at 1 s, is one too many
        touched_before.append(state.sibling_untouched)

    async def root() -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(state.supervisor.run)
            state.supervisor.start(ChildSpec("sibling", state.sibling))
            state.supervisor.start(spec)
            nursery.start_soon(watch)

    with pytest.raises(ExceptionGroup) as caught:
        await root()
    (error,) = leaves(caught.value)
    assert isinstance(error, RestartIntensityExceeded)
    assert "'dispatcher' crashed 3 times within 60 s" in str(error)
    assert isinstance(error.__cause__, Bug)
    assert [c.restart_in_s for c in state.crashes] == [0, 1, None]
    assert touched_before == [True]
    assert state.sibling_ended
    assert state.supervisor.running() == ()


async def test_past_its_intensity_a_child_may_be_parked_instead(autojump_clock: MockClock) -> None:
    starts: list[float] = []

    async def child() -> None:
        starts.append(trio.current_time())
        raise Bug

    spec = ChildSpec("slot", child, Intensity(max_restarts=2, backoff_s=1), exhausted="park", parked_s=30)

    async def body(s: Supervised) -> None:
        s.supervisor.start(spec)
        await trio.sleep(35)
        assert s.sibling_untouched

    state = await supervised(body)
    # The record is clean after the park: two restarts again before the next.
    assert starts == [0, 0, 1, 31, 31, 32]
    assert [c.restart_in_s for c in state.crashes] == [0, 1, 30, 0, 1, 30]


async def test_crashes_far_apart_never_add_up(autojump_clock: MockClock) -> None:
    starts = 0

    async def child() -> None:
        nonlocal starts
        starts += 1
        await trio.sleep(11)
        raise Bug

    async def body(s: Supervised) -> None:
        s.supervisor.start(ChildSpec("child", child, Intensity(max_restarts=1, within_s=10)))
        await trio.sleep(11 * 50 + 1)
        assert s.sibling_untouched

    state = await supervised(body)
    assert starts == 51
    assert {c.restart_in_s for c in state.crashes} == {0}


# --- stopping ------------------------------------------------------------------------


async def test_stop_cancels_waits_for_the_end_and_frees_the_name(autojump_clock: MockClock) -> None:
    async def child() -> None:
        try:
            await trio.sleep_forever()
        finally:
            with trio.move_on_after(3, shield=True):
                await trio.sleep_forever()

    async def body(s: Supervised) -> None:
        s.supervisor.start(ChildSpec("child", child))
        await wait_all_tasks_blocked()
        with trio.fail_after(5):
            await s.supervisor.stop("child")
        assert trio.current_time() == 3
        assert s.supervisor.running() == ("sibling",)
        s.supervisor.start(ChildSpec("child", child))
        await s.supervisor.stop("child")  # before it has run at all
        assert s.sibling_untouched

    assert (await supervised(body)).crashes == []


async def test_stop_of_an_unknown_or_ended_child_returns_at_once(autojump_clock: MockClock) -> None:
    async def child() -> None:
        await trio.sleep(1)

    async def body(s: Supervised) -> None:
        s.supervisor.start(ChildSpec("child", child))
        await trio.sleep(2)
        with trio.fail_after(1):
            await s.supervisor.stop("child")
            await s.supervisor.stop("nobody")

    await supervised(body)


async def test_stop_during_the_back_off_ends_it(autojump_clock: MockClock) -> None:
    starts = 0

    async def child() -> None:
        nonlocal starts
        starts += 1
        raise Bug

    async def body(s: Supervised) -> None:
        s.supervisor.start(ChildSpec("child", child, Intensity(backoff_s=10)))
        await trio.sleep(5)
        assert starts == 2
        with trio.fail_after(1):
            await s.supervisor.stop("child")
        await trio.sleep(100)
        assert s.sibling_untouched

    await supervised(body)
    assert starts == 2


async def test_a_stop_may_be_waited_for_by_many_and_by_the_impatient(autojump_clock: MockClock) -> None:
    async def stubborn() -> None:
        with trio.move_on_after(10, shield=True):
            await trio.sleep_forever()
        await trio.sleep_forever()

    async def body(s: Supervised) -> None:
        s.supervisor.start(ChildSpec("child", stubborn))
        await wait_all_tasks_blocked()
        with trio.move_on_after(1) as impatient:
            await s.supervisor.stop("child")
        assert impatient.cancelled_caught
        with trio.fail_after(15):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(s.supervisor.stop, "child")
                nursery.start_soon(s.supervisor.stop, "child")
        assert trio.current_time() == 10

    await supervised(body)


async def failing_clean_up() -> None:
    try:
        await trio.sleep_forever()
    finally:
        raise Bug("while it cleaned up")


async def failing_clean_up_of_a_child() -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(failing_clean_up)
        nursery.start_soon(trio.sleep_forever)


@pytest.mark.parametrize("child", [failing_clean_up, failing_clean_up_of_a_child])
@pytest.mark.parametrize("intensity", [Intensity(), Intensity(max_restarts=0)])
async def test_a_clean_up_that_fails_when_stopped_is_reported_and_harms_no_sibling(
    child: Callable[[], Awaitable[None]], intensity: Intensity, autojump_clock: MockClock
) -> None:
    async def body(s: Supervised) -> None:
        s.supervisor.start(ChildSpec("child", child, intensity))
        await wait_all_tasks_blocked()
        with trio.fail_after(1):
            await s.supervisor.stop("child")
        await trio.sleep(100)
        assert s.sibling_untouched
        assert s.supervisor.running() == ("sibling",)

    state = await supervised(body)
    (crash,) = state.crashes
    assert [str(e) for e in leaves(crash.error)] == ["while it cleaned up"]
    assert crash.restart_in_s is None


@pytest.mark.parametrize("child", [failing_clean_up, failing_clean_up_of_a_child])
async def test_a_clean_up_that_fails_at_shutdown_is_reported_and_is_no_escalation(
    child: Callable[[], Awaitable[None]], autojump_clock: MockClock
) -> None:
    async def body(s: Supervised) -> None:
        s.supervisor.start(ChildSpec("child", child, Intensity(max_restarts=0)))
        await wait_all_tasks_blocked()

    state = await supervised(body)
    (crash,) = state.crashes
    assert [str(e) for e in leaves(crash.error)] == ["while it cleaned up"]


# --- what passes through -------------------------------------------------------------


async def test_cancelling_the_supervisor_cancels_the_children_and_nothing_restarts(
    autojump_clock: MockClock,
) -> None:
    async def body(s: Supervised) -> None:
        s.supervisor.start(ChildSpec("backing off", always_crashing, Intensity(backoff_s=10)))
        await trio.sleep(1)

    state = await supervised(body)
    assert state.sibling_ended
    assert state.sibling_incarnations == 1
    assert state.supervisor.running() == ()


async def interrupted() -> None:
    raise KeyboardInterrupt


async def interrupted_beside_a_bug() -> None:
    raise BaseExceptionGroup("both", [KeyboardInterrupt(), Bug("beside it")])


@pytest.mark.parametrize(
    ("child", "reported"), [(interrupted, []), (interrupted_beside_a_bug, ["beside it"])]
)
async def test_a_base_exception_passes_through(
    child: Callable[[], Awaitable[None]], reported: list[str], autojump_clock: MockClock
) -> None:
    state = Supervised()

    async def root() -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(state.supervisor.run)
            state.supervisor.start(ChildSpec("child", child))

    with pytest.raises(BaseExceptionGroup) as caught:
        await root()
    assert [type(e) for e in leaves(caught.value)] == [KeyboardInterrupt]
    assert [str(e) for c in state.crashes for e in leaves(c.error)] == reported


# --- the decision --------------------------------------------------------------------

intensities = st.builds(
    Intensity,
    max_restarts=st.integers(0, 3000),
    within_s=st.floats(0, 1e4),
    backoff_s=st.just(0.0) | st.floats(0.001, 100),
    backoff_max_s=st.floats(0, 1000),
)
histories = st.lists(st.floats(0, 1e5), min_size=1, max_size=20).map(lambda ts: tuple(sorted(ts)))


@given(intensities, histories)
def test_the_pause_is_bounded_and_only_recent_crashes_count(
    intensity: Intensity, crashes: tuple[float, ...]
) -> None:
    now = crashes[-1]
    recent = tuple(t for t in crashes if now - t <= intensity.within_s)
    pause = next_restart(intensity, crashes, now)
    assert pause == next_restart(intensity, recent, now)
    assert isinstance(pause, Exhausted) == (len(recent) > intensity.max_restarts)
    if not isinstance(pause, Exhausted):
        assert 0 <= pause <= intensity.backoff_max_s
        assert pause == 0 or len(recent) > 1


@given(intensities, st.integers(2, 3000))
def test_within_a_burst_the_pauses_double_up_to_the_limit(intensity: Intensity, n: int) -> None:
    """For bursts of thousands too."""
    before = next_restart(intensity, (7.0,) * n, 7.0)
    after = next_restart(intensity, (7.0,) * (n + 1), 7.0)
    if isinstance(before, Exhausted):
        assert isinstance(after, Exhausted)
    elif not isinstance(after, Exhausted):
        if n == 2:
            assert before == min(intensity.backoff_s, intensity.backoff_max_s)
        assert after == min(2 * before, intensity.backoff_max_s)
