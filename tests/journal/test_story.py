"""A request's story and the words of events: pure, from records and entries."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slotd.events import types
from slotd.journal.entries import Entry
from slotd.journal.story import story
from slotd.journal.when import moment
from slotd.journal.words import MAX_CHARS, duration, tell

BEGAN = 1_000_000.0


def record(**more: Any) -> dict[str, Any]:
    return {
        "id": "req-1",
        "began_unix": BEGAN,
        "path": "/v1/chat/completions",
        "client": "127.0.0.1",
        "model": "gpt-x",
        "stream": True,
        "tier": 1,
        "rule": 'slot "chat"',
        "target": "slot:chat",
        "target_model": "m",
        "cache": "none",
        "phase": "done",
        "generation": 2,
        "resolve_s": 0.001,
        "wait_s": 2.0,
        "first_byte_s": 2.5,
        "total_s": 3.0,
        "status": 200,
        "outcome": "ok",
        "error": None,
        "tokens_in": 5,
        "tokens_out": 7,
        "bytes_in": 60,
        "bytes_out": 900,
        "replays": 0,
        "priority": 0,
        "fallback_from": None,
        "fallback_error": None,
        **more,
    }


def entry(after: float, kind: str, slot: str | None = "chat", **data: Any) -> Entry:
    return Entry("run", 1, BEGAN + after, kind, slot, data)


def told(r: dict[str, Any], *events: Entry) -> list[str]:
    return [line.text for line in story(r, events)]


def test_a_request_that_waited_for_an_eviction_and_a_load() -> None:
    lines = story(
        record(),
        [
            entry(0.1, types.ARBITER_EVICTING, "big", **{"for": "chat", "why": "it was used longest ago"}),
            entry(0.9, types.ARBITER_RELEASED, "big", **{"for": "chat", "waited_s": 0.25, "seen": True}),
            entry(1.0, types.SLOT_TRANSITION, **{"from": "offline", "to": "starting", "why": "requested"}),
            entry(2.1, types.SLOT_LOADED, model="m", load_s=1.1, generation=2),
        ],
    )
    assert [line.text for line in lines] == [
        "/v1/chat/completions from 127.0.0.1, model 'gpt-x', as a stream, 60 bytes",
        "routed to slot chat as 'm' (tier 1: an explicit binding, rule slot \"chat\")",
        "waits for slot chat: 2.00 s",
        "slot big: is told to leave for chat: it was used longest ago",
        "slot big: has left its memory for chat after 250 ms",
        "slot chat: offline -> starting: requested",
        "slot chat: loaded m in 1.10 s (generation 2)",
        "slot chat takes it (generation 2)",
        "first byte of the answer",
        "answered with 200 after 3.00 s: 5 tokens in, 7 tokens out, 900 bytes",
    ]
    times = [line.after_s for line in lines]
    assert times == sorted(times)
    assert times[-1] == 3.0


def test_a_replay_is_told_between_the_fault_and_the_next_engine() -> None:
    lines = told(
        record(replays=1),
        entry(0.5, types.SLOT_TRANSITION, **{"from": "serving", "to": "error", "why": "exited"}),
        entry(0.5, types.SLOT_FAULT, reason="exited", message="killed by SIGKILL", exit="SIGKILL"),
        entry(0.6, types.REQUEST_REPLAYED, id="req-1", replays=1, message="the engine ended"),
        entry(0.6, types.REQUEST_REPLAYED, id="req-2", replays=1, message="the engine ended"),
        entry(2.0, types.SLOT_LOADED, model="m", load_s=1.1, generation=2),
    )
    assert lines[2:6] == [
        "waits for slot chat: in all 2.00 s",
        "slot chat fails: exited: killed by SIGKILL",
        "lost its engine and is sent again (replay 1): the engine ended",
        "slot chat: loaded m in 1.10 s (generation 2)",
    ]
    assert not any("req-2" in line for line in lines)


def test_how_it_ended() -> None:
    assert told(record(outcome="error", error="slot.queue_full", status=503))[-1] == (
        "failed with 503 after 3.00 s: slot.queue_full"
    )
    broken = record(outcome="error", error="slot.engine_lost", status=200)
    assert told(broken)[-1] == (
        "broke off after 3.00 s, when the answer had begun (status 200): slot.engine_lost"
    )
    words = tell(types.REQUEST_FINISHED, broken)
    assert words.endswith(
        "error (slot.engine_lost), the answer had begun (status 200), after 3.00 s, 7 tokens"
    )
    refused = tell(types.REQUEST_FINISHED, record(outcome="error", error="slot.queue_full", status=503))
    assert "error (slot.queue_full) 503 after" in refused
    assert told(record(outcome="client_gone"))[-1].startswith(
        "the client left after 3.00 s, while the answer came"
    )
    waiting = record(outcome="client_gone", first_byte_s=None, generation=None)
    assert "while it waited" in told(waiting)[-1]
    live = record(outcome="live", phase="waiting", wait_s=None, generation=None, first_byte_s=None)
    assert told(live)[-2:] == ["waits for slot chat", "still waiting, 3.00 s after it came"]


def test_one_that_was_under_way_when_slotd_was_killed() -> None:
    known = {"id": "req-1", "path": "/v1/x", "client": "me", "began_unix": BEGAN, "bytes_in": 3}
    lost = {**known, "outcome": "lost", "total_s": 3.0}
    assert told(lost) == [
        "/v1/x from me, 3 bytes",
        "was under way when slotd ended without a word; nothing later is known",
    ]
    assert tell(types.REQUEST_FINISHED, lost) == "req-1 /v1/x: was under way when slotd ended"
    assert tell(types.REQUEST_STARTED, known) == "req-1 /v1/x from me"


def test_a_fallback_and_an_upstream() -> None:
    fallback = told(record(fallback_from="big", fallback_error="slot.load_failed"))
    assert 'routed to slot big (tier 1: an explicit binding, rule slot "chat")' in fallback
    assert "slot chat answers in the place of big, which refused (slot.load_failed)" in fallback
    upstream = told(record(target="upstream:far", tier=3, cache="fetched", wait_s=None))
    assert any(line.startswith("routed to upstream far as 'm' (tier 3") for line in upstream)
    unrouted = told(record(target="", tier=None, generation=None, first_byte_s=None, wait_s=None))
    assert len(unrouted) == 2


_odd = st.none() | st.integers() | st.text(max_size=5) | st.lists(st.text(max_size=3))
_kinds = st.sampled_from([v for k, v in vars(types).items() if k.isupper()] + ["journal.gap", "news"])


@given(
    _kinds,
    st.dictionaries(st.sampled_from(["from", "to", "why", "for", "load_s", "lines", "x" * 500]), _odd),
)
def test_words_of_odd_events_are_one_bounded_line(kind: str, data: dict[str, Any]) -> None:
    words = tell(kind, data)
    assert "\n" not in words
    assert len(words) <= MAX_CHARS + 1


def test_durations() -> None:
    assert [duration(s) for s in (0.0004, 0.012, 1.25, 210)] == ["0.4 ms", "12 ms", "1.25 s", "3.5 min"]


def test_moments() -> None:
    assert moment("10m", 1000.0) == 400.0
    assert moment("1.5h", 10_000.0) == 4600.0
    assert moment("1795413292.5", 0.0) == 1795413292.5
    assert moment("2026-01-02T03:04:05+00:00", 0.0) == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC).timestamp()
    assert moment("2026-01-02", 0.0) == datetime(2026, 1, 2).timestamp()


@given(st.text(max_size=30))
def test_no_text_is_worse_than_a_value_error(text: str) -> None:
    with suppress(ValueError):
        assert isinstance(moment(text, 0.0), float)


@pytest.mark.parametrize("text", ["", "10", "10x", "yesterday", "-5m", "1e999"])
def test_what_is_no_moment(text: str) -> None:
    with pytest.raises(ValueError, match="10m"):
        moment(text, 0.0)
