"""Hung or busy: the judgement, and the watching on virtual time with engines that freeze when told to."""

from __future__ import annotations

import dataclasses
import errno
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st
from slot_fakes import FakeEngine, Script
from trio.testing import MockClock

from slotd.process.logs import LogRing
from slotd.process.vitals import Vitals
from slotd.slot.backend import Readiness
from slotd.slot.liveness import NOISE_S, Pace, Pulse, Sample, Verdict, assess, observe, watch
from slotd.slot.state import Fault
from slotd.wire.http1 import Http1Pool

TIMEOUTS = (1.0, 3.0, 30.0, 300.0)


# --- the judgement -----------------------------------------------------------------------


def judged(samples: list[Sample], timeout_s: float) -> tuple[float, Verdict] | None:
    """The first verdict and when it fell."""
    pulse: Pulse | None = None
    for sample in samples:
        pulse, verdict = assess(pulse, sample, timeout_s)
        if verdict is not None:
            return sample.at, verdict
    return None


def course(timeout_s: float, times: float, make: Callable[[float], Sample]) -> list[Sample]:
    """Looks at the usual pace for ``times`` the time-out."""
    every_s = Pace.of(timeout_s).every_s
    return [make(100 + n * every_s) for n in range(round(times * timeout_s / every_s) + 1)]


def dead(at: float) -> Sample:
    return Sample(at, cpu_s=5.0, stopped=False, healthy=False)


@pytest.mark.parametrize("timeout_s", TIMEOUTS)
def test_without_any_progress_it_is_hung_when_the_time_is_over(timeout_s: float) -> None:
    found = judged(course(timeout_s, 2, dead), timeout_s)
    assert found is not None
    at, verdict = found
    assert timeout_s <= at - 100 <= timeout_s + 1
    assert str(verdict) == f"no CPU used, no output and no health answer for {timeout_s:g} s"


def test_a_stopped_process_and_one_that_cannot_be_seen_are_called_so() -> None:
    stopped = judged(course(3, 2, lambda at: dataclasses.replace(dead(at), stopped=True)), 3)
    assert stopped is not None
    assert str(stopped[1]).endswith("for 3 s (the process is stopped)")
    unseen = judged(course(3, 2, lambda at: Sample(at, healthy=False)), 3)
    assert unseen is not None
    assert str(unseen[1]) == "no bytes and no health answer for 3 s"


@pytest.mark.parametrize("timeout_s", TIMEOUTS)
@pytest.mark.parametrize(
    "sign",
    [
        lambda at: dataclasses.replace(dead(at), cpu_s=at * 0.05),
        lambda at: dataclasses.replace(dead(at), cpu_s=1e6 - at),
        lambda at: dataclasses.replace(dead(at), bytes_received=int(at * 1000)),
        lambda at: dataclasses.replace(dead(at), output_at=at),
        lambda at: dataclasses.replace(dead(at), healthy=True),
        lambda at: dataclasses.replace(dead(at), healthy=None),
    ],
    ids=["works", "processes end", "answers", "writes", "healthy", "not asked"],
)
def test_one_sign_of_life_is_enough(timeout_s: float, sign: Callable[[float], Sample]) -> None:
    assert judged(course(timeout_s, 5, sign), timeout_s) is None


@pytest.mark.parametrize("timeout_s", TIMEOUTS)
def test_what_a_waiting_server_uses_is_no_work(timeout_s: float) -> None:
    """A hung engine with a thread that looks at a timer must not live for ever."""
    assert judged(course(timeout_s, 3, lambda at: dataclasses.replace(dead(at), cpu_s=at * 0.01)), timeout_s)


def test_one_failed_check_is_not_enough() -> None:
    samples = [
        dataclasses.replace(s, healthy=False if n == 3 else None) for n, s in enumerate(course(30, 3, dead))
    ]
    assert judged(samples, 30) is None


STORY = ["dead"] * 30 + ["cpu", "bytes", "log", "health", "unasked", "late"]


@given(
    st.sampled_from(TIMEOUTS),
    st.lists(
        st.tuples(st.floats(0.5, 1), st.sampled_from(STORY)),
        max_size=80,
    ),
)
def test_a_verdict_needs_the_whole_silence_and_two_failures(
    timeout_s: float, story: list[tuple[float, str]]
) -> None:
    pace = Pace.of(timeout_s)
    pulse: Pulse | None = None
    at, alive_at, failures = 0.0, 0.0, 0
    now = Sample(0.0, 0.0, False)
    for share, what in [(0.0, "late"), *story]:
        late = pace.every_s + pace.vitals_s + pace.late_s + 0.001
        at += late if what == "late" else share * pace.every_s
        now = dataclasses.replace(
            now, at=at, healthy=None if what in ("unasked", "cpu", "bytes", "log") else False
        )
        match what:
            case "cpu":
                now = dataclasses.replace(now, cpu_s=(now.cpu_s or 0.0) + 0.1 + timeout_s)
            case "bytes":
                now = dataclasses.replace(now, bytes_received=now.bytes_received + 1)
            case "log":
                now = dataclasses.replace(now, output_at=len(story) + at)
            case "health":
                now = dataclasses.replace(now, healthy=True)
        pulse, verdict = assess(pulse, now, timeout_s)
        if what in ("dead", "unasked"):
            failures += what == "dead"
        else:
            # Two logs at one time are one sign; that is no different life.
            alive_at = pulse.alive_at if what == "log" else at
            failures = pulse.failed if what == "log" else 0
        assert pulse.alive_at == alive_at
        assert (verdict is not None) == (at - alive_at >= timeout_s and failures >= 2)


# --- watching ------------------------------------------------------------------------------


@dataclass
class Told:
    """The rest of the engine: what its pool has received, and what its health check says."""

    engine: FakeEngine
    answers: Callable[[float], bool | None] = lambda at: True
    takes_s: float = 0.0
    received: Callable[[float], int] = lambda at: 0
    asked: list[float] = field(default_factory=list)
    asking: int = 0

    async def healthy(self) -> bool | None:
        self.asked.append(trio.current_time())
        self.asking += 1
        assert self.asking == 1, "one check at a time"
        await trio.sleep(self.takes_s)
        self.asking -= 1
        return self.answers(trio.current_time())


def on_virtual_time(test: Callable[[], Awaitable[None]], limit_s: float = 10_000) -> None:
    async def main() -> None:
        with trio.fail_after(limit_s):
            await test()

    trio.run(main, clock=MockClock(autojump_threshold=0))


def engine_of(script: Script) -> FakeEngine:
    return FakeEngine(script, "m", 1, LogRing(10_000))


async def verdict_on(told: Told, timeout_s: float, within_s: float) -> tuple[float, Verdict] | None:
    """The verdict and its time, or None."""
    with trio.move_on_after(within_s):
        verdict = await observe(
            told.engine, lambda: told.received(trio.current_time()), told.healthy, timeout_s
        )
        return trio.current_time(), verdict
    return None


@pytest.mark.parametrize("timeout_s", TIMEOUTS)
@pytest.mark.parametrize("reading_s", [0.0, 0.05])
@pytest.mark.parametrize("frozen_s", [0.0, *(50 + n * 0.13 for n in range(7))])
def test_a_freeze_is_found_within_a_second_of_the_time_out(
    timeout_s: float, frozen_s: float, reading_s: float
) -> None:
    async def test() -> None:
        began = trio.current_time()
        script = Script(stopped_s=frozen_s, reading_s=reading_s)
        told = Told(engine_of(script), takes_s=Pace.of(timeout_s).health_s)
        told.answers = lambda at: False
        found = await verdict_on(told, timeout_s, 5000)
        assert found is not None
        assert timeout_s - NOISE_S <= found[0] - began - frozen_s <= timeout_s + 1
        assert "stopped" in str(found[1])
        assert len(told.asked) >= 2

    on_virtual_time(test)


def test_a_busy_engine_is_never_asked() -> None:
    async def test() -> None:
        told = Told(engine_of(Script()), answers=lambda at: False)
        assert await verdict_on(told, 3, 1000) is None
        assert told.asked == []

    on_virtual_time(test)


def test_an_idle_engine_is_asked_now_and_then_and_lives() -> None:
    async def test() -> None:
        told = Told(engine_of(Script(frozen_s=0)))
        assert await verdict_on(told, 30, 1000) is None
        assert 100 <= len(told.asked) <= 170

    on_virtual_time(test)


def test_one_that_goes_on_in_time_is_forgiven() -> None:
    async def test() -> None:
        engine = engine_of(Script(stopped_s=20))
        told = Told(engine, answers=lambda at: not 20 <= at < 20 + 2.9)

        async with trio.open_nursery() as nursery:

            async def thaw() -> None:
                await trio.sleep(22.9)
                engine.script = Script()

            nursery.start_soon(thaw)
            assert await verdict_on(told, 3, 200) is None

    on_virtual_time(test)


@pytest.mark.parametrize("healthy", [True, False])
def test_an_engine_without_vitals_is_judged_by_its_health_and_its_bytes(healthy: bool) -> None:
    class External(FakeEngine):
        async def vitals(self) -> Vitals | None:
            return None

    async def test() -> None:
        def external() -> FakeEngine:
            return External(Script(), "m", 1, LogRing(10_000))

        silent = await verdict_on(Told(external(), answers=lambda at: healthy), 3, 200)
        assert (silent is None) == healthy
        speaks = Told(external(), answers=lambda at: False, received=lambda at: int(at))
        assert await verdict_on(speaks, 3, 200) is None

    on_virtual_time(test)


def test_readings_that_the_kernel_holds_up_do_not_hide_a_hang() -> None:
    async def test() -> None:
        began = trio.current_time()
        told = Told(engine_of(Script(frozen_s=0, reading_s=1e6)), answers=lambda at: False)
        found = await verdict_on(told, 30, 200)
        assert found is not None
        assert found[0] - began <= 32

    on_virtual_time(test)


def test_a_check_that_began_before_the_last_progress_does_not_count() -> None:
    """Checks of 1.3 s from 0.6 s on; the answer's bytes come at 1.5 s, in the middle of the first."""

    async def test() -> None:
        began = trio.current_time()
        told = Told(engine_of(Script(frozen_s=0)), answers=lambda at: False, takes_s=1.3)
        told.received = lambda at: int(at - began >= 1.5)
        found = await verdict_on(told, 3, 200)
        assert found is not None
        assert found[0] - began > 1.5 + 3 + 0.5, "by then one check has failed since, not two"

    on_virtual_time(test)


def test_a_blind_slotd_judges_nobody() -> None:
    class Unseen(FakeEngine):
        async def vitals(self) -> Vitals | None:
            raise OSError(errno.EMFILE, "too many open files")

    async def test() -> None:
        engine = Unseen(Script(), "m", 1, LogRing(10_000))
        assert await verdict_on(Told(engine, answers=lambda at: False), 3, 200) is None

    on_virtual_time(test)


def test_what_could_not_be_asked_is_not_held_against_it() -> None:
    async def test() -> None:
        assert await verdict_on(Told(engine_of(Script(frozen_s=0)), answers=lambda at: None), 3, 200) is None

    on_virtual_time(test)


def test_a_slotd_that_was_held_up_starts_over() -> None:
    """The machine slept for an hour: all that was silent then was slotd."""

    async def main() -> None:
        told = Told(engine_of(Script(frozen_s=0)), answers=lambda at: False)
        found: list[float] = []

        async def look() -> None:
            await observe(told.engine, lambda: 0, told.healthy, 30)
            found.append(trio.current_time())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(look)
            while clock.current_time() < began + 20:
                await trio.testing.wait_all_tasks_blocked()
                clock.jump(0.25)
            clock.jump(3600)
            woken = clock.current_time()
            while not found:
                await trio.testing.wait_all_tasks_blocked()
                clock.jump(0.25)
        assert 29.5 <= found[0] - woken <= 32

    clock = MockClock()
    began = clock.current_time()
    trio.run(main, clock=clock)


def test_a_health_check_that_slotd_itself_was_late_to_end_tells_nothing() -> None:
    """Held up for eight seconds again and again, it cannot know whether the answer came in five."""
    told: list[Fault] = []

    async def silent(stream: trio.SocketStream) -> None:
        async with stream:
            while await stream.receive_some():
                pass

    async def advance(step_s: float, until: Callable[[], bool]) -> None:
        while not until():
            await trio.testing.wait_all_tasks_blocked(0.002)
            clock.jump(step_s)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
            nursery.start_soon(trio.serve_listeners, silent, listeners)
            engine = engine_of(Script(frozen_s=0))
            port = listeners[0].socket.getsockname()[1]
            engine._address = dataclasses.replace(engine.address, port=port)
            http = Http1Pool("127.0.0.1", port)

            async def look() -> None:
                await watch(engine, http, Readiness(), 30, hung=told.append)

            nursery.start_soon(look)
            until = clock.current_time() + 120
            await advance(8, lambda: bool(told) or clock.current_time() > until)
            assert not told
            until += 120
            await advance(0.5, lambda: bool(told) or clock.current_time() > until)
            assert len(told) == 1, "in time, it does know"
            nursery.cancel_scope.cancel()

    clock = MockClock()
    trio.run(main, clock=clock)


async def test_a_real_health_check_that_gets_no_answer() -> None:
    """Against a listener that accepts and says nothing, then one that answers anything at all."""
    told: list[Fault] = []

    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.receive_some()
            if answering:
                await stream.send_all(b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n")
            else:
                await stream.receive_some()

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
            nursery.start_soon(trio.serve_listeners, serve, listeners)
            engine = engine_of(Script(frozen_s=0))
            port = listeners[0].socket.getsockname()[1]
            engine._address = dataclasses.replace(engine.address, port=port)
            http = Http1Pool("127.0.0.1", port)
            answering = True
            with trio.move_on_after(0.6) as lived:
                await watch(engine, http, Readiness(), 0.3, hung=told.append)
            assert lived.cancelled_caught
            assert told == []
            answering = False
            await watch(engine, http, Readiness(), 0.3, hung=told.append)
            nursery.cancel_scope.cancel()
    assert told == [Fault("hung", "no CPU used, no output and no health answer for 0.3 s")]
