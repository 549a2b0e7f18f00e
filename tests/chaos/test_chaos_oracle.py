"""The oracle notices what it is there to notice: each promise broken once, in what it is told."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from slotd.testing.chaos import table
from slotd.testing.chaos.asks import Ask, Service
from slotd.testing.chaos.judge import Answer
from slotd.testing.chaos.oracle import STEADY_LOOKS, Expect, Oracle
from slotd.testing.chaos.plan import Command, KillEngine, Misbehave, Step
from slotd.testing.chaos.site import Limits, Outage, Site, SlotPlan

ASK = Ask("chat", "embeddings", False, "a b", 2, ("chat",), echoes=False)
GOOD = Answer(200, {"x-request-id": "r1"}, b'{"model":"chat","data":[{"embedding":[1]}]}', True)
LOST = (
    b'{"error":{"message":"m","type":"server_error","code":"slot.engine_lost","details":{"reason":"exited"}}}'
)
DEAD = Answer(502, {"x-request-id": "r1"}, LOST, True)
RECORD = {"id": "r1", "status": 200, "outcome": "ok", "error": None, "replays": 0, "total_s": 1.0}
VIEW: dict[str, Any] = {
    "name": "chat",
    "state": "ready",
    "generation": 1,
    "pid": None,
    "address": "127.0.0.1:1",
    "models": ["m"],
    "leases": 0,
    "max_parallel": 2,
}


@pytest.fixture
def site(tmp_path: Path) -> Site:
    plan = SlotPlan({"type": "llm", "engine": "command", "command": ["x"]}, Service("chat"))
    return Site(tmp_path, {"chat": plan}, Limits(), ports=(1, 2))


@pytest.fixture
def oracle(site: Site) -> Oracle:
    found = Oracle(site, Expect(), lambda line: None)
    found.slotd_started()
    return found


def moved(before: str, after: str, **more: Any) -> dict[str, Any]:
    event = {"slot": "chat", "from": before, "to": after, "why": "", "generation": 1, "time": time.time()}
    return {**event, **more}


# --- requests ---------------------------------------------------------------------------


def test_a_good_answer_with_its_record(oracle: Oracle) -> None:
    oracle.answered(oracle.asked(ASK), GOOD)
    oracle.event("request.finished", RECORD)
    oracle.check_records()
    assert oracle.violations == []
    assert oracle.outcomes == {"ok": 1}


def test_a_record_may_come_before_the_client_has_read_its_answer(oracle: Oracle) -> None:
    key = oracle.asked(ASK)
    oracle.event("request.finished", RECORD)
    oracle.answered(key, GOOD)
    assert oracle.violations == []


@pytest.mark.parametrize(
    "record", [{**RECORD, "status": 502}, {**RECORD, "outcome": "error"}, {**RECORD, "id": "r2"}]
)
def test_a_record_that_tells_another_story(oracle: Oracle, record: dict[str, Any]) -> None:
    oracle.answered(oracle.asked(ASK), GOOD)
    oracle.event("request.finished", record)
    oracle.check_records()
    assert len(oracle.violations) == 1


def test_two_records_of_a_request(oracle: Oracle) -> None:
    oracle.event("request.finished", RECORD)
    oracle.event("request.finished", RECORD)
    assert len(oracle.violations) == 1


def test_a_hung_request(oracle: Oracle) -> None:
    oracle.hung(oracle.asked(ASK))
    assert "hung" in oracle.violations[0].what


def test_a_cut_answer_is_right_only_if_slotd_was_killed(site: Site, oracle: Oracle) -> None:
    oracle.answered(oracle.asked(ASK), replace(GOOD, ended=False, broke="reset"))
    assert len(oracle.violations) == 1
    key = oracle.asked(ASK)
    site.outages.append(Outage("kill", time.time()))
    oracle.answered(key, replace(GOOD, ended=False, broke="reset", headers={}))
    assert len(oracle.violations) == 1


def test_a_slotd_that_was_killed_soon_after_another_had_stopped(site: Site, oracle: Oracle) -> None:
    now = time.time()
    site.outages += [Outage("stop", now - 2, now - 0.1), Outage("kill", now)]
    oracle.answered(oracle.asked(ASK), replace(GOOD, ended=False, broke="reset"))
    assert oracle.violations == []


def test_garbage_is_the_engines_own_while_it_is_told_to_misbehave(oracle: Oracle) -> None:
    garbage = replace(GOOD, body=b"[1,2")
    over = oracle.spoil(Misbehave("chat", "garbage", "sse", 1.0))
    oracle.answered(oracle.asked(ASK), garbage)
    over()
    assert oracle.violations == []
    oracle.answered(oracle.asked(replace(ASK, slot="other")), replace(garbage, headers={}))
    assert len(oracle.violations) == 1


def test_who_loses_its_engine_to_a_kill_is_answered(oracle: Oracle) -> None:
    step = Step(1, 0.0, KillEngine("chat"))
    key = oracle.asked(ASK)
    oracle.begins(step)
    oracle.strikes(step.fault, "chat", 1)
    oracle.done(step)
    oracle.answered(key, GOOD)
    assert oracle.violations == []
    key = oracle.asked(ASK)
    oracle.strikes(step.fault, "chat", 1)
    oracle.answered(key, replace(DEAD, headers={}))
    assert len(oracle.violations) == 1
    assert oracle.struck.plain == {"ok": 1, "502 slot.engine_lost": 1}


def test_unless_more_was_done_to_its_slot(oracle: Oracle) -> None:
    key = oracle.asked(ASK)
    for step in (Step(1, 0.0, KillEngine("chat")), Step(2, 1.0, Command("chat", "unload"))):
        oracle.begins(step)
    oracle.strikes(KillEngine("chat"), "chat", 1)
    oracle.answered(key, replace(DEAD, headers={}))
    assert oracle.violations == []
    assert oracle.struck.disturbed == {"502 slot.engine_lost": 1}


@pytest.mark.parametrize(("replays", "violations"), [(0, 1), (2, 0)])
def test_a_request_that_was_not_sent_again(oracle: Oracle, replays: int, violations: int) -> None:
    oracle.answered(oracle.asked(ASK), DEAD)
    record = {**RECORD, "status": 502, "outcome": "error", "error": "slot.engine_lost", "replays": replays}
    oracle.event("request.finished", record)
    assert len(oracle.violations) == violations


# --- states ------------------------------------------------------------------------------


def test_transitions_follow_on_one_another_along_the_table(oracle: Oracle) -> None:
    oracle.event("slot.transition", moved("offline", "starting"))
    assert oracle.violations == []
    oracle.event("slot.transition", moved("warming", "ready"))
    assert "but it was starting" in oracle.violations[0].what
    oracle.event("slot.transition", moved("ready", "offline"))
    assert "no edge" in oracle.violations[1].what


def test_a_recovery_is_timed(oracle: Oracle) -> None:
    oracle.asked(ASK)
    oracle.strikes(KillEngine("chat"), "chat", 1)
    now = time.time()
    oracle.event("slot.transition", moved("offline", "starting", generation=1))
    oracle.event("slot.transition", moved("starting", "error", generation=1, time=now + 0.01))
    oracle.event(
        "slot.loaded", {"slot": "chat", "generation": 2, "load_s": 0.4, "model": "m", "time": now + 0.5}
    )
    (recovery,) = oracle.recoveries
    assert (recovery.kind, recovery.load_s) == ("kill engine", 0.4)
    assert recovery.overhead_s == pytest.approx(0.1, abs=0.05)


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("actor.crashed", {"actor": "slot chat", "error": "ValueError"}),
        ("gap", {"missed": 3}),
        ("slot.stopped", {"slot": "chat", "survivors": [17]}),
    ],
)
def test_events_that_must_not_come(oracle: Oracle, kind: str, data: dict[str, Any]) -> None:
    oracle.event(kind, data)
    assert len(oracle.violations) == 1


def test_a_bug_in_the_log(oracle: Oracle) -> None:
    oracle.slotd_wrote(["all is well\n"])
    assert oracle.violations == []
    oracle.slotd_wrote(["error  a request met a bug\n", "Traceback (most recent call last):\n"])
    assert len(oracle.violations) == 1


# --- truth ---------------------------------------------------------------------------------


def steady(oracle: Oracle, view: dict[str, Any]) -> list[str]:
    for _ in range(STEADY_LOOKS):
        oracle.look([view])
    return [v.what for v in oracle.violations]


@pytest.mark.parametrize(
    ("lie", "words"),
    [
        ({}, "without a living process"),
        ({"state": "serving", "leases": 0}, "serving with 0 leases"),
        ({"state": "offline", "leases": 3}, "offline with 3 leases"),
        ({"state": "ready", "models": []}, "without a model"),
    ],
)
def test_a_state_that_stays_false_is_noticed(oracle: Oracle, lie: dict[str, Any], words: str) -> None:
    assert any(words in what for what in steady(oracle, {**VIEW, **lie}))


def test_a_moment_of_disagreement_is_none(oracle: Oracle) -> None:
    for _ in range(STEADY_LOOKS - 1):
        oracle.look([VIEW])
    oracle.look([{**VIEW, "state": "offline"}])
    assert oracle.violations == []


@pytest.fixture
def leftover(site: Site) -> Iterator[int]:
    """A process of the run that says it is an engine of the slot."""
    env = {table.MARK: site.mark, "SLOTD_SLOT": "chat", "SLOTD_RUN": "run", "SLOTD_START": "run:chat:1"}
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, env=env) as process:
        # Before its exec it is not yet what it is.
        deadline = time.monotonic() + 10
        while process.pid not in table.look(site.mark) and time.monotonic() < deadline:
            pass
        yield process.pid
        process.kill()


def test_an_engine_that_nobody_knows_of_is_noticed(oracle: Oracle, leftover: int) -> None:
    found = steady(oracle, {**VIEW, "state": "offline", "address": None})
    assert any(f"[{leftover}] live" in what for what in found)
    assert any("belongs to no slot" in what for what in found)


def test_a_process_that_does_not_listen_is_not_ready(oracle: Oracle, leftover: int) -> None:
    assert any("does not listen" in what for what in steady(oracle, {**VIEW, "pid": leftover}))
