"""The gateway's parts that need no server: keys, metrics, views, the table of endpoints."""

from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from slotd.capability.endpoints import ENDPOINTS, TYPES, endpoint_for
from slotd.errors import AuthForbidden, AuthRequired
from slotd.exchange.record import RequestRecord
from slotd.gateway.auth import check_key
from slotd.gateway.metrics import Metrics
from slotd.gateway.views import model_list, slot_view
from slotd.process.plan import Address
from slotd.slot.state import Fault, SlotSnapshot, SlotState

# --- keys -------------------------------------------------------------------------

KEYS = {"one": None, "two": 5}


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": "Bearer one"},
        {"authorization": "bearer  two "},
        {"x-api-key": "two"},
        {"x-api-key": "one", "authorization": "Bearer something else"},
    ],
)
def test_a_known_key_passes(headers: dict[str, str]) -> None:
    check_key(headers, KEYS)


@pytest.mark.parametrize("headers", [{}, {"authorization": "Basic one"}, {"authorization": "Bearer "}])
def test_without_a_key_one_is_asked_for(headers: dict[str, str]) -> None:
    with pytest.raises(AuthRequired):
        check_key(headers, KEYS)


@pytest.mark.parametrize("key", ["three", "on", "onee", "ONE", "\xff\xfe"])
def test_a_wrong_key_is_forbidden(key: str) -> None:
    with pytest.raises(AuthForbidden):
        check_key({"x-api-key": key}, KEYS)


def test_a_key_gives_its_priority() -> None:
    assert check_key({"x-api-key": "two"}, KEYS) == 5
    assert check_key({"x-api-key": "one"}, KEYS) is None
    assert check_key({}, {}) is None


def test_without_configured_keys_anyone_passes() -> None:
    check_key({}, {})
    check_key({"x-api-key": "whatever"}, {})


def test_a_key_beyond_ascii_matches_by_its_bytes() -> None:
    as_received = "clé".encode().decode("latin-1")
    check_key({"x-api-key": as_received}, {"clé": None})


# --- metrics -----------------------------------------------------------------------

READY = SlotSnapshot(
    "chat", "llm", "llama-cpp", SlotState.SERVING, model="m", models=("m", "m-alias"), leases=2, queued=3
)
OFF = SlotSnapshot("embed", "embedding", "command", SlotState.OFFLINE)


def samples(metrics: Metrics) -> dict[tuple[str, tuple[str, ...]], float]:
    text, kind = metrics.render()
    assert kind.startswith("text/plain")
    return {  # labels in the order of their names
        (s.name, tuple(s.labels[k] for k in sorted(s.labels))): s.value
        for family in text_string_to_metric_families(text.decode())
        for s in family.samples
    }


def test_gauges_are_the_snapshots_of_now() -> None:
    slots = {"chat": READY}
    metrics = Metrics(lambda: slots, lambda: 7)
    found = samples(metrics)
    assert found["slotd_slot_leases", ("chat",)] == 2
    assert found["slotd_slot_queued", ("chat",)] == 3
    assert found["slotd_requests_live", ()] == 7
    states = {labels[1]: v for (name, labels), v in found.items() if name == "slotd_slot_state"}
    assert set(states) == {s.value for s in SlotState}
    assert [s for s, v in states.items() if v] == ["serving"]
    slots["embed"] = OFF
    assert samples(metrics)["slotd_slot_state", ("embed", "offline")] == 1


def test_finished_requests_are_counted_by_what_became_of_them() -> None:
    metrics = Metrics(dict, lambda: 0)
    done = RequestRecord("r", "/v1/completions", "", 0.0, 0.0, target="slot chat", outcome="ok")
    done.wait_s, done.first_byte_s, done.total_s, done.tokens_in, done.tokens_out = 0.1, 0.2, 2.0, 5, 0
    metrics.count(done)
    metrics.count(done)
    lost = replace(done, target="", outcome="error", error="dispatch.no_route", tokens_in=None)
    lost.wait_s = lost.first_byte_s = None
    metrics.count(lost)
    found = samples(metrics)
    assert found["slotd_requests_total", ("ok", "/v1/completions", "slot chat")] == 2
    assert found["slotd_requests_total", ("dispatch.no_route", "/v1/completions", "none")] == 1
    assert found["slotd_tokens_total", ("in", "slot chat")] == 10
    assert ("slotd_tokens_total", ("out", "slot chat")) not in found
    assert found["slotd_wait_seconds_count", ("slot chat",)] == 2
    assert found["slotd_request_seconds_sum", ("none",)] == 2.0


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["slot:a", "slot:b"]),
            st.floats(0, 1000) | st.sampled_from([0.005, 0.1, 1.0, 600.0]),
        )
    )
)
def test_times_are_told_as_the_librarys_own_histogram_tells_them(seen: list[tuple[str, float]]) -> None:
    metrics, registry = Metrics(dict, lambda: 0), CollectorRegistry()
    buckets = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
    oracle = Histogram("slotd_request_seconds", "", ["target"], registry=registry, buckets=buckets)
    for target, seconds in seen:
        record = RequestRecord("r", "/v1/completions", "", 0.0, 0.0, target=target, total_s=seconds)
        metrics.count(record)
        oracle.labels(target).observe(seconds)

    def lines(text: bytes) -> set[str]:
        told = text.decode().splitlines()
        return {line for line in told if line.startswith("slotd_request_seconds") and "_created" not in line}

    assert lines(metrics.render()[0]) == lines(generate_latest(registry))


def test_two_slotds_in_one_process_do_not_share_their_metrics() -> None:
    Metrics(dict, lambda: 0)
    Metrics(dict, lambda: 0)


# --- views --------------------------------------------------------------------------


def test_a_model_is_listed_once_under_the_first_slot_that_serves_it() -> None:
    twin = dataclasses.replace(READY, name="twin", state=SlotState.OFFLINE, models=())
    items = model_list({"chat": READY, "twin": twin, "embed": OFF}, {"far": ("m", "gpt")}, 5)
    assert [(i["id"], i.get("slot"), i.get("upstream")) for i in items] == [
        ("m", "chat", None),
        ("m-alias", "chat", None),
        ("embed", "embed", None),  # it has no model of its own: its name stands for it
        ("gpt", None, "far"),
    ]
    assert items[0]["status"] == {"value": "loaded", "state": "serving"}
    assert items[2]["status"]["value"] == "unloaded"
    assert all(i["object"] == "model" and i["created"] == 5 for i in items)


async def test_a_slots_view_is_json_and_says_where_it_is() -> None:
    broken = dataclasses.replace(
        READY,
        state=SlotState.ERROR,
        address=Address("127.0.0.1", 80),
        leases=0,
        last_used=0.0,
        progress=(5, None),
        progress_phase="downloading",
        fault=Fault("exited", "it ended", "exit code 1", ("bye",)),
    )
    view = json.loads(json.dumps(slot_view(broken)))
    assert view["state"] == "error"
    assert view["address"] == "127.0.0.1:80"
    assert view["progress"] == {"phase": "downloading", "done_bytes": 5, "total_bytes": None}
    assert view["fault"] == {
        "message": "it ended",
        "reason": "exited",
        "exit": "exit code 1",
        "log": ["bye"],
    }
    assert view["idle_for_s"] > 0
    assert slot_view(OFF)["idle_for_s"] is None
    assert slot_view(OFF)["plan"] is None


# --- endpoints ------------------------------------------------------------------------


def test_the_golden_table_of_endpoints() -> None:
    assert {path: (e.type, e.upstream_path, e.body, e.dialect) for path, e in ENDPOINTS.items()} == {
        "/v1/chat/completions": ("llm", "/v1/chat/completions", "json", "openai"),
        "/v1/completions": ("llm", "/v1/completions", "json", "openai"),
        "/v1/responses": ("llm", "/v1/responses", "json", "openai"),
        "/v1/messages": ("llm", "/v1/messages", "json", "anthropic"),
        "/v1/messages/count_tokens": ("llm", "/v1/messages/count_tokens", "json", "anthropic"),
        "/infill": ("llm", "/infill", "json", "openai"),
        "/tokenize": ("llm", "/tokenize", "json", "openai"),
        "/detokenize": ("llm", "/detokenize", "json", "openai"),
        "/apply-template": ("llm", "/apply-template", "json", "openai"),
        "/v1/embeddings": ("embedding", "/v1/embeddings", "json", "openai"),
        "/v1/rerank": ("reranking", "/v1/rerank", "json", "openai"),
        "/v1/rerankings": ("reranking", "/v1/rerank", "json", "openai"),
        "/v1/reranking": ("reranking", "/v1/rerank", "json", "openai"),
        "/rerank": ("reranking", "/v1/rerank", "json", "openai"),
        "/reranking": ("reranking", "/v1/rerank", "json", "openai"),
        "/v1/audio/speech": ("tts", "/v1/audio/speech", "json", "openai"),
        "/v1/audio/transcriptions": ("transcription", "/v1/audio/transcriptions", "multipart", "openai"),
        "/v1/audio/translations": ("transcription", "/v1/audio/translations", "multipart", "openai"),
        "/v1/images/generations": ("image", "/v1/images/generations", "json", "openai"),
        "/v1/images/edits": ("image", "/v1/images/edits", "multipart", "openai"),
    }
    assert {e.type for e in ENDPOINTS.values()} <= set(TYPES)
    assert all(e.path == path for path, e in ENDPOINTS.items())
    assert [p for p, e in ENDPOINTS.items() if e.chat] == [p for p, e in ENDPOINTS.items() if e.type == "llm"]


def test_only_exact_paths_are_relayed() -> None:
    assert endpoint_for("/v1/embeddings") is ENDPOINTS["/v1/embeddings"]
    for path in ("/v1/embeddings/", "/v1/embedding", "/V1/embeddings", "/v1/models", ""):
        assert endpoint_for(path) is None
