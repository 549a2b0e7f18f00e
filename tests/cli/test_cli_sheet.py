"""Tables at every width: what is shown is shown whole, and what is not is told."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slotd.cli.sheet import Column, Note, Sheet, middle_cut
from slotd.cli.tables import ESTIMATES, held_by, memory_lines, memory_table, requests_table, slot_table

FAULT = "the engine lacks something that it needs to run: " + "error while loading libfoo.so: " * 6
MODEL = "org/a-model-with-a-rather-long-name-7b-instruct-q4_k_m"


def slot(name: str, **more: Any) -> dict[str, Any]:
    plain = {
        "name": name,
        "state": "ready",
        "default": False,
        "for_s": 12.0,
        "type": "transcription",
        "model": MODEL,
        "leases": 0,
        "max_parallel": 4,
        "queued": 0,
        "ram_mb": 412,
        "gpu_mb": None,
        "pid": 1234567,
        "fault": None,
    }
    return {**plain, **more}


def held(name: str, source: str, ram_mb: int = 412) -> dict[str, Any]:
    return {"slot": name, "ram_mb": ram_mb, "gpu_mb": 0, "source": source, "up": True, "leaving": False}


def memory(*holds: dict[str, Any], **more: Any) -> dict[str, Any]:
    room = {"ram_mb": 8000, "gpu_mb": None}
    plain = {
        "budget": room,
        "reserved": {"ram_mb": 412, "gpu_mb": 0},
        "free": {"ram_mb": 9000, "gpu_mb": None},
        "reserve": {"ram_mb": 1024, "gpu_mb": 256},
        "measured_ago_s": 2.0,
        "held": list(holds),
        "waiting": [],
        "devices": [],
    }
    return {**plain, **more}


def drawn(table: Sheet, width: int) -> list[str]:
    return [line.plain for line in table.lines(width)]


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_a_fault_and_a_long_model_leave_the_table_one_line_a_slot(width: int) -> None:
    names = ["chat", "a-slot-with-a-long-name"]
    broken = slot("broken", state="error", pid=None, fault={"message": FAULT})
    lines = drawn(slot_table([*map(slot, names), broken], {}), width)
    assert [line.split()[0] for line in lines[:4]] == ["SLOT", *names, "broken"]
    assert all(len(line) <= width for line in lines)
    text = " ".join(" ".join(lines).split())
    assert text.count(MODEL) == 3, "beside its slot, or below"
    assert FAULT.strip() in text, "whole"
    assert ("not shown: " in text) == (width < 200)


def test_a_pipe_gets_every_column() -> None:
    lines = drawn(slot_table([slot("chat")], {}), 1 << 16)
    assert lines[0].split()[-1] == "PID"
    assert len(lines) == 2


def request(id: str, **more: Any) -> dict[str, Any]:
    plain = {
        "id": id,
        "began_unix": 0.0,
        "path": "/v1/audio/transcriptions",
        "model": MODEL,
        "target": "slot:chat",
        "outcome": "error",
        "error": "slot.crash_looping",
        "wait_s": 1.0,
        "first_byte_s": 2.0,
        "total_s": 3.0,
        "tokens_in": 1000,
        "tokens_out": 2000,
    }
    return {**plain, **more}


@pytest.mark.parametrize("width", [40, 60, 80, 120, 200])
def test_ids_of_requests_are_whole(width: int) -> None:
    ids = ["req-0e448ef8-123456", "req-0e448ef8-2"]
    lines = drawn(requests_table([request(ids[0]), request(ids[1], model="x" * 10_000)]), width)
    assert [line.split()[0] for line in lines[1:3]] == ids
    assert all(len(line) <= max(width, 41) for line in lines)


def test_a_request_that_was_lost_is_told_with_what_is_known() -> None:
    lost = {"id": "req-1", "path": "/v1/x", "began_unix": 0.0, "outcome": "lost", "total_s": 3.0}
    assert drawn(requests_table([lost]), 200)[1].split()[-1] == "lost"


_cells = st.text(st.characters(codec="ascii", exclude_categories=["C"]), max_size=30)


@given(st.lists(st.tuples(_cells, _cells, _cells), max_size=4), st.integers(10, 100))
def test_a_cell_is_whole_or_its_column_is_not_there(rows: list[tuple[str, str, str]], width: int) -> None:
    table = Sheet([Column("A"), Column("B", 2), Column("C", 1, "c")])
    for row in rows:
        table.add(*row)
    lines = drawn(table, width)
    for n, row in enumerate(rows, 1):
        shown = [
            " ".join(c.split()) for c, title in zip(row, "ABC", strict=True) if title in lines[0].split()
        ]
        assert lines[n].split() == " ".join(shown).split()
    assert ("B" in lines[0].split()) or " ".join(" ".join(lines).split()).endswith("not shown: B")


@given(st.text(max_size=200), st.integers(8, 60))
def test_a_note_says_all_its_words(text: str, width: int) -> None:
    words = ["".join(c if c.isprintable() else "\ufffd" for c in word) for word in text.split()]
    table = Sheet([Column("A")], notes=[Note("x", text)])
    lines = drawn(table, width)[1:]
    assert " ".join(lines).split() == ["x:", *words]
    longest = max(map(len, ["x:", *words]))
    assert all(len(line) <= max(width, longest + 4) for line in lines)


@given(st.text(max_size=60), st.integers(3, 40))
def test_a_name_without_its_middle(text: str, longest: int) -> None:
    cut = middle_cut(text, longest)
    assert len(cut) == min(len(text), longest)
    assert cut[0:1] == text[0:1]
    assert cut[-1:] == text[-1:]


# --- memory ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "shown"),
    [("estimated", "~412 MB"), ("unknown", "~412 MB"), ("measured", "390 MB"), ("configured", "412 MB")],
)
def test_an_estimate_is_marked(source: str, shown: str) -> None:
    document = memory(held("chat", source, 390))
    lines = drawn(slot_table([slot("chat")], held_by(document)), 200)
    assert f" {shown} " in lines[1]
    assert (ESTIMATES in lines) is shown.startswith("~")
    assert ("~390 MB" in drawn(memory_table(document), 80)[1]) is shown.startswith("~")


def test_the_totals_say_what_they_are() -> None:
    assert memory_lines(memory()) == [
        "budget     8000 MB  what all slots together may take up",
        "reserved    412 MB  of the budget, for slots that are loaded or loading",
        "free       9000 MB  what this machine has left (measured 2 s ago)",
        "kept free  1024 MB  of that, for other programs (memory.reserve_mb)",
    ]
    gpu = memory_lines(memory(free={"ram_mb": 9000, "gpu_mb": 4000}))
    assert "1024 MB + 256 MB GPU" in gpu[3]
    assert "not known" in memory_lines(memory(budget=None, free=None, measured_ago_s=None))[0]


def test_who_waits_and_who_has_a_device_is_told_below() -> None:
    waits = {**held("big", "estimated"), "why": "waits for 'chat' to be quiet", "for_s": 1.0}
    device = {"device": "gpu0", "owner": "draw", "phase": "committed", "losers": [], "ends_in_s": 61.0}
    lines = drawn(memory_table(memory(waiting=[waits], devices=[device])), 80)
    assert "big: waits for 'chat' to be quiet" in lines
    assert "draw: has gpu0 for itself (committed, ends in 1 min)" in lines
