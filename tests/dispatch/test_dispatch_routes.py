"""The golden table: every relayed path, every way to name a model, and where it goes."""

from __future__ import annotations

import pytest

from slotd.capability.endpoints import ENDPOINTS
from slotd.dispatch import (
    BindingEntry,
    Route,
    RouteTable,
    SlotEntry,
    SlotTarget,
    UpstreamEntry,
    UpstreamTarget,
    compile_table,
)
from slotd.dispatch.policy import SlotView, Unknown, find_close, lookup
from slotd.dispatch.state import begin
from slotd.errors import CapabilityMismatch, ModelMissing, SlotdError, UnknownUpstream

SLOTS = (
    SlotEntry("coder", "llm", "qwen"),  # before the default, which is not the default for that
    SlotEntry("chat", "llm", "smollm2", ("gpt-4o-mini",), default=True, variants=("high", "low")),
    SlotEntry("embed", "embedding", "bge", ("text-embedding-3-small",), default=True),
    SlotEntry("rank", "reranking", "bge-rerank", default=True),
    SlotEntry("stt", "transcription", "whisper", default=True),
    SlotEntry("voice", "tts", "kokoro", default=True),
    SlotEntry("img", "image", "sdxl", default=True, labels=("image",)),
    SlotEntry("paint", "image", "flux", labels=("image", "edit")),
)
DEFAULTS = {s.type: s.name for s in SLOTS if s.default}
EDITS = "/v1/images/edits"  # prefers a slot with the label "edit", which the default has not

TABLE = compile_table(
    SLOTS,
    [UpstreamEntry("lab", "http://127.0.0.1:9/v1")],
    [
        BindingEntry("qwen3:*", slot="coder"),
        BindingEntry("claude-*", upstream="lab", model="sonnet"),
        BindingEntry("lost-*", upstream="nowhere"),
        BindingEntry("gone-*", slot="nowhere"),
    ],
)

LLM, EMBED, RERANK = "llm", "embedding", "reranking"

# How a request names its model → what it must come to, by the endpoint's type:
# a target, or the code of the refusal; None = neither registry nor catalog knows it.
NAMES: dict[str | None, dict[str, str | None]] = {
    None: {t: f"slot:{s}" for t, s in DEFAULTS.items()},
    "chat": {LLM: "slot:chat"},
    "slotd/chat": {LLM: "slot:chat"},
    "smollm2": {LLM: "slot:chat"},
    "gpt-4o-mini": {LLM: "slot:chat"},
    "chat:high": {LLM: "slot:chat"},
    "slotd/chat:low": {LLM: "slot:chat"},
    "smollm2:high": {LLM: "slot:chat"},
    "gpt-4o-mini:high": {LLM: "slot:chat"},
    "flux": {"image": "slot:paint"},
    # No such variant: unknown, as any other name.
    "chat:medium": {LLM: None} | {t: f"slot:{s}" for t, s in DEFAULTS.items() if t != LLM},
    "coder:high": {LLM: None} | {t: f"slot:{s}" for t, s in DEFAULTS.items() if t != LLM},
    "qwen": {LLM: "slot:coder"},
    "qwen3:8b": {LLM: "slot:coder"},
    "embed": {EMBED: "slot:embed"},
    "slotd/embed": {EMBED: "slot:embed"},
    "bge": {EMBED: "slot:embed"},
    "text-embedding-3-small": {EMBED: "slot:embed"},
    "rank": {RERANK: "slot:rank"},
    "stt": {"transcription": "slot:stt"},
    "slotd/voice": {"tts": "slot:voice"},
    "sdxl": {"image": "slot:img"},
    "claude-3": dict.fromkeys(DEFAULTS, "upstream:lab"),
    "lost-1": dict.fromkeys(DEFAULTS, "dispatch.unknown_upstream"),
    "gone-1": dict.fromkeys(DEFAULTS, "dispatch.unknown_upstream"),
    # Unknown: a 404 in the making for chat, the type's default elsewhere.
    "kokoro-v1": {LLM: None} | {t: f"slot:{s}" for t, s in DEFAULTS.items() if t != LLM},
}
MISMATCH = "dispatch.capability_mismatch"


def outcome(table: RouteTable, model: str | None, path: str) -> str | None:
    found = lookup(begin(table, {}, 0.0).world, model, path, 0.0)
    if isinstance(found, Route):
        return str(found.target)
    return found.code if isinstance(found, SlotdError) else None


@pytest.mark.parametrize("name", NAMES, ids=str)
@pytest.mark.parametrize("path", ENDPOINTS)
def test_golden(path: str, name: str | None) -> None:
    expected = NAMES[name].get(ENDPOINTS[path].type, MISMATCH)
    if path == EDITS and expected == "slot:img" and name not in ("sdxl",):
        expected = "slot:paint"
    assert outcome(TABLE, name, path) == expected


@pytest.mark.parametrize("name", ["chat:high", "slotd/chat:high", "smollm2:high", "gpt-4o-mini:high"])
def test_a_variant_of_every_name_of_its_slot(name: str) -> None:
    found = lookup(begin(TABLE, {}, 0.0).world, name, "/v1/chat/completions", 0.0)
    assert isinstance(found, Route)
    assert (found.variant, found.rule, found.tier) == ("high", f'variant "{name}"', 1)
    assert (found.model, found.slot_model, found.asked) == ("smollm2", "smollm2", name)


def test_a_variant_that_there_is_not_suggests_those_that_there_are() -> None:
    close = find_close(begin(TABLE, {}, 0.0).world, "chat:hihg")
    assert close[0] == "chat:high"
    assert not any(name.startswith("slotd/") for name in close)


def test_a_name_with_a_colon_of_its_own_is_no_variant() -> None:
    table = compile_table(
        [
            SlotEntry("a", "llm", "qwen", variants=("7b",)),
            SlotEntry("b", "llm", "qwen:7b", variants=("x",)),
        ]
    )
    world = begin(table, {}, 0.0).world
    for name, slot, variant in (("qwen:7b", "b", ""), ("qwen:7b:x", "b", "x"), ("a:7b", "a", "7b")):
        found = lookup(world, name, "/v1/chat/completions", 0.0)
        assert isinstance(found, Route)
        assert (found.target, found.variant) == (SlotTarget(slot), variant)


def test_only_slots_that_have_the_variant_are_weighed() -> None:
    table = compile_table([SlotEntry("a", "llm", "m"), SlotEntry("b", "llm", "m", variants=("x",))])
    assert outcome(table, "m", "/v1/chat/completions") == "slot:a"
    assert outcome(table, "m:x", "/v1/chat/completions") == "slot:b"


def test_edits_go_to_a_slot_that_edits_unless_there_is_none() -> None:
    plain = SlotEntry("img", "image", default=True)
    able = SlotEntry("paint", "image", labels=("edit",))
    for model in (None, "gpt-image-1"):
        assert outcome(compile_table([plain, able]), model, EDITS) == "slot:paint"
        assert outcome(compile_table([plain]), model, EDITS) == "slot:img"
        assert outcome(compile_table([plain, able]), model, "/v1/images/generations") == "slot:img"


def test_infill_without_a_model_goes_to_a_slot_that_can_unless_there_is_none() -> None:
    plain = SlotEntry("chat", "llm", "smollm2", default=True)
    able = SlotEntry("coder", "llm", "qwen", labels=("infill",))
    both = compile_table([plain, able])
    assert outcome(both, None, "/infill") == "slot:coder"
    assert outcome(both, "chat", "/infill") == "slot:chat"
    assert outcome(both, None, "/v1/completions") == "slot:chat"
    assert outcome(both, "nobody", "/infill") is None
    assert outcome(compile_table([plain]), None, "/infill") == "slot:chat"


@pytest.mark.parametrize(
    ("path", "model", "slot", "rule"),
    [
        ("/v1/embeddings", None, "embed", "default of /v1/embeddings"),
        ("/v1/embeddings", "ada-002", "embed", "default of /v1/embeddings for any name"),
        ("/v1/rerank", "x", "rank", "default of /v1/rerank for any name"),
        ("/v1/rerankings", "x", "rank", "default of /v1/rerankings for any name"),
        ("/v1/reranking", "x", "rank", "default of /v1/reranking for any name"),
        ("/v1/audio/speech", "kokoro-v1", "voice", "default of /v1/audio/speech for any name"),
        ("/v1/audio/transcriptions", "whisper-1", "stt", "default of /v1/audio/transcriptions for any name"),
        (
            "/v1/images/generations",
            "sdxl-turbo",
            "img",
            "default of /v1/images/generations for any name",
        ),
        ("/v1/chat/completions", None, "chat", "default of /v1/chat/completions"),
        ("/v1/chat/completions", "coder", "coder", 'slot "coder"'),
        ("/v1/chat/completions", "gpt-4o-mini", "chat", 'alias "gpt-4o-mini"'),
        ("/v1/chat/completions", "smollm2", "chat", 'model "smollm2"'),
        ("/v1/chat/completions", "qwen3:8b", "coder", 'binding "qwen3:*"'),
    ],
)
def test_requests_that_must_work(path: str, model: str | None, slot: str, rule: str) -> None:
    found = lookup(begin(TABLE, {}, 0.0).world, model, path, 0.0)
    assert isinstance(found, Route)
    assert (found.target, found.tier, found.rule, found.cache) == (SlotTarget(slot), 1, rule, "none")
    assert found.asked == model
    # What the lease checks is the slot's model, whatever name the request bore.
    assert found.model == found.slot_model == TABLE.slots[slot].model


def test_every_rule_is_printed_in_the_order_in_which_it_is_tried() -> None:
    rows = TABLE.rows()
    assert [r.kind for r in rows] == sorted(
        (r.kind for r in rows), key=["slot", "model", "alias", "variant", "binding", "default"].index
    )
    assert [r.match for r in rows if r.kind == "variant"] == [
        f"{name}:{variant}"
        for name in ("chat", "slotd/chat", "smollm2", "gpt-4o-mini")
        for variant in ("high", "low")
    ]
    assert [r.match for r in rows if r.kind == "binding"] == ["qwen3:*", "claude-*", "lost-*", "gone-*"]
    named = [r.endpoint for r in rows if r.kind == "default" and r.match == "*"]
    assert named == [p for p, e in ENDPOINTS.items() if e.type != "llm"]
    assert {r.endpoint for r in rows if r.kind == "default" and r.match == ""} == set(ENDPOINTS)
    assert rows[0].as_dict() == {
        "kind": "slot",
        "match": "coder",
        "targets": ["slot:coder"],
        "model": None,
        "endpoint": None,
    }


def test_a_path_that_is_not_relayed_has_no_type_and_no_default() -> None:
    assert outcome(TABLE, "bge", "/v1/strange") == "slot:embed"
    assert outcome(TABLE, "kokoro-v1", "/v1/strange") is None
    assert outcome(TABLE, None, "/v1/strange") == "request.model_missing"


def test_no_name_goes_to_the_first_of_its_type_but_a_name_only_to_a_declared_default() -> None:
    table = compile_table([SlotEntry("a", "embedding"), SlotEntry("b", "embedding")])
    assert outcome(table, None, "/v1/embeddings") == "slot:a"
    assert outcome(table, "ada-002", "/v1/embeddings") is None
    assert outcome(table, None, "/v1/chat/completions") == "request.model_missing"


def test_missing_model_says_what_is_missing() -> None:
    found = lookup(begin(compile_table([]), {}, 0.0).world, None, "/v1/rerank", 0.0)
    assert isinstance(found, ModelMissing)
    assert "no reranking slot is configured" in found.message


def test_mismatch_says_which_slots_would_fit() -> None:
    found = lookup(begin(TABLE, {}, 0.0).world, "embed", "/v1/chat/completions", 0.0)
    assert isinstance(found, CapabilityMismatch)
    assert found.details == {
        "slot": "embed",
        "slots": ["embed"],
        "type": "embedding",
        "endpoint": "/v1/chat/completions",
        "needs": "llm",
        "fitting": ["coder", "chat"],
    }


def test_unknown_target_names_what_is_known() -> None:
    found = lookup(begin(TABLE, {}, 0.0).world, "lost-1", "/v1/embeddings", 0.0)
    assert isinstance(found, UnknownUpstream)
    assert found.details == {"binding": "lost-*", "upstream": "nowhere", "known": ["lab"]}


def test_binding_rewrites_the_name_and_keeps_it_otherwise() -> None:
    table = compile_table(
        [],
        [UpstreamEntry("lab", "http://127.0.0.1:9/v1")],
        [BindingEntry("a*", upstream="lab", model="b"), BindingEntry("*", upstream="lab")],
    )
    for asked, expected in (("abc", "b"), ("Abc", "Abc"), ("x/y:z\n", "x/y:z\n")):
        found = lookup(begin(table, {}, 0.0).world, asked, "/v1/chat/completions", 0.0)
        assert isinstance(found, Route)
        assert (found.target, found.model) == (UpstreamTarget("lab"), expected)


def test_a_binding_needs_exactly_one_target() -> None:
    with pytest.raises(ValueError, match="either a slot or an upstream"):
        BindingEntry("*")
    with pytest.raises(ValueError, match="either a slot or an upstream"):
        BindingEntry("*", slot="a", upstream="b")


# --- several slots for one name -----------------------------------------------


def view(name: str, rank: int, model: str = "m", *, models: tuple[str, ...] = ()) -> SlotView:
    return SlotView(name, rank, "test", model, models, 7)


def choose(*views: SlotView, model: str = "m", path: str = "/v1/chat/completions") -> str | None:
    from slotd.dispatch.machine import step
    from slotd.dispatch.messages import SlotsChanged

    table = compile_table([SlotEntry(v.name, "embedding" if v.name == "e" else "llm", "m") for v in views])
    state, _ = step(begin(table, {}, 0.0), SlotsChanged({v.name: v for v in views}), 0.0)
    found = lookup(state.world, model, path, 0.0)
    return str(found.target) if isinstance(found, Route) else getattr(found, "code", None)


def test_a_slot_that_can_answer_beats_loading_beats_off_beats_error() -> None:
    assert choose(view("a", 3), view("b", 2), view("c", 1), view("d", 0)) == "slot:d"
    assert choose(view("a", 3), view("b", 2), view("c", 1)) == "slot:c"
    assert choose(view("a", 3), view("b", 2)) == "slot:b"
    assert choose(view("a", 3)) == "slot:a"


def test_equals_go_by_declared_order() -> None:
    assert choose(view("b", 0), view("a", 0)) == "slot:b"


def test_only_slots_that_fit_the_endpoint_are_weighed() -> None:
    assert choose(view("e", 0), view("a", 3)) == "slot:a"
    assert choose(view("e", 3), view("a", 0), path="/v1/embeddings") == "slot:e"
    assert choose(view("e", 0)) == MISMATCH


def test_a_swapped_slot_answers_to_its_new_model_and_no_longer_to_the_old_one() -> None:
    swapped = view("a", 0, "n", models=("n",))
    assert choose(swapped, model="n") == "slot:a"
    assert choose(swapped, model="m") is None
    assert choose(swapped, view("b", 3), model="m") == "slot:b"


def test_what_a_running_engine_lists_is_tier_2_and_carries_its_generation() -> None:
    from slotd.dispatch.machine import step
    from slotd.dispatch.messages import SlotsChanged

    table = compile_table([SlotEntry("a", "llm", "m"), SlotEntry("e", "embedding", "n")])
    views = {"a": view("a", 0, models=("extra",)), "e": view("e", 0, "n", models=("vec",))}
    state, _ = step(begin(table, {}, 0.0), SlotsChanged(views), 0.0)
    found = lookup(state.world, "extra", "/v1/chat/completions", 0.0)
    assert isinstance(found, Route)
    assert (found.tier, found.target, found.model) == (2, SlotTarget("a"), "extra")
    assert (found.slot_model, found.generation, found.cache) == ("m", 7, "warm")
    assert isinstance(lookup(state.world, "vec", "/v1/chat/completions", 0.0), CapabilityMismatch)
    off, _ = step(state, SlotsChanged({"a": view("a", 2)}), 0.0)
    assert isinstance(lookup(off.world, "extra", "/v1/chat/completions", 0.0), Unknown)
